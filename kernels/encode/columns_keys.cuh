// SPDX-License-Identifier: Apache-2.0
//
// A tile of 64 bfloat16 keys, which is a block where there are blocks, on its way to the warp that
// encodes it: the copies of its rows, its mean, its keys' norms. Row k is the position `base + k`,
// whatever of the block lies below encode_from.
#pragma once

#include <cuda_fp16.h>

#include "encode/columns_table.cuh"
#include "encode/tile.cuh"
#include "encode/tiling.h"

namespace quarry::cuda {

constexpr int kColumnsKeys = 64;
constexpr int kColumnsMostWarps = 8;  // what registers allow
constexpr std::int64_t kColumnsNoRow = INT64_MIN;

/// Dynamic shared memory. The code that counts it carves it.
struct ColumnsShared {
  ColumnsTable table;
  std::uint16_t* keys;   ///< [warps][64][d], chunk c (of 8) of row k at c ^ (k % 8)
  float* means;          ///< [warps][d]
  std::uint16_t* parts;  ///< [warps][4][d + 8]: three rows that sum to the mean; four keys of ties
  std::size_t bytes = 0;

  __host__ __device__ ColumnsShared(unsigned char* base, int d, int m, int warps) {
    const auto take = [&](std::int64_t count, std::int64_t size) {
#if defined(__CUDA_ARCH__)
      unsigned char* const here = base + bytes;  // never null, and so known to be shared memory
#else
      unsigned char* const here = base == nullptr ? nullptr : base + bytes;
#endif
      bytes += static_cast<std::size_t>((count * size + 127) / 128 * 128);
      return here;
    };
    table.rotation = reinterpret_cast<uint4*>(take(d * d, 4));
    table.centroids = reinterpret_cast<uint4*>(take(m * 64, 16));
    table.norms = reinterpret_cast<float4*>(take(m * 8, 16));
    table.gaps = reinterpret_cast<ColumnsGap*>(take(m, sizeof(ColumnsGap)));
    table.ids = reinterpret_cast<uint4*>(take(4, sizeof(uint4)));
    keys = reinterpret_cast<std::uint16_t*>(take(warps * kColumnsKeys * d, 2));
    means = reinterpret_cast<float*>(take(warps * d, 4));
    parts = reinterpret_cast<std::uint16_t*>(take(warps * 4 * (d + 8), 2));
  }
};

/// The warps of a thread block whose shared memory is `most` bytes; 0 where that is too small for
/// the rotation as scratch in their keys' place.
inline int columns_warps(int d, int m, std::size_t most) {
  for (int warps = kColumnsMostWarps; warps * kColumnsKeys * 2 >= d * 4; warps -= 2) {
    if (ColumnsShared(nullptr, d, m, warps).bytes <= most) return warps;
  }
  return 0;
}

/// Rows of a tile are dealt to lanes as its codes are: row 32 p + columns_row(lane), p = 0, 1.
__device__ __forceinline__ int columns_row(int lane) { return lane % 4 * 8 + lane / 4; }

/// The page of a position, negative where there is none, and its place in that: without pages
/// there is nothing to divide.
struct ColumnsPlace {
  std::int64_t page;
  std::int32_t in_page;

  __device__ __forceinline__ ColumnsPlace(const KeySource& source, std::int32_t position)
      : page(source.slot), in_page(position) {
    if (source.table == nullptr) return;
    const std::int32_t size = source.ix.page_size, number = position / size;
    in_page = position - number * size;
    page = source.table[number];
    if (page >= source.ix.num_pages) page = -1;
  }
};

/// Where row k of a tile lies in the cache, in elements.
__device__ __forceinline__ std::int64_t find_columns_key(const KeySource& source,
                                                         const ColumnsTile& tile, int k) {
  const std::int32_t position = tile.base + k;
  if (position < tile.from || position >= tile.end) return kColumnsNoRow;
  const ColumnsPlace place(source, position);
  return place.page < 0
             ? kColumnsNoRow
             : place.page * source.keys.page_stride + place.in_page * source.keys.slot_stride +
                   source.head * source.keys.head_stride;
}

/// Starts the copies of a tile's rows to the warp's `to`; zeros for rows that are not there.
/// at: where the lane's two rows lie.
template <int kSteps>
__device__ __forceinline__ void fetch_columns(const KeyView& keys, const std::int64_t (&at)[2],
                                              std::uint16_t* to) {
  constexpr int kChunks = 2 * kSteps, kRows = 32 / kChunks;  // rows at once
  const int lane = static_cast<int>(threadIdx.x) % 32, c = lane % kChunks, row = lane / kChunks;
  const auto* elements = static_cast<const std::uint16_t*>(keys.data) + c * 8;
  const auto copy = [&](int k, std::int64_t at_p) {
    const int of = (k % 8 + row) * 4 + k % 32 / 8;  // whose columns_row() is k % 32 + row
    const std::int64_t from = __shfl_sync(0xffffffffu, at_p, of);
    const bool there = from != kColumnsNoRow;
    copy_async_or_zero(to + (k + row) * (kChunks * 8) + (c ^ (k % 8 + row)) * 8,
                       elements + (there ? from : 0), there);
  };
  // Rows that all lie one stride apart need not be asked for.
  const std::int64_t first = __shfl_sync(0xffffffffu, at[0], 0), stride = keys.slot_stride;
  const std::int64_t own = first + columns_row(lane) * stride;
  if (__all_sync(0xffffffffu,
                 first != kColumnsNoRow && at[0] == own && at[1] == own + 32 * stride)) {
    const std::uint16_t* from = elements + first + row * stride;
    // Eight rows at a time, as the swizzle repeats.
#pragma unroll 1
    for (int k = 0; k < kColumnsKeys; k += 8) {
#pragma unroll
      for (int l = 0; l < 8; l += kRows, from += kRows * stride) {
        copy_async_or_zero(to + (k + l + row) * (kChunks * 8) + (c ^ (l + row)) * 8, from, true);
      }
    }
  } else {
#pragma unroll 1
    for (int k = 0; k < kColumnsKeys; k += kRows) copy(k, k < 32 ? at[0] : at[1]);
  }
}

/// rounded() to mean_dtype, by the device's own conversion where it is sure to be the same, and
/// stored at element `at` unless that is negative.
__device__ __forceinline__ float store_rounded(const IndexView& ix, std::int64_t at, float mean) {
  if (ix.mean_dtype != DType::float16 || !(fabsf(mean) < 65504.0f)) {
    mean = rounded(mean, ix.mean_dtype);
    if (at >= 0) store_element(ix.means, ix.mean_dtype, at, mean);
    return mean;
  }
  const __half half = __float2half_rn(mean);
  if (at >= 0) static_cast<std::uint16_t*>(ix.means)[at] = __half_as_ushort(half);
  return __half2float(half);
}

/// The mean of a tile that is a block: into the index, to `means` and, in three parts of bfloat16
/// that sum to it, to `parts`. At least its length is returned.
template <int kSteps>
__device__ __forceinline__ float mean_of_columns(const KeySource& source, const ColumnsTile& tile,
                                                 const std::uint16_t* keys, float* means,
                                                 std::uint16_t* parts) {
  constexpr int kDim = 16 * kSteps, kWords = kDim / 64, kEach = 2 * kWords;
  using Words = std::conditional_t<kWords == 2, uint2, std::uint32_t>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float sum[kEach] = {};
  const Words* column[8];  // as the swizzle goes
#pragma unroll
  for (int l = 0; l < 8; ++l) {
    column[l] = reinterpret_cast<const Words*>(keys + l * kDim + (lane * kEach / 8 ^ l) * 8 +
                                               lane * kEach % 8);
  }
  // Rows below encode_from are zeros, which change no sum.
#pragma unroll 1
  for (int k = 0; k < kColumnsKeys; k += 8) {
    Words v[8];
#pragma unroll
    for (int l = 0; l < 8; ++l) {
      v[l] = column[l][k * (kDim / kEach)];
    }
#pragma unroll
    for (int l = 0; l < 8; ++l) {
      std::uint32_t w[kWords];
      if constexpr (kWords == 2) {
        w[0] = v[l].x, w[1] = v[l].y;
      } else {
        w[0] = v[l];
      }
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        sum[2 * i] += __uint_as_float(w[i] << 16);
        sum[2 * i + 1] += __uint_as_float(w[i] & 0xffff0000u);
      }
    }
  }
  const IndexView& ix = source.ix;
  const std::int32_t last = tile.base + kColumnsKeys - 1, count = last + 1 - tile.from;
  const ColumnsPlace place(source, last);
  const std::int32_t in_page = ix.blocks_per_page == 1 ? 0 : place.in_page / kColumnsKeys;
  const std::int64_t at =
      place.page < 0
          ? -1
          : ((place.page * ix.num_kv_heads + source.head) * ix.blocks_per_page + in_page) * kDim +
                lane * kEach;
  float* const own = means + lane * kEach;
#pragma unroll
  for (int i = 0; i < kEach; ++i) own[i] = sum[i];
  float square = 0;
#pragma unroll 1
  for (int i = 0; i < kEach; ++i) {
    // A division by a power of two is exact either way.
    const float mean =
        count == kColumnsKeys ? own[i] * (1.0f / kColumnsKeys) : own[i] / static_cast<float>(count);
    own[i] = store_rounded(ix, at < 0 ? at : at + i, mean);
    square = fmaf(own[i], own[i], square);
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) sum[i] = own[i];
#pragma unroll
  for (int part = 0; part < 3; ++part) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const __nv_bfloat16 a = __float2bfloat16_rn(sum[2 * i]);
      const __nv_bfloat16 b = __float2bfloat16_rn(sum[2 * i + 1]);
      sum[2 * i] -= __bfloat162float(a), sum[2 * i + 1] -= __bfloat162float(b);
      *reinterpret_cast<std::uint32_t*>(parts + part * (kDim + 8) + lane * kEach + 2 * i) =
          pack(a, b);
    }
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) square += __shfl_xor_sync(0xffffffffu, square, step);
  return 1.0001f * sqrtf(square) + kColumnsLeast;
}

/// A warp's tile as a of mmas: keys g, g + 8 of each sixteen.
template <int kSteps>
struct ColumnsRows {
  std::uint32_t a[4][kSteps][4];

  __device__ __forceinline__ void load(const std::uint16_t* keys) {
    constexpr int kDim = 16 * kSteps;
    const std::uint32_t lane = threadIdx.x % 32;
    // Row l % 16, of a step the half l / 16; later steps are 32 bytes on, as the swizzle goes.
    const std::uint32_t place = static_cast<std::uint32_t>(__cvta_generic_to_shared(keys)) +
                                lane % 16 * (kDim * 2) + (lane / 16 ^ lane % 8) * 16;
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        load_matrices_at(a[tile][step],
                         (place ^ (step % 4 * 32)) + step / 4 * 128 + tile * (16 * kDim * 2));
      }
    }
  }

  /// At least |k| of the lane's two rows. Squares are summed in bfloat16, two a step: what that
  /// loses is within kRawNorm.
  __device__ __forceinline__ void norms(float (&norm)[2]) const {
    const bool odd = threadIdx.x % 2 != 0, upper = threadIdx.x / 2 % 2 != 0;
    float of_tile[4];
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) {
      float of_row[2];  // g, g + 8
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        __nv_bfloat162 sum = __floats2bfloat162_rn(0, 0);
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const auto two = *reinterpret_cast<const __nv_bfloat162*>(&a[tile][step][2 * h + r]);
            sum = __hfma2(two, two, sum);
          }
        }
        const float2 v = __bfloat1622float2(sum);
        of_row[r] = v.x + v.y;
      }
      of_tile[tile] = (odd ? of_row[1] : of_row[0]) +
                      __shfl_xor_sync(0xffffffffu, odd ? of_row[0] : of_row[1], 1);
    }
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      const float all =
          (upper ? of_tile[2 * p + 1] : of_tile[2 * p]) +
          __shfl_xor_sync(0xffffffffu, upper ? of_tile[2 * p] : of_tile[2 * p + 1], 2);
      norm[p] = fmaf(kRawNorm, sqrtf(all), kColumnsLeast);
    }
  }
};

}  // namespace quarry::cuda
