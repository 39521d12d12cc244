// SPDX-License-Identifier: Apache-2.0
//
// Radix search for the k-th largest of n keys by one thread block.
#pragma once

#include <cub/block/block_scan.cuh>

#include <cstdint>

namespace quarry::cuda {

/// Taken are the keys with (key & mask) > prefix, and of those with (key & mask) == prefix the
/// `quota` first ones.
struct Threshold {
  std::uint32_t prefix;
  std::uint32_t mask;
  std::int32_t quota;
};

/// Three rounds settle 11, 11 and 10 bits, most significant first. A round counts the keys that
/// agree with the bits settled so far by their next digit, and finds the digit of the k-th.
template <int kThreads>
class ThresholdSearch {
  static constexpr int kBins = 2048;
  using Scan = cub::BlockScan<std::int32_t, kThreads, cub::BLOCK_SCAN_WARP_SCANS>;

 public:
  struct Storage {
    std::int32_t bins[kBins];
    typename Scan::TempStorage scan;
    std::int32_t digit, remaining, in_bin;
  };

  /// All threads call it, 1 <= k <= n; key_at(i) is the key of item i. Stops early where the
  /// settled bits already tell: where all of the last bin are taken, or where it holds at most
  /// `slack` more than are wanted; its quota is then all of them. Exact for slack 0.
  template <typename KeyAt>
  static __device__ Threshold find(Storage& storage, KeyAt key_at, std::int32_t n, std::int32_t k,
                                   std::int32_t slack) {
    Threshold found{0, 0, k};
    const auto tid = static_cast<std::int32_t>(threadIdx.x);
#pragma unroll 1
    for (int round = 0; round < 3; ++round) {
      const int bits = round < 2 ? 11 : 10;
      const int shift = round == 0 ? 21 : round == 1 ? 10 : 0;
      const std::uint32_t digits = (1u << bits) - 1u;
      for (std::int32_t i = tid; i < kBins; i += kThreads) storage.bins[i] = 0;
      __syncthreads();
#pragma unroll 4
      for (std::int32_t i = tid; i < n; i += kThreads) {
        const std::uint32_t key = key_at(i);
        if ((key & found.mask) == found.prefix) atomicAdd(&storage.bins[key >> shift & digits], 1);
      }
      __syncthreads();
      // Thread 0 has the highest digits. Bins past a 10-bit digit are empty.
      constexpr int kEach = kBins / kThreads;
      const std::int32_t top = kBins - 1 - tid * kEach;
      std::int32_t own = 0;
#pragma unroll
      for (int j = 0; j < kEach; ++j) own += storage.bins[top - j];
      std::int32_t above = 0;
      Scan(storage.scan).ExclusiveSum(own, above);
      if (above < found.quota && found.quota <= above + own) {
        std::int32_t digit = top;
        std::int32_t remaining = found.quota - above;
        while (remaining > storage.bins[digit]) remaining -= storage.bins[digit--];
        storage.digit = digit;
        storage.remaining = remaining;
        storage.in_bin = storage.bins[digit];
      }
      __syncthreads();
      found.prefix |= static_cast<std::uint32_t>(storage.digit) << shift;
      found.mask |= digits << shift;
      found.quota = storage.remaining;
      if (storage.in_bin <= found.quota + slack) {
        found.quota = storage.in_bin;
        break;
      }
      // The next round's first barrier keeps these reads before its last writes.
    }
    return found;
  }
};

}  // namespace quarry::cuda
