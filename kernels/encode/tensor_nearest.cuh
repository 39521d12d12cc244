// SPDX-License-Identifier: Apache-2.0
//
// Rotation and nearest centroids of a tile on tensor cores, in split bfloat16, and which of
// them bound.h does not prove.
#pragma once

#include "encode/bound.h"
#include "encode/tensor_tables.cuh"

namespace quarry::cuda {

__device__ __forceinline__ float approximate_sqrt(float v) {
  float root;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(v));
  return root;
}

/// The least and second least of some distances whose low mantissa bits are the centroid's id.
struct TwoLeast {
  float least, second;

  __device__ __forceinline__ void merge(const TwoLeast& other) {
    second = fminf(fminf(second, other.second), fmaxf(least, other.least));
    least = fminf(least, other.least);
  }
  __device__ __forceinline__ TwoLeast of_neighbour(int step) const {
    return {__shfl_xor_sync(0xffffffffu, least, step), __shfl_xor_sync(0xffffffffu, second, step)};
  }
};

__device__ __forceinline__ TwoLeast pick(bool first, const TwoLeast& a, const TwoLeast& b) {
  return {first ? a.least : b.least, first ? a.second : b.second};
}

/// acc = rows of the tile times the half's columns of the rotation; whole: the rows' |x|.
/// kAtOnce: independent sums under way.
template <int kTiles, int kAtOnce>
__device__ __forceinline__ void rotate_on_tensor_cores(const TensorShared& sh, int row, int half,
                                                       int t, float (&acc)[kTiles][4],
                                                       float (&whole)[2]) {
  constexpr int kDim = 16 * kTiles;
  const float* x = sh.xs + row * kDim;
  const int twist = swizzle(row);  // of row + 8 too
  const uint4* b = sh.rotation + half * kTiles * 32 + threadIdx.x % 32;
  float norm[2] = {0, 0};
#pragma unroll 1
  for (int step = 0; step < kTiles; ++step, b += 2 * kTiles * 32) {
    const int at = ((step * 4 + t) ^ twist) * 4;
    const float4 u = *reinterpret_cast<const float4*>(x + at);
    const float4 v = *reinterpret_cast<const float4*>(x + 8 * kDim + at);
    std::uint32_t high[4], low[4];
    split2(u.x, u.y, high, low);
    split2(v.x, v.y, high + 1, low + 1);
    split2(u.z, u.w, high + 2, low + 2);
    split2(v.z, v.w, high + 3, low + 3);
#pragma unroll
    for (int n = 0; n < kTiles; n += kAtOnce) {
      uint4 r[kAtOnce];
#pragma unroll
      for (int l = 0; l < kAtOnce; ++l) r[l] = b[(n + l) * 32];
#pragma unroll
      for (int l = 0; l < kAtOnce; ++l) multiply_add(acc[n + l], high, r[l].x, r[l].y);
#pragma unroll
      for (int l = 0; l < kAtOnce; ++l) multiply_add(acc[n + l], high, r[l].z, r[l].w);
#pragma unroll
      for (int l = 0; l < kAtOnce; ++l) multiply_add(acc[n + l], low, r[l].x, r[l].y);
    }
    norm[0] = fmaf(u.x, u.x, fmaf(u.y, u.y, fmaf(u.z, u.z, fmaf(u.w, u.w, norm[0]))));
    norm[1] = fmaf(v.x, v.x, fmaf(v.y, v.y, fmaf(v.z, v.z, fmaf(v.w, v.w, norm[1]))));
  }
  whole[0] = approximate_sqrt(sum_of_four(norm[0]));
  whole[1] = approximate_sqrt(sum_of_four(norm[1]));
}

// Independent sums of a rotation under way, as many as registers allow.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kMostSums = 4;
#else
constexpr int kMostSums = 8;
#endif

/// Rotated rows row and row + 8 of the tile, of them the half's dimensions as an mma leaves
/// them in `acc`, to sh.codes and sh.ties. loss: as safe_gap() wants it, of the two rows.
/// kTiles = d / 16: tiles of 8 dimensions a warp has; kUnits = dsub / 8: of them a subspace's.
/// kBits: the index's bits where they are known here, else 0.
template <int kTiles, int kUnits, int kBits = 0>
__device__ __forceinline__ void nearest_centroids(const IndexView& ix, int count, int row, int half,
                                                  const float (&acc)[kTiles][4],
                                                  const float (&loss)[2], const TensorShared& sh) {
  constexpr int kLocal = kTiles / kUnits;  // subspaces of a half
  constexpr int kTogether = kUnits > 2 ? 1 : 2;
  const int lane = static_cast<int>(threadIdx.x) % 32, t = lane % 4;
  const int bits = kBits > 0 ? kBits : ix.bits, ksub = 1 << bits;
  // Of each four lanes' results the even ones finish row g, the odd ones row g + 8; the upper
  // two the second subspace of a pair.
  const bool odd = t % 2 != 0, upper = t / 2 != 0;
  const int own_row = odd ? row + 8 : row;
  const float own_loss = odd ? loss[1] : loss[0];
  const std::uint32_t kept = ~static_cast<std::uint32_t>(ksub - 1);

#pragma unroll
  for (int local = 0; local < kLocal; local += kTogether) {
    const int first = half * kLocal + local;
    const uint2* centroids = sh.centroids + first * ksub * (kUnits * 4) + lane;
    const float* norms = sh.norms + first * ksub + t * 2;
    // What an mma leaves in d is laid out as the next one's a: a subspace's dimensions are
    // multiplied by its centroids without a shuffle.
    std::uint32_t high[kTogether][kUnits][2], low[kTogether][kUnits][2];
    float part[kTogether][2] = {};
#pragma unroll
    for (int l = 0; l < kTogether; ++l) {
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
        const float(&v)[4] = acc[(local + l) * kUnits + unit];
        split2(v[0], v[1], &high[l][unit][0], &low[l][unit][0]);
        split2(v[2], v[3], &high[l][unit][1], &low[l][unit][1]);
        part[l][0] = fmaf(v[0], v[0], fmaf(v[1], v[1], part[l][0]));
        part[l][1] = fmaf(v[2], v[2], fmaf(v[3], v[3], part[l][1]));
      }
    }
    // Distances to centroids c .. c + 7 of subspace first + l, of two rows, two a lane.
    const auto compare = [&](int l, int c, TwoLeast(&two)[2]) {
      const int at = l * ksub + c;
      const uint2* b = centroids + at * (kUnits * 4);
      const float2 n = *reinterpret_cast<const float2*>(norms + at);
      float v[4] = {n.x, n.y, n.x, n.y};
      if constexpr (kUnits == 1) {
        const uint2 centroid = b[0];
        // Two of the passes in one: the halves of x side by side.
        const std::uint32_t both[4] = {high[l][0][0], high[l][0][1], low[l][0][0], low[l][0][1]};
        multiply_add(v, both, centroid.x, centroid.x);
        multiply_add(v, high[l][0], centroid.y);
      } else {
#pragma unroll
        for (int unit = 0; unit < kUnits; unit += 2) {
          const uint2 c0 = b[unit * 32], c1 = b[unit * 32 + 32];
          const std::uint32_t h[4] = {high[l][unit][0], high[l][unit][1], high[l][unit + 1][0],
                                      high[l][unit + 1][1]};
          const std::uint32_t w[4] = {low[l][unit][0], low[l][unit][1], low[l][unit + 1][0],
                                      low[l][unit + 1][1]};
          multiply_add(v, h, c0.x, c1.x);
          multiply_add(v, h, c0.y, c1.y);
          multiply_add(v, w, c0.x, c1.x);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const auto id = static_cast<std::uint32_t>(c + t * 2 + i % 2);
        v[i] = __uint_as_float((__float_as_uint(v[i]) & kept) | id);
      }
      two[0] = {fminf(v[0], v[1]), fmaxf(v[0], v[1])};
      two[1] = {fminf(v[2], v[3]), fmaxf(v[2], v[3])};
    };
    TwoLeast best[kTogether][2];
#pragma unroll
    for (int l = 0; l < kTogether; ++l) compare(l, 0, best[l]);
#pragma unroll(kTogether == 1 || kBits == 4 ? 2 : 1)
    for (int c = 8; c < ksub; c += 8) {
#pragma unroll
      for (int l = 0; l < kTogether; ++l) {
        TwoLeast two[2];
        compare(l, c, two);
        best[l][0].merge(two[0]);
        best[l][1].merge(two[1]);
      }
    }

    // Merged over the four lanes; at each step a lane keeps the half it will finish.
    TwoLeast own[kTogether];
    float square[kTogether];
#pragma unroll
    for (int l = 0; l < kTogether; ++l) {
      own[l] = pick(odd, best[l][1], best[l][0]);
      own[l].merge(pick(odd, best[l][0], best[l][1]).of_neighbour(1));
      square[l] = odd ? part[l][1] : part[l][0];
      square[l] += __shfl_xor_sync(0xffffffffu, odd ? part[l][0] : part[l][1], 1);
    }
    int s = first;
    TwoLeast result = own[0];
    float whole_part = square[0];
    if constexpr (kTogether == 2) {
      s += upper ? 1 : 0;
      result = pick(upper, own[1], own[0]);
      result.merge(pick(upper, own[0], own[1]).of_neighbour(2));
      whole_part = upper ? square[1] : square[0];
      whole_part += __shfl_xor_sync(0xffffffffu, upper ? square[0] : square[1], 2);
    } else {
      result.merge(own[0].of_neighbour(2));
      whole_part += __shfl_xor_sync(0xffffffffu, square[0], 2);
    }
    const Subspace of{__uint_as_float(sh.reach[s]), sh.spread[s], __uint_as_float(sh.lever[s])};
    const float gap = safe_gap(8 * kUnits, own_loss, approximate_sqrt(whole_part), of);
    if (own_row < count && (kTogether == 2 || !upper)) {
      const int item = own_row * (2 * kLocal) + s;
      sh.codes[item] = static_cast<std::uint8_t>(__float_as_uint(result.least) & ~kept);
      // Not above, rather than below: NaN anywhere goes the exact way.
      const float ids = id_loss(bits) * (fabsf(result.least) + fabsf(result.second));
      if (!(result.second - result.least > gap + ids)) {
        sh.ties[atomicAdd(sh.num_ties, 1)] = static_cast<std::uint16_t>(item);
      }
    }
  }
}

/// One tile of residuals in sh.xs to sh.codes and sh.ties.
template <int kTiles, int kUnits>
__device__ __forceinline__ void nearest_on_tensor_cores(const IndexView& ix, bool rotates,
                                                        int count, const TensorShared& sh) {
  constexpr int kDim = 16 * kTiles;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4, row = warp % 4 * 16 + g, half = warp / 4;
  float acc[kTiles][4] = {};
  float whole[2] = {0, 0};  // |x| of rows g and g + 8
  if (rotates) {
    constexpr int kAtOnce = kUnits > 2 || kTiles < kMostSums ? 4 : kMostSums;
    rotate_on_tensor_cores<kTiles, kAtOnce>(sh, row, half, t, acc, whole);
  } else {
    const float* x = sh.xs + row * kDim + t % 2 * 2;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const int at = (((half * kTiles + n) * 2 + t / 2) ^ swizzle(row)) * 4;
      const float2 u = *reinterpret_cast<const float2*>(x + at);
      const float2 v = *reinterpret_cast<const float2*>(x + 8 * kDim + at);
      acc[n][0] = u.x, acc[n][1] = u.y, acc[n][2] = v.x, acc[n][3] = v.y;
    }
  }
  const float loss[2] = {rotation_loss(kDim) * whole[0], rotation_loss(kDim) * whole[1]};
  nearest_centroids<kTiles, kUnits>(ix, count, row, half, acc, loss, sh);
}

}  // namespace quarry::cuda
