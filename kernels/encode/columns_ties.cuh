// SPDX-License-Identifier: Apache-2.0
//
// Near ties of a warp's tile, encoded again in the contract's arithmetic: four at once, eight lanes
// each, first a lane a dimension, then a lane two centroids.
#pragma once

#include "encode/columns_nearest.cuh"
#include "encode/nearest.cuh"

namespace quarry::cuda {

/// 32 dimensions of a key, and of a column of the rotation, under way.
struct ColumnsStretch {
  static constexpr int kDims = 32;
  uint4 key[kDims / 8];
  float column[kDims];

  __device__ __forceinline__ void load(const uint4* row, const float* rotation, int dim, int i) {
#pragma unroll
    for (int l = 0; l < kDims / 8; ++l) key[l] = __ldg(row + i / 8 + l);
#pragma unroll
    for (int l = 0; l < kDims; ++l) column[l] = __ldg(rotation + (i + l) * dim);
  }
  /// v, with these dimensions' terms.
  template <bool kMeans>
  __device__ __forceinline__ float add(float v, const float* means) const {
#pragma unroll
    for (int l = 0; l < kDims; l += 4) {
      float4 mean = make_float4(0, 0, 0, 0);
      if constexpr (kMeans) mean = *reinterpret_cast<const float4*>(means + l);
      const uint4& chunk = key[l / 8];
      const std::uint32_t a = l % 8 == 0 ? chunk.x : chunk.z, b = l % 8 == 0 ? chunk.y : chunk.w;
      v = fmaf(__uint_as_float(a << 16) - mean.x, column[l], v);
      v = fmaf(__uint_as_float(a & 0xffff0000u) - mean.y, column[l + 1], v);
      v = fmaf(__uint_as_float(b << 16) - mean.z, column[l + 2], v);
      v = fmaf(__uint_as_float(b & 0xffff0000u) - mean.w, column[l + 3], v);
    }
    return v;
  }
};

/// rotation [d][d], codebook [m][8][16]: the KV head's; means: the tile's, shared.
template <int kSteps, bool kMeans>
__device__ __forceinline__ void settle_columns(const KeySource& source, const ColumnsTile& tile,
                                               const float* __restrict__ rotation,
                                               const float* __restrict__ codebook,
                                               const float* means, ColumnsCodes<kSteps>& codes) {
  constexpr unsigned kAll = 0xffffffffu;
  constexpr int kDim = 16 * kSteps, kDims = ColumnsStretch::kDims;
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
    const float* c = codebook + s * (8 * kColumnsCentroids) + j;
    float centroids[2][8];
#pragma unroll
    for (int l = 0; l < 8; ++l) {
      centroids[0][l] = __ldg(c + l * kColumnsCentroids);
      centroids[1][l] = __ldg(c + l * kColumnsCentroids + 8);
    }
    const float* column = rotation + s * 8 + j;
    float v = 0;
    ColumnsStretch one, two;
    one.load(row, column, kDim, 0);
#pragma unroll
    for (int i = 0; i < kDim; i += 2 * kDims) {
      two.load(row, column, kDim, i + kDims);
      v = one.template add<kMeans>(v, means + i);
      if (i + 2 * kDims < kDim) one.load(row, column, kDim, i + 2 * kDims);
      v = two.template add<kMeans>(v, means + i + kDims);
    }
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
