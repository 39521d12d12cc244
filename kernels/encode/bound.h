// SPDX-License-Identifier: Apache-2.0
//
// When the tensor cores' answer is the contract's. Both compare, for one subvector, the
// centroids' distances; the approximate ones leave out |x|^2, which all of them share. If the
// two least lie further apart than twice what either can be off, the order is proven; else
// the subvector is encoded in the contract's own arithmetic.
//
// Symbols: x' the rotated vector as the contract computes it, x~ as the tensor cores do, c a
// centroid, u = 2^-24. A value is split into two bfloat16 (unit roundoff 2^-9 each), so what
// is lost is below 2^-18 of it; of a product of two such values the low halves' product is
// left out as well: 3 * 2^-18. One mma of depth k sums k + 1 terms with truncation, each off
// by at most 2u of their absolute sum: (k + 1) * 2u.
#pragma once

#include "params.h"

namespace quarry::cuda {

constexpr float kUnit = 5.9604644775390625e-8f;         // 2^-24
constexpr float kSplitLoss = 1.1444091796875e-5f;       // 3 * 2^-18
constexpr float kSlack = 1.1f;                          // second-order terms

/// |x~_j - x'_j| is at most this times sum_i |x_i| |R_ij|: three passes of d / 16 mmas of
/// depth 16, and the contract's own chain of d roundings.
QUARRY_HD inline float rotation_loss(int d) {
  const auto n = static_cast<float>(d);
  return kSlack * (kSplitLoss + 3 * (n / 16) * 17 * 2 * kUnit + n * kUnit);
}

/// |mma(x~ . c) - x~ . c| is at most this times |x~| |c|: three passes of dsub / 8
/// mmas of depth 8 (half as many of depth 16 lose less).
QUARRY_HD inline float product_loss(int dsub) {
  return kSlack * (kSplitLoss + 3 * (static_cast<float>(dsub) / 8) * 9 * 2 * kUnit);
}

/// The gap between the two least approximate distances above which the least is the
/// contract's nearest.
///   whole: |x|, before rotation; spread: sqrt(sum_ij R_ij^2) over the subspace's columns j, 0
///   where there is no rotation; part: |x~| of the subspace; reach: the largest |c|.
/// By Cauchy and Schwarz |x~ - x'| <= rotation_loss * whole * spread =: r, so per centroid
///   2 r reach                      x~ for x' in -2 x.c
/// + 2 product_loss part reach      the product
/// + (dsub + 4) 2u (part + reach + r)^2   roundings of the contract's chain, |c|^2 and the sum.
/// The absolute term stands for products that underflow.
QUARRY_HD inline float safe_gap(int d, int dsub, float whole, float spread, float part,
                                float reach) {
  const float r = spread == 0 ? 0.0f : rotation_loss(d) * whole * spread;
  const float all = part + reach + r;
  const float off = 2 * r * reach + 2 * product_loss(dsub) * part * reach +
                    (static_cast<float>(dsub) + 4) * 2 * kUnit * all * all;
  return 2 * kSlack * off + 1e-30f;
}

}  // namespace quarry::cuda
