// SPDX-License-Identifier: Apache-2.0
//
// A sweep as a table, as JSON and as two pictures.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>

#include "svg.h"
#include "sweep.h"

namespace quarry::tools {
namespace {

constexpr const char* kInk = "#22303c";
constexpr const char* kFaint = "#6b7a88";
constexpr const char* kGrid = "#e3e8ec";

nlohmann::ordered_json number(double value) {
  if (!std::isfinite(value)) return nullptr;
  return value;
}

std::string fraction(double value) {
  return std::isfinite(value) ? fmt::format("{:.3f}", value) : "-";
}

const char* codebook(const SweepPoint& p) {
  if (p.calibrated) return p.config.rotation ? "calibrated" : "calibrated-";
  return p.config.rotation ? "prompt+" : "prompt";
}

const char* colour(const SweepPoint& p) {
  switch (p.config.refine_factor) {
    case 1:
      return "#d1495b";
    case 2:
      return "#2e86ab";
    default:
      return "#6a4c93";
  }
}

std::string file_name(const std::string& path) {
  const auto slash = path.find_last_of('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

std::string threads(const Setting& setting) {
  return fmt::format("{} thread{}", setting.threads, setting.threads == 1 ? "" : "s");
}

/// Recall against a cost, given in the axis' own values.
class Picture {
 public:
  Picture(const SweepResult& result, const Setting& setting, const std::string& title,
          std::function<double(const SweepPoint&)> cost, bool SweepPoint::*best)
      : result_(result), cost_(std::move(cost)), best_(best) {
    svg_.text(kLeft, 36, title, 20, kInk, Anchor::start, true);
    const IndexerConfig& c = result.points.front().config;
    svg_.text(kLeft, 60,
              fmt::format("{} | sink {}, heavy {}, window {} | prefill {} | {} ({}), {}",
                          file_name(setting.trace), c.sink_size, c.heavy_size, c.window_size,
                          result.prefill, setting.device, threads(setting), to_string(c.algorithm)),
              13, kFaint);
  }

  void costs(double low, double high) { x_ = {low, high, kLeft, kRight}; }
  double x_low() const { return extreme(-1); }
  double x_high() const { return extreme(1); }

  void tick(double value, const std::string& label) {
    svg_.line(x_.at(value), kBottom, x_.at(value), kBottom + 5, kFaint, 1);
    svg_.text(x_.at(value), kBottom + 20, label, 12, kFaint, Anchor::middle);
  }

  std::string finish(const std::string& x_title) {
    for (const double value : ticks(y_.low, y_.high, 6)) {
      svg_.line(kLeft, y_.at(value), kRight, y_.at(value), kGrid, 1);
      svg_.text(kLeft - 8, y_.at(value) + 4, tick_label(value), 12, kFaint, Anchor::end);
    }
    svg_.line(kLeft, kBottom, kRight, kBottom, kFaint, 1);
    svg_.text((kLeft + kRight) / 2, kBottom + 42, x_title, 13, kFaint, Anchor::middle);
    svg_.vertical_text(kLeft - 48, (kTop + kBottom) / 2, "recall of the exact top-K", 13, kFaint);
    draw_front();
    for (const SweepPoint& p : result_.points) draw_point(x_of(p), y_of(p), p);
    draw_key();
    return svg_.finish();
  }

 private:
  static constexpr double kWidth = 1180, kHeight = 700;
  static constexpr double kLeft = 76, kRight = 800, kTop = 90, kBottom = 630, kSide = 826;

  double extreme(int sign) const {
    double out = -std::numeric_limits<double>::infinity();
    for (const SweepPoint& p : result_.points) out = std::max(out, sign * cost_(p));
    return sign * out;
  }
  double x_of(const SweepPoint& p) const { return x_.clamped(cost_(p)); }
  double y_of(const SweepPoint& p) const {
    return y_.clamped(std::isfinite(p.quality.recall) ? p.quality.recall : 0);
  }

  /// Filled: calibrated, hollow: trained on the prompt; round with blocks, square without.
  void draw_point(double x, double y, const SweepPoint& p) {
    const auto shape = [&](double radius, const char* fill) {
      if (p.config.block_size > 0) {
        svg_.dots({{x, y}}, fill, radius, 1);
      } else {
        svg_.rect(x - radius, y - radius, 2 * radius, 2 * radius, fill);
      }
    };
    shape(5, colour(p));
    if (!p.calibrated) shape(3, "#ffffff");
  }

  void draw_front() {
    std::vector<const SweepPoint*> front;
    for (const SweepPoint& p : result_.points) {
      if (p.*best_) front.push_back(&p);
    }
    std::sort(front.begin(), front.end(), [&](const SweepPoint* a, const SweepPoint* b) {
      return cost_(*a) != cost_(*b) ? cost_(*a) < cost_(*b) : a->quality.recall < b->quality.recall;
    });
    svg_.text(kSide, kTop + 6, "Pareto front: none is better and cheaper", 13, kInk, Anchor::start,
              true);
    Svg::Points steps;
    double y = kTop + 28;
    for (std::size_t i = 0; i < front.size(); ++i) {
      const SweepPoint& p = *front[i];
      // A step: between two points, the cheaper one is what can be had.
      if (!steps.empty()) steps.emplace_back(x_of(p), steps.back().second);
      steps.emplace_back(x_of(p), y_of(p));
      svg_.text(x_of(p) - 7, y_of(p) - 8, std::to_string(i + 1), 12, kInk, Anchor::end, true);
      svg_.text(kSide, y,
                fmt::format("{:>2}  {:.3f}  m={} b={}, {}, refine {}, {}", i + 1, p.quality.recall,
                            p.config.num_subspaces, p.config.bits,
                            p.config.block_size > 0 ? fmt::format("block {}", p.config.block_size)
                                                    : "no blocks",
                            p.config.refine_factor, p.calibrated ? "calibrated" : "prompt"),
                12, kInk);
      y += 18;
    }
    svg_.polyline(steps, kFaint, 1.5, "6 4");
  }

  void draw_key() {
    double y = kBottom - 112;
    const auto entry = [&](const std::string& label, const SweepPoint& sample) {
      draw_point(kSide + 6, y - 4, sample);
      svg_.text(kSide + 20, y, label, 12, kInk);
      y += 18;
    };
    SweepPoint sample;
    sample.calibrated = true;
    sample.config.block_size = 1;
    for (const std::int32_t refine : {1, 2, 4}) {
      sample.config.refine_factor = refine;
      entry(refine == 1 ? "no refine" : fmt::format("refine {}", refine), sample);
    }
    sample.config.block_size = 0;
    entry("square: without blocks", sample);
    sample.config.block_size = 1;
    sample.calibrated = false;
    entry("hollow: codebook trained on the prompt", sample);
    svg_.text(kSide, y, "filled: calibrated on other traces", 12, kInk);
  }

  const SweepResult& result_;
  std::function<double(const SweepPoint&)> cost_;
  bool SweepPoint::*best_;
  Svg svg_{kWidth, kHeight};
  Axis x_;
  Axis y_{0, 1, kBottom, kTop};
};

}  // namespace

std::string plot_bytes(const SweepResult& result, const Setting& setting) {
  Picture picture(
      result, setting, "Quality against index bytes",
      [](const SweepPoint& p) { return p.index_bytes_per_key; }, &SweepPoint::best_for_bytes);
  const double high = std::ceil(picture.x_high()) + 1;
  picture.costs(0, high);
  for (const double value : ticks(0, high, 12)) picture.tick(value, tick_label(value));
  return picture.finish("index bytes a key and KV head (codes and means)");
}

std::string plot_time(const SweepResult& result, const Setting& setting) {
  Picture picture(
      result, setting, "Quality against time",
      [](const SweepPoint& p) { return std::log10(std::max(p.next_us_p50, 1e-3)); },
      &SweepPoint::best_for_time);
  const double low = picture.x_low() - 0.1, high = picture.x_high() + 0.1;
  picture.costs(low, high);
  for (int power = -3; power <= 9; ++power) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      const double us = factor * std::pow(10.0, power), at = std::log10(us);
      if (at >= low && at <= high) picture.tick(at, fmt::format("{:g} us", us));
    }
  }
  return picture.finish("next(), median (logarithmic)");
}

std::string sweep_json(const Trace& trace, const SweepResult& result, const Setting& setting) {
  nlohmann::ordered_json j;
  const IndexerConfig& c = result.points.front().config;
  const Quality& any = result.points.front().quality;
  j["trace"] = setting.trace;
  j["device"] = setting.device;
  j["threads"] = setting.threads;
  j["positions"] = trace.n;
  j["queries"] = trace.queries;
  j["query_heads"] = trace.hq;
  j["kv_heads"] = trace.hkv;
  j["head_dim"] = trace.d;
  j["prefill"] = result.prefill;
  j["sink"] = c.sink_size;
  j["heavy"] = c.heavy_size;
  j["window"] = c.window_size;
  j["metric"] = to_string(c.metric);
  j["mean"] = to_string(c.mean_dtype);
  j["algorithm"] = to_string(c.algorithm);
  j["oracle_mass"] = number(any.oracle_mass);
  j["oracle_output_error"] = number(any.oracle_output_error);
  j["points"] = nlohmann::ordered_json::array();
  for (const SweepPoint& p : result.points) {
    nlohmann::ordered_json k;
    k["codebook"] = p.calibrated ? "calibrated" : "prompt";
    k["rotation"] = p.config.rotation;
    k["block_size"] = p.config.block_size;
    k["subspaces"] = p.config.num_subspaces;
    k["bits"] = p.config.bits;
    k["refine"] = p.config.refine_factor;
    k["recall"] = number(p.quality.recall);
    k["recall_first_quarter"] = number(p.quality.recall_first_quarter);
    k["recall_last_quarter"] = number(p.quality.recall_last_quarter);
    k["mass"] = number(p.quality.mass);
    k["output_error"] = number(p.quality.output_error);
    k["index_bytes_per_key"] = number(p.index_bytes_per_key);
    k["model_bytes"] = p.model_bytes;
    k["raw_keys_per_row"] = number(p.raw_keys_per_row);
    k["next_us_p50"] = number(p.next_us_p50);
    k["next_us_p99"] = number(p.next_us_p99);
    k["build_ms"] = number(p.build_ms);
    k["best_for_bytes"] = p.best_for_bytes;
    k["best_for_time"] = p.best_for_time;
    j["points"].push_back(k);
  }
  j["skipped"] = result.skipped;
  return j.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

std::string sweep_table(const Trace& trace, const SweepResult& result, const Setting& setting) {
  const IndexerConfig& c = result.points.front().config;
  const Quality& any = result.points.front().quality;
  std::string out = setting.trace + "\n";
  const auto to = std::back_inserter(out);
  fmt::format_to(to, "  {} positions, {} queries; {} query heads, {} KV heads, d={}\n", trace.n,
                 trace.queries, trace.hq, trace.hkv, trace.d);
  fmt::format_to(to, "  sink {}, heavy {}, window {}; prefill {}; {} means; {} ({}), {}\n",
                 c.sink_size, c.heavy_size, c.window_size, result.prefill, to_string(c.mean_dtype),
                 setting.device, threads(setting), to_string(c.algorithm));
  fmt::format_to(to, "  exact top-K: mass {}, output error {}\n\n", fraction(any.oracle_mass),
                 fraction(any.oracle_output_error));
  fmt::format_to(to, "  {:<11} {:>5} {:>2} {:>2} {:>6} {:>6} {:>6} {:>6} {:>6} {:>7} {:>7} {}\n",
                 "codebook", "block", "m", "b", "refine", "recall", "mass", "error", "bytes",
                 "keys", "p50 us", "front");
  for (const SweepPoint& p : result.points) {
    std::string line = fmt::format(
        "  {:<11} {:>5} {:>2} {:>2} {:>6} {:>6} {:>6} {:>6} {:>6g} {:>7.1f} {:>7.0f} {}{}",
        codebook(p), p.config.block_size, p.config.num_subspaces, p.config.bits,
        p.config.refine_factor, fraction(p.quality.recall), fraction(p.quality.mass),
        fraction(p.quality.output_error), p.index_bytes_per_key,
        std::isfinite(p.raw_keys_per_row) ? p.raw_keys_per_row : 0.0, p.next_us_p50,
        p.best_for_bytes ? "B" : "", p.best_for_time ? "T" : "");
    out += line.erase(line.find_last_not_of(' ') + 1) + "\n";
  }
  out +=
      "\n  + rotated, calibrated- not; bytes: index, a key and KV head; keys: raw, a row;\n"
      "  front: none has at least its recall for fewer bytes (B), in less time (T)\n";
  for (const std::string& line : result.skipped) fmt::format_to(to, "  skipped: {}\n", line);
  return out;
}

}  // namespace quarry::tools
