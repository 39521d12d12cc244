// SPDX-License-Identifier: Apache-2.0
//
// Stage select: exact top-K of a row by one thread block, from the row itself or, where
// filter_kernel thinned it, from what reached the pivot. One pass over a long row, whatever K;
// radix top-K after Alabi et al. 2012, the sample before it after Floyd and Rivest 1975.
#include "select/select.h"

#include <cub/block/block_scan.cuh>

#include <algorithm>

#include "common/launch.h"
#include "common/segments.cuh"
#include "half.h"
#include "select/filter.cuh"

namespace quarry::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kItems = 8;  // consecutive items a thread in the compaction
static_assert(kFilterBlocks <= kThreads, "a thread has one segment's count");

/// Keys that are read from memory once and kept in shared memory.
constexpr std::int32_t kCachedKeys = 16384;

/// The items of a row in ascending position.
struct Items {
  const float* scores;            // item i's score; null: entries
  const std::int32_t* positions;  // item i's position; null: first + i, or entries
  std::int32_t first;
  const Entry* entries;      // segments of `capacity` entries
  const std::int32_t* ends;  // shared memory [parts]: items up to a segment's end
  std::int32_t parts, capacity;
  std::int32_t count;

  __device__ __forceinline__ const Entry& entry(std::int32_t i) const {
    return segment_entry(entries, ends, parts, capacity, i);
  }
  __device__ __forceinline__ std::uint32_t key(std::int32_t i) const {
    return scores != nullptr ? selection_key(scores[i]) : entry(i).key;
  }
  __device__ __forceinline__ std::int32_t position(std::int32_t i) const {
    if (positions != nullptr) return positions[i];
    return scores != nullptr ? first + i : entry(i).position;
  }
};

__global__ void __launch_bounds__(kThreads)
    select_kernel(const __grid_constant__ SelectParams p, const FilterPlan plan,
                  const FilterBuffers buffers, std::int32_t cached_keys) {
  wait_for_predecessor();
  let_successor_start();
  using Search = ThresholdSearch<kThreads>;
  using Scan = cub::BlockScan<std::uint32_t, kThreads, cub::BLOCK_SCAN_WARP_SCANS>;
  __shared__ union {
    typename Search::Storage search;
    typename Scan::TempStorage scan[2];
  } storage;
  __shared__ std::int32_t ends[kFilterBlocks];
  extern __shared__ std::uint32_t cache[];

  const auto tid = static_cast<std::int32_t>(threadIdx.x);
  const std::int64_t row = blockIdx.x;
  std::int32_t* const selected = p.selected + row * p.k;
  const std::int64_t segment = row * plan.parts;
  const std::int32_t reached = tid < plan.parts ? buffers.counts[segment + tid] : 0;

  Items items{};
  if (p.shortlist != nullptr) {
    items.positions = p.shortlist + row * p.shortlist_stride;
    items.scores = p.scores + row * p.score_stride;
    items.count = p.shortlist_counts[row];
  } else {
    const RowState state = p.rows[row];
    items.count = candidates_of(state);
    items.first = state.first;
    items.scores = p.scores + row * p.score_stride + state.first;
  }
  const std::int32_t k = min(p.k, items.count);
  if (tid == 0) p.selected_counts[row] = k;
  if (k == items.count) {
    for (std::int32_t i = tid; i < k; i += kThreads) selected[i] = items.position(i);
    return;
  }

  // What the filter left, unless it left too little (an unlucky sample) or a segment overflowed.
  if (plan.parts > 0 && sample_of(items.count, p.k).size > 0) {
    std::uint32_t end = 0, total = 0;
    Scan(storage.scan[0]).InclusiveSum(static_cast<std::uint32_t>(reached), end, total);
    if (tid < plan.parts) ends[tid] = static_cast<std::int32_t>(end);
    const bool overflowed = __syncthreads_or(reached > plan.capacity);
    if (!overflowed && total >= static_cast<std::uint32_t>(k)) {
      items.scores = nullptr;
      items.entries = buffers.entries + segment * plan.capacity;
      items.ends = ends;
      items.parts = plan.parts;
      items.capacity = plan.capacity;
      items.count = static_cast<std::int32_t>(total);
    }
  }

  const bool cached = items.count <= cached_keys;
  if (items.scores == nullptr && 2 * items.count <= cached_keys) {
    auto* const positions = reinterpret_cast<std::int32_t*>(cache + items.count);
    for (std::int32_t i = tid; i < items.count; i += kThreads) {
      const Entry entry = items.entry(i);
      cache[i] = entry.key;
      positions[i] = entry.position;
    }
    items.positions = positions;
  } else if (cached) {
#pragma unroll 4
    for (std::int32_t i = tid; i < items.count; i += kThreads) cache[i] = items.key(i);
  }
  // The search's first barrier comes before its first read of the cache.
  const auto key_at = [&](std::int32_t i) { return cached ? cache[i] : items.key(i); };
  const Threshold at = Search::find(storage.search, key_at, items.count, k, 0);
  __syncthreads();  // the search's storage becomes the scan's

  std::int32_t above = 0, equal = 0;  // before this tile
  int parity = 0;
  for (std::int32_t tile = 0; tile < items.count && above + min(equal, at.quota) < k;
       tile += kThreads * kItems, parity ^= 1) {
    const std::int32_t from = tile + tid * kItems;
    // Counts and one bit an item: above the threshold, equal to it.
    std::uint32_t is_above = 0, is_equal = 0;
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      if (from + j >= items.count) break;
      const std::uint32_t key = key_at(from + j) & at.mask;
      is_above |= static_cast<std::uint32_t>(key > at.prefix) << j;
      is_equal |= static_cast<std::uint32_t>(key == at.prefix) << j;
    }
    const std::uint32_t own = static_cast<std::uint32_t>(__popc(is_above)) |
                              static_cast<std::uint32_t>(__popc(is_equal)) << 16;
    std::uint32_t before = 0, total = 0;
    // Two scans' storage in turn, so that one barrier a tile is enough.
    Scan(storage.scan[parity]).ExclusiveSum(own, before, total);
    if (own != 0) {
      std::int32_t a = above + static_cast<std::int32_t>(before & 0xffffu);
      std::int32_t e = equal + static_cast<std::int32_t>(before >> 16);
#pragma unroll
      for (int j = 0; j < kItems; ++j) {
        const bool take_above = is_above >> j & 1u;
        const bool is_tie = is_equal >> j & 1u;
        if (take_above || (is_tie && e < at.quota)) {
          selected[a + min(e, at.quota)] = items.position(from + j);
        }
        a += take_above;
        e += is_tie;
      }
    }
    above += static_cast<std::int32_t>(total & 0xffffu);
    equal += static_cast<std::int32_t>(total >> 16);
  }
}

}  // namespace

std::size_t select_scratch_bytes(std::int32_t rows, std::int32_t k,
                                 std::int32_t max_candidates) noexcept {
  return static_cast<std::size_t>(filter_bytes(rows, k, max_candidates));
}

Status select(const SelectParams& p, const Launch& launch) noexcept {
  FilterPlan plan{0, 0};
  FilterBuffers buffers{nullptr, nullptr};
  if (p.shortlist == nullptr && p.score_stride % 4 == 0 &&
      reinterpret_cast<std::uintptr_t>(p.scores) % 16 == 0) {
    plan = filter_plan(p.num_rows, p.k, p.max_candidates);
  }
  if (plan.parts > 0) {
    const std::int64_t segments = std::int64_t{p.num_rows} * plan.parts;
    const std::int64_t counts_bytes = (segments * 4 + 255) / 256 * 256;
    buffers.counts = static_cast<std::int32_t*>(p.backend_scratch);
    buffers.entries =
        reinterpret_cast<Entry*>(static_cast<char*>(p.backend_scratch) + counts_bytes);
    if (segments > 0x7fffffff) {
      return Status(StatusCode::unsupported, "select: %lld thread blocks, must be at most 2^31 - 1",
                    static_cast<long long>(segments));
    }
    if (Status s = launch_kernel<filter_kernel>("select: filter", launch,
                                                dim3(static_cast<unsigned>(segments)),
                                                kFilterThreads, 0, p, plan, buffers);
        !s.ok()) {
      return s;
    }
  }
  const std::int32_t cached = std::min(p.max_candidates, kCachedKeys);
  return launch_kernel<select_kernel>("select", launch, dim3(static_cast<unsigned>(p.num_rows)),
                                      kThreads, static_cast<std::size_t>(cached) * 4, p, plan,
                                      buffers, cached);
}

}  // namespace quarry::cuda
