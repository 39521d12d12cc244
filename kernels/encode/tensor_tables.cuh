// SPDX-License-Identifier: Apache-2.0
//
// Around the tensor cores: what a thread block keeps in shared memory for its KV head, and
// the near ties, encoded again in the contract's arithmetic.
#pragma once

#include "common/mma.cuh"
#include "encode/nearest.cuh"
#include "encode/tile.cuh"
#include "encode/tiling.h"

namespace quarry::cuda {

constexpr int kTensorThreads = 256;
constexpr int kTensorKeys = 64;  // four row groups of 16 by two halves of the dimensions

/// Dynamic shared memory. The code that counts it carves it.
struct TensorShared {
  uint4* rotation;        ///< [d / 16][d / 8][lane]: b of an mma, two high and two low words
  uint2* centroids;       ///< [m][ksub / 8][dsub / 8][lane]: b, high and low
  float* xs;              ///< [64][stride]
  float* means;           ///< [blocks of a tile][d]
  float* norms;           ///< [m][ksub]: |c|^2
  unsigned* reach;        ///< [m]: bits of the largest |c|^2, which order as it does; NaN most
  float* spread;          ///< [m]
  float* subvectors;      ///< [warps][64]: rotated again, exactly
  int* num_ties;
  std::uint16_t* ties;    ///< [64 * m]: row * m + s
  std::uint8_t* codes;    ///< [64][m]
  std::size_t bytes = 0;

  __host__ __device__ TensorShared(unsigned char* base, const IndexView& ix,
                                   const Tiling& tiling) {
    const auto take = [&](std::int64_t count, std::int64_t size) {
      unsigned char* const here = base == nullptr ? nullptr : base + bytes;
      bytes += static_cast<std::size_t>((count * size + 15) / 16 * 16);
      return here;
    };
    const std::int64_t d = ix.head_dim, m = ix.num_subspaces, ksub = ix.ksub;
    rotation = reinterpret_cast<uint4*>(take(ix.rotation != nullptr ? d * d / 4 : 0, 16));
    centroids = reinterpret_cast<uint2*>(take(d * ksub / 2, 8));
    xs = reinterpret_cast<float*>(take(std::int64_t{kTensorKeys} * tile_stride(ix.head_dim), 4));
    means = reinterpret_cast<float*>(
        take(ix.block_size > 0 ? tiling.blocks_per_tile() * d : 0, 4));
    norms = reinterpret_cast<float*>(take(m * ksub, 4));
    reach = reinterpret_cast<unsigned*>(take(m, 4));
    spread = reinterpret_cast<float*>(take(m, 4));
    subvectors = reinterpret_cast<float*>(take(kTensorThreads / 32 * 64, 4));
    num_ties = reinterpret_cast<int*>(take(1, 4));
    ties = reinterpret_cast<std::uint16_t*>(take(kTensorKeys * m, 2));
    codes = take(kTensorKeys * m, 1);
  }
};

/// The head's rotation and codebook as mma operands, and what the bound needs of them.
__device__ inline void load_tables(const IndexView& ix, const float* __restrict__ rotation,
                                   const float* __restrict__ codebook, const TensorShared& sh) {
  const int d = ix.head_dim, m = ix.num_subspaces, ksub = ix.ksub, dsub = ix.dsub;
  const auto tid = static_cast<int>(threadIdx.x);
  for (int i = tid; i < m; i += kTensorThreads) sh.reach[i] = 0;
  __syncthreads();
  for (int i = tid; rotation != nullptr && i < d * d / 4; i += kTensorThreads) {
    const int lane = i % 32, tile = i / 32 % (d / 8), step = i / 32 / (d / 8);
    // Depth 2t, 2t+1, 2t+8, 2t+9 of the mma is dimension 4t .. 4t+3 of the step: any order
    // will do that a shares, and a then reads four neighbours at once.
    const float* r = rotation + (step * 16 + lane % 4 * 4) * d + tile * 8 + lane / 4;
    uint4 b;
    split2(__ldg(r), __ldg(r + d), &b.x, &b.z);
    split2(__ldg(r + 2 * d), __ldg(r + 3 * d), &b.y, &b.w);
    sh.rotation[i] = b;
  }
  for (int i = tid; i < d * ksub / 2; i += kTensorThreads) {
    const int lane = i % 32, unit = i / 32 % (dsub / 8), rest = i / 32 / (dsub / 8);
    const int group = rest % (ksub / 8);
    const float* c = codebook + (rest / (ksub / 8) * dsub + unit * 8 + lane % 4 * 2) * ksub + group * 8 + lane / 4;
    uint2 b;
    split2(__ldg(c), __ldg(c + ksub), &b.x, &b.y);
    sh.centroids[i] = b;
  }
  for (int i = tid; i < m * ksub; i += kTensorThreads) {
    const float* c = codebook + i / ksub * dsub * ksub + i % ksub;
    float norm = 0;
    for (int j = 0; j < dsub; ++j) norm = fmaf(__ldg(c + j * ksub), __ldg(c + j * ksub), norm);
    sh.norms[i] = norm;
    atomicMax(sh.reach + i / ksub, __float_as_uint(norm) & 0x7fffffffu);
  }
  // Eight threads a subspace, of which a head_dim of 128 has 16 at most.
  const int s = tid / 8;
  float sum = 0;
  for (int i = tid % 8; rotation != nullptr && s < m && i < d; i += 8) {
    for (int j = s * dsub; j < (s + 1) * dsub; ++j) {
      sum = fmaf(__ldg(rotation + i * d + j), __ldg(rotation + i * d + j), sum);
    }
  }
  for (int step = 1; step < 8; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (s < m && tid % 8 == 0) sh.spread[s] = sqrtf(sum);
}

/// The near ties once more, exactly; a warp takes as many as its lanes hold dimensions of.
__device__ inline void settle_ties(const IndexView& ix, const float* __restrict__ rotation,
                                   const float* __restrict__ codebook, const TensorShared& sh) {
  const int d = ix.head_dim, m = ix.num_subspaces, ksub = ix.ksub, dsub = ix.dsub;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int width = dsub < 32 ? dsub : 32, at_once = 32 / width;
  const int ties = *sh.num_ties, stride = tile_stride(d);
  float* const mine = sh.subvectors + warp * 64;
  for (int first = warp * at_once; first < ties; first += kTensorThreads / 32 * at_once) {
    const int own = first + lane / width;
    if (own < ties) {
      const float* x = sh.xs + sh.ties[own] / m * stride;
      for (int j = lane % width; j < dsub; j += width) {
        const int column = sh.ties[own] % m * dsub + j;
        float v = x[column];
        if (rotation != nullptr) {
          v = 0;
#pragma unroll 8
          for (int i = 0; i < d; ++i) v = fmaf(x[i], __ldg(rotation + i * d + column), v);
        }
        mine[lane / width * dsub + j] = v;
      }
    }
    __syncwarp();
    for (int item = 0; item < at_once && first + item < ties; ++item) {
      const float* c = codebook + sh.ties[first + item] % m * dsub * ksub;
      unsigned long long best = ~0ull;
      for (int id = lane; id < ksub; id += 32) {
        float sum = 0;
        for (int j = 0; j < dsub; ++j) {
          const float diff = mine[item * dsub + j] - __ldg(c + j * ksub + id);
          sum = fmaf(diff, diff, sum);
        }
        const unsigned long long key = nearest_key(sum, id);
        best = key < best ? key : best;
      }
      for (int step = 16; step > 0; step /= 2) {
        const unsigned long long other = __shfl_xor_sync(0xffffffffu, best, step);
        best = other < best ? other : best;
      }
      if (lane == 0) sh.codes[sh.ties[first + item]] = static_cast<std::uint8_t>(best);
    }
    __syncwarp();  // before the next round writes `mine`
  }
}

}  // namespace quarry::cuda
