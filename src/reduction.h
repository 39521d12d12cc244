// SPDX-License-Identifier: Apache-2.0
//
// Arithmetic of stage reduce, on host and device alike: the same bytes on every backend, for
// any number of threads and any split of a row.
#pragma once

#include <cmath>
#include <cstdint>

#include "half.h"
#include "params.h"

namespace quarry {

/// Below this exp_of() is 0 and above the other +infinity: its results are normal numbers.
constexpr float kExpLeast = -87.0f, kExpMost = 88.0f;

/// exp(x) = 2^i * p(r), x = i ln 2 + r, |r| <= ln 2 / 2: what CPU vectors must repeat.
struct ExpConstants {
  static constexpr float kLog2E = 0x1.715476p+0f;
  static constexpr float kRound = 0x1.8p+23f;  ///< added, leaves an integer in the low bits
  static constexpr float kLn2High = 0x1.62e43p-1f, kLn2Low = -0x1.05c61p-29f;
  /// p(r) = 1 + r + c2 r^2 + .. + c6 r^6, the best in relative error (3.2e-9).
  static constexpr float kC2 = 0x1.fffffcp-2f, kC3 = 0x1.55549p-3f, kC4 = 0x1.5558fap-5f,
                         kC5 = 0x1.123b6ap-7f, kC6 = 0x1.6a21acp-10f;
};

/// exp(x) within 1 unit in the last place (relative error below 2^-23), exactly 1 at 0, at most
/// 1 below it, NaN for NaN. Written out because libraries differ in the last bit.
QUARRY_HD inline float exp_of(float x) {
  using C = ExpConstants;
  if (x < kExpLeast) return 0.0f;
  if (x > kExpMost) return bits_to_float(0x7f800000u);
  const float shifted = fmaf(x, C::kLog2E, C::kRound);
  const float i = shifted - C::kRound;
  const float r = fmaf(-i, C::kLn2Low, fmaf(-i, C::kLn2High, x));
  float p = fmaf(C::kC6, r, C::kC5);
  p = fmaf(p, r, C::kC4);
  p = fmaf(p, r, C::kC3);
  p = fmaf(p, r, C::kC2);
  p = fmaf(p, r, 1.0f);
  p = fmaf(p, r, 1.0f);
  // 2^i: kRound's own bits leave the register with the shift.
  return p * bits_to_float((float_to_bits(shifted) << 23) + 0x3f800000u);
}

/// The larger of two scores, NaN below every number.
QUARRY_HD inline float larger_of(float a, float b) { return a != a || b > a ? b : a; }

/// What softmax gives a score before it is divided: exp(scale * (score - largest)). Of an
/// infinite largest score the limit: 1 where it is attained, else 0.
QUARRY_HD inline float softmax_weight(float score, float largest, float scale) {
  return exp_of(score == largest ? 0.0f : scale * (score - largest));
}

/// A weight (0 .. 1; NaN counts as 0) in units of 2^-32, to nearest even: integers add up to
/// the same sum in any order, at most 2^28 * 2^32.
QUARRY_HD inline std::uint64_t fixed_weight(float weight) {
  constexpr float kInteger = 0x1p+23f;  // from here on a float has no fraction
  const float units = weight * 0x1p+32f;
  if (units < kInteger) return static_cast<std::uint64_t>((units + kInteger) - kInteger);
  return units >= kInteger ? static_cast<std::uint64_t>(units) : 0u;
}

/// Of a head with this sum of fixed weights; 0 is the sum of NaN alone.
QUARRY_HD inline HeadSoftmax head_softmax(float largest, std::uint64_t weights) {
  return {largest, weights == 0 ? 0.0f : 1.0f / (static_cast<float>(weights) * 0x1p-32f)};
}

/// A list's score of a position before the first head's is added to it.
QUARRY_HD inline float reduce_start(GqaReduction reduction) {
  if (reduction == GqaReduction::softmax_sum) return 0.0f;
  // -0 + x is x, bit for bit; so is the larger of NaN and x.
  return reduction == GqaReduction::sum ? -0.0f : bits_to_float(0x7fc00000u);
}

/// `so_far` with one more head's score; heads come in ascending order.
QUARRY_HD inline float reduce_head(GqaReduction reduction, float so_far, float score, float scale,
                                   const HeadSoftmax& head) {
  if (reduction == GqaReduction::sum) return so_far + score;
  if (reduction == GqaReduction::max) return larger_of(so_far, score);
  return fmaf(softmax_weight(score, head.largest, scale), head.inverse, so_far);
}

/// A list's score of one position from those of its heads, `stride` apart. `softmax` [group] is
/// for softmax_sum alone.
QUARRY_HD inline float reduce_position(GqaReduction reduction, const float* scores,
                                       std::int64_t stride, std::int32_t group, float scale,
                                       const HeadSoftmax* softmax) {
  float result = reduce_start(reduction);
  for (std::int32_t g = 0; g < group; ++g) {
    const HeadSoftmax head = softmax == nullptr ? HeadSoftmax{0.0f, 0.0f} : softmax[g];
    result = reduce_head(reduction, result, scores[g * stride], scale, head);
  }
  return result;
}

/// Parts that a row's positions are dealt to, for parallel work alone: maxima and integer sums
/// do not depend on them.
constexpr std::int32_t kMostReduceParts = 64;
constexpr std::int32_t kLeastReducePart = 2048;  ///< positions

/// Parts of rows of at most this many positions.
QUARRY_HD inline std::int32_t reduce_parts(std::int32_t positions) {
  const std::int32_t parts = (positions - 1) / kLeastReducePart + 1;
  return parts < kMostReduceParts ? parts : kMostReduceParts;
}

struct ReduceRange {
  std::int32_t first, end;
};

/// The positions, or after refine the entries, of list row r.
QUARRY_HD inline ReduceRange reduce_range(const ReduceParams& p, std::int64_t r) {
  if (p.shortlist_counts != nullptr) return {0, p.shortlist_counts[r]};
  const RowState row = p.rows[r];
  if (row.kind != RowKind::sparse) return {0, 0};
  return {row.first, row.end};
}

/// How a row is dealt: part i begins at base + i * length, at a multiple of 4, and the first
/// `used` parts have all of it.
struct ReduceParts {
  ReduceRange row;
  std::int32_t base, length, used;

  /// Positions of part i < used.
  QUARRY_HD ReduceRange operator[](std::int32_t i) const {
    const std::int64_t begin = base + static_cast<std::int64_t>(i) * length;
    return {begin > row.first ? static_cast<std::int32_t>(begin) : row.first,
            begin + length < row.end ? static_cast<std::int32_t>(begin + length) : row.end};
  }
};

QUARRY_HD inline ReduceParts deal(const ReduceRange& row, std::int32_t parts) {
  ReduceParts dealt{row, row.first & ~3, kLeastReducePart, 0};
  if (row.end <= row.first) return dealt;
  const std::int32_t last = row.end - dealt.base - 1;
  const std::int32_t even = (last / parts + 4) / 4 * 4;
  if (even > dealt.length) dealt.length = even;
  dealt.used = last / dealt.length + 1;
  return dealt;
}

}  // namespace quarry
