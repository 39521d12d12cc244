// SPDX-License-Identifier: Apache-2.0
//
// The nearest centroid of each subvector of a tile, by squared Euclidean distance in direct
// difference form: one chain of fused multiply-adds in ascending dimension, lowest id on a
// tie, NaN last. A thread a subvector, where there are many of them.
#pragma once

#include <type_traits>

#include "encode/tile.cuh"

namespace quarry::cuda {

/// What is read. Rows of `xs` are tile_stride(head_dim) apart.
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

}  // namespace quarry::cuda
