// SPDX-License-Identifier: Apache-2.0
//
// The best of what a thread block's threads hold in registers, for several heads at once: a
// search for the k-th largest score that counts how many reach a guess, and who comes where
// among those that are taken.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "half.h"
#include "scan/plan.h"

namespace quarry::cuda {

/// Counts of all heads, 16 bits each.
template <int kHeads>
constexpr int kCountWords = (kHeads + 1) / 2;
template <int kHeads>
using Counts = std::uint32_t[kCountWords<kHeads>];

template <int kHeads>
__device__ __forceinline__ std::int32_t count_of(const Counts<kHeads>& counts, int h) {
  return static_cast<std::int32_t>(counts[h / 2] >> h % 2 * 16 & 0xffffu);
}

/// Bins of a head's histogram.
constexpr int kBins = 512;
/// Values that are compared with each other, where that many are left to choose from.
constexpr int kListed = 64;

/// Of a histogram: the bin that the wanted value is in, and how many values are in it and above.
struct Found {
  std::int32_t bin, in_bin, above;
};

/// What the warps of a thread block tell each other. Two sets of counts that take turns, so that
/// one barrier an exchange is enough.
template <int kHeads, int kThreads>
struct Exchange {
  static constexpr int kWarps = kThreads / 32;
  static_assert(kHeads <= kWarps && kWarps <= 32);
  std::uint32_t counts[2][kCountWords<kHeads>][kWarps];
  std::uint32_t least[2][kHeads][kWarps], most[2][kHeads][kWarps];
  alignas(16) std::uint32_t bins[kHeads][kBins];
  Found found[kHeads];
  std::uint64_t listed[kListed];
  std::int32_t num_listed;
};

/// A thread's place in its thread block's exchanges.
struct Place {
  std::int32_t lane, warp;
  std::uint32_t turn = 0;

  __device__ Place()
      : lane(static_cast<std::int32_t>(threadIdx.x) % 32),
        warp(static_cast<std::int32_t>(threadIdx.x) / 32) {}
};

constexpr unsigned kAllLanes = 0xffffffffu;

/// Sums over this lane and those before it.
__device__ __forceinline__ std::uint32_t sum_upto(std::uint32_t v, std::int32_t lane) {
#pragma unroll
  for (int apart = 1; apart < 32; apart *= 2) {
    const std::uint32_t other = __shfl_up_sync(kAllLanes, v, apart);
    if (lane >= apart) v += other;
  }
  return v;
}

/// counts: of the threads before this one; total: of all. All threads call it.
template <int kHeads, int kThreads>
__device__ __forceinline__ void count_before(Exchange<kHeads, kThreads>& st, Place& place,
                                             Counts<kHeads>& counts, Counts<kHeads>& total) {
  constexpr int kWarps = kThreads / 32;
  const std::uint32_t set = place.turn++ & 1;
  Counts<kHeads> upto;
#pragma unroll
  for (int w = 0; w < kCountWords<kHeads>; ++w) {
    upto[w] = sum_upto(counts[w], place.lane);
    if (place.lane == 31) st.counts[set][w][place.warp] = upto[w];
  }
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kCountWords<kHeads>; ++w) {
    const std::uint32_t of = place.lane < kWarps ? st.counts[set][w][place.lane] : 0;
    const std::uint32_t before = __reduce_add_sync(kAllLanes, place.lane < place.warp ? of : 0);
    total[w] = __reduce_add_sync(kAllLanes, of);
    counts[w] = before + upto[w] - counts[w];
  }
}

/// Divides what lies between the numbers of two keys into kBins: evenly, or by keys, which always
/// tells different ones apart in the end. Larger values never have lower bins.
struct BinMap {
  float low, scale;  ///< scale 0: by keys
  std::uint32_t key;
  int shift;

  __device__ __forceinline__ BinMap(std::uint32_t least, std::uint32_t most, bool by_keys)
      : low(selected_score(least)), scale(0.0f), key(least) {
    constexpr int kLog2 = 31 - __builtin_clz(kBins);
    shift = max(32 - __clz(static_cast<int>(most - least)) - kLog2, 0);
    if (by_keys) return;
    const float of = __fdividef(static_cast<float>(kBins - 1), selected_score(most) - low);
    if (of > 1e-30f && of < 1e30f) scale = of;  // else the span is no number, or none
  }
  __device__ __forceinline__ std::int32_t bin(float v) const {
    if (scale > 0.0f) return min(static_cast<std::int32_t>((v - low) * scale), kBins - 1);
    return static_cast<std::int32_t>(selection_key(v) - key >> shift);
  }
  /// A bound that no value of `bin` or a higher one is below: all operations of bin() err by less
  /// than 2^-22 in all, those here by less than 2^-21, and what is rounded last was not above any
  /// such value before.
  __device__ __forceinline__ float bound(std::int32_t of) const {
    if (scale > 0.0f) return fmaf(__fdividef(static_cast<float>(of), scale), 0x1.ffffep-1f, low);
    return selected_score(key + (static_cast<std::uint32_t>(of) << shift));
  }
};

/// The bin of a histogram that its `wanted`-th largest value is in. A whole warp calls it; lane 0
/// has the result.
__device__ __forceinline__ Found find_bin(const std::uint32_t* bins, std::uint32_t wanted,
                                          std::int32_t lane) {
  constexpr int kEach = kBins / 32;
  std::uint32_t sum = 0;
  const auto* fours = reinterpret_cast<const uint4*>(bins + (31 - lane) * kEach);  // highest first
#pragma unroll
  for (int j = 0; j < kEach / 4; ++j) {
    const uint4 four = fours[j];
    sum += four.x + four.y + four.z + four.w;
  }
  const std::uint32_t upto = sum_upto(sum, lane);
  const int of = __ffs(static_cast<int>(__ballot_sync(kAllLanes, upto >= wanted))) - 1;
  const std::uint32_t higher = __shfl_sync(kAllLanes, upto - sum, of);
  const int bin = (31 - of) * kEach + kEach - 1 - lane;  // of lanes below kEach
  const std::uint32_t own = lane < kEach ? bins[bin] : 0;
  const std::uint32_t in_bins = higher + sum_upto(own, lane);
  const int found = __ffs(static_cast<int>(__ballot_sync(kAllLanes, in_bins >= wanted))) - 1;
  return {__shfl_sync(kAllLanes, bin, found),
          static_cast<std::int32_t>(__shfl_sync(kAllLanes, own, found)),
          static_cast<std::int32_t>(__shfl_sync(kAllLanes, in_bins - own, found))};
}

/// A search among each head's values that are numbers, for the wanted[h]-th largest.
template <int kHeads>
struct Search {
  std::int32_t numbers[kHeads];               ///< of the first round
  std::uint32_t least[kHeads], most[kHeads];  ///< keys; least above most: none is left
  Found found[kHeads];
};

/// The keys that the values span, and in the first round how many there are. A thread has `live`
/// values, the others are NaN. All threads call it.
template <int kHeads, int kThreads, int kValues>
__device__ __forceinline__ void span_values(Exchange<kHeads, kThreads>& st, Place& place,
                                            const float (&v)[kHeads][kValues], std::int32_t live,
                                            bool first, Search<kHeads>& search) {
  constexpr int kWarps = kThreads / 32;
  for (auto i = static_cast<int>(threadIdx.x); i < kHeads * kBins; i += kThreads) {
    st.bins[0][i] = 0;  // read before the last barrier
  }
  if (threadIdx.x == 0) st.num_listed = 0;
  const std::uint32_t set = place.turn++ & 1;
  Counts<kHeads> numbers{};
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    float least = v[h][0], most = v[h][0];
    std::uint32_t own = v[h][0] == v[h][0] ? 1 : 0;
#pragma unroll
    for (int i = 1; i < kValues; ++i) {  // fminf and fmaxf pass NaN over
      if (i >= live) break;
      least = fminf(least, v[h][i]);
      most = fmaxf(most, v[h][i]);
      if (first) own += v[h][i] == v[h][i] ? 1 : 0;
    }
    numbers[h / 2] += own << h % 2 * 16;
    // A NaN's key is 0, below any: one less is above any.
    const std::uint32_t low = __reduce_min_sync(kAllLanes, selection_key(least) - 1);
    const std::uint32_t high = __reduce_max_sync(kAllLanes, selection_key(most));
    if (place.lane == 0) {
      st.least[set][h][place.warp] = low;
      st.most[set][h][place.warp] = high;
    }
  }
#pragma unroll
  for (int w = 0; w < kCountWords<kHeads>; ++w) {
    const std::uint32_t sum = __reduce_add_sync(kAllLanes, numbers[w]);
    if (place.lane == 0) st.counts[set][w][place.warp] = sum;
  }
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kCountWords<kHeads>; ++w) {
    const std::uint32_t of = place.lane < kWarps ? st.counts[set][w][place.lane] : 0;
    numbers[w] = __reduce_add_sync(kAllLanes, of);
  }
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    const std::uint32_t low = place.lane < kWarps ? st.least[set][h][place.lane] : 0xffffffffu;
    const std::uint32_t high = place.lane < kWarps ? st.most[set][h][place.lane] : 0;
    search.least[h] = __reduce_min_sync(kAllLanes, low);
    search.least[h] += search.least[h] == 0xffffffffu ? 0 : 1;
    search.most[h] = __reduce_max_sync(kAllLanes, high);
    if (first) search.numbers[h] = count_of<kHeads>(numbers, h);
  }
}

/// Where the values of `active` heads lie. All threads call it.
template <int kHeads, int kThreads, int kValues>
__device__ __forceinline__ void find_bins(Exchange<kHeads, kThreads>& st, Place& place,
                                          const float (&v)[kHeads][kValues], std::int32_t live,
                                          const bool (&active)[kHeads],
                                          const std::int32_t (&wanted)[kHeads], bool by_keys,
                                          Search<kHeads>& search) {
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    if (!active[h]) continue;
    const BinMap map(search.least[h], search.most[h], by_keys);
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      if (i >= live) break;
      if (v[h][i] == v[h][i]) atomicAdd(&st.bins[h][map.bin(v[h][i])], 1u);
    }
  }
  __syncthreads();
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    if (place.warp != h || !active[h]) continue;
    const Found found = find_bin(st.bins[h], static_cast<std::uint32_t>(wanted[h]), place.lane);
    if (place.lane == 0) st.found[h] = found;
  }
  __syncthreads();
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    if (active[h]) search.found[h] = st.found[h];
  }
}

/// bound[h]: what at least `want` of each head's values reach, and hardly more than `enough` where
/// two rounds of a histogram can tell; known[h] false: there are fewer numbers. The values are
/// used up. All threads call it.
template <int kHeads, int kThreads, int kValues>
__device__ __forceinline__ void find_bounds(Exchange<kHeads, kThreads>& st, Place& place,
                                            float (&v)[kHeads][kValues], std::int32_t live,
                                            std::int32_t want, std::int32_t enough,
                                            float (&bound)[kHeads], bool (&known)[kHeads]) {
  Search<kHeads> search;
  std::int32_t wanted[kHeads];
  bool active[kHeads];
#pragma unroll 1
  for (int round = 0; round < 2; ++round) {
    span_values<kHeads, kThreads, kValues>(st, place, v, live, round == 0, search);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      if (round > 0) continue;
      wanted[h] = want;
      active[h] = known[h] = search.numbers[h] >= want;
    }
    find_bins<kHeads, kThreads, kValues>(st, place, v, live, active, wanted, false, search);
    bool any = false;
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      if (!active[h]) continue;
      const BinMap map(search.least[h], search.most[h], false);
      const Found& found = search.found[h];
      bound[h] = map.bound(found.bin);
      active[h] = want - wanted[h] + found.above + found.in_bin > enough;
      wanted[h] -= found.above;
      any |= active[h];
      if (!active[h]) continue;
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        if (i >= live) break;
        if (v[h][i] == v[h][i] && map.bin(v[h][i]) != found.bin) {
          v[h][i] = __uint_as_float(0x7fc00000u);
        }
      }
    }
    if (!any) break;
  }
}

/// Which of a head's values reach `least`, a number: bit i for value i.
template <int kValues>
__device__ __forceinline__ std::uint32_t reaching(const float (&v)[kValues], float least) {
  std::uint32_t mask = 0;
#pragma unroll
  for (int i = 0; i < kValues; ++i) mask |= v[i] >= least ? 1u << i : 0u;
  return mask;
}

/// Which are above `least`, a number but not -0. The signs of the differences tell, which are
/// exact where it matters; a NaN's is clear.
template <int kValues>
__device__ __forceinline__ std::uint32_t above(const float (&v)[kValues], float least) {
  std::uint32_t mask = 0;
#pragma unroll
  for (int i = kValues - 1; i >= 0; --i) {
    mask = __funnelshift_l(__float_as_uint(least - v[i]), mask, 1);
  }
  return mask;
}

/// taken[h]: exactly the best `want` of each head's values by (score descending, place ascending),
/// NaN last, or all there are; bit i of there[h]: value i is one. Places ascend with the threads
/// and their values. The values are used up. All threads call it; no barrier follows the last
/// use of `st`.
template <int kHeads, int kThreads, int kValues>
__device__ __forceinline__ void take_best(Exchange<kHeads, kThreads>& st, Place& place,
                                          float (&v)[kHeads][kValues], std::int32_t live,
                                          const std::uint32_t (&there)[kHeads], std::int32_t want,
                                          std::uint32_t (&taken)[kHeads]) {
  const float nothing = __uint_as_float(0x7fc00000u);
  Search<kHeads> search;
  std::int32_t wanted[kHeads];
  bool active[kHeads];
  std::uint32_t equal[kHeads];  // of those the first wanted[h] are taken too
#pragma unroll 1
  for (int round = 0;; ++round) {
    span_values<kHeads, kThreads, kValues>(st, place, v, live, round == 0, search);
    bool any = false;
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      if (round == 0) {
        taken[h] = equal[h] = 0;
        wanted[h] = want;
        active[h] = true;
        if (search.numbers[h] <= want) {
#pragma unroll
          for (int i = 0; i < kValues; ++i) taken[h] |= v[h][i] == v[h][i] ? 1u << i : 0u;
          equal[h] = there[h] & ~taken[h];
          wanted[h] = want - search.numbers[h];
          active[h] = false;
        }
      }
      if (active[h] && search.least[h] == search.most[h]) {
#pragma unroll
        for (int i = 0; i < kValues; ++i) equal[h] |= v[h][i] == v[h][i] ? 1u << i : 0u;
        active[h] = false;
      }
      any |= active[h];
    }
    if (!any) break;
    const bool by_keys = round >= 2;
    find_bins<kHeads, kThreads, kValues>(st, place, v, live, active, wanted, by_keys, search);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      if (!active[h]) continue;
      const BinMap map(search.least[h], search.most[h], by_keys);
      const Found& found = search.found[h];
      wanted[h] -= found.above;
      const bool all = wanted[h] == found.in_bin;
      active[h] = !all;
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        if (i >= live) break;
        if (v[h][i] != v[h][i]) continue;
        const std::int32_t bin = map.bin(v[h][i]);
        if (bin > found.bin || (all && bin == found.bin)) taken[h] |= 1u << i;
        if (bin != found.bin || all) v[h][i] = nothing;
      }
      if (all) wanted[h] = 0;
    }
    if constexpr (kHeads == 1) {
      if (!active[0]) break;
      if (search.found[0].in_bin > kListed) continue;
      // Few are left to choose from: each is compared with the others.
      const auto rank_of = [&](int i) {  // larger is better
        const auto order = static_cast<std::uint32_t>(threadIdx.x) * kValues + i;
        return std::uint64_t{selection_key(v[0][i])} << 32 | (0xffffffffu - order);
      };
      bool some = false;
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        if (i >= live) break;
        if (v[0][i] != v[0][i]) continue;
        st.listed[atomicAdd(&st.num_listed, 1)] = rank_of(i);
        some = true;
      }
      __syncthreads();
      if (!some) return;
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        if (i >= live) break;
        if (v[0][i] != v[0][i]) continue;
        const std::uint64_t own = rank_of(i);
        std::int32_t better = 0;
        for (std::int32_t j = 0; j < search.found[0].in_bin; ++j) {
          better += st.listed[j] > own ? 1 : 0;
        }
        if (better < wanted[0]) taken[0] |= 1u << i;
      }
      return;
    }
  }
  Counts<kHeads> before{}, total;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    before[h / 2] += static_cast<std::uint32_t>(__popc(equal[h])) << h % 2 * 16;
  }
  count_before<kHeads, kThreads>(st, place, before, total);
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    std::int32_t room = wanted[h] - count_of<kHeads>(before, h);
    room = min(max(room, 0), __popc(equal[h]));
#pragma unroll 1
    for (std::int32_t spare = __popc(equal[h]) - room; spare > 0; --spare) {
      equal[h] &= ~(0x80000000u >> __clz(static_cast<int>(equal[h])));
    }
    taken[h] |= equal[h];
  }
}

}  // namespace quarry::cuda
