// SPDX-License-Identifier: Apache-2.0
//
// The codebook of one subspace, multiplied into the rotation: P_c = -2 sum_j R_j c_j, so that the
// contract's distance |x' - c|^2, less the |x'|^2 all centroids share, is |c|^2 + key . P_c -
// mean . P_c. A warp keeps its subspace's 16 centroids in registers, as b of two mmas.
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

/// A lane's part: of centroids g and g + 8 dimensions 2t, 2t + 1, 2t + 8, 2t + 9 of each step.
template <int kSteps>
struct FoldedTable {
  static constexpr int kDim = 16 * kSteps, kSub = 8, kSub2 = 16;  // dsub, ksub
  std::uint32_t high[kSteps][4], low[kSteps][4];
  float norm;  ///< |c|^2 of centroid lane % 16

  /// rotation: column of the subspace's first dimension; codebook: [8][16], the subspace's.
  /// What the bound needs to know of it is returned.
  __device__ __forceinline__ FoldedSubspace load(const float* __restrict__ rotation,
                                                 const float* __restrict__ codebook) {
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
    FoldedSubspace of{};
    float size[2] = {0, 0}, lost[2] = {0, 0}, square[2] = {0, 0};
    {
      float c[2][kSub];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int j = 0; j < kSub; ++j) {
          const float v = __ldg(codebook + j * kSub2 + r * 8 + g);
          square[r] = fmaf(v, v, square[r]);
          c[r][j] = -2 * v;
        }
      }
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float p[2][2];  // [centroid][row of the rotation]
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float4* row =
                reinterpret_cast<const float4*>(rotation + (step * 16 + h * 8 + t * 2 + e) * kDim);
            const float4 a = __ldg(row), b = __ldg(row + 1);
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              float v = a.x * c[r][0];
              v = fmaf(a.y, c[r][1], v), v = fmaf(a.z, c[r][2], v), v = fmaf(a.w, c[r][3], v);
              v = fmaf(b.x, c[r][4], v), v = fmaf(b.y, c[r][5], v);
              p[r][e] = fmaf(b.w, c[r][7], fmaf(b.z, c[r][6], v));
            }
          }
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            std::uint32_t &hi = high[step][2 * h + r], &lo = low[step][2 * h + r];
            split2(p[r][0], p[r][1], &hi, &lo);
            const float rest0 = p[r][0] - __uint_as_float(hi << 16) - __uint_as_float(lo << 16);
            const float rest1 =
                p[r][1] - __uint_as_float(hi & 0xffff0000u) - __uint_as_float(lo & 0xffff0000u);
            size[r] = fmaf(p[r][0], p[r][0], fmaf(p[r][1], p[r][1], size[r]));
            lost[r] = fmaf(rest0, rest0, fmaf(rest1, rest1, lost[r]));
          }
        }
      }
    }
    of.size = sqrtf(largest_of_warp(fmaxf_nan(sum_of_four(size[0]), sum_of_four(size[1]))));
    of.lost = sqrtf(largest_of_warp(fmaxf_nan(sum_of_four(lost[0]), sum_of_four(lost[1]))));
    of.reach = sqrtf(largest_of_warp(fmaxf_nan(square[0], square[1])));
    const float lower = __shfl_sync(0xffffffffu, square[0], lane % 8 * 4);
    const float upper = __shfl_sync(0xffffffffu, square[1], lane % 8 * 4);
    norm = lane % 16 < 8 ? lower : upper;
    // |R_j|^2, and row g of the products of the subspace's columns with each other.
    float column[kSub] = {}, gram[kSub] = {};
#pragma unroll 4
    for (int i = t; i < kDim; i += 4) {
      const float4* row = reinterpret_cast<const float4*>(rotation + i * kDim);
      const float own = __ldg(rotation + i * kDim + g);
      const float4 a = __ldg(row), b = __ldg(row + 1);
      const float v[kSub] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
      for (int j = 0; j < kSub; ++j) {
        column[j] = fmaf(v[j], v[j], column[j]);
        gram[j] = fmaf(own, v[j], gram[j]);
      }
    }
    float all = 0, across = 0, lever[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < kSub; ++j) {
      const float length2 = sum_of_four(column[j]);
      all += length2;
      across += fabsf(sum_of_four(gram[j]));
      const float length = sqrtf(length2) + kFoldedLeast;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        lever[r] = fmaf(fabsf(__ldg(codebook + j * kSub2 + r * 8 + g)), length, lever[r]);
      }
    }
    of.lever = largest_of_warp(fmaxf_nan(lever[0], lever[1]));
    of.stretch = sqrtf(fminf(all, largest_of_warp(across)));
    return of;
  }

 private:
  /// The larger of two that are not negative, NaN more than any.
  __device__ static float fmaxf_nan(float a, float b) {
    const std::uint32_t x = __float_as_uint(a), y = __float_as_uint(b);
    return __uint_as_float(x > y ? x : y);
  }
};

}  // namespace quarry::cuda
