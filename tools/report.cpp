// SPDX-License-Identifier: Apache-2.0
#include "report.h"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <iterator>
#include <limits>
#include <mutex>
#include <nlohmann/json.hpp>
#include <span>

namespace quarry::tools {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

struct Mean {
  double sum = 0;
  std::int64_t count = 0;
  void add(double value) {
    sum += value;
    ++count;
  }
  double value() const { return count == 0 ? kNone : sum / static_cast<double>(count); }
};

/// Every (query, query head) of the sparse queries, judged in parallel.
class Judge {
 public:
  Judge(const Trace& trace, const ReplayResult& result, ExactReference& reference)
      : trace_(trace), result_(result), reference_(reference), k_(result.config.heavy_size) {
    const auto cells = static_cast<std::size_t>(trace.queries) * static_cast<std::size_t>(trace.hq);
    qualities.resize(cells);
    exact_heavy.assign(cells * static_cast<std::size_t>(k_), -1);
  }

  bool sparse(std::int32_t t) const {
    return trace_.q_pos[static_cast<std::size_t>(t)] + 1 > result_.dense_limit;
  }
  bool has_values() const { return reference_.attention().has_values(); }

  void judge(std::int32_t t, std::int32_t h) {
    const auto cell = static_cast<std::size_t>(t) * static_cast<std::size_t>(trace_.hq) +
                      static_cast<std::size_t>(h);
    // Under a GQA reduction the query heads of a group share one list.
    const std::int32_t list_head = h / (trace_.hq / result_.rows);
    const auto row = static_cast<std::size_t>(t) * static_cast<std::size_t>(result_.rows) +
                     static_cast<std::size_t>(list_head);
    const std::span<const std::int32_t> list(
        result_.indices.data() + row * static_cast<std::size_t>(result_.max_list),
        static_cast<std::size_t>(result_.lens[row]));
    const ExactRow& exact = reference_.row(t, h);
    qualities[cell] = reference_.attention().judge(t, h, exact, list);
    std::copy(
        exact.top.begin(), exact.top.end(),
        exact_heavy.begin() + static_cast<std::ptrdiff_t>(cell * static_cast<std::size_t>(k_)));
  }

  std::vector<RowQuality> qualities;      // [T, hq]
  std::vector<std::int32_t> exact_heavy;  // [T, hq, K]

 private:
  const Trace& trace_;
  const ReplayResult& result_;
  ExactReference& reference_;
  std::int32_t k_;
};

void judge_all(Judge& judge, const Trace& trace, std::int32_t threads,
               const std::function<void(std::int64_t, std::int64_t)>& progress) {
  std::exception_ptr failure;
  std::mutex mutex;
  std::int64_t done = 0;
  const std::int32_t team = threads > 0 ? threads : omp_get_max_threads();
#pragma omp parallel for schedule(dynamic) num_threads(team)
  for (std::int32_t t = 0; t < trace.queries; ++t) {
    try {
      for (std::int32_t h = 0; judge.sparse(t) && h < trace.hq; ++h) judge.judge(t, h);
      const std::lock_guard<std::mutex> lock(mutex);
      progress(++done, trace.queries);
    } catch (...) {
      // An exception must not leave a parallel region.
      const std::lock_guard<std::mutex> lock(mutex);
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

nlohmann::ordered_json number(double value) {
  if (!std::isfinite(value)) return nullptr;
  return value;
}

std::string fraction(double value) {
  return std::isfinite(value) ? fmt::format("{:.3f}", value) : "-";
}

std::string microseconds(double value) {
  if (value >= 10000) return fmt::format("{:.1f} ms", value / 1000);
  return fmt::format("{:.0f} us", value);
}

std::string bytes(double value) {
  if (value >= 10 * 1048576.0) return fmt::format("{:.1f} MiB", value / 1048576);
  if (value >= 10 * 1024.0) return fmt::format("{:.1f} KiB", value / 1024);
  return fmt::format("{:g} B", value);
}

}  // namespace

double percentile(std::vector<double> values, double fraction_below) {
  if (values.empty()) return kNone;
  std::sort(values.begin(), values.end());
  const double rank = std::ceil(fraction_below * static_cast<double>(values.size()));
  const auto at = static_cast<std::size_t>(std::max(rank, 1.0)) - 1;
  return values[std::min(at, values.size() - 1)];
}

ExactReference::ExactReference(const Trace& trace, const IndexerConfig& c)
    : attention_(trace),
      bounds_{std::max(c.sink_size, c.encode_from), c.heavy_size, c.window_size},
      hq_(trace.hq),
      rows_(static_cast<std::size_t>(trace.queries) * static_cast<std::size_t>(trace.hq)) {}

const ExactRow& ExactReference::row(std::int32_t t, std::int32_t h) {
  ExactRow& row = rows_[static_cast<std::size_t>(t) * static_cast<std::size_t>(hq_) +
                        static_cast<std::size_t>(h)];
  if (row.weight == 0) row = attention_.exact(t, h, bounds_);
  return row;
}

Report make_report(const Trace& trace, const ReplayResult& result, ExactReference& reference,
                   std::int32_t threads,
                   const std::function<void(std::int64_t, std::int64_t)>& progress) {
  Judge judge(trace, result, reference);
  judge_all(judge, trace, threads, progress);

  Report report;
  const IndexerConfig& c = result.config;
  const std::int32_t quarter = (trace.queries + 3) / 4;
  Mean recall, first, last, mass, oracle_mass, error, oracle_error, length, sparse_length, raw;
  for (std::int32_t t = 0; t < trace.queries; ++t) {
    const auto at = static_cast<std::size_t>(t);
    Mean here_recall, here_mass, here_oracle;
    const std::int32_t n = trace.q_pos[at] + 1;
    const bool sparse = judge.sparse(t);
    for (std::int32_t r = 0; r < result.rows; ++r) {
      const double entries =
          result.lens[at * static_cast<std::size_t>(result.rows) + static_cast<std::size_t>(r)];
      length.add(entries);
      if (!sparse) continue;
      sparse_length.add(entries);
      const std::int64_t candidates = n - c.window_size - c.sink_size;
      raw.add(c.refine_factor == 1
                  ? 0.0
                  : static_cast<double>(std::min<std::int64_t>(
                        candidates, std::int64_t{c.refine_factor} * c.heavy_size)));
    }
    for (std::int32_t h = 0; sparse && h < trace.hq; ++h) {
      const RowQuality& q =
          judge.qualities[at * static_cast<std::size_t>(trace.hq) + static_cast<std::size_t>(h)];
      recall.add(q.recall);
      if (t < quarter) first.add(q.recall);
      if (t >= trace.queries - quarter) last.add(q.recall);
      mass.add(q.mass);
      oracle_mass.add(q.oracle_mass);
      here_recall.add(q.recall);
      here_mass.add(q.mass);
      here_oracle.add(q.oracle_mass);
      if (!judge.has_values()) continue;
      error.add(q.output_error);
      oracle_error.add(q.oracle_output_error);
    }
    report.points.push_back(
        {n, here_recall.value(), here_mass.value(), here_oracle.value(), result.next_us[at]});
  }
  report.quality = {recall.value(),      first.value(), last.value(),        mass.value(),
                    oracle_mass.value(), error.value(), oracle_error.value()};
  report.sparse_rows = sparse_length.count;
  report.total_rows = length.count;
  report.list_length = length.value();
  report.sparse_list_length = sparse_length.value();
  report.raw_keys_per_row = raw.value();
  report.index_bytes_per_key = result.memory.code_bytes_per_key + result.memory.mean_bytes_per_key;
  report.model_bytes = static_cast<std::int64_t>(result.memory.codebook_bytes);
  report.next_us_p50 = percentile(result.next_us, 0.5);
  report.next_us_p99 = percentile(result.next_us, 0.99);
  report.next_us_max = percentile(result.next_us, 1);
  report.build_ms = result.build_ms;
  Mean drift, live;
  report.drift_worst = kNone;
  for (const DriftStats& head : result.drift) {
    if (!std::isfinite(head.ratio)) continue;
    drift.add(head.ratio);
    report.drift_worst = std::fmax(report.drift_worst, head.ratio);
  }
  for (const LiveRow& row : result.live) live.add(row.recall.recall);
  report.drift = drift.value();
  report.live_recall = live.value();
  report.live_rows = live.count;
  report.exact_heavy = std::move(judge.exact_heavy);
  return report;
}

std::string describe(const IndexerConfig& c) {
  std::string out = fmt::format("m={} b={}", c.num_subspaces, c.bits);
  if (c.metric != Metric::euclidean) out += fmt::format(", {}", to_string(c.metric));
  out += c.block_size == 0 ? ", no blocks" : fmt::format(", block {}", c.block_size);
  if (c.block_size > 0 && c.mean_dtype != DType::float32) {
    out += fmt::format(" ({} means)", to_string(c.mean_dtype));
  }
  if (c.rotation) out += ", rotation";
  if (c.refine_factor > 1) out += fmt::format(", refine {}", c.refine_factor);
  if (c.gqa_reduction != GqaReduction::per_head) {
    out += fmt::format(", {} over a group", to_string(c.gqa_reduction));
  }
  return out +
         fmt::format(" | sink {}, heavy {}, window {}", c.sink_size, c.heavy_size, c.window_size);
}

std::string to_json(const Trace& trace, const ReplayResult& result, const Report& report,
                    const Setting& setting) {
  const IndexerConfig& c = result.config;
  const Quality& q = report.quality;
  nlohmann::ordered_json j;
  j["recall"] = number(q.recall);
  j["recall_first_quarter"] = number(q.recall_first_quarter);
  j["recall_last_quarter"] = number(q.recall_last_quarter);
  j["mass"] = number(q.mass);
  j["output_error"] = number(q.output_error);
  j["oracle_mass"] = number(q.oracle_mass);
  j["oracle_output_error"] = number(q.oracle_output_error);
  j["sparse_rows"] = report.sparse_rows;
  j["total_rows"] = report.total_rows;
  j["unbuilt_rows"] = result.unbuilt_rows;
  j["list_length"] = number(report.list_length);
  j["sparse_list_length"] = number(report.sparse_list_length);
  j["index_bytes_per_key"] = number(report.index_bytes_per_key);
  j["model_bytes"] = report.model_bytes;
  j["raw_keys_per_row"] = number(report.raw_keys_per_row);
  j["next_us_p50"] = number(report.next_us_p50);
  j["next_us_p99"] = number(report.next_us_p99);
  j["next_us_max"] = number(report.next_us_max);
  j["build_ms"] = number(report.build_ms);
  j["drift"] = number(report.drift);
  j["drift_worst"] = number(report.drift_worst);
  j["live_recall"] = number(report.live_recall);
  j["live_rows"] = report.live_rows;
  j["trace"] = setting.trace;
  j["device"] = setting.device;
  j["threads"] = setting.threads;
  j["codebook"] = setting.codebook;
  j["positions"] = trace.n;
  j["queries"] = trace.queries;
  j["query_heads"] = trace.hq;
  j["kv_heads"] = trace.hkv;
  j["head_dim"] = trace.d;
  j["key_dtype"] = to_string(trace.k.dtype);
  j["prefill"] = result.prefill;
  j["encoded"] = result.encoded;
  j["subspaces"] = c.num_subspaces;
  j["bits"] = c.bits;
  j["metric"] = to_string(c.metric);
  j["block_size"] = c.block_size;
  j["mean"] = to_string(c.mean_dtype);
  j["rotation"] = c.rotation;
  j["sink"] = c.sink_size;
  j["heavy"] = c.heavy_size;
  j["window"] = c.window_size;
  j["encode_from"] = c.encode_from;
  j["dense_threshold"] = c.dense_threshold;
  j["refine"] = c.refine_factor;
  j["algorithm"] = to_string(c.algorithm);
  j["gqa"] = to_string(c.gqa_reduction);
  j["iterations"] = c.kmeans_iterations;
  j["seed"] = c.seed;
  // File names are bytes: what is not UTF-8 is replaced rather than thrown at.
  return j.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

std::string to_table(const Trace& trace, const ReplayResult& result, const Report& report,
                     const Setting& setting) {
  const Quality& q = report.quality;
  std::string out;
  const auto line = [&](std::string_view name, const std::string& value,
                        const std::string& exact = {}) {
    fmt::format_to(std::back_inserter(out), "  {:<34} {:>14} {:>14}", name, value, exact);
    out.erase(out.find_last_not_of(' ') + 1) += '\n';
  };
  fmt::format_to(std::back_inserter(out), "{}\n", setting.trace);
  fmt::format_to(std::back_inserter(out),
                 "  {} positions, {} queries; {} query heads, {} KV heads, d={}, {} keys\n",
                 trace.n, trace.queries, trace.hq, trace.hkv, trace.d, to_string(trace.k.dtype));
  fmt::format_to(std::back_inserter(out), "  {}\n", describe(result.config));
  fmt::format_to(std::back_inserter(out), "  codebook {}; prefill {}; {}, {}\n\n", setting.codebook,
                 result.prefill, setting.device, to_string(result.config.algorithm));
  line("", "index", "exact top-K");
  line("recall of the exact top-K", fraction(q.recall), std::isfinite(q.recall) ? "1.000" : "-");
  line("  first quarter of the queries", fraction(q.recall_first_quarter));
  line("  last quarter of the queries", fraction(q.recall_last_quarter));
  if (report.live_rows > 0) {
    line(fmt::format("  live, of {} sampled rows", report.live_rows), fraction(report.live_recall));
  }
  line("attention mass covered", fraction(q.mass), fraction(q.oracle_mass));
  line("attention output error", fraction(q.output_error), fraction(q.oracle_output_error));
  out += '\n';
  line("rows, sparse", fmt::format("{} / {}", report.sparse_rows, report.total_rows));
  if (result.unbuilt_rows > 0) {
    line("  of them without a codebook", fmt::format("{}", result.unbuilt_rows));
  }
  line("list length", fmt::format("{:.1f}", report.list_length));
  if (report.sparse_rows > 0) {
    line("raw keys read a row", fmt::format("{:.1f}", report.raw_keys_per_row));
  }
  if (std::isfinite(report.drift)) {
    line("drift: key error / codebook's", fmt::format("{:.2f}", report.drift));
    line("  of the worst KV head", fmt::format("{:.2f}", report.drift_worst));
  }
  const double raw_bytes = static_cast<double>(trace.d * dtype_size(trace.k.dtype));
  line("index bytes a key and KV head", fmt::format("{:g}", report.index_bytes_per_key),
       fmt::format("{:g}", raw_bytes));
  line("model (codebooks, rotations, phi)", bytes(static_cast<double>(report.model_bytes)));
  line("build", fmt::format("{:.1f} ms", report.build_ms));
  line("next() p50", microseconds(report.next_us_p50));
  line("next() p99", microseconds(report.next_us_p99));
  line("next() max", microseconds(report.next_us_max));
  return out;
}

}  // namespace quarry::tools
