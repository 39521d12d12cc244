// SPDX-License-Identifier: Apache-2.0
//
// How good a list is: against the exact top-K and against attention over all positions, in
// float64 throughout.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "trace.h"

namespace quarry::tools {

/// One (query, query head). All are fractions; output errors are 0 without values.
struct RowQuality {
  double recall = 0;        ///< |heavy and exact| / |exact|
  double mass = 0;          ///< of softmax over all positions, on the list
  double output_error = 0;  ///< |o - o_sparse| / |o|
  double oracle_mass = 0;   ///< the same for sink, exact top-K and window
  double oracle_output_error = 0;
};

/// What is the same for whatever list one (query, query head) is judged on.
struct ExactRow {
  double largest = 0;             ///< score
  double weight = 0;              ///< sum of exp((score - largest) * scale) over all positions
  std::vector<double> output;     ///< sum of weighted values, empty without values
  std::vector<std::int32_t> top;  ///< the exact top-K, ascending
  double oracle_mass = 0, oracle_output_error = 0;
};

/// The parts of a list that are fixed.
struct ListBounds {
  std::int32_t first = 0;   ///< candidates start here: max(sink, encode_from)
  std::int32_t heavy = 0;   ///< K
  std::int32_t window = 0;  ///< candidates end at n - window
};

/// Positions of the `k` largest of scores[begin .. end), ascending; exact ties go to the
/// lower position, NaN ranks below every number.
std::vector<std::int32_t> exact_top(std::span<const double> scores, std::int32_t begin,
                                    std::int32_t end, std::int32_t k);

/// Keys, queries and values of a trace, ready for float64 arithmetic. Thread-safe.
class ExactAttention {
 public:
  explicit ExactAttention(const Trace& trace);

  bool has_values() const noexcept { return !values_.empty(); }

  /// Attention of query t, query head h over all positions, and its exact top-K.
  ExactRow exact(std::int32_t t, std::int32_t h, const ListBounds& bounds) const;

  /// Judges `list` (ascending positions) against exact(t, h, ...); reads its positions alone.
  RowQuality judge(std::int32_t t, std::int32_t h, const ExactRow& exact,
                   std::span<const std::int32_t> list) const;

 private:
  struct Head {
    std::vector<double> query;
    const float* keys;
    const float* values;  // null without values
  };
  Head head(std::int32_t t, std::int32_t h) const;

  std::int32_t n_, hq_, hkv_, d_;
  std::vector<std::int32_t> q_pos_;
  // Float32 holds every stored value exactly; [hkv, n, d], so that a head's rows are
  // contiguous.
  std::vector<float> keys_, values_;
  std::vector<float> queries_;  // [T, hq, d]
};

}  // namespace quarry::tools
