// SPDX-License-Identifier: Apache-2.0
//
// The second kernel's selections, in registers: of what a row's chunks have passed on, and of
// exact scores.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "scan/best.cuh"
#include "scan/plan.h"

namespace quarry::cuda {

/// Puts the positions of the taken ones, ascending, to `out`. Returns how many. A barrier must
/// follow. All threads call it.
template <int kEach, typename PositionOf>
__device__ __forceinline__ std::int32_t put_positions(Exchange<1, kFinishThreads>& st, Place& place,
                                                      std::uint32_t taken, PositionOf position_of,
                                                      std::int32_t* out) {
  Counts<1> before{static_cast<std::uint32_t>(__popc(taken))}, total;
  count_before<1, kFinishThreads>(st, place, before, total);
  out += before[0];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (taken >> i == 0) break;
    if ((taken >> i & 1u) != 0) *out++ = position_of(i);
  }
  return static_cast<std::int32_t>(total[0]);
}

/// Threads that share a segment.
QUARRY_HD inline std::int32_t segment_team(std::int32_t chunks) {
  std::int32_t team = kFinishThreads;
  while (team > 1 && team * chunks > kFinishThreads) team /= 2;
  return team;
}

/// The most candidates a thread holds.
constexpr std::int32_t kMostShare = 24;

/// Candidates a thread has to hold for best_of_segments().
QUARRY_HD inline std::int32_t segment_share(std::int32_t chunks, std::int32_t capacity) {
  const std::int32_t team = segment_team(chunks);
  return (capacity + team - 1) / team;
}

/// The positions of a row's best `want` candidates, ascending, to `out` in shared memory: segments
/// [chunks][capacity], counts[chunks] of each; at most kEach a thread. Returns how many there are.
/// All threads call it, and a barrier must follow. A call, so that its registers are not the
/// caller's.
template <int kEach>
static __device__ __noinline__ std::int32_t best_of_segments(
    Exchange<1, kFinishThreads>& st, const std::int32_t* counts, const Candidate* segments,
    std::int32_t chunks, std::int32_t capacity, std::int32_t want, std::int32_t* out) {
  const std::int32_t team = segment_team(chunks);
  const auto tid = static_cast<std::int32_t>(threadIdx.x);
  const std::int32_t chunk = tid / team;
  const std::int32_t count = chunk < chunks ? counts[chunk] : 0;
  // Neighbouring threads have neighbouring candidates: the order is by thread, then by place.
  const std::int32_t each = (count + team - 1) / team, from = tid % team * each;
  const Candidate* own = segments + std::int64_t{chunk} * capacity + from;
  float v[1][kEach];
  std::uint32_t there[1] = {}, taken[1];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    v[0][i] = __uint_as_float(0x7fc00000u);
    if (i >= each || from + i >= count) continue;
    v[0][i] = own[i].score;
    there[0] |= 1u << i;
  }
  Place place;
  take_best<1, kFinishThreads, kEach>(st, place, v, each, there, want, taken);
  return put_positions<kEach>(
      st, place, taken[0], [&](int at) { return own[at].position; }, out);
}

/// The best `want` of `count` scores, with the positions of the same place in `positions`, as
/// best_of_segments(); at most kEach a thread.
template <int kEach>
static __device__ __noinline__ std::int32_t best_of_exact(Exchange<1, kFinishThreads>& st,
                                                          const float* scores,
                                                          const std::int32_t* positions,
                                                          std::int32_t count, std::int32_t want,
                                                          std::int32_t* out) {
  const std::int32_t each = (count + kFinishThreads - 1) / kFinishThreads;
  const std::int32_t from = static_cast<std::int32_t>(threadIdx.x) * each;
  float v[1][kEach];
  std::uint32_t there[1] = {}, taken[1];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    v[0][i] = __uint_as_float(0x7fc00000u);
    if (i >= each || from + i >= count) continue;
    v[0][i] = scores[from + i];
    there[0] |= 1u << i;
  }
  Place place;
  take_best<1, kFinishThreads, kEach>(st, place, v, each, there, want, taken);
  return put_positions<kEach>(
      st, place, taken[0], [&](int at) { return positions[from + at]; }, out);
}

}  // namespace quarry::cuda
