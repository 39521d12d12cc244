// SPDX-License-Identifier: Apache-2.0
//
// What a replay was worth: figures over all of it, and along the decode.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "exact.h"
#include "replay.h"
#include "trace.h"

namespace quarry::tools {

/// Means over (query, query head) of sparse rows, as fractions. NaN where there are none.
struct Quality {
  double recall = 0, recall_first_quarter = 0, recall_last_quarter = 0;
  double mass = 0, oracle_mass = 0;
  double output_error = 0, oracle_output_error = 0;  ///< NaN without values
};

/// One query, averaged over its query heads. NaN where its rows are dense.
struct QueryPoint {
  std::int32_t n = 0;  ///< positions it saw
  double recall = 0, mass = 0, oracle_mass = 0;
  double next_us = 0;
};

struct Report {
  Quality quality;
  std::int64_t sparse_rows = 0;  ///< lists with a heavy part
  std::int64_t total_rows = 0;
  double list_length = 0;         ///< mean over all rows
  double sparse_list_length = 0;  ///< mean over sparse rows
  double index_bytes_per_key = 0;
  std::int64_t model_bytes = 0;
  double raw_keys_per_row = 0;  ///< mean over sparse rows
  double next_us_p50 = 0, next_us_p99 = 0, next_us_max = 0;
  double build_ms = 0;
  /// What stats() saw: error of the last keys over the codebook's own, a mean over KV heads and
  /// the largest; and the recall of the rows it sampled. NaN where there is none.
  double drift = 0, drift_worst = 0, live_recall = 0;
  std::int64_t live_rows = 0;

  std::vector<QueryPoint> points;         ///< [T]
  std::vector<std::int32_t> exact_heavy;  ///< [T, hq, K], -1 to a row's end
};

/// Exact attention of a trace's rows for one K, sink and window, each computed once however
/// many replays are judged by it. Holds T x hq x (d float64 and K int32).
class ExactReference {
 public:
  ExactReference(const Trace& trace, const IndexerConfig& resolved);

  const ExactAttention& attention() const noexcept { return attention_; }
  /// Computed when first asked for; no two threads may ask for the same row at once.
  const ExactRow& row(std::int32_t t, std::int32_t h);

 private:
  ExactAttention attention_;
  ListBounds bounds_;
  std::int32_t hq_;
  std::vector<ExactRow> rows_;  // [T, hq]; its weight is 0 where not computed
};

/// Judges every row against `reference`, of the same trace, K, sink and window.
/// `progress(done, total)` is called now and then from one thread at a time.
Report make_report(const Trace& trace, const ReplayResult& result, ExactReference& reference,
                   std::int32_t threads,
                   const std::function<void(std::int64_t, std::int64_t)>& progress);

/// The smallest value that at least `fraction` of all are not above; NaN where empty.
double percentile(std::vector<double> values, double fraction);

/// What was replayed, for people and in the JSON file.
struct Setting {
  std::string trace;
  std::string device;
  std::string codebook;  ///< "trained on the prompt", "from the trace", ...
  std::int32_t threads = 0;
};

/// One flat JSON object, keys as docs/design.md names them; null where there is no value.
std::string to_json(const Trace& trace, const ReplayResult& result, const Report& report,
                    const Setting& setting);

/// The same as a table of at most 80 columns.
std::string to_table(const Trace& trace, const ReplayResult& result, const Report& report,
                     const Setting& setting);

/// "m=2 b=6 euclidean, block 64, ...": the configuration in one line.
std::string describe(const IndexerConfig& config);

}  // namespace quarry::tools
