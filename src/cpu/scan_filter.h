// SPDX-License-Identifier: Apache-2.0
//
// Algorithm scan's first look at a row: 8-bit tables in vector registers (Andre et al., "Cache
// locality is not enough", 2015; Faiss's FastScan) that say which keys may score at least a
// given value. It never misses one.
//
// What is summed are deficits. With top_s the largest entry of LUT[s], a key's deficit is
//   D(key) = sum_s (top_s - LUT[s][c_s]) >= 0,  and  bias + sum_s top_s - D(key)
// is its score in real numbers. The float32 score, added in the contract's order, is off by at
// most m additions' rounding: E = (m + 1) 2^-24 A, where A bounds the sum of all magnitudes. So
// score >= T only if D(key) <= L = bias + sum_s top_s - T + E. Table entries are rounded down to
// whole steps, hence their sum is at most D(key) / step, and a key passes if that sum is at most
// floor(L / step). Saturation (a sum at its largest stays there; an entry too large is 255)
// only lowers the sum or leaves it above every limit. There is no bound where an entry or A is
// not finite, or sums could leave float32's range: then the filter is not used.
//
// Scores that are added up over H query heads have a filter as well: its LUT and its biases are
// the heads' sums, A is the sum of theirs. m + H - 1 additions are in a score, H - 1 more in a
// table's entry: E = g A, g = n u / (1 - n u) with n = m + 2 H, u = 2^-24. (H = 1 is the above.)
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cpu/score_tiles.h"
#include "params.h"

namespace quarry::cpu {

/// Bytes of a filter's table of one subspace: its entries, at least 16, in lookup's units.
constexpr std::int32_t filter_entries(std::int32_t bits) {
  return bits <= 4 ? 16 : bits <= 6 ? 64 : 1 << bits;
}

/// A: the largest sum of magnitudes that a score of this LUT [m][ksub] and these biases can have;
/// NaN or infinite where an entry is.
double filter_magnitude(const float* lut, std::int32_t num_subspaces, std::int32_t ksub,
                        float least_bias, float largest_bias);

/// What some head of a group must score for the sum of their `group` softmaxes to reach
/// `threshold` (at least kLeastShare), if it is this head that does; +infinity where it cannot.
double softmax_reach(float threshold, const HeadSoftmax& head, float scale, std::int32_t group);
constexpr float kLeastShare = 0x1p-100f;  ///< far from where float32 loses precision

/// The filter of one row for one threshold.
class Filter {
 public:
  /// `tables`: m * filter_entries(bits) bytes.
  Filter(std::uint8_t* tables, std::int32_t num_subspaces, std::int32_t bits)
      : tables_(tables), m_(num_subspaces), bits_(bits), wide_(num_subspaces > 16) {}

  /// Looks at the row's LUT [m][ksub] and the finite ones of its biases (none: 0, 0). False
  /// where there is no bound.
  bool open(const float* lut, float least_bias, float largest_bias);
  /// The same where a score is the sum of `heads` heads': of `lut` and biases that are float32 sums
  /// of theirs in any order; `magnitude` is the sum of their filter_magnitude().
  bool open_sum(const float* lut, float largest_bias, std::int32_t heads, double magnitude);
  /// Lets keys pass that may score at least `threshold` (finite).
  void aim(const float* lut, double threshold);
  /// Lets none pass.
  void close() { reach_ = -std::numeric_limits<double>::infinity(); }

  /// What a key's sum must stay below in a block of this bias: 0 lets none pass.
  std::uint16_t limit(float bias) const {
    // A block of NaN or -infinity cannot reach a finite threshold. (Where one is +infinity
    // the caller does without the filter.) The factor covers what doubles round.
    const double steps = (reach_ + double{bias}) * per_step_ * (1.0 + 0x1p-40);
    if (!(steps >= 0)) return 0;
    return static_cast<std::uint16_t>(std::min(steps, wide_ ? 65000.0 : 254.0) + 1);
  }

  const std::uint8_t* tables() const { return tables_; }
  bool wide() const { return wide_; }

 private:
  std::uint8_t* tables_;
  std::int32_t m_, bits_;
  bool wide_;       ///< 16-bit sums: with many subspaces 8 bits would be too coarse
  double top_ = 0;  ///< sum of the tables' largest entries
  double magnitude_ = 0, spread_ = 0, largest_bias_ = 0;
  double rounding_ = 0;  ///< g
  double reach_ = 0;     ///< L of a bias of 0
  double per_step_ = 0;  ///< 1 / step
};

/// Whole 32-key tiles of one KV head. Where codes.tile is 16, two of those each.
struct FilterRun {
  CodeTiles codes;
  std::int32_t tiles, num_subspaces, bits;
  const std::uint8_t* tables;
  bool wide;
  const std::uint16_t* limits;  ///< [tiles]
  std::uint32_t* hits;          ///< [tiles]: bit i says that key i passes
};

/// Returns how many keys pass.
std::int32_t filter_tiles(const FilterRun& run);

}  // namespace quarry::cpu
