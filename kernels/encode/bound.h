// SPDX-License-Identifier: Apache-2.0
//
// When the tensor cores' answer is the contract's. Both compare, for one subvector, the
// centroids' distances; the approximate ones leave out |x|^2, which all of them share. If the
// two least lie further apart than twice what either can be off, the order is proven; else
// the subvector is encoded in the contract's own arithmetic.
//
// Symbols: x' the rotated vector as the contract computes it, x~ as the tensor cores do, c a
// centroid, u = 2^-24. A value is split into two bfloat16 (8 bits: a rounding takes at most 2^-8),
// so the low half is at most 2^-8 of it, less than half a power of two, and what is lost at most
// 2^-17; of a product of two such values the low halves' product, 2^-16, is left out as well. One
// mma of depth k sums k + 1 terms with truncation, each off by at most 2u of their absolute sum:
// (k + 1) * 2u.
#pragma once

#include <cmath>

#include "params.h"

namespace quarry::cuda {

constexpr float kUnit = 5.9604644775390625e-8f;   // 2^-24
constexpr float kHalvesLoss = 7.62939453125e-6f;  // 2^-17
constexpr float kSplitLoss = 3.0517578125e-5f;    // 2^-16 + 2 * 2^-17
// Second-order terms: the halves' absolute sums exceed the value's by 2^-7 at most, all else
// (powers of 1 + 1e-4, the roundings of the bound itself, an approximate square root) is less.
constexpr float kSlack = 1.02f;
/// Above this the squares could overflow, and an infinity whose id is packed is a NaN.
constexpr float kMostReach = 1e18f;

/// |x~_j - x'_j| is at most this times sum_i |x_i| |R_ij|: three passes of d / 16 mmas of
/// depth 16, and the contract's own chain of d roundings.
QUARRY_HD constexpr float rotation_loss(int d) {
  const auto n = static_cast<float>(d);
  return kSlack * (kSplitLoss + 3 * (n / 16) * 17 * 2 * kUnit + n * kUnit);
}

/// The same where keys that are bfloat16 are multiplied as they are, x~ = k.R - mean.R, first
/// by R's low halves and then by the high ones, of the mean three exact parts: at most this
/// times (|k| + |mean|) |R_j|. R's split loses 2^-17; d / 16 mmas of depth 16 (those of the low
/// halves add 2^-8 of that); the contract's chain of d roundings, its residual's and those of
/// the sums here: the mean's halves and rows, the difference.
QUARRY_HD constexpr float raw_rotation_loss(int d) {
  const auto n = static_cast<float>(d);
  return kSlack * (kHalvesLoss + (n / 16) * 17 * 2 * kUnit + (n + 10) * kUnit);
}
/// |k| is at most this times the root of its squares' sum in bfloat16: 16 additions of a lane,
/// each off by 2^-8 of the sum, may leave 0.939 of it; an approximate root and sum besides.
constexpr float kRawNorm = 1.04f;

/// What the distance |c|^2 - 2 x~ . c is off by for reasons that scale with (|x~| + |c|)^2: mmas
/// that start from |c|^2, three passes of dsub / 16 of depth 16, or where dsub is 8 one of depth 16
/// for two passes and one of depth 8; dsub roundings of |c|^2; of the contract, the difference's,
/// which counts twice, and its chain's.
QUARRY_HD constexpr float distance_loss(int dsub) {
  const auto n = static_cast<float>(dsub);
  const float terms = dsub == 8 ? 17 + 9 : 3 * (n / 16) * 17;
  return (2 * terms + n + (n + 2)) * kUnit;
}
/// What a distance is off by, as a part of itself, for its low mantissa bits, which give way to the
/// centroid's id: 2^bits of 2u each.
QUARRY_HD constexpr float id_loss(int bits) {
  return kSlack * static_cast<float>(1 << bits) * 2 * kUnit;
}

/// What is known of a subspace of one KV head. Zeros for spread and lever where there is no
/// rotation.
struct Subspace {
  float reach;   ///< the largest |c|
  float spread;  ///< sqrt(sum_j |R_j|^2), R_j the rotation's column j of the subspace
  float lever;   ///< the largest sum_j |R_j| |c_j|
};

/// The gap between the two least approximate distances above which, and above id_loss() of both,
/// the least is the contract's nearest; infinite where nothing is proven. loss: rotation_loss |x|,
/// x before rotation, or raw_rotation_loss (|k| + |mean|); part: |x~| of the subspace. By Cauchy
/// and Schwarz |x~_j - x'_j| <= loss |R_j|, hence |x~ - x'| <= loss spread =: r, and per centroid
///   2 loss lever                            x~ for x' in -2 x.c
/// + 2 kSplitLoss part reach                 the halves of x~ and c
/// + distance_loss (part + reach + r)^2      the rest
/// The absolute term stands for products that underflow: norms below 1e-19 may come as 0, which
/// takes less than 1e-3 * 1e-19 * reach away; that exceeds the last term only where reach is
/// below 1e-15.
QUARRY_HD inline float safe_gap(int dsub, float loss, float part, const Subspace& of) {
  constexpr float kTwice = 2 * kSlack * kSlack;
  const float all = fmaf(loss, of.spread, part + of.reach);
  const float products = fmaf(2 * loss, of.lever, 2 * kSplitLoss * part * of.reach);
  const float off = fmaf(distance_loss(dsub), all * all, products);
  return all < kMostReach ? fmaf(kTwice, off, 1e-30f) : INFINITY;
}

/// What is known of a subspace (dsub 8) of one KV head whose keys are multiplied as they are
/// (columns.cuh).
struct ColumnsSubspace {
  float lever;    ///< the largest |sum_j (w_i |R_ij| + |R_ij - its halves|) |c_j||, by i, w below
  float lost;     ///< the largest |2 c - its halves|
  float reach;    ///< the largest |c|
  float stretch;  ///< at least |x . R_s| / |x|, whatever x
};
/// Added to every norm, for what underflowed in its squares.
constexpr float kColumnsLeast = 1e-17f;

/// w_i: x~_j and x'_j are at most sum_i (|k_i| + |mean_i|) (w_i |R_ij| + |R_ij - its halves|)
/// apart. Dimension i enters a sum when those before it are in, so it is rounded as often as sums
/// are added to from there on: x~ = k.R - mean.R, of the mean three exact parts, first R's low
/// halves and then the high ones, has d / 16 - i / 16 mmas of depth 16 for the high halves, and for
/// the low ones, 2^-8 of R, twice d / 16 at most (the mean's product, two steps of 16 at once, has
/// half as many); three roundings of the mean's sums, one of the difference, one of the contract's
/// residual, and d - i of its chain.
QUARRY_HD constexpr float columns_weight(int d, int i) {
  const auto mmas = static_cast<float>(d / 16 - i / 16) + static_cast<float>(d) / 2048;
  return (17 * 2 * mmas + static_cast<float>(d - i) + 5) * kUnit;
}

/// Of one subspace: the gap between the two least approximate distances above which the least is
/// the contract's nearest, as a function of n = |k| + |mean|. id_loss() of both comes on top.
struct ColumnsGap {
  float fixed, slope, curve;
  float most;  ///< nothing is proven for n that is not below this

  QUARRY_HD float operator()(float n) const { return fmaf(fmaf(curve, n, slope), n, fixed); }
};

/// |residual| <= n, hence |x'| <= stretch n =: a, and with r = reach the difference of two
/// distances is off by twice, and each by at most
///   2 n lever                  x~ for x' in -2 x.c, by Cauchy and Schwarz over i
/// + 2 kHalvesLoss a r + a lost what is left of x~ and of -2 c beside their halves
/// + 68u (r^2 + 2 a r)          two mmas of depth 16, 34u each, that start from |c|^2
/// + 8u r^2                     |c|^2
/// + 10u (a + r)^2              the contract's difference, which counts twice, and its chain
/// Products that underflow take less than 1e-30.
QUARRY_HD inline ColumnsGap columns_gap(const ColumnsSubspace& of) {
  constexpr float kTwice = 2 * kSlack * kSlack;
  const float reach = of.reach + kColumnsLeast, stretch = of.stretch + kColumnsLeast;
  const float lever = of.lever + kColumnsLeast, lost = of.lost + kColumnsLeast;
  // NaN or too large in itself: never proven.
  if (!(reach + stretch + lever + lost < kMostReach)) return {INFINITY, 0, 0, kMostReach};
  const float halves = fmaf(2 * kHalvesLoss + 156 * kUnit, reach, lost);
  const float slope = fmaf(2, lever, halves * stretch);
  return {fmaf(kTwice * 86 * kUnit, reach * reach, 1e-30f), kTwice * slope,
          kTwice * 10 * kUnit * stretch * stretch, (kMostReach - reach) / stretch};
}

}  // namespace quarry::cuda
