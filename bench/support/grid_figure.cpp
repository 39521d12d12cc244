// SPDX-License-Identifier: Apache-2.0
#include "support/grid_figure.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "error.h"
#include "svg.h"

namespace quarry::bench {
namespace {

using nlohmann::json;
using tools::Anchor;
using tools::Axis;
using tools::BadInput;
using tools::printable;
using tools::Svg;

constexpr double kWidth = 1100, kLeft = 84, kRight = 850, kTop = 96, kBottom = 600;
constexpr const char* kInk = "#22303c";
constexpr const char* kFaint = "#6b7a88";
constexpr const char* kGrid = "#e3e8ec";
constexpr const char* kPalette[] = {"#2e86ab", "#d1495b", "#6a4c93", "#3a7d44",
                                    "#c98a1b", "#5f6f7c", "#0b4f6c", "#a23b72"};

// Of the names that bench_grid gives.
constexpr std::string_view kPrefix = "grid/", kSuffix = "/manual_time", kEmpty = "empty_graph/cuda";

std::string text_of(const json& object, const char* key) {
  const auto at = object.find(key);
  return at != object.end() && at->is_string() ? at->get<std::string>() : std::string();
}

/// Where a benchmark stands in the figures: grid/AXIS/VALUE/LINE.
struct Place {
  std::string axis, line;
  double value = 0;
};

/// False for a benchmark of no figure.
bool parse_place(const std::string& file, std::string_view run, Place* place) {
  if (run.substr(0, kPrefix.size()) != kPrefix) return false;
  std::string_view rest = run.substr(kPrefix.size());
  const auto part = [&] {
    const std::string_view out = rest.substr(0, rest.find('/'));
    rest.remove_prefix(std::min(out.size() + 1, rest.size()));
    return out;
  };
  place->axis = part();
  if (place->axis != "n" && place->axis != "rows") return false;
  const std::string_view digits = part();
  std::int64_t value = 0;
  const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || stop != digits.data() + digits.size() || value <= 0 || rest.empty()) {
    throw BadInput(fmt::format("{}: benchmark '{}' is not named grid/{}/POSITIVE INTEGER/LINE",
                               printable(file), printable(run), place->axis));
  }
  place->value = static_cast<double>(value);
  place->line = printable(rest);
  return true;
}

double median_us(const std::string& file, const std::string& run, const json& benchmark) {
  const auto at = benchmark.find("median_us");
  const double us = at != benchmark.end() && at->is_number() ? at->get<double>() : 0;
  if (!(us > 0) || !std::isfinite(us)) {
    throw BadInput(fmt::format("{}: benchmark '{}' has no positive number 'median_us'",
                               printable(file), printable(run)));
  }
  return us;
}

double middle(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// 4096 as 4K, as n is spoken of.
std::string binary(double value) {
  const auto whole = static_cast<std::int64_t>(value);
  if (whole % (1 << 20) == 0) return fmt::format("{}M", whole >> 20);
  if (whole % (1 << 10) == 0) return fmt::format("{}K", whole >> 10);
  return std::to_string(whole);
}

/// What is drawn: medians of the repetitions.
struct Curve {
  std::string name;
  Svg::Points points;  ///< value, microseconds
  const char* colour;
  const char* dash;
};

std::vector<Curve> curves_of(const GridResults& results, const std::string& axis) {
  std::vector<Curve> curves;
  double low = 0, high = 0;
  if (const auto at = results.axes.find(axis); at != results.axes.end()) {
    for (const auto& [name, line] : at->second) {
      const char* dash = name.rfind("floor/", 0) == 0 ? "7 4" : "";
      curves.push_back({name, {}, kPalette[curves.size() % std::size(kPalette)], dash});
      for (const auto& [value, times] : line) {
        curves.back().points.emplace_back(value, middle(times));
        low = low == 0 ? value : std::min(low, value);
        high = std::max(high, value);
      }
    }
  }
  if (curves.empty()) {
    throw BadInput(fmt::format("no benchmark grid/{}/... was measured", axis));
  }
  if (!results.empty_graph.empty()) {
    const double us = middle(results.empty_graph);
    curves.push_back({"empty graph/cuda", {{low, us}, {high, us}}, kFaint, "2 4"});
  }
  return curves;
}

/// Decades, and within few of them the values between.
void draw_times(Svg& svg, const Axis& y) {
  const bool fine = y.high - y.low <= 3;
  for (double decade = y.low; decade <= y.high; ++decade) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      const double at = decade + std::log10(factor);
      if (at > y.high || (factor > 1 && !fine)) continue;
      svg.line(kLeft, y.at(at), kRight, y.at(at), kGrid, 1);
      svg.text(kLeft - 8, y.at(at) + 4, tools::tick_label(factor * std::pow(10, decade)), 12,
               kFaint, Anchor::end);
    }
  }
}

void draw_values(Svg& svg, const Axis& x, const std::set<double>& values, bool positions) {
  for (const double value : values) {
    const double at = x.at(std::log2(value));
    svg.line(at, kBottom, at, kBottom + 5, kFaint, 1);
    svg.text(at, kBottom + 20, positions ? binary(value) : tools::tick_label(value), 12, kFaint,
             Anchor::middle);
  }
  svg.line(kLeft, kBottom, kRight, kBottom, kFaint, 1);
}

void draw_curve(Svg& svg, const Axis& x, const Axis& y, const Curve& curve, std::size_t index) {
  Svg::Points points;
  for (const auto& [value, us] : curve.points) {
    points.emplace_back(x.at(std::log2(value)), y.at(std::log10(us)));
  }
  svg.polyline(points, curve.colour, 2, curve.dash);
  if (curve.colour != kFaint) svg.dots(points, curve.colour, 3.5, 1);
  const double key = kTop + 10 + 22 * static_cast<double>(index);
  svg.line(kRight + 20, key, kRight + 48, key, curve.colour, 2, curve.dash);
  svg.text(kRight + 56, key + 4, curve.name, 13, kInk);
}

}  // namespace

void read_grid(const std::string& name, const std::string& text, GridResults* results) {
  const json root = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (root.is_discarded()) throw BadInput(printable(name) + ": is not JSON");
  const auto list = root.is_object() ? root.find("benchmarks") : root.end();
  if (!root.is_object() || list == root.end() || !list->is_array()) {
    throw BadInput(printable(name) + ": has no array 'benchmarks', as Google Benchmark's JSON has");
  }
  if (const auto context = root.find("context"); context != root.end()) {
    const std::string base = printable(text_of(*context, "grid_base"));
    if (!base.empty() && !results->base.empty() && base != results->base) {
      throw BadInput(printable(name) + ": its base '" + base + "' is not that of the files before");
    }
    if (!base.empty()) results->base = base;
  }
  bool any = false;
  for (const json& benchmark : *list) {
    std::string run = text_of(benchmark, "run_name");
    if (run.empty()) throw BadInput(printable(name) + ": a benchmark has no text 'run_name'");
    if (text_of(benchmark, "run_type") == "aggregate") continue;
    if (const auto end = run.rfind(kSuffix);
        end != std::string::npos && end + kSuffix.size() == run.size()) {
      run.resize(end);
    }
    Place place;
    const bool empty = run == kEmpty;
    if (!empty && !parse_place(name, run, &place)) continue;
    any = true;
    if (benchmark.contains("error_message")) {
      if (empty) continue;
      results->missing[place.axis].push_back(
          fmt::format("{} at {} = {:.0f}: {}", place.line, place.axis, place.value,
                      printable(text_of(benchmark, "error_message"))));
      continue;
    }
    auto& times = empty ? results->empty_graph : results->axes[place.axis][place.line][place.value];
    times.push_back(median_us(name, run, benchmark));
  }
  if (!any) throw BadInput(printable(name) + ": holds no benchmark grid/n/... or grid/rows/...");
}

std::string draw_grid(const GridResults& results, const std::string& axis,
                      const std::string& note) {
  const std::vector<Curve> curves = curves_of(results, axis);
  std::set<double> values, times;
  for (const Curve& curve : curves) {
    for (const auto& [value, us] : curve.points) {
      values.insert(value);
      times.insert(std::log10(us));
    }
  }
  // One value alone stands in the middle; times between whole decades, at least one.
  const double margin = values.size() == 1 ? 1 : 0.15;
  const Axis x{std::log2(*values.begin()) - margin, std::log2(*values.rbegin()) + margin, kLeft,
               kRight};
  const double low = std::floor(*times.begin());
  const Axis y{low, std::max(std::ceil(*times.rbegin()), low + 1), kBottom, kTop};

  std::vector<std::string> missing;
  if (const auto at = results.missing.find(axis); at != results.missing.end()) missing = at->second;
  const double line = 17;
  Svg svg(kWidth, kBottom + 72 + line * static_cast<double>(missing.size()));
  const bool positions = axis == "n";
  svg.text(kLeft, 36, positions ? "next() against positions n" : "next() against rows", 20, kInk,
           Anchor::start, true);
  svg.text(kLeft, 58, results.base.empty() ? note : "Otherwise " + results.base, 13, kFaint);
  if (!results.base.empty()) svg.text(kLeft, 76, note, 13, kFaint);
  draw_times(svg, y);
  draw_values(svg, x, values, positions);
  svg.vertical_text(kLeft - 58, (kTop + kBottom) / 2, "median time of a call (us)", 13, kFaint);
  svg.text((kLeft + kRight) / 2, kBottom + 44,
           positions ? "n (positions of a sequence)" : "rows (sequences x query heads)", 13, kFaint,
           Anchor::middle);
  for (std::size_t i = 0; i < curves.size(); ++i) draw_curve(svg, x, y, curves[i], i);
  for (std::size_t i = 0; i < missing.size(); ++i) {
    svg.text(kLeft, kBottom + 66 + line * static_cast<double>(i), missing[i], 11, kFaint);
  }
  return svg.finish();
}

}  // namespace quarry::bench
