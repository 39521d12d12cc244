// SPDX-License-Identifier: Apache-2.0
#include "plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "svg.h"

namespace quarry::tools {
namespace {

constexpr double kWidth = 1180, kHeight = 1046;
constexpr double kLeft = 84, kRight = 980;  // of the panels; labels of lines stand right of it
constexpr const char* kInk = "#22303c";
constexpr const char* kFaint = "#6b7a88";
constexpr const char* kGrid = "#e3e8ec";
constexpr const char* kRecall = "#d1495b";
constexpr const char* kMass = "#2e86ab";
constexpr const char* kExact = "#22303c";
constexpr const char* kLatency = "#6a4c93";

struct Panel {
  Svg& svg;
  Axis x, y;

  void frame(std::string_view title, std::string_view x_title, std::string_view y_title,
             bool linear = true) const {
    svg.text(x.from, y.to - 14, title, 15, kInk, Anchor::start, true);
    for (const double value : linear ? ticks(y.low, y.high, 6) : std::vector<double>()) {
      svg.line(x.from, y.at(value), x.to, y.at(value), kGrid, 1);
      svg.text(x.from - 8, y.at(value) + 4, tick_label(value), 12, kFaint, Anchor::end);
    }
    const int most = static_cast<int>((x.to - x.from) / 70);
    for (const double value : ticks(x.low, x.high, most)) {
      if (value != std::round(value)) continue;  // no position lies between two
      svg.line(x.at(value), y.from, x.at(value), y.from + 5, kFaint, 1);
      svg.text(x.at(value), y.from + 19, tick_label(value), 12, kFaint, Anchor::middle);
    }
    svg.line(x.from, y.from, x.to, y.from, kFaint, 1);
    if (!x_title.empty()) {
      svg.text((x.from + x.to) / 2, y.from + 38, x_title, 12, kFaint, Anchor::middle);
    }
    if (!y_title.empty()) svg.vertical_text(x.from - 58, (y.from + y.to) / 2, y_title, 12, kFaint);
  }

  void note(std::string_view content) const {
    svg.text((x.from + x.to) / 2, (y.from + y.to) / 2, content, 14, kFaint, Anchor::middle);
  }
};

/// A name beside the right end of a line.
struct Label {
  double y;
  std::string text;
  const char* colour;
};

/// Labels keep their order and stand at least a line apart.
void draw_labels(Svg& svg, std::vector<Label> labels, double top) {
  std::sort(labels.begin(), labels.end(), [](const Label& a, const Label& b) { return a.y < b.y; });
  double at = top;
  for (const Label& label : labels) {
    at = std::max(at, label.y + 4);
    svg.text(kRight + 10, at, label.text, 12, label.colour, Anchor::start, true);
    at += 16;
  }
}

/// Mean over a centred window of the points that have a value.
Svg::Points smooth(const Panel& panel, const std::vector<QueryPoint>& points,
                   double QueryPoint::*field) {
  const auto count = static_cast<std::ptrdiff_t>(points.size());
  const std::ptrdiff_t reach = count / 50;
  Svg::Points out;
  for (std::ptrdiff_t i = 0; i < count; ++i) {
    double sum = 0;
    int used = 0;
    for (auto j = std::max<std::ptrdiff_t>(0, i - reach); j <= std::min(count - 1, i + reach);
         ++j) {
      const double value = points[static_cast<std::size_t>(j)].*field;
      if (!std::isfinite(value)) continue;
      sum += value;
      ++used;
    }
    const QueryPoint& point = points[static_cast<std::size_t>(i)];
    if (used == 0 || !std::isfinite(point.*field)) continue;
    out.emplace_back(panel.x.at(point.n), panel.y.clamped(sum / used));
  }
  return out;
}

Svg::Points scatter(const Panel& panel, const std::vector<QueryPoint>& points,
                    double QueryPoint::*field) {
  Svg::Points out;
  for (const QueryPoint& point : points) {
    if (!std::isfinite(point.*field)) continue;
    out.emplace_back(panel.x.at(point.n), panel.y.clamped(point.*field));
  }
  return out;
}

void draw_quality(Svg& svg, const Axis& x, const Report& report) {
  const Panel panel{svg, x, {0, 1, 346, 140}};
  panel.frame("Quality along the decode (mean over query heads)", "", "fraction");
  if (report.sparse_rows == 0) {
    panel.note("every list was dense");
    return;
  }
  std::vector<Label> labels;
  const auto draw = [&](double QueryPoint::*field, const char* name, const char* colour,
                        double mean, bool exact) {
    const Svg::Points points = smooth(panel, report.points, field);
    if (!exact) svg.dots(scatter(panel, report.points, field), colour, 1.3, 0.35);
    svg.polyline(points, colour, exact ? 1.5 : 2.5, exact ? "6 4" : "");
    if (points.size() == 1) svg.dots(points, colour, 4, 1);
    labels.push_back({points.empty() ? panel.y.at(mean) : points.back().second,
                      fmt::format("{} {:.3f}", name, mean), colour});
  };
  svg.line(x.from, panel.y.at(1), x.to, panel.y.at(1), kExact, 1.5, "6 4");
  labels.push_back({panel.y.at(1), "exact top-K: recall 1", kExact});
  draw(&QueryPoint::oracle_mass, "exact top-K: mass", kFaint, report.quality.oracle_mass, true);
  draw(&QueryPoint::mass, "index: mass", kMass, report.quality.mass, false);
  draw(&QueryPoint::recall, "index: recall", kRecall, report.quality.recall, false);
  draw_labels(svg, labels, panel.y.to);
}

// Latencies are drawn as logarithms: a step that the system held up is a thousand times
// slower than the others and would press them flat.
double log_us(double us) { return std::log10(std::max(us, 1e-3)); }

std::string duration(double us) {
  if (us >= 999.5) return fmt::format("{:.3g} ms", us / 1000);
  return fmt::format("{:.3g} us", us);
}

/// 1, 2 and 5 times each power of ten, or the powers alone where those are many.
void draw_latency_grid(const Panel& panel) {
  const bool powers_alone = panel.y.high - panel.y.low > 2.5;
  for (int power = -3; power <= 9; ++power) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      if (powers_alone && factor != 1.0) continue;
      const double us = factor * std::pow(10.0, power), value = log_us(us);
      if (value < panel.y.low || value > panel.y.high) continue;
      const double y = panel.y.at(value);
      panel.svg.line(panel.x.from, y, panel.x.to, y, kGrid, 1);
      panel.svg.text(panel.x.from - 8, y + 4, duration(us), 12, kFaint, Anchor::end);
    }
  }
}

void draw_latency(Svg& svg, const Axis& x, const Report& report) {
  std::vector<QueryPoint> points = report.points;
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (QueryPoint& point : points) {
    point.next_us = log_us(point.next_us);
    low = std::min(low, point.next_us);
    high = std::max(high, point.next_us);
  }
  // At least a decade, so that jitter looks like jitter.
  const double middle = (low + high) / 2, reach = std::max(0.5, (high - low) / 2 + 0.08);
  const Panel panel{svg, x, {middle - reach, middle + reach, 544, 414}};
  draw_latency_grid(panel);
  panel.frame("Latency of next() (logarithmic)", "positions in the cache", "", false);
  svg.dots(scatter(panel, points, &QueryPoint::next_us), kLatency, 1.6, 0.5);
  std::vector<Label> labels;
  const auto draw = [&](double us, const char* what, const char* dash) {
    const double y = panel.y.clamped(log_us(us));
    svg.line(x.from, y, x.to, y, kLatency, 1.5, dash);
    labels.push_back({y, fmt::format("{} {}", what, duration(us)), kLatency});
  };
  draw(report.next_us_p99, "p99", "2 4");
  draw(report.next_us_p50, "p50", "8 4");
  draw_labels(svg, labels, panel.y.to);
}

/// Which share of (list, position) pairs of a cell was listed.
class Density {
 public:
  Density(double low, double high, double positions, int columns, int rows)
      : low_(low),
        span_(high - low),
        bin_(positions / rows),
        columns_(columns),
        rows_(rows),
        listed_(cells()),
        possible_(cells()) {}

  int columns() const { return columns_; }
  int rows() const { return rows_; }

  /// Lists `list` of a query that saw n positions.
  void add(std::int32_t n, std::span<const std::int32_t> list) {
    const int column = std::clamp(static_cast<int>((n - low_) / span_ * columns_), 0, columns_ - 1);
    for (const std::int32_t p : list) listed_[at(column, row_of(p))] += 1;
    for (int row = 0; row < rows_; ++row) {
      const double begin = std::ceil(row * bin_);
      possible_[at(column, row)] +=
          std::max(0.0, std::min(std::ceil((row + 1) * bin_), static_cast<double>(n)) - begin);
    }
  }

  /// NaN where there was nothing to list.
  double share(int column, int row) const {
    const double possible = possible_[at(column, row)];
    return possible == 0 ? std::numeric_limits<double>::quiet_NaN()
                         : listed_[at(column, row)] / possible;
  }

 private:
  std::size_t cells() const {
    return static_cast<std::size_t>(columns_) * static_cast<std::size_t>(rows_);
  }
  std::size_t at(int column, int row) const {
    return static_cast<std::size_t>(row) * static_cast<std::size_t>(columns_) +
           static_cast<std::size_t>(column);
  }
  int row_of(std::int32_t p) const {
    int row = std::clamp(static_cast<int>(p / bin_), 0, rows_ - 1);
    if (std::ceil((row + 1) * bin_) <= p && row + 1 < rows_) ++row;
    return row;
  }

  double low_, span_, bin_;
  int columns_, rows_;
  std::vector<double> listed_, possible_;
};

// Shares span three orders of magnitude: a logarithmic scale in a few steps.
constexpr int kLevels = 24;
constexpr double kLeastShare = 0.002;

double level(double share) {
  if (share < kLeastShare) return 0;
  return 1 - std::log(std::min(share, 1.0)) / std::log(kLeastShare);
}

void draw_density(const Panel& panel, const Density& density) {
  const double width = (panel.x.to - panel.x.from) / density.columns();
  const double height = (panel.y.from - panel.y.to) / density.rows();
  std::vector<Svg::Points> cells(kLevels + 1);
  for (int column = 0; column < density.columns(); ++column) {
    for (int row = 0; row < density.rows(); ++row) {
      const double share = density.share(column, row);
      if (std::isnan(share)) continue;
      const auto step = static_cast<std::size_t>(std::lround(level(share) * kLevels));
      cells[step].emplace_back(panel.x.from + column * width, panel.y.from - (row + 1) * height);
    }
  }
  for (std::size_t step = 0; step < cells.size(); ++step) {
    panel.svg.cells(cells[step], width, height,
                    density_colour(static_cast<double>(step) / kLevels));
  }
}

void draw_density_key(Svg& svg, double x, double top, double bottom) {
  const double height = (bottom - top) / kLevels;
  for (int step = 0; step < kLevels; ++step) {
    svg.rect(x, bottom - (step + 1) * height, 16, height + 0.5,
             density_colour((step + 0.5) / kLevels));
  }
  for (const double share : {0.002, 0.01, 0.05, 0.2, 1.0}) {
    const double y = bottom - level(share) * (bottom - top);
    svg.text(x + 22, y + 4, fmt::format("{:g} %", share * 100), 12, kFaint);
  }
  svg.text(x, top - 32, "share of lists", 12, kFaint);
  svg.text(x, top - 17, "with the position", 12, kFaint);
}

void draw_lists(Svg& svg, const Axis& x, const Trace& trace, const ReplayResult& result,
                const Report& report) {
  constexpr double kTop = 650, kBottom = 970, kGap = 44;
  const double middle = (kLeft + kRight) / 2;
  const Axis y{0, static_cast<double>(trace.q_pos.back() + 1), kBottom, kTop};
  const Panel left{svg, {x.low, x.high, kLeft, middle - kGap / 2}, y};
  const Panel right{svg, {x.low, x.high, middle + kGap / 2, kRight}, y};
  left.frame("Positions listed by the index", "positions in the cache", "listed position");
  right.frame("Positions that the exact top-K would list", "positions in the cache", "");

  const int columns = std::clamp(trace.queries, 1, 106);
  constexpr int kRows = 80;
  Density listed(x.low, x.high, y.high, columns, kRows), exact = listed;
  const auto k = static_cast<std::size_t>(result.config.heavy_size);
  std::vector<std::int32_t> list;
  for (std::int32_t t = 0; t < trace.queries; ++t) {
    const auto at = static_cast<std::size_t>(t);
    const std::int32_t n = trace.q_pos[at] + 1;
    for (std::int32_t r = 0; r < result.rows; ++r) {
      const std::size_t row =
          at * static_cast<std::size_t>(result.rows) + static_cast<std::size_t>(r);
      listed.add(n, {result.indices.data() + row * static_cast<std::size_t>(result.max_list),
                     static_cast<std::size_t>(result.lens[row])});
    }
    for (std::int32_t h = 0; h < trace.hq; ++h) {
      list.clear();
      const std::size_t row = at * static_cast<std::size_t>(trace.hq) + static_cast<std::size_t>(h);
      const std::int32_t sink = n > result.dense_limit ? result.config.sink_size : n;
      for (std::int32_t p = 0; p < sink; ++p) list.push_back(p);
      if (n > result.dense_limit) {
        for (std::size_t i = 0; i < k && report.exact_heavy[row * k + i] >= 0; ++i) {
          list.push_back(report.exact_heavy[row * k + i]);
        }
        for (std::int32_t p = n - result.config.window_size; p < n; ++p) list.push_back(p);
      }
      exact.add(n, list);
    }
  }
  draw_density(left, listed);
  draw_density(right, exact);
  draw_density_key(svg, kRight + 14, kTop + 40, kBottom);
}

}  // namespace

std::string plot(const Trace& trace, const ReplayResult& result, const Report& report,
                 const Setting& setting) {
  Svg svg(kWidth, kHeight);
  const auto slash = setting.trace.find_last_of('/');
  const std::string name =
      slash == std::string::npos ? setting.trace : setting.trace.substr(slash + 1);
  svg.text(kLeft, 36, "quarry-replay: " + name, 20, kInk, Anchor::start, true);
  svg.text(kLeft, 60, fmt::format("{} | codebook {}", describe(result.config), setting.codebook),
           13, kInk);
  svg.text(kLeft, 79,
           fmt::format("{} query heads, {} KV heads, d={} | prefill {}, {} quer{} | {}, {} | "
                       "{:g} index bytes a key and KV head",
                       trace.hq, trace.hkv, trace.d, result.prefill, trace.queries,
                       trace.queries == 1 ? "y" : "ies", setting.device,
                       to_string(result.config.algorithm), report.index_bytes_per_key),
           13, kFaint);

  double low = trace.q_pos.front() + 1, high = trace.q_pos.back() + 1;
  if (high - low < 1) {
    low -= 1;
    high += 1;
  }
  const Axis x{low, high, kLeft, kRight};
  draw_quality(svg, x, report);
  draw_latency(svg, x, report);
  draw_lists(svg, x, trace, result, report);
  svg.text(kLeft, kHeight - 14,
           "Lines are running means, dots single queries. Exact top-K: float64 q.k among the same "
           "candidates, the same K.",
           11, kFaint);
  return svg.finish();
}

}  // namespace quarry::tools
