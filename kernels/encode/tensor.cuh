// SPDX-License-Identifier: Apache-2.0
//
// Bulk encoding on tensor cores: a prefill's tiles of 64 keys, rotated and compared with
// centroids in split bfloat16. bound.h proves most codes; near ties are encoded again in the
// contract's arithmetic, so the bytes are those of one-by-one encoding. Keys are read once;
// a thread block stays with one KV head and keeps its rotation and codebook in shared memory.
#pragma once

#include "common/launch.h"
#include "encode/bound.h"
#include "encode/tensor_tables.cuh"

namespace quarry::cuda {

/// f(Float32{}), f(Float16{}) or f(BFloat16{}), on the device.
template <typename F>
__device__ __forceinline__ void for_dtype(DType dtype, F&& f) {
  if (dtype == DType::float32) return f(Float32{});
  if (dtype == DType::float16) return f(Float16{});
  return f(BFloat16{});
}

/// The least and second least of a lane's distances to one row, and whose the least is.
struct TwoLeast {
  float least = INFINITY, second = INFINITY;
  int id = 0;

  __device__ __forceinline__ void add(float v, int of) {
    if (v < least) {
      second = least, least = v, id = of;
    } else if (v < second) {
      second = v;
    }
  }
  /// With the other three lanes of the row's four.
  __device__ __forceinline__ void merge() {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      const float l = __shfl_xor_sync(0xffffffffu, least, step);
      const float s = __shfl_xor_sync(0xffffffffu, second, step);
      const int i = __shfl_xor_sync(0xffffffffu, id, step);
      if (l < least || (l == least && i < id)) {
        second = fminf(least, s), least = l, id = i;
      } else {
        second = fminf(second, l);
      }
    }
  }
};

__device__ __forceinline__ float sum_of_four(float v) {
  v += __shfl_xor_sync(0xffffffffu, v, 1);
  return v + __shfl_xor_sync(0xffffffffu, v, 2);
}

/// One tile of residuals in sh.xs to sh.codes and sh.ties. kTiles = d / 16: tiles of 8
/// dimensions a warp has; kUnits = dsub / 8: of them a subspace's.
template <int kTiles, int kUnits>
__device__ __forceinline__ void nearest_on_tensor_cores(const IndexView& ix, bool rotates,
                                                        int count, const TensorShared& sh) {
  constexpr int kStride = tile_stride(16 * kTiles);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4, row = warp % 4 * 16 + g, half = warp / 4;
  const int m = ix.num_subspaces, ksub = ix.ksub;
  const float* x = sh.xs + row * kStride;
  float acc[kTiles][4] = {};
  float whole[2] = {0, 0};  // |x|^2 of rows g and g + 8
  if (rotates) {
#pragma unroll 1
    for (int step = 0; step < kTiles; ++step) {
      const float4 u = *reinterpret_cast<const float4*>(x + step * 16 + t * 4);
      const float4 v = *reinterpret_cast<const float4*>(x + 8 * kStride + step * 16 + t * 4);
      whole[0] = fmaf(u.x, u.x, fmaf(u.y, u.y, fmaf(u.z, u.z, fmaf(u.w, u.w, whole[0]))));
      whole[1] = fmaf(v.x, v.x, fmaf(v.y, v.y, fmaf(v.z, v.z, fmaf(v.w, v.w, whole[1]))));
      std::uint32_t high[4], low[4];
      split2(u.x, u.y, high, low);
      split2(v.x, v.y, high + 1, low + 1);
      split2(u.z, u.w, high + 2, low + 2);
      split2(v.z, v.w, high + 3, low + 3);
      const uint4* b = sh.rotation + (step * 2 * kTiles + half * kTiles) * 32 + lane;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const uint4 r = b[n * 32];
        multiply_add(acc[n], high, r.x, r.y);
        multiply_add(acc[n], high, r.z, r.w);
        multiply_add(acc[n], low, r.x, r.y);
      }
    }
    whole[0] = sqrtf(sum_of_four(whole[0]));
    whole[1] = sqrtf(sum_of_four(whole[1]));
  } else {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const float* at = x + half * 8 * kTiles + n * 8 + t * 2;
      const float2 u = *reinterpret_cast<const float2*>(at);
      const float2 v = *reinterpret_cast<const float2*>(at + 8 * kStride);
      acc[n][0] = u.x, acc[n][1] = u.y, acc[n][2] = v.x, acc[n][3] = v.y;
    }
  }

  // What an mma leaves in d is laid out as the next one's a: a subspace's dimensions are
  // multiplied by its centroids without a shuffle.
#pragma unroll
  for (int local = 0; local < kTiles / kUnits; ++local) {
    const int s = half * (kTiles / kUnits) + local;
    std::uint32_t high[kUnits][2], low[kUnits][2];
    float part[2] = {0, 0};
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      const float(&v)[4] = acc[local * kUnits + unit];
      split2(v[0], v[1], &high[unit][0], &low[unit][0]);
      split2(v[2], v[3], &high[unit][1], &low[unit][1]);
      part[0] = fmaf(v[0], v[0], fmaf(v[1], v[1], part[0]));
      part[1] = fmaf(v[2], v[2], fmaf(v[3], v[3], part[1]));
    }
    TwoLeast best[2];
    const uint2* b = sh.centroids + s * (ksub / 8) * kUnits * 32 + lane;
#pragma unroll 2
    for (int c = 0; c < ksub; c += 8, b += kUnits * 32) {
      float product[4] = {};
      if constexpr (kUnits == 1) {
        const uint2 centroid = b[0];
        multiply_add(product, high[0], centroid.x);
        multiply_add(product, high[0], centroid.y);
        multiply_add(product, low[0], centroid.x);
      } else {
#pragma unroll
        for (int unit = 0; unit < kUnits; unit += 2) {
          const uint2 c0 = b[unit * 32], c1 = b[unit * 32 + 32];
          const std::uint32_t h[4] = {high[unit][0], high[unit][1], high[unit + 1][0],
                                      high[unit + 1][1]};
          const std::uint32_t l[4] = {low[unit][0], low[unit][1], low[unit + 1][0],
                                      low[unit + 1][1]};
          multiply_add(product, h, c0.x, c1.x);
          multiply_add(product, h, c0.y, c1.y);
          multiply_add(product, l, c0.x, c1.x);
        }
      }
      const float2 norm = *reinterpret_cast<const float2*>(sh.norms + s * ksub + c + t * 2);
      best[0].add(fmaf(-2.0f, product[0], norm.x), c + t * 2);
      best[0].add(fmaf(-2.0f, product[1], norm.y), c + t * 2 + 1);
      best[1].add(fmaf(-2.0f, product[2], norm.x), c + t * 2);
      best[1].add(fmaf(-2.0f, product[3], norm.y), c + t * 2 + 1);
    }
    const float reach = sqrtf(__uint_as_float(sh.reach[s])), spread = sh.spread[s];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      best[i].merge();
      const float gap = safe_gap(16 * kTiles, 8 * kUnits, whole[i], spread,
                                 sqrtf(sum_of_four(part[i])), reach);
      const int item = (row + 8 * i) * m + s;
      if (t != 0 || row + 8 * i >= count) continue;
      sh.codes[item] = static_cast<std::uint8_t>(best[i].id);
      // Not above, rather than below: NaN anywhere goes the exact way.
      if (!(best[i].second - best[i].least > gap)) {
        sh.ties[atomicAdd(sh.num_ties, 1)] = static_cast<std::uint16_t>(item);
      }
    }
  }
}

/// Rows of the next tile, on their way while this one is computed; two-byte elements alone.
template <int kTiles>
struct Ahead {
  static constexpr int kWords = kTiles / 2;  // of 16 bytes a thread: 64 * d / 8 / 256
  uint4 word[kWords];

  __device__ __forceinline__ void fetch(const KeySource& source, const Tile& tile) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const int item = static_cast<int>(threadIdx.x) + i * kTensorThreads;
      const int k = item / (2 * kTiles), j = item % (2 * kTiles) * 8;
      const std::uint16_t* row = k < tile.count ? source.row<BFloat16>(tile.first + k) : nullptr;
      word[i] = row == nullptr ? make_uint4(0, 0, 0, 0)
                               : __ldg(reinterpret_cast<const uint4*>(row + j));
    }
  }
  template <typename E>
  __device__ __forceinline__ void store(float* xs) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const int item = static_cast<int>(threadIdx.x) + i * kTensorThreads;
      const int k = item / (2 * kTiles), j = item % (2 * kTiles) * 8;
      const std::uint32_t w[4] = {word[i].x, word[i].y, word[i].z, word[i].w};
      float v[8];
#pragma unroll
      for (int l = 0; l < 8; ++l) v[l] = E::widen(static_cast<std::uint16_t>(w[l / 2] >> l % 2 * 16));
      float4* to = reinterpret_cast<float4*>(xs + k * tile_stride(16 * kTiles) + j);
      to[0] = make_float4(v[0], v[1], v[2], v[3]);
      to[1] = make_float4(v[4], v[5], v[6], v[7]);
    }
  }
};

/// Grid (B * Hkv * blocks), blocks innermost; each takes every blocks-th tile.
template <int kTiles, int kUnits>
__global__ void __launch_bounds__(kTensorThreads, 2)
    encode_tensor_kernel(const __grid_constant__ EncodeParams p,
                         const __grid_constant__ Tiling tiling, std::int32_t blocks, bool wide) {
  extern __shared__ __align__(16) unsigned char memory[];
  wait_for_predecessor();
  let_successor_start();
  const IndexView& ix = p.index;
  const auto id = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t head = id / blocks % ix.num_kv_heads, b = id / blocks / ix.num_kv_heads;
  const SequenceState st = p.step.states[b];
  if (st.slot < 0 || st.built == 0) return;
  const TensorShared sh(memory, ix, tiling);
  const KeySource source{ix, p.keys, block_table_row(p.step, b), st.slot, head, wide};
  const std::int64_t book = std::int64_t{codebook_of(ix, st.slot)} * ix.num_kv_heads + head;
  const float* codebook = ix.codebooks + book * ix.head_dim * ix.ksub;
  const float* rotation =
      ix.rotation == nullptr ? nullptr : ix.rotation + book * ix.head_dim * ix.head_dim;
  load_tables(ix, rotation, codebook, sh);

  const std::int32_t tiles = tiling.tiles(st.begin, st.n);
  const bool ahead = wide && p.keys.dtype != DType::float32;
  Ahead<kTiles> next;
  std::int32_t i = id % blocks;
  if (ahead && i < tiles) next.fetch(source, tiling.tile(st.begin, st.n, i));
  for (; i < tiles; i += blocks) {
    const Tile tile = tiling.tile(st.begin, st.n, i);
    __syncthreads();  // the last tile has been stored
    if (threadIdx.x == 0) *sh.num_ties = 0;
    if (ahead) {
      if (p.keys.dtype == DType::float16) {
        next.template store<Float16>(sh.xs);
      } else {
        next.template store<BFloat16>(sh.xs);
      }
      if (i + blocks < tiles) next.fetch(source, tiling.tile(st.begin, st.n, i + blocks));
    } else {
      for_dtype(p.keys.dtype, [&](auto element) {
        load_keys<decltype(element)>(
            source, kTensorKeys,
            [&](int k) { return k < tile.count ? tile.first + k : -1; }, sh.xs);
      });
    }
    __syncthreads();
    if (tile.count == 0) continue;  // a chunk of keys below encode_from
    if (ix.block_size > 0) {
      for_dtype(p.keys.dtype, [&](auto element) {
        subtract_means<decltype(element)>(
            source, tiling, tile, sh.xs, sh.means, MeanStore{source});
      });
      __syncthreads();
    }
    nearest_on_tensor_cores<kTiles, kUnits>(ix, rotation != nullptr, tile.count, sh);
    __syncthreads();
    settle_ties(ix, rotation, codebook, sh);
    __syncthreads();
    store_codes(source, tile, sh.codes);
  }
}

/// True where `encode_tensor_kernel` serves: else the exact kernel does all.
inline bool tensor_cores_serve(const IndexView& ix) {
  const bool dims = ix.head_dim == 64 || ix.head_dim == 128;
  const bool subspaces = ix.dsub == 8 || ix.dsub == 16 || ix.dsub == 32 || ix.dsub == 64;
  return dims && subspaces && ix.dsub * 2 <= ix.head_dim && ix.ksub >= 8 &&
         ix.metric == Metric::euclidean;
}

}  // namespace quarry::cuda
