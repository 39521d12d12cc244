// SPDX-License-Identifier: Apache-2.0
//
// A tile of keys in shared memory, on its way to codes: load, subtract the block's mean,
// rotate, augment. Every sum is the contract's: one fused multiply-add chain in ascending
// order, so a tile's size or shape changes no bit. Shared by stages encode and train.
#pragma once

#include "common/vec.cuh"
#include "encode/tiling.h"
#include "half.h"
#include "params.h"

namespace quarry::cuda {

/// Whose keys: one sequence, one KV head.
struct KeySource {
  const IndexView& ix;
  const KeyView& keys;
  const std::int32_t* table;  ///< the sequence's row of the block table, or null
  std::int32_t slot, head;
  bool wide;  ///< is_wide() of the rows

  /// Null where the block table's entry is out of range.
  template <typename E>
  __device__ const typename E::Bits* row(std::int32_t position) const {
    const std::int64_t page = page_of(ix, table, slot, position);
    if (page < 0) return nullptr;
    return static_cast<const typename E::Bits*>(keys.data) +
           key_offset(ix, keys, page, head, position);
  }
  /// What the cache's elements are multiplied by, for scaled().
  __device__ float scale() const { return key_scale(keys, head); }
};

/// Stores coordinate j of the mean of the block that ends at `last` into the index.
struct MeanStore {
  const KeySource& source;

  __device__ void operator()(std::int32_t last, int j, float mean) const {
    const IndexView& ix = source.ix;
    const std::int64_t page = page_of(ix, source.table, source.slot, last);
    if (page < 0) return;
    store_element(ix.means, ix.mean_dtype, mean_offset(ix, page, source.head, last) + j, mean);
  }
};

/// Rows k < rows: the key at position_of(k), or zeros where that is negative.
template <typename E, typename PositionOf>
__device__ void load_keys(const KeySource& source, int rows, PositionOf position_of, float* xs) {
  const int d = source.ix.head_dim, chunks = d / 8, stride = tile_stride(d);
  const float scale = source.scale();
#pragma unroll 4
  for (int item = static_cast<int>(threadIdx.x); item < rows * chunks;
       item += static_cast<int>(blockDim.x)) {
    const int k = item / chunks, j = item % chunks * 8;
    const std::int32_t position = position_of(k);
    const typename E::Bits* row = position < 0 ? nullptr : source.row<E>(position);
    float v[8] = {};
    if (row != nullptr) load8<E>(row + j, source.wide, v);
#pragma unroll
    for (float& x : v) x = scaled<E>(x, scale);
    float4* to = reinterpret_cast<float4*>(xs + k * stride + j);
    to[0] = make_float4(v[0], v[1], v[2], v[3]);
    to[1] = make_float4(v[4], v[5], v[6], v[7]);
  }
}

/// Rounds to `dtype` and widens again: the mean that is used everywhere.
__host__ __device__ inline float rounded(float v, DType dtype) {
  if (dtype == DType::float32) return v;
  if (dtype == DType::float8_e4m3) return float8_to_float(float_to_float8(v));
  return dtype == DType::float16 ? half_to_float(float_to_half(v))
                                 : bfloat16_to_float(float_to_bfloat16(v));
}

/// Coordinate j of the mean of positions [first, last], read from the cache.
template <typename E>
__device__ float mean_from_cache(const KeySource& source, std::int32_t first, std::int32_t last,
                                 int j) {
  const float scale = source.scale();
  float sum = 0;
#pragma unroll 8
  for (std::int32_t p = first; p <= last; ++p) {
    const typename E::Bits* row = source.row<E>(p);
    sum += row == nullptr ? 0.0f : scaled<E>(E::widen(__ldg(row + j)), scale);
  }
  return rounded(sum / static_cast<float>(last - first + 1), source.ix.mean_dtype);
}

/// The tile's blocks' means, to `means` [blocks][d] and through store(last position, j, mean)
/// where the tile holds its blocks' ends; xs becomes the residuals. All threads call it,
/// after a barrier; another must follow.
template <typename E, typename Store>
__device__ void subtract_means(const KeySource& source, const Tiling& tiling, const Tile& tile,
                               float* xs, float* means, Store store) {
  const IndexView& ix = source.ix;
  const int d = ix.head_dim, bs = ix.block_size, stride = tile_stride(d), quads = d / 4;
  const int blocks = (tile.first + tile.count - 1) / bs - tile.first_block + 1;
  for (int item = static_cast<int>(threadIdx.x); item < blocks * d;
       item += static_cast<int>(blockDim.x)) {
    const int block = item / d, j = item % d;
    const std::int32_t start = (tile.first_block + block) * bs, last = start + bs - 1;
    const std::int32_t from = start < ix.encode_from ? ix.encode_from : start;
    float mean = 0;
    if (bs > tiling.keys) {
      mean = mean_from_cache<E>(source, from, last, j);
    } else {
#pragma unroll 8
      for (std::int32_t p = from; p <= last; ++p) mean += xs[(p - tile.first) * stride + j];
      mean = rounded(mean / static_cast<float>(last - from + 1), ix.mean_dtype);
    }
    means[block * d + j] = mean;
    if (tile.stores_means) store(last, j, mean);
  }
  __syncthreads();
  for (int item = static_cast<int>(threadIdx.x); item < tile.count * quads;
       item += static_cast<int>(blockDim.x)) {
    const int k = item / quads, q = item % quads;
    const int block = (tile.first + k) / bs - tile.first_block;
    float4& x = *reinterpret_cast<float4*>(xs + k * stride + q * 4);
    const float4 mean = *reinterpret_cast<const float4*>(means + block * d + q * 4);
    x = make_float4(x.x - mean.x, x.y - mean.y, x.z - mean.z, x.w - mean.w);
  }
}

/// ys[k] = xs[k] . rotation for k < rows, kKeys rows and 4 columns a thread; rows is a
/// multiple of kKeys.
template <int kKeys>
__device__ void rotate(const float* __restrict__ rotation, int d, int rows,
                       const float* __restrict__ xs, float* __restrict__ ys) {
  const int quads = d / 4, stride = tile_stride(d);
  for (int item = static_cast<int>(threadIdx.x); item < rows / kKeys * quads;
       item += static_cast<int>(blockDim.x)) {
    const int q = item % quads, k0 = item / quads * kKeys;
    const float* x = xs + k0 * stride;
    const float4* r = reinterpret_cast<const float4*>(rotation) + q;
    float4 acc[kKeys];
#pragma unroll
    for (int k = 0; k < kKeys; ++k) acc[k] = make_float4(0, 0, 0, 0);
    // Rows in flight: with few keys there is little else to hide their latency behind, with
    // many more would spill. d is a multiple of eight.
    constexpr int kAhead = kKeys <= 2 ? 8 : 4;
#pragma unroll 1
    for (int i = 0; i < d; i += kAhead) {
      float4 row[kAhead];
#pragma unroll
      for (int l = 0; l < kAhead; ++l) row[l] = __ldg(r + (i + l) * quads);
#pragma unroll
      for (int k = 0; k < kKeys; ++k) {
#pragma unroll
        for (int h = 0; h < kAhead; h += 4) {
          const float4 v = *reinterpret_cast<const float4*>(x + k * stride + i + h);
          const float u[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
          for (int l = 0; l < 4; ++l) {
            acc[k].x = fmaf(u[l], row[h + l].x, acc[k].x);
            acc[k].y = fmaf(u[l], row[h + l].y, acc[k].y);
            acc[k].z = fmaf(u[l], row[h + l].z, acc[k].z);
            acc[k].w = fmaf(u[l], row[h + l].w, acc[k].w);
          }
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kKeys; ++k) {
      *reinterpret_cast<float4*>(ys + (k0 + k) * stride + q * 4) = acc[k];
    }
  }
}

/// |x|^2 of a subvector.
__host__ __device__ inline float squared_norm(const float* x, int dsub) {
  float sum = 0;
  for (int j = 0; j < dsub; ++j) sum = fmaf(x[j], x[j], sum);
  return sum;
}

/// The coordinate that metric inner_product adds.
__host__ __device__ inline float augmentation(float phi, float norm) {
  return sqrtf(fmaxf(phi - norm, 0.0f));
}

/// The tile's codes [count][m] into the index, two a byte where they fit; consecutive threads
/// write consecutive positions.
__device__ inline void store_codes(const KeySource& source, const Tile& tile,
                                   const std::uint8_t* codes) {
  const IndexView& ix = source.ix;
  const int m = ix.num_subspaces;
  for (int item = static_cast<int>(threadIdx.x); item < tile.count * ix.code_bytes;
       item += static_cast<int>(blockDim.x)) {
    const int k = item % tile.count, i = item / tile.count;
    const std::uint8_t* row = codes + k * m;
    std::uint8_t byte = row[ix.bits <= 4 ? 2 * i : i];
    if (ix.bits <= 4 && 2 * i + 1 < m) byte |= static_cast<std::uint8_t>(row[2 * i + 1] << 4);
    const std::int32_t position = tile.first + k;
    const std::int64_t page = page_of(ix, source.table, source.slot, position);
    if (page < 0) continue;
    ix.codes[code_offset(ix, page, source.head, position % ix.page_size) + i * ix.tile] = byte;
  }
}

}  // namespace quarry::cuda
