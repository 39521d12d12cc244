// SPDX-License-Identifier: Apache-2.0
//
// A tile of 128 bfloat16 keys on its way to encode_columns_kernel: the copies of its rows, its
// blocks' means, its keys' norms. Row k is the position `base + k`, so that a block of 64 is half
// of the tile, whatever of it lies below encode_from.
#pragma once

#include <cuda_fp16.h>

#include "common/copy.cuh"
#include "common/mma.cuh"
#include "encode/bound.h"
#include "encode/tile.cuh"
#include "encode/tiling.h"

namespace quarry::cuda {

constexpr int kColumnsKeys = 128, kColumnsBlock = 64, kColumnsBlocks = kColumnsKeys / kColumnsBlock;
constexpr int kColumnsBatch = 8;   // tiles whose codes and near ties are held together
constexpr int kColumnsMeans = 16;  // tiles whose means are held: a batch and the next, a power of 2
constexpr int kColumnsTieRoom = 4096;  // a batch ends early where another tile's might not fit

/// Dynamic shared memory. The code that counts it carves it.
struct ColumnsShared {
  std::uint16_t* keys;         ///< [3][128][d], chunk c (of 8) of row k at c ^ (k % 8)
  float* rotation;             ///< [d][d]
  std::uint16_t* mean_parts;   ///< [2][8][d], likewise: three rows a block that sum to its mean
  float* means;                ///< [16][2][d]
  float* mean_squares;         ///< [2][2][d / 32]: sums of the mean's squares, of 32 each
  float* norms;                ///< [2][128]: |k|, negative where there is no key
  std::int64_t* key_at;        ///< [4][128]: rows' element offsets; kNoRow
  ColumnsSubspace* subspaces;  ///< [m]
  float* rotated_means;        ///< [m][8][8]: three rows a block
  float* centroid_norms;       ///< [m][16]: |c|^2
  float* subvectors;           ///< [warps][32]: rotated again, exactly
  int* num_ties;
  std::uint16_t* ties;  ///< [kColumnsTieRoom]: (tile of the batch * 128 + row) * m + s
  std::uint8_t* codes;  ///< [m][8 * 128]
  std::size_t bytes = 0;

  static constexpr std::int64_t kNoRow = INT64_MIN;

  __host__ __device__ ColumnsShared(unsigned char* base, int d, int m) {
    const auto take = [&](std::int64_t count, std::int64_t size) {
#if defined(__CUDA_ARCH__)
      unsigned char* const here = base + bytes;  // never null, and so known to be shared memory
#else
      unsigned char* const here = base == nullptr ? nullptr : base + bytes;
#endif
      bytes += static_cast<std::size_t>((count * size + 127) / 128 * 128);
      return here;
    };
    const int warps = m;
    keys = reinterpret_cast<std::uint16_t*>(take(3 * kColumnsKeys * d, 2));
    rotation = reinterpret_cast<float*>(take(d * d, 4));
    mean_parts = reinterpret_cast<std::uint16_t*>(take(2 * 8 * d, 2));
    means = reinterpret_cast<float*>(take(kColumnsMeans * kColumnsBlocks * d, 4));
    mean_squares = reinterpret_cast<float*>(take(2 * kColumnsBlocks * d / 32, 4));
    norms = reinterpret_cast<float*>(take(2 * kColumnsKeys, 4));
    key_at = reinterpret_cast<std::int64_t*>(take(4 * kColumnsKeys, 8));
    subspaces = reinterpret_cast<ColumnsSubspace*>(take(m, sizeof(ColumnsSubspace)));
    rotated_means = reinterpret_cast<float*>(take(m * 8 * 8, 4));
    centroid_norms = reinterpret_cast<float*>(take(m * 16, 4));
    subvectors = reinterpret_cast<float*>(take(warps * 32, 4));
    num_ties = reinterpret_cast<int*>(take(1, 4));
    ties = reinterpret_cast<std::uint16_t*>(take(kColumnsTieRoom, 2));
    codes = take(m * kColumnsBatch * kColumnsKeys, 1);
  }
};

/// Where row k of a tile lies in the cache: one thread a row, since that takes divisions.
__device__ __forceinline__ std::int64_t find_columns_key(const KeySource& source,
                                                         const ColumnsTile& tile, int k) {
  const std::int32_t position = tile.base + k;
  if (position < tile.from || position >= tile.end) return ColumnsShared::kNoRow;
  const std::int64_t page = page_of(source.ix, source.table, source.slot, position);
  if (page < 0) return ColumnsShared::kNoRow;
  return key_offset(source.ix, source.keys, page, source.head, position);
}

/// Starts the copies of a tile's rows; zeros for rows that are not there. The upper half of the
/// thread block's threads calls it.
template <int kSteps>
__device__ __forceinline__ void fetch_columns(const void* keys, const std::int64_t* key_at,
                                              std::uint16_t* to) {
  constexpr int kChunks = 2 * kSteps, kThreads = 32 * kSteps;
#pragma unroll 4
  for (int i = 0; i < kColumnsKeys * kChunks / kThreads; ++i) {
    const int item = static_cast<int>(threadIdx.x) - kThreads + i * kThreads;
    const int k = item / kChunks, c = item % kChunks;
    const std::int64_t at = key_at[k];
    const bool there = at != ColumnsShared::kNoRow;
    const auto* from = static_cast<const std::uint16_t*>(keys) + (there ? at : 0) + c * 8;
    copy_async_or_zero(to + (k * kChunks + (c ^ (k & 7))) * 8, from, there);
  }
}

/// rounded() to mean_dtype, and stored; by the device's own conversions where they are sure to be
/// the same. `last`: the block's last position.
__device__ __forceinline__ float store_rounded(const KeySource& source, std::int32_t last, int j,
                                               float mean) {
  const IndexView& ix = source.ix;
  if (ix.mean_dtype != DType::float16 || !(fabsf(mean) < 65504.0f)) {
    mean = rounded(mean, ix.mean_dtype);
    MeanStore{source}(last, j, mean);
    return mean;
  }
  const __half half = __float2half_rn(mean);
  const std::int64_t page = page_of(ix, source.table, source.slot, last);
  if (page >= 0) {
    static_cast<std::uint16_t*>(ix.means)[mean_offset(ix, page, source.head, last) + j] =
        __half_as_ushort(half);
  }
  return __half2float(half);
}

/// Coordinate j of the mean of block `block` of a tile, to all who need it: thread block * d + j of
/// the first 2 d.
template <int kSteps>
__device__ __forceinline__ void mean_of_columns(const KeySource& source, const ColumnsTile& tile,
                                                int block, int j, const std::uint16_t* keys,
                                                std::uint16_t* parts, float* means,
                                                float* squares) {
  constexpr int kDim = 16 * kSteps;
  const std::int32_t first = tile.base + block * kColumnsBlock;
  const bool whole = first + kColumnsBlock <= tile.end;  // the same for a warp
  float mean = 0;
  if (whole) {
    const int from = first < tile.from ? tile.from - first : 0;
    const std::uint16_t* rows = keys + block * kColumnsBlock * kDim + j % 8;
    const auto at = [&](int k, int swizzle) {
      return __uint_as_float(std::uint32_t{rows[k * kDim + ((j / 8) ^ swizzle) * 8]} << 16);
    };
    float sum = 0;
    int k = from;
    for (; k % 8 != 0; ++k) sum += at(k, k % 8);
#pragma unroll 2
    for (; k < kColumnsBlock; k += 8) {
      float v[8];
#pragma unroll
      for (int l = 0; l < 8; ++l) v[l] = at(k + l, l);
#pragma unroll
      for (int l = 0; l < 8; ++l) sum += v[l];
    }
    // A division by a power of two is exact either way.
    sum = from == 0 ? sum * (1.0f / kColumnsBlock) : sum / static_cast<float>(kColumnsBlock - from);
    mean = store_rounded(source, first + kColumnsBlock - 1, j, sum);
  }
  means[block * kDim + j] = mean;
  // Three parts of bfloat16 that sum to the mean.
  float rest = mean;
#pragma unroll
  for (int part = 0; part < 3; ++part) {
    const int row = block * 3 + part;
    const __nv_bfloat16 high = __float2bfloat16_rn(rest);
    rest -= __bfloat162float(high);
    parts[row * kDim + ((j / 8) ^ row) * 8 + j % 8] = __bfloat16_as_ushort(high);
  }
  float square = mean * mean;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) square += __shfl_xor_sync(0xffffffffu, square, step);
  if (j % 32 == 0) squares[(block * kDim + j) / 32] = square;
}

/// At least |k| of row k, in both of the two neighbouring lanes that call it for a row; negative
/// for one that is not there. Squares are summed in bfloat16, eight each in sixteen sums or fewer:
/// what that loses is within kRawNorm.
template <int kSteps>
__device__ __forceinline__ float norm_of_columns(const std::uint16_t* keys, int k, bool there) {
  const auto* row = reinterpret_cast<const uint4*>(keys) + k * (2 * kSteps);
  const int second = static_cast<int>(threadIdx.x) % 2;
  const __nv_bfloat162 zero = __floats2bfloat162_rn(0, 0);
  __nv_bfloat162 sum[4] = {zero, zero, zero, zero};
#pragma unroll 4
  for (int c = 0; c < kSteps; ++c) {
    const uint4 v = row[(2 * c + second) ^ (k & 7)];
    const std::uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto two = *reinterpret_cast<const __nv_bfloat162*>(&words[i]);
      sum[i] = __hfma2(two, two, sum[i]);
    }
  }
  float all = 0;
#pragma unroll
  for (const __nv_bfloat162 two : sum) {
    const float2 v = __bfloat1622float2(two);
    all += v.x + v.y;
  }
  all += __shfl_xor_sync(0xffffffffu, all, 1);
  return there ? fmaf(kRawNorm, sqrtf(all), kColumnsLeast) : -1.0f;
}

}  // namespace quarry::cuda
