// SPDX-License-Identifier: Apache-2.0
//
// Near ties of a warp's tile, encoded again in the contract's arithmetic: four at once, eight lanes
// each, first a lane a dimension, then a lane two centroids.
#pragma once

#include "encode/columns_nearest.cuh"
#include "encode/nearest.cuh"

namespace quarry::cuda {

/// rotation [d][d], codebook [m][8][16]: the KV head's; means: the tile's, shared; keys: shared,
/// [4][d + 8], room.
template <int kSteps, bool kMeans>
__device__ __forceinline__ void settle_columns(const KeySource& source, const ColumnsTile& tile,
                                               const float* __restrict__ rotation,
                                               const float* __restrict__ codebook,
                                               const float* means, std::uint16_t* keys,
                                               ColumnsCodes<kSteps>& codes) {
  constexpr unsigned kAll = 0xffffffffu;
  constexpr int kDim = 16 * kSteps, kStretch = 16;
  const int lane = static_cast<int>(threadIdx.x) % 32, j = lane % 8;
#pragma unroll 1
  while (true) {
    // The first four lanes that have ties get one of theirs settled each.
    const std::uint32_t lanes = __ballot_sync(kAll, codes.ties != 0);
    if (lanes == 0) return;
    std::uint32_t rest = lanes;
#pragma unroll
    for (int i = 0; i < 3; ++i) rest &= i < lane / 8 ? rest - 1 : rest;
    const int owner = __ffs(static_cast<int>(rest != 0 ? rest : lanes)) - 1;
    const int first = __ffs(static_cast<int>(codes.ties)) - 1;
    const int which = __shfl_sync(kAll, first, owner), s = which % 16;
    const std::int64_t at = find_columns_key(source, tile, which / 16 * 32 + columns_row(owner));
    const auto* row =
        reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(source.keys.data) + at);
    uint4 chunk[kDim / 64];
#pragma unroll
    for (int l = 0; l < kDim / 64; ++l) chunk[l] = __ldg(row + l * 8 + j);
    // Two stretches of the rotation's column are under way at a time.
    const float* column = rotation + s * 8 + j;
    float one[kStretch], two[kStretch];
    const auto load = [&](float(&r)[kStretch]) {
#pragma unroll
      for (int l = 0; l < kStretch; ++l) r[l] = __ldg(column + l * kDim);
      column += kStretch * kDim;
    };
    load(one);
    load(two);
    const float* c = codebook + s * (8 * kColumnsCentroids) + j;
    float centroids[2][8];
#pragma unroll
    for (int l = 0; l < 8; ++l) {
      centroids[0][l] = __ldg(c + l * kColumnsCentroids);
      centroids[1][l] = __ldg(c + l * kColumnsCentroids + 8);
    }
    std::uint16_t* const key = keys + lane / 8 * (kDim + 8);
#pragma unroll
    for (int l = 0; l < kDim / 64; ++l) reinterpret_cast<uint4*>(key)[l * 8 + j] = chunk[l];
    __syncwarp();
    float v = 0;
    const auto add = [&](int i, const float(&r)[kStretch]) {
#pragma unroll
      for (int l = 0; l < kStretch; l += 4) {
        const uint2 k = *reinterpret_cast<const uint2*>(key + i + l);
        float4 mean = make_float4(0, 0, 0, 0);
        if constexpr (kMeans) mean = *reinterpret_cast<const float4*>(means + i + l);
        v = fmaf(__uint_as_float(k.x << 16) - mean.x, r[l], v);
        v = fmaf(__uint_as_float(k.x & 0xffff0000u) - mean.y, r[l + 1], v);
        v = fmaf(__uint_as_float(k.y << 16) - mean.z, r[l + 2], v);
        v = fmaf(__uint_as_float(k.y & 0xffff0000u) - mean.w, r[l + 3], v);
      }
    };
#pragma unroll 1
    for (int i = 0; i < kDim; i += 2 * kStretch) {
      const bool more = i + 2 * kStretch < kDim;
      add(i, one);
      if (more) load(one);
      add(i + kStretch, two);
      if (more) load(two);
    }
    __syncwarp();  // before the next ones' keys
    float sum[2] = {0, 0};
#pragma unroll
    for (int l = 0; l < 8; ++l) {
      const float x = __shfl_sync(kAll, v, l, 8);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float diff = x - centroids[h][l];
        sum[h] = fmaf(diff, diff, sum[h]);
      }
    }
    const unsigned long long low = nearest_key(sum[0], j), high = nearest_key(sum[1], j + 8);
    unsigned long long best = low < high ? low : high;
#pragma unroll
    for (int step = 4; step > 0; step /= 2) {
      const unsigned long long other = __shfl_xor_sync(kAll, best, step);
      best = other < best ? other : best;
    }
    const int rank = __popc(lanes & ((1u << lane) - 1));
    const auto id = __shfl_sync(kAll, static_cast<std::uint32_t>(best), rank % 4 * 8);
    if (codes.ties != 0 && rank < 4) {
      codes.replace(first / 16, first % 16, id);
      codes.ties &= codes.ties - 1;
    }
  }
}

}  // namespace quarry::cuda
