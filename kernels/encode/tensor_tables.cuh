// SPDX-License-Identifier: Apache-2.0
//
// What a thread block on tensor cores keeps in shared memory for its KV head.
#pragma once

#include "common/mma.cuh"
#include "encode/tile.cuh"
#include "encode/tiling.h"

namespace quarry::cuda {

constexpr int kTensorThreads = 256;
constexpr int kTensorKeys = 64;  // four row groups of 16 by two halves of the dimensions

/// A tile's rows lie kDim apart; chunk c (of four floats) of row k at c ^ swizzle(k). Rows
/// that a warp reads together, in one column, then fall into distinct banks.
__device__ __forceinline__ int swizzle(int row) { return ((row & 1) << 2) | (row & 2); }

/// Dynamic shared memory. The code that counts it carves it.
struct TensorShared {
  uint4* rotation;            ///< [d / 16][d / 8][lane]: b of an mma, two high and two low words;
                              ///< paired: [d / 16][high, low][d / 16][lane], of two mmas
  uint2* centroids;           ///< [m][ksub / 8][dsub / 8][lane]: b of -2 c, high and low
  float* xs;                  ///< [64][d], swizzled; or two tiles of keys of 16 bits
  float* means;               ///< [blocks of a tile][d]
  float* rotated_mean;        ///< [d], where keys are multiplied as they are
  std::uint16_t* mean_parts;  ///< [3][d], bfloat16 that sum to the mean
  float* norms;               ///< [m][ksub]: |c|^2
  unsigned* reach;            ///< [m]: bits of the largest |c|, which order as it does; NaN most
  unsigned* lever;            ///< [m]: bits of the largest sum_j |R_j| |c_j|
  float* spread;              ///< [m]
  float* subvectors;          ///< [warps][32, or dsub]: rotated again, exactly
  std::int64_t* key_at;       ///< [64]: the next tile's rows, element offsets; kNoRow
  std::int64_t* code_at;      ///< [64]: this tile's codes, byte offsets; kNoRow
  Tile* tiles;                ///< [2]: this one and the next, in turn
  int* num_ties;
  std::uint16_t* ties;  ///< [64 * m]: row * m + s
  std::uint8_t* codes;  ///< [64][m]
  std::size_t bytes = 0;

  static constexpr std::int64_t kNoRow = INT64_MIN;

  __host__ __device__ TensorShared(unsigned char* base, const IndexView& ix, const Tiling& tiling) {
    const auto take = [&](std::int64_t count, std::int64_t size) {
      unsigned char* const here = base == nullptr ? nullptr : base + bytes;
      bytes += static_cast<std::size_t>((count * size + 15) / 16 * 16);
      return here;
    };
    const std::int64_t d = ix.head_dim, m = ix.num_subspaces, ksub = ix.ksub;
    rotation = reinterpret_cast<uint4*>(take(ix.rotation != nullptr ? d * d / 4 : 0, 16));
    centroids = reinterpret_cast<uint2*>(take(d * ksub / 2, 8));
    xs = reinterpret_cast<float*>(take(kTensorKeys * d, 4));
    means = reinterpret_cast<float*>(take(ix.block_size > 0 ? tiling.blocks_per_tile() * d : 0, 4));
    rotated_mean = reinterpret_cast<float*>(take(d, 4));
    mean_parts = reinterpret_cast<std::uint16_t*>(take(3 * d, 2));
    norms = reinterpret_cast<float*>(take(m * ksub, 4));
    reach = reinterpret_cast<unsigned*>(take(m, 4));
    lever = reinterpret_cast<unsigned*>(take(m, 4));
    spread = reinterpret_cast<float*>(take(m, 4));
    subvectors =
        reinterpret_cast<float*>(take(kTensorThreads / 32 * (ix.dsub > 32 ? ix.dsub : 32), 4));
    key_at = reinterpret_cast<std::int64_t*>(take(kTensorKeys, 8));
    code_at = reinterpret_cast<std::int64_t*>(take(kTensorKeys, 8));
    tiles = reinterpret_cast<Tile*>(take(2, sizeof(Tile)));
    num_ties = reinterpret_cast<int*>(take(1, 4));
    ties = reinterpret_cast<std::uint16_t*>(take(kTensorKeys * m, 2));
    codes = take(kTensorKeys * m, 1);
  }
};

/// The head's rotation and codebook as mma operands, and what the bound needs of them.
template <bool kPaired>
__device__ __forceinline__ void load_tables(const IndexView& ix, const float* __restrict__ rotation,
                                            const float* __restrict__ codebook,
                                            const TensorShared& sh) {
  const int d = ix.head_dim, m = ix.num_subspaces, ksub = ix.ksub, dsub = ix.dsub;
  const auto tid = static_cast<int>(threadIdx.x);
  for (int i = tid; i < m; i += kTensorThreads) sh.reach[i] = sh.lever[i] = 0;
  __syncthreads();
#pragma unroll 4
  for (int i = tid; rotation != nullptr && i < d * d / 4; i += kTensorThreads) {
    const int lane = i % 32, tile = i / 32 % (d / 8), step = i / 32 / (d / 8);
    // Depth 2t, 2t+1, 2t+8, 2t+9 of the mma is dimension 4t .. 4t+3 of the step: any order
    // will do that a shares, and a then reads four neighbours at once.
    const float* r = rotation + (step * 16 + lane % 4 * 4) * d + tile * 8 + lane / 4;
    uint4 b;
    split2(__ldg(r), __ldg(r + d), &b.x, &b.z);
    split2(__ldg(r + 2 * d), __ldg(r + 3 * d), &b.y, &b.w);
    if (kPaired) {
      uint2* to = reinterpret_cast<uint2*>(sh.rotation) +
                  ((step * d / 8 + tile / 2) * 32 + lane) * 2 + tile % 2;
      to[0] = make_uint2(b.x, b.y);
      to[d / 16 * 32 * 2] = make_uint2(b.z, b.w);
    } else {
      sh.rotation[i] = b;
    }
  }
#pragma unroll 4
  for (int i = tid; i < d * ksub / 2; i += kTensorThreads) {
    const int lane = i % 32, unit = i / 32 % (dsub / 8), rest = i / 32 / (dsub / 8);
    const int group = rest % (ksub / 8);
    const int dim = rest / (ksub / 8) * dsub + unit * 8 + lane % 4 * 2;
    const float* c = codebook + dim * ksub + group * 8 + lane / 4;
    uint2 b;
    split2(-2 * __ldg(c), -2 * __ldg(c + ksub), &b.x, &b.y);
    sh.centroids[i] = b;
  }
  float* const columns = sh.xs;  // |R_j|, for as long as no tile is there
  for (int j = tid; j < d; j += kTensorThreads) {
    float sum = 0;
#pragma unroll 16
    for (int i = 0; rotation != nullptr && i < d; ++i) {
      const float r = __ldg(rotation + i * d + j);
      sum = fmaf(r, r, sum);
    }
    columns[j] = sqrtf(sum);
  }
  __syncthreads();
  for (int i = tid; i < m * ksub; i += kTensorThreads) {
    const int s = i / ksub;
    const float* c = codebook + s * dsub * ksub + i % ksub;
    float norm = 0, lever = 0;
#pragma unroll 8
    for (int j = 0; j < dsub; ++j) {
      const float v = __ldg(c + j * ksub);
      norm = fmaf(v, v, norm);
      lever = fmaf(fabsf(v), columns[s * dsub + j], lever);
    }
    sh.norms[i] = norm;
    atomicMax(sh.reach + s, __float_as_uint(norm) & 0x7fffffffu);
    atomicMax(sh.lever + s, __float_as_uint(lever) & 0x7fffffffu);
  }
  for (int s = tid; s < m; s += kTensorThreads) {
    float sum = 0;
    for (int j = s * dsub; j < (s + 1) * dsub; ++j) sum = fmaf(columns[j], columns[j], sum);
    sh.spread[s] = sqrtf(sum);
  }
  // The reach is a square no more from here on.
  __syncthreads();
  for (int i = tid; i < m; i += kTensorThreads) {
    sh.reach[i] = __float_as_uint(sqrtf(__uint_as_float(sh.reach[i])));
  }
}

}  // namespace quarry::cuda
