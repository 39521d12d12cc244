// SPDX-License-Identifier: Apache-2.0
//
// The pass over a chunk's codes: packed sums into shared memory, and their histogram.
#pragma once

#include "scan/chunk.cuh"
#include "score/codes.cuh"

namespace quarry::cuda {

template <int kHeads>
using Sums = std::uint32_t[kKeys][Packed<kHeads>::kWords];

__device__ __forceinline__ void keep(std::uint32_t (&acc)[1], std::uint16_t mask) {
  acc[0] &= mask;
}
__device__ __forceinline__ void keep(std::uint32_t (&acc)[1], std::uint32_t mask) {
  acc[0] &= mask;
}
__device__ __forceinline__ void keep(std::uint32_t (&acc)[2], const uint2& mask) {
  acc[0] &= mask.x;
  acc[1] &= mask.y;
}

/// Sums of four neighbouring keys, at a multiple of four in the chunk.
__device__ __forceinline__ void store_sums(std::uint16_t* to, const Sums<1>& acc) {
  *reinterpret_cast<uint2*>(to) = {acc[0][0] | acc[1][0] << 16, acc[2][0] | acc[3][0] << 16};
}
__device__ __forceinline__ void store_sums(std::uint32_t* to, const Sums<2>& acc) {
  *reinterpret_cast<uint4*>(to) = {acc[0][0], acc[1][0], acc[2][0], acc[3][0]};
}
__device__ __forceinline__ void store_sums(uint2* to, const Sums<4>& acc) {
  *reinterpret_cast<uint4*>(to) = {acc[0][0], acc[0][1], acc[1][0], acc[1][1]};
  *reinterpret_cast<uint4*>(to + 2) = {acc[2][0], acc[2][1], acc[3][0], acc[3][1]};
}
__device__ __forceinline__ void load_sums(const std::uint16_t* from, Sums<1>& acc) {
  const uint2 v = *reinterpret_cast<const uint2*>(from);
  acc[0][0] = v.x & 0xffffu, acc[1][0] = v.x >> 16, acc[2][0] = v.y & 0xffffu,
  acc[3][0] = v.y >> 16;
}
__device__ __forceinline__ void load_sums(const std::uint32_t* from, Sums<2>& acc) {
  const uint4 v = *reinterpret_cast<const uint4*>(from);
  acc[0][0] = v.x, acc[1][0] = v.y, acc[2][0] = v.z, acc[3][0] = v.w;
}
__device__ __forceinline__ void load_sums(const uint2* from, Sums<4>& acc) {
  const uint4 a = *reinterpret_cast<const uint4*>(from);
  const uint4 b = *reinterpret_cast<const uint4*>(from + 2);
  acc[0][0] = a.x, acc[0][1] = a.y, acc[1][0] = a.z, acc[1][1] = a.w;
  acc[2][0] = b.x, acc[2][1] = b.y, acc[3][0] = b.z, acc[3][1] = b.w;
}

/// Adds the packed entries of four neighbouring keys, whose code words `read` brings.
template <int kHeads, int kStride, typename Reader>
__device__ __forceinline__ void add_packed(const IndexView& ix,
                                           const typename Packed<kHeads>::Entry* tables,
                                           const Reader& read, Sums<kHeads>& acc) {
  using Entry = typename Packed<kHeads>::Entry;
  constexpr int kLog2 = kHeads == 1 ? 1 : kHeads == 2 ? 2 : 3;  // of an entry's bytes
  constexpr int kBatch = 4;                                     // code words in flight
  constexpr int kByte = kStride == 16 ? 2 * kStride : kStride;  // entries a code byte chooses from
  const auto add_entries = [&](const Entry* table, std::uint32_t word, int from) {
#pragma unroll
    for (int k = 0; k < kKeys; ++k) {
      // The code times an entry's bytes: one shift and one mask a lookup, whatever kHeads.
      const int shift = 8 * k + from - kLog2;
      const std::uint32_t byte =
          (shift < 0 ? word << -shift : word >> shift) & ((kStride - 1u) << kLog2);
      add(acc[k], *reinterpret_cast<const Entry*>(reinterpret_cast<const char*>(table) + byte));
    }
  };
#pragma unroll 1
  for (std::int32_t i = 0; i < ix.code_bytes; i += kBatch, tables += kBatch * kByte) {
    std::uint32_t word[kBatch];
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      if (i + u < ix.code_bytes) word[u] = read(i + u);
    }
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      if (i + u >= ix.code_bytes) break;
      add_entries(tables + u * kByte, word[u], 0);
      if (kStride == 16 && 2 * (i + u) + 1 < ix.num_subspaces) {
        add_entries(tables + u * kByte + kStride, word[u], 4);
      }
    }
  }
}

/// Counts four keys' sums, or the largest of them, in the heads' histograms.
template <int kHeads>
__device__ __forceinline__ void count_sums(const Sums<kHeads>& acc, std::int32_t first,
                                           std::int32_t end, bool each, std::uint32_t* bins) {
  constexpr int kBins = scan_bins(kHeads), kShift = kHeads == 1 ? 5 : kHeads == 2 ? 6 : 7;
  static_assert(kBins << kShift == 1 << 15);
  const auto count = [&](const std::uint32_t(&sum)[Packed<kHeads>::kWords]) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const std::uint32_t bin = sum[h / 2] >> (h % 2 * 16 + kShift) & (kBins - 1u);
      atomicAdd(bins + h * kBins + bin, 1u);
    }
  };
  if (each) {
#pragma unroll
    for (int k = 0; k < kKeys; ++k) {
      if (k >= first && k < end) count(acc[k]);
    }
    return;
  }
  std::uint32_t most[Packed<kHeads>::kWords];
#pragma unroll
  for (int w = 0; w < Packed<kHeads>::kWords; ++w) {
    most[w] = __vmaxu2(__vmaxu2(acc[0][w], acc[1][w]), __vmaxu2(acc[2][w], acc[3][w]));
  }
  count(most);
}

/// thresholds[h]: packed sums of at least this can be among the best `rank` of what `bins`
/// [kHeads][scan_bins(kHeads)] counted. Warp h takes head h.
template <int kHeads>
__device__ __forceinline__ void find_thresholds(const std::uint32_t* bins, std::uint32_t rank,
                                                const ScanScale* scales,
                                                std::uint32_t* thresholds) {
  constexpr unsigned kAll = 0xffffffffu;
  constexpr int kBins = scan_bins(kHeads), kEach = kBins / 32,
                kShift = 15 - (kHeads == 1   ? 10
                               : kHeads == 2 ? 9
                                             : 8);
  const auto lane = static_cast<int>(threadIdx.x) % 32, h = static_cast<int>(threadIdx.x) / 32;
  if (h >= kHeads) return;
  const std::uint32_t* own = bins + h * kBins;
  const auto sum_upto = [&](std::uint32_t v) {  // over this and the lanes before
#pragma unroll
    for (int apart = 1; apart < 32; apart *= 2) {
      const std::uint32_t other = __shfl_up_sync(kAll, v, apart);
      if (lane >= apart) v += other;
    }
    return v;
  };
  // Lane 0 has the highest bins; each begins at another one, so that no two share a bank.
  std::uint32_t sum = 0;
#pragma unroll 8
  for (int j = 0; j < kEach; ++j) sum += own[kBins - 1 - lane * kEach - (j + lane) % kEach];
  const std::uint32_t upto = sum_upto(sum);
  const unsigned reached = __ballot_sync(kAll, upto >= rank);
  std::uint32_t least = 0;
  if (reached != 0) {
    const int of = __ffs(static_cast<int>(reached)) - 1;
    const std::uint32_t above = __shfl_sync(kAll, upto - sum, of);
    const int bin = kBins - 1 - of * kEach - lane;
    const std::uint32_t in_bins = above + sum_upto(lane < kEach ? own[bin] : 0u);
    const unsigned enough = __ballot_sync(kAll, in_bins >= rank);
    least = static_cast<std::uint32_t>(kBins - of * kEach - __ffs(static_cast<int>(enough)))
            << kShift;
  }
  if (lane == 0) thresholds[h] = scan_threshold(scales[h], least);
}

/// Collects the keys whose sums reach the thresholds: bit 15 once `reach` (2^15 less the
/// threshold, a field a head) is added.
template <int kHeads>
__device__ __forceinline__ void collect(const typename Packed<kHeads>::Entry* sums,
                                        std::int32_t first, std::int32_t end,
                                        const std::uint32_t (&reach)[Packed<kHeads>::kWords],
                                        std::int32_t capacity, std::uint16_t* found,
                                        std::int32_t* counts) {
#pragma unroll 1
  for (std::int32_t at = static_cast<std::int32_t>(threadIdx.x) * kKeys; at < end;
       at += static_cast<std::int32_t>(blockDim.x) * kKeys) {
    Sums<kHeads> acc;
    load_sums(sums + at, acc);
    std::uint32_t any = 0;
#pragma unroll
    for (int k = 0; k < kKeys; ++k) {
#pragma unroll
      for (int w = 0; w < Packed<kHeads>::kWords; ++w) any |= acc[k][w] += reach[w];
    }
    if ((any & 0x80008000u) == 0) continue;
    std::uint32_t bits = 0;  // 4 k + h
#pragma unroll
    for (int k = 0; k < kKeys; ++k) {
      if (at + k < first || at + k >= end) continue;
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        bits |= (acc[k][h / 2] >> (h % 2 * 16 + 15) & 1u) << (4 * k + h);
      }
    }
#pragma unroll 1
    for (; bits != 0; bits &= bits - 1) {
      const int bit = __ffs(static_cast<int>(bits)) - 1, h = bit & 3;
      const std::int32_t i = atomicAdd(counts + h, 1);
      if (i < capacity) found[h * capacity + i] = static_cast<std::uint16_t>(at + bit / 4);
    }
  }
}

}  // namespace quarry::cuda
