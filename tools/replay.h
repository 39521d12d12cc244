// SPDX-License-Identifier: Apache-2.0
//
// Drives an Indexer through a trace as an engine would: prefill, then token by token.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "quarry/quarry.h"
#include "trace.h"

namespace quarry::tools {

struct ReplayOptions {
  /// The quantizer and the list; the shape fields are taken from the trace.
  IndexerConfig config;
  Device device;
  std::int32_t threads = 0;      ///< CPU; 0: OpenMP's default
  std::int32_t prefill = -1;     ///< positions given to build(); -1: the first query's
  const Model* model = nullptr;  ///< in the place of the trace's own; not owned
  /// After every next() each this-many-th row is compared with the exact top-K by stats(), all
  /// rows in turn; 0: no stats().
  std::int32_t sample_every = 0;
};

/// A row that stats() sampled.
struct LiveRow {
  std::int32_t t;  ///< query
  RecallStats recall;
};

/// What the Indexer answered. `rows` are list heads of a query.
struct ReplayResult {
  IndexerConfig config;  ///< resolved
  MemoryRequirements memory;
  std::int32_t prefill = 0;
  std::int32_t rows = 0;
  std::int32_t max_list = 0;
  std::int32_t dense_limit = 0;  ///< lists are dense while n is at most this

  std::vector<std::int32_t> indices;  ///< [T, rows, max_list]
  std::vector<std::int32_t> lens;     ///< [T, rows]
  std::int64_t encoded = 0;           ///< positions, from encode_from
  std::vector<std::uint8_t> codes;    ///< [encoded, hkv, m]

  std::vector<double> next_us;    ///< [T], call to completion
  double build_ms = 0;            ///< all build() calls
  std::int32_t unbuilt_rows = 0;  ///< rows past the dense range without a codebook

  std::vector<LiveRow> live;      ///< sampled rows with a heavy part
  std::vector<DriftStats> drift;  ///< [hkv], of the last keys; empty without stats()
};

/// `prefill` as replay() will take it; past the first query it is BadInput.
std::int32_t resolve_prefill(const Trace& trace, const ReplayOptions& options);

/// `config` with the trace's shape; what it lacks or has wrongly for this trace is BadInput.
IndexerConfig config_for(const Trace& trace, const ReplayOptions& options);

/// `progress(done, total)` is called now and then, in positions decoded. Throws Error.
ReplayResult replay(const Trace& trace, const ReplayOptions& options,
                    const std::function<void(std::int64_t, std::int64_t)>& progress);

/// Writes indices, lens and codes: equal results give equal bytes.
void write_lists(const std::string& path, const Trace& trace, const ReplayResult& result);

}  // namespace quarry::tools
