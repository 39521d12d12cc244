// SPDX-License-Identifier: Apache-2.0
//
// The pass over a chunk's codes: packed sums into shared memory, and their histogram.
#pragma once

#include "scan/chunk.cuh"
#include "score/codes.cuh"

namespace quarry::cuda {

/// A sum's low bits that its bin leaves out.
constexpr int kBinShift = 7;
static_assert(kScanBins << kBinShift == 1 << 15);

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

/// Code words in flight: of a position's bytes, those that are loaded together.
template <int kStride>
constexpr int kCodeBatch = kStride == 16 ? 8 : 4;

/// Code bytes from, from + 1, .. of four neighbouring keys, as far as there are.
template <int kStride, typename Reader>
__device__ __forceinline__ void load_codes(const IndexView& ix, const Reader& read,
                                           std::int32_t from,
                                           std::uint32_t (&word)[kCodeBatch<kStride>]) {
#pragma unroll
  for (int u = 0; u < kCodeBatch<kStride>; ++u) {
    if (from + u < ix.code_bytes) word[u] = read(from + u);
  }
}

/// Adds the packed entries of four neighbouring keys. `word`: their first code words, as
/// load_codes() brings them; `read` brings the others.
template <int kHeads, int kStride, typename Reader>
__device__ __forceinline__ void add_packed(const IndexView& ix,
                                           const typename Packed<kHeads>::Entry* tables,
                                           const Reader& read,
                                           std::uint32_t (&word)[kCodeBatch<kStride>],
                                           Sums<kHeads>& acc) {
  using Entry = typename Packed<kHeads>::Entry;
  constexpr int kLog2 = kHeads == 1 ? 1 : kHeads == 2 ? 2 : 3;  // of an entry's bytes
  constexpr int kBatch = kCodeBatch<kStride>;
  constexpr int kByte = kStride == 16 ? 2 * kStride : kStride;  // entries a code byte chooses from
  const auto add_entries = [&](const Entry* table, std::uint32_t code, int from) {
#pragma unroll
    for (int k = 0; k < kKeys; ++k) {
      // The code times an entry's bytes: one shift and one mask a lookup, whatever kHeads.
      const int shift = 8 * k + from - kLog2;
      const std::uint32_t byte =
          (shift < 0 ? code << -shift : code >> shift) & ((kStride - 1u) << kLog2);
      add(acc[k], *reinterpret_cast<const Entry*>(reinterpret_cast<const char*>(table) + byte));
    }
  };
#pragma unroll 1
  for (std::int32_t i = 0;; tables += kBatch * kByte) {
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      if (i + u >= ix.code_bytes) break;
      add_entries(tables + u * kByte, word[u], 0);
      if (kStride == 16 && 2 * (i + u) + 1 < ix.num_subspaces) {
        add_entries(tables + u * kByte + kStride, word[u], 4);
      }
    }
    i += kBatch;
    if (i >= ix.code_bytes) break;
    load_codes<kStride>(ix, read, i, word);
  }
}

/// Counts four keys' sums, or the largest of them, in the heads' histograms. Sums of 0 of keys that
/// are none change no threshold: below the lowest bin there is nothing.
template <int kHeads>
__device__ __forceinline__ void count_sums(const Sums<kHeads>& acc, bool each,
                                           std::uint32_t* bins) {
  const auto count = [&](const std::uint32_t(&sum)[Packed<kHeads>::kWords]) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const std::uint32_t bin = sum[h / 2] >> (h % 2 * 16 + kBinShift) & (kScanBins - 1u);
      atomicAdd(bins + h * kScanBins + bin, 1u);
    }
  };
  if (each) {
#pragma unroll
    for (int k = 0; k < kKeys; ++k) count(acc[k]);
    return;
  }
  std::uint32_t most[Packed<kHeads>::kWords];
#pragma unroll
  for (int w = 0; w < Packed<kHeads>::kWords; ++w) {
    most[w] = __vmaxu2(__vmaxu2(acc[0][w], acc[1][w]), __vmaxu2(acc[2][w], acc[3][w]));
  }
  count(most);
}

/// Zeros for those of the four keys from `at` on that are not in [low, high).
template <int kHeads>
__device__ __forceinline__ void clear_outside(Sums<kHeads>& acc, std::int32_t at, std::int32_t low,
                                              std::int32_t high) {
  if (at >= low && at + kKeys <= high) return;
#pragma unroll
  for (int k = 0; k < kKeys; ++k) {
    if (at + k >= low && at + k < high) continue;
#pragma unroll
    for (int w = 0; w < Packed<kHeads>::kWords; ++w) acc[k][w] = 0;
  }
}

/// thresholds[h]: packed sums of at least this can be among the best `rank` of what `bins`
/// [kHeads][kScanBins] counted. Warp h takes head h.
template <int kHeads>
__device__ __forceinline__ void find_thresholds(const std::uint32_t* bins, std::uint32_t rank,
                                                const ScanScale (&scales)[kHeads],
                                                std::uint32_t* thresholds) {
  constexpr unsigned kAll = 0xffffffffu;
  constexpr int kBins = kScanBins, kEach = kBins / 32;
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
            << kBinShift;
  }
#pragma unroll
  for (int of = 0; of < kHeads; ++of) {  // registers have no address
    if (of == h && lane == 0) thresholds[h] = scan_threshold(scales[of], least);
  }
}

/// Counts of a warp's hits, a field a head.
template <int kHeads>
using WarpCounts = std::uint32_t[kScanThreads / 32][Packed<kHeads>::kWords];

/// Collects the keys whose sums reach the thresholds, ascending: bit 15 once `reach` (2^15 less the
/// threshold, a field a head) is added. counts[h]: how many there are, those that `found`
/// [kHeads][capacity] has no room for too. Every thread looks at neighbouring keys, and so begins
/// where those before it end. All threads call it; a barrier must follow.
template <int kHeads>
__device__ __forceinline__ void collect(const typename Packed<kHeads>::Entry* sums,
                                        std::int32_t first, std::int32_t end,
                                        const std::uint32_t (&reach)[Packed<kHeads>::kWords],
                                        std::int32_t capacity, WarpCounts<kHeads>& warp_counts,
                                        std::uint16_t* found, std::int32_t* counts) {
  constexpr unsigned kAll = 0xffffffffu;
  constexpr int kWords = Packed<kHeads>::kWords, kWarps = kScanThreads / 32;
  const auto tid = static_cast<std::int32_t>(threadIdx.x), lane = tid % 32, warp = tid / 32;
  // An odd number of quads each: neighbouring threads' fall into distinct banks.
  const std::int32_t quads = (end + kKeys - 1) / kKeys;
  const std::int32_t each = (quads + kScanThreads - 1) / kScanThreads | 1;
  const std::int32_t from = min(tid * each, quads), to = min(from + each, quads);
  // One in the fields of heads whose threshold a key reaches; false: none does.
  const auto hits = [&](std::int32_t quad, Sums<kHeads>& hit) {
    load_sums(sums + quad * kKeys, hit);
    const std::int32_t before = first - quad * kKeys, count = end - quad * kKeys;
    std::uint32_t any = 0;
#pragma unroll
    for (int k = 0; k < kKeys; ++k) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) any |= hit[k][w] += reach[w];
    }
    if ((any & 0x80008000u) == 0) return false;
#pragma unroll
    for (int k = 0; k < kKeys; ++k) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        hit[k][w] = k >= before && k < count ? hit[k][w] >> 15 & 0x00010001u : 0u;
      }
    }
    return true;
  };
  std::uint32_t own[kWords] = {};
#pragma unroll 1
  for (std::int32_t quad = from; quad < to; ++quad) {
    Sums<kHeads> hit;
    if (!hits(quad, hit)) continue;
#pragma unroll
    for (int w = 0; w < kWords; ++w) own[w] += hit[0][w] + hit[1][w] + hit[2][w] + hit[3][w];
  }
  std::uint32_t upto[kWords];
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    upto[w] = own[w];
#pragma unroll
    for (int apart = 1; apart < 32; apart *= 2) {
      const std::uint32_t other = __shfl_up_sync(kAll, upto[w], apart);
      if (lane >= apart) upto[w] += other;
    }
    if (lane == 31) warp_counts[warp][w] = upto[w];
  }
  __syncthreads();
  std::uint32_t next[kWords];  // where this thread's hits go
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    const std::uint32_t of_warp = lane < kWarps ? warp_counts[lane][w] : 0;
    const std::uint32_t before = __reduce_add_sync(kAll, lane < warp ? of_warp : 0);
    const std::uint32_t all = __reduce_add_sync(kAll, of_warp);
    next[w] = before + upto[w] - own[w];
    if (tid == 0) {
      counts[2 * w] = static_cast<std::int32_t>(all & 0xffffu);
      if (kHeads > 1) counts[2 * w + 1] = static_cast<std::int32_t>(all >> 16);
    }
  }
  std::uint32_t any = own[0];
  if (kWords > 1) any |= own[kWords - 1];
  if (any == 0) return;
#pragma unroll 1
  for (std::int32_t quad = from; quad < to; ++quad) {
    Sums<kHeads> hit;
    if (!hits(quad, hit)) continue;
#pragma unroll
    for (int k = 0; k < kKeys; ++k) {
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        if ((hit[k][h / 2] >> h % 2 * 16 & 1u) == 0) continue;
        const auto i = static_cast<std::int32_t>(next[h / 2] >> h % 2 * 16 & 0xffffu);
        next[h / 2] += 1u << h % 2 * 16;
        if (i < capacity) found[h * capacity + i] = static_cast<std::uint16_t>(quad * kKeys + k);
      }
    }
  }
}

}  // namespace quarry::cuda
