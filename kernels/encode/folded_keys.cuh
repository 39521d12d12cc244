// SPDX-License-Identifier: Apache-2.0
//
// A tile of 128 bfloat16 keys on its way to encode_folded_kernel: the copies of its rows, its
// blocks' means, its keys' norms. Row k is the position `base + k`, so that a block of 64 is half
// of the tile, whatever of it lies below encode_from.
#pragma once

#include "common/copy.cuh"
#include "common/mma.cuh"
#include "encode/bound.h"
#include "encode/tile.cuh"
#include "encode/tiling.h"

namespace quarry::cuda {

constexpr int kFoldedKeys = 128, kFoldedBlock = 64, kFoldedBlocks = kFoldedKeys / kFoldedBlock;
constexpr int kFoldedBatch = 8;   // tiles whose codes and near ties are held together
constexpr int kFoldedMeans = 16;  // tiles whose means are held: a batch and the next, a power of 2
constexpr int kFoldedTieRoom = 4096;  // a batch ends early where another tile's might not fit

/// Dynamic shared memory. The code that counts it carves it.
struct FoldedShared {
  std::uint16_t* keys;        ///< [3][128][d], chunk c (of 8) of row k at c ^ (k % 8)
  std::uint16_t* mean_parts;  ///< [2][8][d], likewise: three rows a block that sum to its mean
  float* means;               ///< [16][2][d]
  float* mean_squares;        ///< [2][2][d / 64]: sums of the mean's squares, of 64 each
  float* norms;               ///< [2][128]: |k|, negative where there is no key
  std::int64_t* key_at;       ///< [4][128]: rows' element offsets; kNoRow
  FoldedSubspace* subspaces;  ///< [m]
  float* starts;              ///< [m][8][16]: of the mean's parts, then of both blocks
  float* subvectors;          ///< [warps][32]: rotated again, exactly
  int* num_ties;
  std::uint16_t* ties;  ///< [kFoldedTieRoom]: (tile of the batch * 128 + row) * m + s
  std::uint8_t* codes;  ///< [m][8 * 128]
  std::size_t bytes = 0;

  static constexpr std::int64_t kNoRow = INT64_MIN;

  __host__ __device__ FoldedShared(unsigned char* base, int d, int m) {
    const auto take = [&](std::int64_t count, std::int64_t size) {
      unsigned char* const here = base == nullptr ? nullptr : base + bytes;
      bytes += static_cast<std::size_t>((count * size + 127) / 128 * 128);
      return here;
    };
    const int warps = m;
    keys = reinterpret_cast<std::uint16_t*>(take(3 * kFoldedKeys * d, 2));
    mean_parts = reinterpret_cast<std::uint16_t*>(take(2 * 8 * d, 2));
    means = reinterpret_cast<float*>(take(kFoldedMeans * kFoldedBlocks * d, 4));
    mean_squares = reinterpret_cast<float*>(take(2 * kFoldedBlocks * d / 64, 4));
    norms = reinterpret_cast<float*>(take(2 * kFoldedKeys, 4));
    key_at = reinterpret_cast<std::int64_t*>(take(4 * kFoldedKeys, 8));
    subspaces = reinterpret_cast<FoldedSubspace*>(take(m, sizeof(FoldedSubspace)));
    starts = reinterpret_cast<float*>(take(m * 8 * 16, 4));
    subvectors = reinterpret_cast<float*>(take(warps * 32, 4));
    num_ties = reinterpret_cast<int*>(take(1, 4));
    ties = reinterpret_cast<std::uint16_t*>(take(kFoldedTieRoom, 2));
    codes = take(m * kFoldedBatch * kFoldedKeys, 1);
  }
};

/// Where row k of a tile lies in the cache: one thread a row, since that takes divisions.
__device__ __forceinline__ std::int64_t find_folded_key(const KeySource& source,
                                                        const FoldedTile& tile, int k) {
  const std::int32_t position = tile.base + k;
  if (position < tile.from || position >= tile.end) return FoldedShared::kNoRow;
  const std::int64_t page = page_of(source.ix, source.table, source.slot, position);
  if (page < 0) return FoldedShared::kNoRow;
  return key_offset(source.ix, source.keys, page, source.head, position);
}

/// Starts the copies of a tile's rows; zeros for rows that are not there. All threads call it.
template <int kSteps>
__device__ __forceinline__ void fetch_folded(const void* keys, const std::int64_t* key_at,
                                             std::uint16_t* to) {
  constexpr int kChunks = 2 * kSteps, kThreads = 64 * kSteps;
#pragma unroll
  for (int i = 0; i < kFoldedKeys * kChunks / kThreads; ++i) {
    const int item = static_cast<int>(threadIdx.x) + i * kThreads;
    const int k = item / kChunks, c = item % kChunks;
    const std::int64_t at = key_at[k];
    const bool there = at != FoldedShared::kNoRow;
    const auto* from = static_cast<const std::uint16_t*>(keys) + (there ? at : 0) + c * 8;
    copy_async_or_zero(to + (k * kChunks + (c ^ (k & 7))) * 8, from, there);
  }
}

/// Coordinates 2w and 2w + 1 of the mean of block `block` of a tile, to all who need them: thread
/// block * d / 2 + w of the first d.
template <int kSteps>
__device__ __forceinline__ void mean_of_folded(const KeySource& source, const FoldedTile& tile,
                                               int block, int w, const std::uint16_t* keys,
                                               std::uint16_t* parts, float* means, float* squares) {
  constexpr int kDim = 16 * kSteps, kWords = kDim / 2;
  const IndexView& ix = source.ix;
  const std::int32_t first = tile.base + block * kFoldedBlock;
  const bool whole = first + kFoldedBlock <= tile.end;  // the same for a warp
  float mean[2] = {0, 0};
  if (whole) {
    const int from = first < tile.from ? tile.from - first : 0;
    const std::uint32_t* rows =
        reinterpret_cast<const std::uint32_t*>(keys) + block * kFoldedBlock * kWords + w % 4;
    const auto at = [&](int k, int swizzle) { return rows[k * kWords + ((w / 4) ^ swizzle) * 4]; };
    float sum[2] = {0, 0};
    const auto add = [&](std::uint32_t word) {
      sum[0] += __uint_as_float(word << 16);
      sum[1] += __uint_as_float(word & 0xffff0000u);
    };
    int k = from;
    for (; k % 8 != 0; ++k) add(at(k, k % 8));
#pragma unroll 2
    for (; k < kFoldedBlock; k += 8) {
      std::uint32_t v[8];
#pragma unroll
      for (int l = 0; l < 8; ++l) v[l] = at(k + l, l);
#pragma unroll
      for (int l = 0; l < 8; ++l) add(v[l]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      mean[i] = rounded(sum[i] / static_cast<float>(kFoldedBlock - from), ix.mean_dtype);
      MeanStore{source}(first + kFoldedBlock - 1, 2 * w + i, mean[i]);
    }
  }
  *reinterpret_cast<float2*>(means + block * kDim + 2 * w) = make_float2(mean[0], mean[1]);
  // Three parts of bfloat16 that sum to the mean.
  float rest[2] = {mean[0], mean[1]};
#pragma unroll
  for (int part = 0; part < 3; ++part) {
    const int row = block * 3 + part;
    const __nv_bfloat16 a = __float2bfloat16_rn(rest[0]), b = __float2bfloat16_rn(rest[1]);
    rest[0] -= __bfloat162float(a), rest[1] -= __bfloat162float(b);
    reinterpret_cast<std::uint32_t*>(parts)[row * kWords + ((w / 4) ^ row) * 4 + w % 4] =
        pack(a, b);
  }
  float square = fmaf(mean[0], mean[0], mean[1] * mean[1]);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) square += __shfl_xor_sync(0xffffffffu, square, step);
  if (w % 32 == 0) squares[(block * kWords + w) / 32] = square;
}

/// At least |k| of row k; negative for a row that is not there. Squares are summed in bfloat16, in
/// eight sums of at most 16: what that loses is kRawNorm's.
template <int kSteps>
__device__ __forceinline__ float norm_of_folded(const std::uint16_t* keys, int k, bool there) {
  constexpr int kChunks = 2 * kSteps;
  const auto* row = reinterpret_cast<const uint4*>(keys) + k * kChunks;
  const __nv_bfloat162 zero = __floats2bfloat162_rn(0, 0);
  __nv_bfloat162 sum[4] = {zero, zero, zero, zero};
#pragma unroll 4
  for (int c = 0; c < kChunks; ++c) {
    const uint4 v = row[c ^ (k & 7)];
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
  return there ? fmaf(kRawNorm, sqrtf(all), kFoldedLeast) : -1.0f;
}

}  // namespace quarry::cuda
