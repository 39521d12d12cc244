// SPDX-License-Identifier: Apache-2.0
//
// The nearest centroid of each subvector of a tile, by squared Euclidean distance in direct
// difference form: one chain of fused multiply-adds in ascending dimension, lowest id on a
// tie, NaN last. Two ways with the same bits: a thread a subvector where there are many, a
// thread a centroid where there are few (a decode step).
#pragma once

#include <type_traits>

#include "encode/step_shape.h"
#include "encode/tile.cuh"

namespace quarry::cuda {

/// What both ways read. Rows of `xs` are tile_stride(head_dim) apart.
struct NearestInput {
  const IndexView& ix;
  const float* codebook;  ///< of the KV head: [m][dcent][ksub]
  const float* xs;        ///< shared: what is encoded
  const float* extra;     ///< shared [keys][m]: the augmented coordinate, inner_product alone
  int keys;
};

/// Distance, then id, as one number to minimise.
__host__ __device__ inline unsigned long long nearest_key(float distance, int id) {
  return static_cast<unsigned long long>(distance_key(distance)) << 32 | static_cast<unsigned>(id);
}

/// One subvector against all centroids, kAtOnce of them in flight.
template <int kAtOnce>
__device__ int nearest_of(const float* __restrict__ c, int ksub, int dsub, const float* x,
                          const float* extra) {
  constexpr int kWidth = kAtOnce >= 4 ? 4 : 2;
  using Vector = std::conditional_t<kWidth == 4, float4, float2>;
  std::uint32_t best = 0xffffffffu;
  int best_id = 0;
  const bool by_four = dsub % 4 == 0;  // a row's subvectors are then aligned to 16 bytes
  for (int id = 0; id < ksub; id += kAtOnce) {
    float acc[kAtOnce] = {};
    const auto add = [&](const float* row, float v) {
      float centroid[kAtOnce];
#pragma unroll
      for (int l = 0; l < kAtOnce; l += kWidth) {
        *reinterpret_cast<Vector*>(centroid + l) = __ldg(reinterpret_cast<const Vector*>(row + l));
      }
#pragma unroll
      for (int l = 0; l < kAtOnce; ++l) {
        const float diff = v - centroid[l];
        acc[l] = fmaf(diff, diff, acc[l]);
      }
    };
    const float* row = c + id;
    if (by_four) {
      for (int j = 0; j < dsub; j += 4, row += 4 * ksub) {
        const float4 v = *reinterpret_cast<const float4*>(x + j);
        add(row, v.x);
        add(row + ksub, v.y);
        add(row + 2 * ksub, v.z);
        add(row + 3 * ksub, v.w);
      }
    } else {
      for (int j = 0; j < dsub; ++j, row += ksub) add(row, x[j]);
    }
    if (extra != nullptr) add(row, *extra);
#pragma unroll
    for (int l = 0; l < kAtOnce; ++l) {
      const std::uint32_t key = distance_key(acc[l]);
      if (key < best) best = key, best_id = id + l;
    }
  }
  return best_id;
}

/// codes[k * m + s] for every key and subspace.
__device__ inline void nearest_by_subvector(const NearestInput& in, std::uint8_t* codes) {
  const IndexView& ix = in.ix;
  const int m = ix.num_subspaces, stride = tile_stride(ix.head_dim);
  for (int item = static_cast<int>(threadIdx.x); item < in.keys * m;
       item += static_cast<int>(blockDim.x)) {
    // Keys innermost: a warp reads one centroid at a time, by broadcast.
    const int k = item % in.keys, s = item / in.keys;
    const float* c = in.codebook + s * ix.dcent * ix.ksub;
    const float* x = in.xs + k * stride + s * ix.dsub;
    const float* extra = in.extra == nullptr ? nullptr : in.extra + k * m + s;
    const int id = ix.ksub >= 8   ? nearest_of<8>(c, ix.ksub, ix.dsub, x, extra)
                   : ix.ksub == 4 ? nearest_of<4>(c, ix.ksub, ix.dsub, x, extra)
                                  : nearest_of<2>(c, ix.ksub, ix.dsub, x, extra);
    codes[k * m + s] = static_cast<std::uint8_t>(id);
  }
}

/// The same; needs fewer than kManySubvectors of them, and as many words of `best`, shared.
/// All threads of the block call it. kKeys in flight: each reuses the centroid's coordinate.
template <int kKeys>
__device__ inline void nearest_by_centroid(const NearestInput& in, unsigned long long* best,
                                           std::uint8_t* codes) {
  const IndexView& ix = in.ix;
  const int m = ix.num_subspaces, stride = tile_stride(ix.head_dim), pairs = m * ix.ksub;
  const int width = ix.ksub < 32 ? ix.ksub : 32;  // lanes of a warp in one subspace
  for (int i = static_cast<int>(threadIdx.x); i < in.keys * m; i += static_cast<int>(blockDim.x)) {
    best[i] = ~0ull;
  }
  __syncthreads();
  // Warps stay whole for the shuffles below.
  for (int first = static_cast<int>(threadIdx.x) & ~31; first < pairs;
       first += static_cast<int>(blockDim.x)) {
    const int pair = first + static_cast<int>(threadIdx.x & 31);
    const bool valid = pair < pairs;
    const int s = valid ? pair / ix.ksub : 0, id = pair % ix.ksub;
    const float* c = in.codebook + s * ix.dcent * ix.ksub + id;
    for (int k0 = 0; k0 < in.keys; k0 += kKeys) {
      const float* x[kKeys];
      float acc[kKeys] = {};
#pragma unroll
      for (int k = 0; k < kKeys; ++k) {
        const int row = k0 + k < in.keys ? k0 + k : k0;
        x[k] = in.xs + row * stride + s * ix.dsub;
      }
#pragma unroll 16
      for (int j = 0; j < ix.dsub; ++j) {
        const float centroid = __ldg(c + j * ix.ksub);
#pragma unroll
        for (int k = 0; k < kKeys; ++k) {
          const float diff = x[k][j] - centroid;
          acc[k] = fmaf(diff, diff, acc[k]);
        }
      }
      if (in.extra != nullptr) {
        const float centroid = __ldg(c + ix.dsub * ix.ksub);
#pragma unroll
        for (int k = 0; k < kKeys; ++k) {
          const int row = k0 + k < in.keys ? k0 + k : k0;
          const float diff = in.extra[row * m + s] - centroid;
          acc[k] = fmaf(diff, diff, acc[k]);
        }
      }
#pragma unroll
      for (int k = 0; k < kKeys; ++k) {
        if (k0 + k >= in.keys) break;
        unsigned long long key = valid ? nearest_key(acc[k], id) : ~0ull;
        for (int lane = width / 2; lane > 0; lane /= 2) {
          const unsigned long long other = __shfl_xor_sync(0xffffffffu, key, lane);
          key = other < key ? other : key;
        }
        if (valid && static_cast<int>(threadIdx.x & 31) % width == 0) {
          atomicMin(best + (k0 + k) * m + s, key);
        }
      }
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < in.keys * m; i += static_cast<int>(blockDim.x)) {
    codes[i] = static_cast<std::uint8_t>(best[i]);
  }
}

}  // namespace quarry::cuda
