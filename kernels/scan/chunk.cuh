// SPDX-License-Identifier: Apache-2.0
//
// A scan block's chunk of a row group: where its tables lie in shared memory, and exact scores
// of single candidates, in the contract's order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "scan/launches.h"
#include "scan/plan.h"
#include "scan/quantize.cuh"
#include "score/codes.cuh"
#include "select/threshold.cuh"

namespace quarry::cuda {

/// The dynamic shared memory that scan_layout() places.
template <int kHeads>
struct ChunkShared {
  using Entry = typename Packed<kHeads>::Entry;
  unsigned char* base;
  const ScanLayout& at;

  template <typename T>
  __device__ __forceinline__ T* part(std::int32_t offset) const {
    return reinterpret_cast<T*>(base + offset);
  }
  /// [kHeads][kScanBins]: of this block.
  __device__ std::uint32_t* bins() const { return part<std::uint32_t>(0); }
  /// [m][kHeads][kStride]
  __device__ float* lut() const { return part<float>(at.lut); }
  /// [m][kStride]
  __device__ Entry* tables() const { return part<Entry>(at.tables); }
  /// [m][kHeads], both
  __device__ std::uint32_t* lows() const { return part<std::uint32_t>(at.lows); }
  __device__ std::uint32_t* highs() const { return part<std::uint32_t>(at.highs); }
  /// [kHeads][d], both; one and the same without a rotation
  __device__ float* query() const { return part<float>(at.query); }
  __device__ float* rotated() const { return part<float>(at.rotated); }
  /// [blocks][kHeads]
  __device__ float* bias() const { return part<float>(at.bias); }
  /// [blocks]
  __device__ Entry* packed_bias() const { return part<Entry>(at.packed_bias); }
  /// [blocks]: all ones in the fields of biases that are no NaN
  __device__ Entry* kept() const { return part<Entry>(at.kept); }
  /// [chunk]
  __device__ Entry* sums() const { return part<Entry>(at.sums); }
  /// [kHeads][capacity]: candidates, from the chunk's begin
  __device__ std::uint16_t* found() const { return part<std::uint16_t>(at.found); }
  // In the place of what comes later, or is over:
  /// kScanRotationFloats, before the sums
  __device__ float* rotation() const { return part<float>(at.sums); }
  /// [m][dcent][ksub], before the sums, where layout.codebook >= 0
  __device__ float* codebook() const { return part<float>(at.codebook); }
  /// [kHeads][kScanBins]: of the cluster, before anything is found
  __device__ std::uint32_t* all_bins() const { return part<std::uint32_t>(at.found); }
  /// kChunkSearchBytes, after the sums
  __device__ unsigned char* storage() const { return base + at.sums; }
};

/// Where a chunk lies among a row's candidates [first, end): whole code words of positions from
/// `begin`, of which [low, high) are candidates.
struct ChunkSpan {
  std::int32_t base, length, first, end;
  std::int32_t begin, low, high;

  __device__ __forceinline__ ChunkSpan(const ScanPlan& plan, std::int32_t row_first,
                                       std::int32_t row_end, std::int32_t chunk)
      : base(row_first & ~(kKeys - 1)),
        length(scan_chunk(plan, row_end - base)),
        first(row_first),
        end(row_end),
        begin(at(chunk)),
        low(edge(chunk)),
        high(edge(chunk + 1)) {}
  __device__ __forceinline__ std::int32_t at(std::int32_t chunk) const {
    return static_cast<std::int32_t>(
        min(base + static_cast<std::int64_t>(chunk) * length, static_cast<std::int64_t>(end)));
  }
  /// Where chunk `chunk` begins, within the candidates.
  __device__ __forceinline__ std::int32_t edge(std::int32_t chunk) const {
    return max(at(chunk), first);
  }
};

/// What every score of the chunk needs.
struct Chunk {
  const IndexView& ix;
  const std::int32_t* table_row;
  std::int32_t slot, kv;
  std::int32_t low, high;  ///< its candidates
  std::int32_t first_block, block_shift;

  __device__ __forceinline__ std::int32_t block_of(std::int32_t position) const {
    return (block_shift >= 0 ? position >> block_shift : position / ix.block_size) - first_block;
  }
};

/// Scores of heads 0 .. kHeads-1 of a thread block for one position, exact: in the order and
/// with the table entries of stage score. `lut` and `bias` point at the first of the heads;
/// kAllHeads is what lies between two subspaces or blocks.
template <int kHeads, int kAllHeads, int kStride>
__device__ __forceinline__ void chunk_scores(const Chunk& chunk, const float* lut,
                                             const float* bias, std::int32_t position,
                                             float (&score)[kHeads]) {
  const IndexView& ix = chunk.ix;
  const std::int64_t page = page_of(ix, chunk.table_row, chunk.slot, position);
  const std::int32_t in_page = chunk.table_row == nullptr ? position : position % ix.page_size;
  const std::uint8_t* code = ix.codes + code_offset(ix, page < 0 ? 0 : page, chunk.kv, in_page);
  const float* from = ix.block_size > 0 ? bias + chunk.block_of(position) * kAllHeads : nullptr;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) score[h] = from != nullptr ? from[h] : -0.0f;
  const auto entry = [&](std::int32_t s, std::uint32_t id) {
    const float* table = lut + s * (kAllHeads * kStride) + id;
#pragma unroll
    for (int h = 0; h < kHeads; ++h) score[h] += table[h * kStride];
  };
#pragma unroll 8
  for (std::int32_t i = 0; i < ix.code_bytes; ++i) {
    const std::uint32_t byte = __ldg(code + static_cast<std::int64_t>(i) * ix.tile);
    if constexpr (kStride == 16) {
      entry(2 * i, byte & 15u);
      if (2 * i + 1 < ix.num_subspaces) entry(2 * i + 1, byte >> 4);
    } else {
      entry(i, byte);
    }
  }
}

/// selection_key() of one head's score; a call, since it is needed off the usual path alone.
template <int kAllHeads, int kStride>
__device__ __noinline__ std::uint32_t chunk_key(const Chunk& chunk, const float* lut,
                                                const float* bias, std::int32_t position) {
  float score[1];
  chunk_scores<1, kAllHeads, kStride>(chunk, lut, bias, position, score);
  return selection_key(score[0]);
}

/// The chunk's own best `k` (or all, where there are fewer) of head h, whatever their
/// distribution, to `out`, ascending: by radix search over scores that are computed anew in every
/// pass. The way out where so many sums reach the threshold that there is no room for them. All
/// threads call it, after a barrier; ends with one. Returns how many there are.
template <int kAllHeads, int kStride>
__device__ __noinline__ std::int32_t select_chunk(const Chunk& chunk, const float* lut,
                                                  const float* bias, std::int32_t h, std::int32_t k,
                                                  unsigned char* storage, Candidate* out) {
  using Search = ThresholdSearch<kScanThreads>;
  using Scan = cub::BlockScan<std::int32_t, kScanThreads, cub::BLOCK_SCAN_WARP_SCANS>;
  struct Storage {
    typename Search::Storage search;
    typename Scan::TempStorage scan;
  };
  static_assert(sizeof(Storage) <= kChunkSearchBytes);
  Storage& st = *reinterpret_cast<Storage*>(storage);
  const auto tid = static_cast<std::int32_t>(threadIdx.x);
  const std::int32_t n = chunk.high - chunk.low;
  const auto key_at = [&](std::int32_t i) {
    return chunk_key<kAllHeads, kStride>(chunk, lut + h * kStride, bias + h, chunk.low + i);
  };
  k = min(k, n);
  Threshold at{0, 0, 0};
  if (k < n) at = Search::find(st.search, key_at, n, k, 0);
  __syncthreads();
  std::int32_t equal = 0, taken = 0;
#pragma unroll 1
  for (std::int32_t first = 0; first < n; first += kScanThreads) {
    const std::int32_t i = first + tid;
    const std::uint32_t key = i < n ? key_at(i) : 0;
    const bool is_above = i < n && (k == n || (key & at.mask) > at.prefix);
    const bool is_equal = i < n && k < n && (key & at.mask) == at.prefix;
    std::int32_t before = 0, total = 0;
    Scan(st.scan).ExclusiveSum(is_equal ? 1 : 0, before, total);
    const bool takes = is_above || (is_equal && equal + before < at.quota);
    equal += total;
    __syncthreads();  // the scan's storage is used again
    Scan(st.scan).ExclusiveSum(takes ? 1 : 0, before, total);
    if (takes) out[taken + before] = {key, chunk.low + i};
    taken += total;
    __syncthreads();
  }
  return taken;
}

}  // namespace quarry::cuda
