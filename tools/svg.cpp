// SPDX-License-Identifier: Apache-2.0
#include "svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

namespace quarry::tools {
namespace {

std::string escape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      // XML forbids most control characters, and a file name need not be UTF-8.
      default:
        out.push_back(c >= 0x20 && c < 0x7f ? c : '?');
    }
  }
  return out;
}

const char* name(Anchor anchor) {
  switch (anchor) {
    case Anchor::start:
      return "start";
    case Anchor::middle:
      return "middle";
    case Anchor::end:
      return "end";
  }
  return "start";
}

std::string dash_attribute(std::string_view dash) {
  return dash.empty() ? std::string() : fmt::format(" stroke-dasharray=\"{}\"", dash);
}

}  // namespace

double Axis::clamped(double value) const { return at(std::clamp(value, low, high)); }

std::string tick_label(double value) {
  std::string text = fmt::format("{:.10g}", std::abs(value) < 1e-12 ? 0.0 : value);
  // Thousands apart: 8 192.
  if (std::abs(value) >= 10000 && text.find_first_of(".e") == std::string::npos) {
    for (auto at = static_cast<std::ptrdiff_t>(text.size()) - 3; at > 0; at -= 3) {
      text.insert(static_cast<std::size_t>(at), 1, ' ');
    }
  }
  return text;
}

std::vector<double> ticks(double low, double high, int most) {
  const double rough = (high - low) / std::max(1, most - 1);
  const double power = std::pow(10, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= rough) {
      step = factor * power;
      break;
    }
  }
  std::vector<double> out;
  for (double i = std::ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; ++i) {
    out.push_back(i * step);
  }
  return out;
}

std::string density_colour(double fraction) {
  constexpr double kStops[][3] = {{238, 246, 240}, {186, 228, 188}, {123, 204, 196},
                                  {67, 162, 202},  {8, 104, 172},   {8, 40, 90}};
  constexpr int kSpans = static_cast<int>(std::size(kStops)) - 1;
  const double at = std::clamp(fraction, 0.0, 1.0) * kSpans;
  const int span = std::min(static_cast<int>(at), kSpans - 1);
  int rgb[3];
  for (int i = 0; i < 3; ++i) {
    const double low = kStops[span][i], high = kStops[span + 1][i];
    rgb[i] = static_cast<int>(std::lround(low + (high - low) * (at - span)));
  }
  return fmt::format("#{:02x}{:02x}{:02x}", rgb[0], rgb[1], rgb[2]);
}

Svg::Svg(double width, double height) : width_(width), height_(height) {
  rect(0, 0, width, height, "#ffffff");
}

void Svg::text(double x, double y, std::string_view content, double size, std::string_view colour,
               Anchor anchor, bool bold) {
  fmt::format_to(std::back_inserter(body_),
                 "<text x=\"{:.1f}\" y=\"{:.1f}\" font-size=\"{:g}\" fill=\"{}\" "
                 "text-anchor=\"{}\"{}>{}</text>\n",
                 x, y, size, colour, name(anchor), bold ? " font-weight=\"bold\"" : "",
                 escape(content));
}

void Svg::vertical_text(double x, double y, std::string_view content, double size,
                        std::string_view colour) {
  fmt::format_to(std::back_inserter(body_),
                 "<text transform=\"translate({:.1f} {:.1f}) rotate(-90)\" font-size=\"{:g}\" "
                 "fill=\"{}\" text-anchor=\"middle\">{}</text>\n",
                 x, y, size, colour, escape(content));
}

void Svg::rect(double x, double y, double width, double height, std::string_view fill,
               double opacity) {
  fmt::format_to(std::back_inserter(body_),
                 "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" "
                 "fill=\"{}\" fill-opacity=\"{:g}\"/>\n",
                 x, y, width, height, fill, opacity);
}

void Svg::line(double x1, double y1, double x2, double y2, std::string_view colour, double width,
               std::string_view dash) {
  fmt::format_to(std::back_inserter(body_),
                 "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\" "
                 "stroke-width=\"{:g}\"{}/>\n",
                 x1, y1, x2, y2, colour, width, dash_attribute(dash));
}

void Svg::polyline(const Points& points, std::string_view colour, double width,
                   std::string_view dash) {
  if (points.empty()) return;
  body_ += "<polyline points=\"";
  for (const auto& [x, y] : points) {
    fmt::format_to(std::back_inserter(body_), "{:.1f},{:.1f} ", x, y);
  }
  fmt::format_to(std::back_inserter(body_),
                 "\" fill=\"none\" stroke=\"{}\" stroke-width=\"{:g}\" "
                 "stroke-linejoin=\"round\"{}/>\n",
                 colour, width, dash_attribute(dash));
}

void Svg::dots(const Points& points, std::string_view colour, double radius, double opacity) {
  if (points.empty()) return;
  // Zero-length round strokes are dots.
  body_ += "<path d=\"";
  for (const auto& [x, y] : points) {
    fmt::format_to(std::back_inserter(body_), "M{:.1f} {:.1f}h0", x, y);
  }
  fmt::format_to(std::back_inserter(body_),
                 "\" stroke=\"{}\" stroke-width=\"{:g}\" stroke-linecap=\"round\" "
                 "stroke-opacity=\"{:g}\"/>\n",
                 colour, 2 * radius, opacity);
}

void Svg::cells(const Points& corners, double width, double height, std::string_view fill) {
  if (corners.empty()) return;
  body_ += "<path d=\"";
  for (const auto& [x, y] : corners) {
    fmt::format_to(std::back_inserter(body_), "M{:.1f} {:.1f}h{:.2f}v{:.2f}h{:.2f}z", x, y, width,
                   height, -width);
  }
  fmt::format_to(std::back_inserter(body_), "\" fill=\"{}\" shape-rendering=\"crispEdges\"/>\n",
                 fill);
}

std::string Svg::finish() const {
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:g}\" height=\"{1:g}\" "
      "viewBox=\"0 0 {0:g} {1:g}\" "
      "font-family=\"Inter, Helvetica, Arial, 'DejaVu Sans', sans-serif\">\n{2}</svg>\n",
      width_, height_, body_);
}

}  // namespace quarry::tools
