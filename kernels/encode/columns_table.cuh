// SPDX-License-Identifier: Apache-2.0
//
// What a warp keeps in registers of its two subspaces: their columns of the rotation and their 16
// centroids each, as b of mmas, in halves of bfloat16.
#pragma once

#include "common/mma.cuh"
#include "encode/bound.h"

namespace quarry::cuda {

/// The largest over a warp, of numbers that are not negative; NaN counts as the most.
__device__ __forceinline__ float largest_of_warp(float v) {
  std::uint32_t bits = __float_as_uint(v) & 0x7fffffffu;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const std::uint32_t other = __shfl_xor_sync(0xffffffffu, bits, step);
    bits = other > bits ? other : bits;
  }
  return __uint_as_float(bits);
}

/// The sum over the lanes of one t.
__device__ __forceinline__ float sum_of_eight(float v) {
#pragma unroll
  for (int step = 4; step < 32; step *= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  return v;
}

/// A lane's part; [u] is the subspace's number of the two.
template <int kSteps>
struct ColumnsTable {
  static constexpr int kDim = 16 * kSteps, kSub = 8, kCentroids = 16;
  std::uint32_t high[2][kSteps][2],
      low[2][kSteps][2];  ///< column g; rows 2t .., 2t + 8 .. of a step
  /// -2 c of centroids g and g + 8, dimensions 2t and 2t + 1.
  std::uint32_t centroid_high[2][2], centroid_low[2][2];

  /// rotation: shared, column of subspace u's first dimension; codebook: [8][16], the subspace's.
  /// norms: [16], takes |c|^2, or null. What the bound needs to know of the subspace is returned.
  template <int u>
  __device__ __forceinline__ ColumnsSubspace load(const float* rotation,
                                                  const float* __restrict__ codebook,
                                                  float* norms) {
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
    ColumnsSubspace of{};
    float length = 0, lost = 0;  // |R_g|, and of what its halves lose
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float* at = rotation + (step * 16 + h * 8 + t * 2) * kDim + g;
        const float a = at[0], b = at[kDim];
        std::uint32_t &hi = high[u][step][h], &lo = low[u][step][h];
        split2(a, b, &hi, &lo);
        const float rest0 = a - __uint_as_float(hi << 16) - __uint_as_float(lo << 16);
        const float rest1 =
            b - __uint_as_float(hi & 0xffff0000u) - __uint_as_float(lo & 0xffff0000u);
        length = fmaf(a, a, fmaf(b, b, length));
        lost = fmaf(rest0, rest0, fmaf(rest1, rest1, lost));
      }
    }
    length = sqrtf(sum_of_four(length)) + kColumnsLeast;
    lost = sqrtf(sum_of_four(lost)) + kColumnsLeast;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float* c = codebook + t * 2 * kCentroids + r * 8 + g;
      split2(-2 * __ldg(c), -2 * __ldg(c + kCentroids), &centroid_high[u][r], &centroid_low[u][r]);
    }
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const float v = fabsf(__ldg(codebook + g * kCentroids + q * 4 + t));
      const float norm = sum_of_eight(v * v);
      of.reach = larger(of.reach, norm);
      of.lever = larger(of.lever, sum_of_eight(v * length));
      of.lost = larger(of.lost, sum_of_eight(v * lost));
      if (norms != nullptr && g == 0) norms[q * 4 + t] = norm;
    }
    of.reach = sqrtf(largest_of_warp(of.reach));
    of.lever = largest_of_warp(of.lever);
    of.lost = largest_of_warp(of.lost);
    // Row g of the products of the columns with each other.
    float gram[kSub] = {};
#pragma unroll 4
    for (int i = t; i < kDim; i += 4) {
      const float4* row = reinterpret_cast<const float4*>(rotation + i * kDim);
      const float own = rotation[i * kDim + g];
      const float4 a = row[0], b = row[1];
      const float v[kSub] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
      for (int j = 0; j < kSub; ++j) gram[j] = fmaf(own, v[j], gram[j]);
    }
    float across = 0;
#pragma unroll
    for (int j = 0; j < kSub; ++j) across += fabsf(sum_of_four(gram[j]));
    of.stretch = sqrtf(fminf(sum_of_eight(length * length), largest_of_warp(across)));
    return of;
  }

 private:
  /// The larger of two that are not negative, NaN more than any.
  __device__ static float larger(float a, float b) {
    const std::uint32_t x = __float_as_uint(a), y = __float_as_uint(b);
    return __uint_as_float(x > y ? x : y);
  }
};

}  // namespace quarry::cuda
