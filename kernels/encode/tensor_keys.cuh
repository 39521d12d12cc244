// SPDX-License-Identifier: Apache-2.0
//
// A tile of keys on its way to the tensor cores, and its codes on their way out. The same
// sums as tile.cuh's, in an order of memory that suits an mma.
#pragma once

#include "encode/tensor_tables.cuh"

namespace quarry::cuda {

/// Where the rows of `tile` lie in the cache: one thread a row, since that takes divisions.
__device__ __forceinline__ void find_keys(const KeySource& source, const Tile& tile, int k,
                                          std::int64_t* key_at) {
  std::int64_t at = TensorShared::kNoRow;
  if (k < tile.count) {
    const std::int32_t position = tile.first + k;
    const std::int64_t page = page_of(source.ix, source.table, source.slot, position);
    if (page >= 0) at = key_offset(source.ix, source.keys, page, source.head, position);
  }
  key_at[k] = at;
}

/// The same for its codes.
__device__ __forceinline__ void find_codes(const KeySource& source, const Tile& tile, int k,
                                           std::int64_t* code_at) {
  const IndexView& ix = source.ix;
  std::int64_t at = TensorShared::kNoRow;
  if (k < tile.count) {
    const std::int32_t position = tile.first + k;
    const std::int64_t page = page_of(ix, source.table, source.slot, position);
    if (page >= 0) at = code_offset(ix, page, source.head, position % ix.page_size);
  }
  code_at[k] = at;
}

/// Rows of the next tile, on their way while this one is computed; elements of two bytes, or of
/// one, which fill half of a word.
template <int kTiles>
struct Ahead {
  static constexpr int kChunks = 2 * kTiles;                             // of eight elements a row
  static constexpr int kWords = kTensorKeys * kChunks / kTensorThreads;  // of 16 bytes
  uint4 word[kWords];

  __device__ __forceinline__ void fetch(const KeyView& keys, const std::int64_t* key_at) {
    const bool one = keys.dtype == DType::float8_e4m3;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const int item = static_cast<int>(threadIdx.x) + i * kTensorThreads;
      const std::int64_t at = key_at[item / kChunks];
      word[i] = make_uint4(0, 0, 0, 0);
      if (at == TensorShared::kNoRow) continue;
      const std::int64_t from = at + item % kChunks * 8;
      if (one) {
        const auto* row = static_cast<const std::uint8_t*>(keys.data) + from;
        const uint2 half = __ldg(reinterpret_cast<const uint2*>(row));
        word[i].x = half.x, word[i].y = half.y;
      } else {
        const auto* row = static_cast<const std::uint16_t*>(keys.data) + from;
        word[i] = __ldg(reinterpret_cast<const uint4*>(row));
      }
    }
  }
  template <typename E>
  __device__ __forceinline__ void store(float scale, float* xs) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const int item = static_cast<int>(threadIdx.x) + i * kTensorThreads;
      const int k = item / kChunks, c = item % kChunks;
      const std::uint32_t w[4] = {word[i].x, word[i].y, word[i].z, word[i].w};
      float v[8];
      if constexpr (std::is_same_v<E, Float8>) {
        widen8(w[0], w[1], v);
#pragma unroll
        for (float& x : v) x *= scale;
      } else {
#pragma unroll
        for (int l = 0; l < 8; ++l) {
          v[l] = E::widen(static_cast<std::uint16_t>(w[l / 2] >> l % 2 * 16));
        }
      }
      const float4 a = make_float4(v[0], v[1], v[2], v[3]);
      const float4 b = make_float4(v[4], v[5], v[6], v[7]);
      // Eight threads' chunks are every other one: half of the threads begin with the second.
      const bool second = (c & 4) != 0;
      float* row = xs + k * 8 * kChunks;
      const int at = (2 * c) ^ swizzle(k);
      *reinterpret_cast<float4*>(row + (at ^ (second ? 1 : 0)) * 4) = second ? b : a;
      *reinterpret_cast<float4*>(row + (at ^ (second ? 0 : 1)) * 4) = second ? a : b;
    }
  }
};

/// A tile's rows without a fetch ahead.
template <typename E, int kTiles>
__device__ void load_rows(const KeySource& source, const std::int64_t* key_at, float* xs) {
  constexpr int kChunks = 2 * kTiles;
  const float scale = source.scale();
#pragma unroll 1
  for (int item = static_cast<int>(threadIdx.x); item < kTensorKeys * kChunks;
       item += kTensorThreads) {
    const int k = item / kChunks, c = item % kChunks;
    float v[8] = {};
    if (key_at[k] != TensorShared::kNoRow) {
      const auto* row = static_cast<const typename E::Bits*>(source.keys.data) + key_at[k];
      load8<E>(row + c * 8, source.wide, v);
    }
#pragma unroll
    for (float& x : v) x = scaled<E>(x, scale);
    float* row = xs + k * 8 * kChunks;
    const int at = (2 * c) ^ swizzle(k);
    *reinterpret_cast<float4*>(row + at * 4) = make_float4(v[0], v[1], v[2], v[3]);
    *reinterpret_cast<float4*>(row + (at ^ 1) * 4) = make_float4(v[4], v[5], v[6], v[7]);
  }
}

/// Coordinate j of rows [first, end), summed in ascending order. The loads of sixteen rows are
/// under way before the first of them is added.
template <int kDim>
__device__ __forceinline__ float column_sum(const float* xs, int first, int end, int j) {
  const auto at = [&](int k) { return k * kDim + ((j / 4) ^ swizzle(k)) * 4 + j % 4; };
  float sum = 0;
  int k = first;
  for (; k < end && k % 4 != 0; ++k) sum += xs[at(k)];
  const int column[4] = {at(0), at(1), at(2), at(3)};
#pragma unroll 1
  for (; k + 16 <= end; k += 16) {
    float v[16];
#pragma unroll
    for (int l = 0; l < 16; ++l) v[l] = xs[column[l % 4] + (k + l / 4 * 4) * kDim];
#pragma unroll
    for (int l = 0; l < 16; ++l) sum += v[l];
  }
  for (; k < end; ++k) sum += xs[at(k)];
  return sum;
}

/// subtract_means() of tile.cuh.
template <int kTiles>
__device__ __forceinline__ void subtract_tile_means(const KeySource& source, const Tile& tile,
                                                    const TensorShared& sh) {
  constexpr int kDim = 16 * kTiles, kQuads = kDim / 4;
  const IndexView& ix = source.ix;
  const int bs = ix.block_size;
  const bool one = bs >= kTensorKeys;  // block a tile
  const int blocks = one ? 1 : (tile.first + tile.count - 1) / bs - tile.first_block + 1;
  for (int item = static_cast<int>(threadIdx.x); item < blocks * kDim; item += kTensorThreads) {
    const int block = item / kDim, j = item % kDim;
    const std::int32_t start = (tile.first_block + block) * bs, last = start + bs - 1;
    const std::int32_t from = start < ix.encode_from ? ix.encode_from : start;
    float mean = 0;
    if (bs > kTensorKeys) {
      for_dtype(source.keys.dtype, [&](auto element) {
        mean = mean_from_cache<decltype(element)>(source, from, last, j);
      });
    } else {
      const float sum = column_sum<kDim>(sh.xs, from - tile.first, last - tile.first + 1, j);
      mean = rounded(sum / static_cast<float>(last - from + 1), ix.mean_dtype);
    }
    sh.means[item] = mean;
    if (tile.stores_means) MeanStore{source}(last, j, mean);
  }
  __syncthreads();
#pragma unroll 4
  for (int i = 0; i < kTensorKeys * kQuads / kTensorThreads; ++i) {
    const int item = static_cast<int>(threadIdx.x) + i * kTensorThreads;
    const int k = item / kQuads, q = item % kQuads;
    if (k >= tile.count) break;
    const int block = one ? 0 : (tile.first + k) / bs - tile.first_block;
    float4& x = *reinterpret_cast<float4*>(sh.xs + k * kDim + (q ^ swizzle(k)) * 4);
    const float4 mean = *reinterpret_cast<const float4*>(sh.means + block * kDim + q * 4);
    x = make_float4(x.x - mean.x, x.y - mean.y, x.z - mean.z, x.w - mean.w);
  }
}

/// store_codes() of tile.cuh; m is even.
__device__ __forceinline__ void store_tile_codes(const IndexView& ix, const TensorShared& sh) {
  for (int item = static_cast<int>(threadIdx.x); item < kTensorKeys * ix.code_bytes;
       item += kTensorThreads) {
    const int k = item % kTensorKeys, i = item / kTensorKeys;
    const std::int64_t at = sh.code_at[k];
    if (at == TensorShared::kNoRow) continue;
    const std::uint8_t* row = sh.codes + k * ix.num_subspaces;
    std::uint32_t byte;
    if (ix.bits <= 4) {
      const std::uint32_t two = *reinterpret_cast<const std::uint16_t*>(row + 2 * i);
      byte = two | two >> 4;
    } else {
      byte = row[i];
    }
    ix.codes[at + i * ix.tile] = static_cast<std::uint8_t>(byte);
  }
}

}  // namespace quarry::cuda
