// SPDX-License-Identifier: Apache-2.0
//
// Near ties: subvectors that tensor cores could not decide, encoded again in the contract's
// arithmetic.
#pragma once

#include "encode/nearest.cuh"

namespace quarry::cuda {

/// In shared memory.
struct NearTies {
  const std::uint16_t* items;  ///< row * m + s
  const int* count;
  float* subvectors;  ///< [warps][32, or dsub]: rotated again, exactly
};

/// Near ties of a tile that is still in shared memory.
template <typename Residual>
struct TileKeys {
  Residual residual;
  const float* rotations;  ///< null: none
  std::uint8_t* codes;     ///< by item

  __device__ __forceinline__ bool rotates() const { return rotations != nullptr; }
  __device__ __forceinline__ float rotation(int at) const { return __ldg(rotations + at); }
  __device__ __forceinline__ void put(int item, std::uint8_t code) const { codes[item] = code; }
};
template <typename Residual>
TileKeys(Residual, const float*, std::uint8_t*) -> TileKeys<Residual>;

/// The near ties once more, exactly; a warp takes as many as its lanes hold dimensions of,
/// each a group of lanes: first a lane a dimension, then a lane a centroid.
/// Of the thread block's kThreads all call it. kLoads: elements of the rotation in flight.
/// keys.rotates(), keys.rotation(i * d + j): whether there is one, and an element of it;
/// keys.residual(row, i): its dimensions
/// i .. i + 3, a multiple of four, before rotation; keys.put(item, code).
template <int kTiles, int kUnits, int kThreads, int kLoads, typename Keys>
__device__ __forceinline__ void settle_ties(int ksub, const float* __restrict__ codebook,
                                            const NearTies& near, const Keys& keys) {
  constexpr int kDim = 16 * kTiles, kSub = 8 * kUnits, kSubspaces = kDim / kSub;
  constexpr int kWidth = kSub < 32 ? kSub : 32, kAtOnce = 32 / kWidth;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int ties = *near.count;
  float* const mine =
      near.subvectors + warp * (kWidth * kAtOnce > kSub ? 32 : kSub) + lane / kWidth * kSub;
  for (int first = warp * kAtOnce; first < ties; first += kThreads / 32 * kAtOnce) {
    const int own = first + lane / kWidth;
    const int item = near.items[own < ties ? own : first];  // lanes without one repeat the first
    const int row = item / kSubspaces, s = item % kSubspaces;
    const float* c = codebook + s * kSub * ksub;
    // Few centroids are under way before the rotation's chain begins.
    const bool few = kUnits == 1 && ksub <= 2 * kWidth;
    float early[2][8];
    if (few) {
#pragma unroll
      for (int l = 0; l < 16; ++l) {
        const int id = lane % kWidth + l / 8 * kWidth;
        early[l / 8][l % 8] = __ldg(c + l % 8 * ksub + (id < ksub ? id : 0));
      }
    }
    for (int j = lane % kWidth; j < kSub; j += kWidth) {
      const int column = s * kSub + j;
      float v = 0;
      if (!keys.rotates()) {
        const float4 u = keys.residual(row, column & ~3);
        v = column % 4 == 0 ? u.x : column % 4 == 1 ? u.y : column % 4 == 2 ? u.z : u.w;
      } else {
        const auto load = [&](int i, float(&r)[kLoads]) {
#pragma unroll
          for (int l = 0; l < kLoads; ++l) r[l] = keys.rotation(column + (i + l) * kDim);
        };
        const auto add = [&](int i, const float(&r)[kLoads]) {
#pragma unroll
          for (int l = 0; l < kLoads; l += 4) {
            const float4 u = keys.residual(row, i + l);
            v = fmaf(u.x, r[l], v);
            v = fmaf(u.y, r[l + 1], v);
            v = fmaf(u.z, r[l + 2], v);
            v = fmaf(u.w, r[l + 3], v);
          }
        };
        float one[kLoads], two[kLoads];
        load(0, one);
#pragma unroll 1
        for (int i = 0; i < kDim; i += 2 * kLoads) {
          load(i + kLoads, two);
          add(i, one);
          if (i + 2 * kLoads < kDim) load(i + 2 * kLoads, one);
          add(i + kLoads, two);
        }
      }
      mine[j] = v;
    }
    __syncwarp();
    unsigned long long best = ~0ull;
    if (few) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int id = lane % kWidth + h * kWidth;
        float sum = 0;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float diff = mine[j] - early[h][j];
          sum = fmaf(diff, diff, sum);
        }
        const unsigned long long key = id < ksub ? nearest_key(sum, id) : ~0ull;
        best = key < best ? key : best;
      }
    } else {
#pragma unroll 2
      for (int id = lane % kWidth; id < ksub; id += kWidth) {
        float sum = 0;
#pragma unroll 16
        for (int j = 0; j < kSub; ++j) {
          const float diff = mine[j] - __ldg(c + j * ksub + id);
          sum = fmaf(diff, diff, sum);
        }
        const unsigned long long key = nearest_key(sum, id);
        best = key < best ? key : best;
      }
    }
#pragma unroll
    for (int step = kWidth / 2; step > 0; step /= 2) {
      const unsigned long long other = __shfl_xor_sync(0xffffffffu, best, step);
      best = other < best ? other : best;
    }
    if (lane % kWidth == 0 && own < ties) keys.put(item, static_cast<std::uint8_t>(best));
    __syncwarp();  // before the next round writes `mine`
  }
}

}  // namespace quarry::cuda
