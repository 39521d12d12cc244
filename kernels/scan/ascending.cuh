// SPDX-License-Identifier: Apache-2.0
//
// The k best of unordered items, in ascending place, by one thread block.
#pragma once

#include <cub/block/block_scan.cuh>

#include <cstdint>

#include "scan/plan.h"
#include "select/threshold.cuh"

namespace quarry::cuda {

/// Places that are marked at once: one bit of shared memory each.
constexpr std::int32_t kMarkedPlaces = 1 << 18;

struct AscendingStorage {
  using Search = ThresholdSearch<kFinishThreads>;
  using Scan = cub::BlockScan<std::int32_t, kFinishThreads, cub::BLOCK_SCAN_WARP_SCANS>;
  union {
    typename Search::Storage search;
    typename Scan::TempStorage scan;
  };
};

/// out[0 .. k): the places of the k best of n items by (key descending, place ascending), in
/// ascending order. key_at(i), place_at(i): of item i; places are distinct, in [0, range).
/// `marks`: shared memory, min(range, kMarkedPlaces) bits and 31 to spare. `out` in shared
/// memory. All threads call it, after a barrier; ends with one.
template <typename KeyAt, typename PlaceAt>
__device__ __forceinline__ void best_ascending(AscendingStorage& storage, std::uint32_t* marks,
                                               KeyAt key_at, PlaceAt place_at, std::int32_t n,
                                               std::int32_t k, std::int32_t range,
                                               std::int32_t* out) {
  using Search = AscendingStorage::Search;
  const auto tid = static_cast<std::int32_t>(threadIdx.x);
  Threshold at{0, 0, 0};
  // Of equal keys at the threshold the first places: a search over places, turned around so
  // that the lowest is the largest.
  Threshold tie{0, 0, 0};
  bool cut = false;
  const auto turned = [](std::int32_t place) {
    return 0x80000000u - static_cast<std::uint32_t>(place);
  };
  if (k < n) {
    at = Search::find(storage.search, key_at, n, k, 0);
    cut = storage.search.in_bin > at.quota;
    __syncthreads();
    if (cut) {
      const auto tie_at = [&](std::int32_t i) {
        return (key_at(i) & at.mask) == at.prefix ? turned(place_at(i)) : 0u;
      };
      tie = Search::find(storage.search, tie_at, n, at.quota, 0);
      __syncthreads();
    }
  }
  const auto wins = [&](std::int32_t i) {
    if (k == n) return true;
    const std::uint32_t key = key_at(i) & at.mask;
    if (key != at.prefix) return key > at.prefix;
    return !cut || (turned(place_at(i)) & tie.mask) >= tie.prefix;
  };
  std::int32_t written = 0;
  for (std::int32_t from = 0; from < range && written < k; from += kMarkedPlaces) {
    const std::int32_t span = min(range - from, kMarkedPlaces), words = (span + 31) / 32;
    for (std::int32_t w = tid; w < words; w += kFinishThreads) marks[w] = 0;
    __syncthreads();
    for (std::int32_t i = tid; i < n; i += kFinishThreads) {
      if (!wins(i)) continue;
      const std::int32_t place = place_at(i) - from;
      if (place >= 0 && place < span) atomicOr(marks + place / 32, 1u << place % 32);
    }
    __syncthreads();
    // An odd stride: neighbouring threads' words fall into distinct banks.
    const std::int32_t each = (words + kFinishThreads - 1) / kFinishThreads | 1;
    const std::int32_t first = tid * each, stop = min(first + each, words);
    std::int32_t own = 0;
    for (std::int32_t w = first; w < stop; ++w) own += __popc(marks[w]);
    std::int32_t before = 0, total = 0;
    AscendingStorage::Scan(storage.scan).ExclusiveSum(own, before, total);
    std::int32_t* to = out + written + before;
    for (std::int32_t w = first; w < stop; ++w) {
      for (std::uint32_t bits = marks[w]; bits != 0; bits &= bits - 1) {
        *to++ = from + w * 32 + __ffs(static_cast<int>(bits)) - 1;
      }
    }
    written += total;
    __syncthreads();
  }
}

}  // namespace quarry::cuda
