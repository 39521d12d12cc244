// SPDX-License-Identifier: Apache-2.0
//
// What a calibration holds of traces of any size: a bounded number of keys, and the second
// moments of the queries.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "quarry/calibrate.h"
#include "quarry/config.h"
#include "trace.h"

namespace quarry::tools {

/// Queries are read in parts of this many bytes, or of one position where that is more.
inline constexpr std::int64_t kQueryPartBytes = 1 << 20;

/// Keys of several traces of one layer, and views of them for calibrate(), which is to be given
/// `encode_from`.
struct KeySample {
  std::vector<TypedArray> arrays;
  std::vector<CalibrationTrace> views;  ///< into `arrays`, without queries
  std::int32_t encode_from = 0;
  bool whole = true;            ///< every key of every trace is held
  std::int64_t trace_keys = 0;  ///< keys of a KV head that an index of the traces would encode
};

/// Reads at most `max_keys` keys a KV head of all traces together, by positioned reads of whole
/// quantization blocks. Where the traces have no more positions than that, all of them; else
/// blocks evenly spaced over all traces' whole blocks that hold no position below encode_from
/// (runs of 64 positions where the configuration has no blocks), in their order, those of
/// traces of one dtype as one sequence. `headers` are the traces'; `config` is resolved.
/// Holds max_keys * Hkv * d elements at the most; float8_e4m3 ones, whose scales may differ, as
/// the float32 that they are. Throws BadInput.
KeySample read_keys(const IndexerConfig& config, const std::vector<std::string>& paths,
                    const std::vector<Trace>& headers, std::int64_t max_keys);

/// The second moments of all queries of the traces, q_train and q, read in parts. Throws Error.
QueryMoments read_query_moments(const IndexerConfig& config, const std::vector<std::string>& paths,
                                const std::vector<Trace>& headers);

/// A trace's header, its q_pos checked too. Throws BadInput.
Trace load_header(const std::string& path);

}  // namespace quarry::tools
