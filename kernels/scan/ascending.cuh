// SPDX-License-Identifier: Apache-2.0
//
// The k best of unordered items, in ascending place, by one thread block.
#pragma once

#include <cub/block/block_scan.cuh>

#include <cstdint>

#include "scan/plan.h"

namespace quarry::cuda {

/// Places that are marked at once: one bit of shared memory each.
constexpr std::int32_t kMarkedPlaces = 1 << 18;

struct AscendingStorage {
  static constexpr int kBins = 2048;
  static constexpr int kListed = 512;  ///< items that are compared with each other
  using Scan = cub::BlockScan<std::int32_t, kFinishThreads, cub::BLOCK_SCAN_WARP_SCANS>;
  std::int32_t bins[kBins];
  typename Scan::TempStorage scan;
  std::uint64_t listed[kListed], kth;
  std::uint32_t low, high;
  std::int32_t bin, wanted, in_bin, num_listed;
};

/// Rank by (key descending, place ascending) as one number, larger is better.
QUARRY_HD inline std::uint64_t rank_key(std::uint32_t key, std::int32_t place) {
  return static_cast<std::uint64_t>(key) << 32 | (0xffffffffu - static_cast<std::uint32_t>(place));
}

/// out[0 .. k): the places of the k best of n items by (key descending, place ascending), in
/// ascending order, 0 < k <= n. key_at(i), place_at(i): of item i; places are distinct, in
/// [0, range). `marks`: shared memory, min(range, kMarkedPlaces) bits and 31 to spare. `out` in
/// shared memory. All threads call it, after a barrier; ends with one.
///
/// Rounds of a histogram over what the keys span, 11 bits at a time, until few items share the
/// bin of the k-th: those are compared with each other. A tie of many is a span of one key, and
/// the rounds go on over the places.
template <typename KeyAt, typename PlaceAt>
__device__ __forceinline__ void best_ascending(AscendingStorage& st, std::uint32_t* marks,
                                               KeyAt key_at, PlaceAt place_at, std::int32_t n,
                                               std::int32_t k, std::int32_t range,
                                               std::int32_t* out) {
  constexpr unsigned kAll = 0xffffffffu;
  constexpr int kBins = AscendingStorage::kBins, kEach = kBins / kFinishThreads;
  const auto tid = static_cast<std::int32_t>(threadIdx.x);
  const auto rank_at = [&](std::int32_t i) { return rank_key(key_at(i), place_at(i)); };
  // Winners: ranks of at least `least`; of those in [from, least), what the list says.
  std::uint64_t from = 0, least = 0;
  if (k < n) {
    if (tid == 0) {
      st.low = 0xffffffffu;
      st.high = 0;
      st.num_listed = 0;
    }
    __syncthreads();
    std::uint32_t low = 0xffffffffu, high = 0;
    for (std::int32_t i = tid; i < n; i += kFinishThreads) {
      const std::uint32_t key = key_at(i);
      low = min(low, key);
      high = max(high, key);
    }
    low = __reduce_min_sync(kAll, low);
    high = __reduce_max_sync(kAll, high);
    if (tid % 32 == 0) {
      atomicMin(&st.low, low);
      atomicMax(&st.high, high);
    }
    __syncthreads();
    std::int32_t wanted = k, in_bin = n;
    from = static_cast<std::uint64_t>(st.low) << 32;
    std::uint64_t last = static_cast<std::uint64_t>(st.high) << 32 | 0xffffffffu;
    least = last + 1;  // 0 where the span ends at 2^64 - 1: no key is that large
#pragma unroll 1
    while (in_bin > AscendingStorage::kListed && wanted < in_bin) {
      const int bits = 64 - __clzll(static_cast<long long>(last - from));
      const int shift = bits > 11 ? bits - 11 : 0;
      for (std::int32_t i = tid; i < kBins; i += kFinishThreads) st.bins[i] = 0;
      __syncthreads();
      for (std::int32_t i = tid; i < n; i += kFinishThreads) {
        const std::uint64_t rank = rank_at(i);
        if (rank >= from && rank <= last) {
          atomicAdd(&st.bins[static_cast<std::uint32_t>(rank - from >> shift)], 1);
        }
      }
      __syncthreads();
      const std::int32_t top = kBins - 1 - tid * kEach;  // thread 0 has the highest bins
      std::int32_t own = 0, above = 0;
#pragma unroll
      for (int j = 0; j < kEach; ++j) own += st.bins[top - j];
      AscendingStorage::Scan(st.scan).ExclusiveSum(own, above);
      if (above < wanted && wanted <= above + own) {
        std::int32_t bin = top, rest = wanted - above;
        while (rest > st.bins[bin]) rest -= st.bins[bin--];
        st.bin = bin;
        st.wanted = rest;
        st.in_bin = st.bins[bin];
      }
      __syncthreads();
      from += static_cast<std::uint64_t>(st.bin) << shift;
      last = min(last, from + ((std::uint64_t{1} << shift) - 1));
      least = last + 1;
      wanted = st.wanted;
      in_bin = st.in_bin;
      // The next round's first barrier keeps these reads before its last writes.
    }
    if (wanted == in_bin) {
      least = from;
    } else {
      for (std::int32_t i = tid; i < n; i += kFinishThreads) {
        const std::uint64_t rank = rank_at(i);
        if (rank >= from && rank <= last) st.listed[atomicAdd(&st.num_listed, 1)] = rank;
      }
      __syncthreads();
      if (tid < in_bin) {
        const std::uint64_t own = st.listed[tid];
        std::int32_t better = 0;
        for (std::int32_t i = 0; i < in_bin; ++i) better += st.listed[i] > own ? 1 : 0;
        if (better == wanted - 1) st.kth = own;  // ranks are distinct
      }
      __syncthreads();
      least = st.kth;
    }
  }
  std::int32_t written = 0;
#pragma unroll 1
  for (std::int32_t first = 0; first < range && written < k; first += kMarkedPlaces) {
    const std::int32_t span = min(range - first, kMarkedPlaces), words = (span + 31) / 32;
    for (std::int32_t w = tid; w < words; w += kFinishThreads) marks[w] = 0;
    __syncthreads();
    for (std::int32_t i = tid; i < n; i += kFinishThreads) {
      if (rank_at(i) < least) continue;
      const std::int32_t place = place_at(i) - first;
      if (place >= 0 && place < span) atomicOr(marks + place / 32, 1u << place % 32);
    }
    __syncthreads();
    // An odd stride: neighbouring threads' words fall into distinct banks.
    const std::int32_t each = (words + kFinishThreads - 1) / kFinishThreads | 1;
    const std::int32_t begin = tid * each, stop = min(begin + each, words);
    std::int32_t own = 0;
    for (std::int32_t w = begin; w < stop; ++w) own += __popc(marks[w]);
    std::int32_t before = 0, total = 0;
    AscendingStorage::Scan(st.scan).ExclusiveSum(own, before, total);
    std::int32_t* to = out + written + before;
    for (std::int32_t w = begin; w < stop; ++w) {
      for (std::uint32_t bits = marks[w]; bits != 0; bits &= bits - 1) {
        *to++ = first + w * 32 + __ffs(static_cast<int>(bits)) - 1;
      }
    }
    written += total;
    __syncthreads();
  }
}

}  // namespace quarry::cuda
