// SPDX-License-Identifier: Apache-2.0
//
// The k best of items in ascending place, in that order, by one thread block.
#pragma once

#include <cub/block/block_scan.cuh>

#include <cstdint>

#include "scan/plan.h"

namespace quarry::cuda {

struct BestStorage {
  static constexpr int kBins = 2048;
  static constexpr int kListed = 512;  ///< items that are compared with each other
  using Scan = cub::BlockScan<std::int32_t, kFinishThreads, cub::BLOCK_SCAN_WARP_SCANS>;
  alignas(16) std::int32_t bins[kBins];
  alignas(16) std::uint64_t listed[kListed];
  typename Scan::TempStorage scan;
  std::uint64_t kth;
  std::uint32_t low, high;
  std::int32_t bin, wanted, in_bin, num_listed;
};

/// Rank by (key descending, item ascending) as one number, larger is better.
QUARRY_HD inline std::uint64_t rank_key(std::uint32_t key, std::int32_t item) {
  return static_cast<std::uint64_t>(key) << 32 | (0xffffffffu - static_cast<std::uint32_t>(item));
}

/// put(i, item) for the i-th of the items that `wins` holds for, ascending. All threads call it;
/// ends with a barrier.
template <typename Wins, typename Put>
__device__ __forceinline__ void put_winners(BestStorage& st, std::int32_t n, Wins wins, Put put) {
  // An odd number each: neighbouring threads' fall into distinct banks.
  const std::int32_t each = (n + kFinishThreads - 1) / kFinishThreads | 1;
  const std::int32_t from = min(static_cast<std::int32_t>(threadIdx.x) * each, n);
  const std::int32_t to = min(from + each, n);
  std::int32_t own = 0, before = 0;
  for (std::int32_t i = from; i < to; ++i) own += wins(i) ? 1 : 0;
  BestStorage::Scan(st.scan).ExclusiveSum(own, before);
  for (std::int32_t i = from; i < to; ++i) {
    if (wins(i)) put(before++, i);
  }
  __syncthreads();
}

/// best_ascending() of at most kListed items: each is compared with every other.
template <typename KeyAt, typename Put>
__device__ __forceinline__ void best_of_few(BestStorage& st, KeyAt key_at, std::int32_t n,
                                            std::int32_t k, Put put) {
  constexpr unsigned kAll = 0xffffffffu;
  constexpr int kRounds = BestStorage::kListed / kFinishThreads, kWarps = kFinishThreads / 32;
  static_assert(kRounds * kWarps <= 32);
  const auto tid = static_cast<std::int32_t>(threadIdx.x), lane = tid % 32, warp = tid / 32;
  // One more than the key, which is 2^32 - 2^23 at most: what fills the last four is below any.
  auto* const keys = reinterpret_cast<std::uint32_t*>(st.listed);
  const std::int32_t fours = (n + 3) / 4;
  for (std::int32_t i = tid; i < fours * 4; i += kFinishThreads)
    keys[i] = i < n ? key_at(i) + 1 : 0;
  if (tid < kRounds * kWarps) st.bins[tid] = 0;
  __syncthreads();
  unsigned winners[kRounds] = {};  // of the warp
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    if (round * kFinishThreads >= n) break;
    const std::int32_t item = round * kFinishThreads + tid;
    const std::uint32_t own = item < n ? keys[item] : 0xffffffffu;
    std::int32_t better = 0;
#pragma unroll 4
    for (std::int32_t i = 0; i < fours; ++i) {
      const uint4 v = reinterpret_cast<const uint4*>(keys)[i];
      const std::uint32_t least =
          i < item / 4 ? own - 1 : own;  // of two equal ones the former wins
      better += (v.x > least ? 1 : 0) + (v.y > least ? 1 : 0) + (v.z > least ? 1 : 0) +
                (v.w > least ? 1 : 0);
    }
    for (std::int32_t i = item & ~3; i < min(item, n); ++i) better += keys[i] == own ? 1 : 0;
    winners[round] = __ballot_sync(kAll, item < n && better < k);
    if (lane == 0) st.bins[round * kWarps + warp] = __popc(winners[round]);
  }
  __syncthreads();
  const std::int32_t of = lane < kRounds * kWarps ? st.bins[lane] : 0;
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const std::int32_t before = __reduce_add_sync(kAll, lane < round * kWarps + warp ? of : 0);
    const unsigned lower = winners[round] & ((1u << lane) - 1u);
    if ((winners[round] >> lane & 1u) != 0) {
      put(before + __popc(lower), round * kFinishThreads + tid);
    }
  }
  __syncthreads();
}

/// put(i, item), i = 0 .. k - 1: the k best of n items by (key descending, item ascending), in
/// ascending order, 0 < k <= n. key_at(item): a selection key. All threads call it, after a
/// barrier; ends with one.
///
/// Rounds of a histogram over what the keys span, 11 bits at a time, until few items share the
/// bin of the k-th: those are compared with each other. A tie of many is a span of one key, and
/// the rounds go on over the items.
template <typename KeyAt, typename Put>
__device__ __forceinline__ void best_ascending(BestStorage& st, KeyAt key_at, std::int32_t n,
                                               std::int32_t k, Put put) {
  constexpr unsigned kAll = 0xffffffffu;
  constexpr int kBins = BestStorage::kBins, kEach = kBins / kFinishThreads;
  const auto tid = static_cast<std::int32_t>(threadIdx.x);
  if (k == n) {
    for (std::int32_t i = tid; i < n; i += kFinishThreads) put(i, i);
    __syncthreads();
    return;
  }
  if (n <= BestStorage::kListed) {
    best_of_few(st, key_at, n, k, put);
    return;
  }
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
  // Winners: ranks of at least `least`; of those in [from, least), what the list says.
  std::uint64_t from = static_cast<std::uint64_t>(st.low) << 32;
  std::uint64_t last = static_cast<std::uint64_t>(st.high) << 32 | 0xffffffffu;
  std::uint64_t least = last + 1;  // 0 where the span ends at 2^64 - 1: no key is that large
#pragma unroll 1
  while (in_bin > BestStorage::kListed / 4 && wanted < in_bin) {
    const int bits = 64 - __clzll(static_cast<long long>(last - from));
    const int shift = bits > 11 ? bits - 11 : 0;
    for (std::int32_t i = tid; i < kBins; i += kFinishThreads) st.bins[i] = 0;
    __syncthreads();
    for (std::int32_t i = tid; i < n; i += kFinishThreads) {
      const std::uint64_t rank = rank_key(key_at(i), i);
      if (rank >= from && rank <= last) {
        atomicAdd(&st.bins[static_cast<std::uint32_t>(rank - from >> shift)], 1);
      }
    }
    __syncthreads();
    const std::int32_t top = kBins - 1 - tid * kEach;  // thread 0 has the highest bins
    std::int32_t own = 0, above = 0;
#pragma unroll
    for (int j = 0; j < kEach; ++j) own += st.bins[top - j];
    BestStorage::Scan(st.scan).ExclusiveSum(own, above);
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
      const std::uint64_t rank = rank_key(key_at(i), i);
      if (rank >= from && rank <= last) st.listed[atomicAdd(&st.num_listed, 1)] = rank;
    }
    __syncthreads();
    for (std::int32_t item = tid; item < in_bin; item += kFinishThreads) {
      const std::uint64_t own = st.listed[item];
      std::int32_t better = 0;
#pragma unroll 4
      for (std::int32_t i = 0; i < in_bin; ++i) better += st.listed[i] > own ? 1 : 0;
      if (better == wanted - 1) st.kth = own;  // ranks are distinct
    }
    __syncthreads();
    least = st.kth;
  }
  put_winners(
      st, n, [&](std::int32_t i) { return rank_key(key_at(i), i) >= least; }, put);
}

}  // namespace quarry::cuda
