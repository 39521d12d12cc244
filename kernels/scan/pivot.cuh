// SPDX-License-Identifier: Apache-2.0
//
// The pivot of each head: a score that somewhat more than r * K candidates should reach, from a
// sample of their scores (after Floyd and Rivest 1975). A bad pivot costs time, never a result.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "half.h"
#include "scan/plan.h"
#include "scan/quantize.cuh"

namespace quarry::cuda {

template <int kHeads>
struct PivotState {
  std::uint32_t low[kHeads], high[kHeads];  ///< keys of the least and largest finite sample
  float from[kHeads], to[kHeads];           ///< the stretch of scores that is searched
  float pivot[kHeads];                      ///< NaN: everything passes
  int done[kHeads];
};

/// state.pivot[h]: a score close to and not above the rank-th best of samples[h][0 .. size).
/// A histogram of even bins between the least and the largest finite sample, then again within
/// the bin of the rank-th until few share it; +infinity counts as above all bins, NaN and
/// -infinity below. All threads call it, after a barrier that made the samples visible.
template <int kHeads>
__device__ __forceinline__ void find_pivots(const std::uint32_t* samples, int size, int rank,
                                            std::int32_t* bins, PivotState<kHeads>& state) {
  constexpr unsigned kAll = 0xffffffffu;
  constexpr std::uint32_t kMinusInfinity = 0x007fffffu, kInfinity = 0xff800000u;
  constexpr int kBins = kPivotBins, kRounds = 4, kLaneBins = kBins / 32;
  const auto tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32;
  const auto threads = static_cast<int>(blockDim.x);
  if (tid < kHeads) {
    state.low[tid] = 0xffffffffu;
    state.high[tid] = 0;
    state.done[tid] = 0;
  }
  __syncthreads();
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    std::uint32_t low = 0xffffffffu, high = 0;
    for (int i = tid; i < size; i += threads) {
      const std::uint32_t key = samples[h * size + i];
      const bool finite = key > kMinusInfinity && key < kInfinity;
      low = min(low, finite ? key : 0xffffffffu);
      high = max(high, finite ? key : 0u);
    }
    low = __reduce_min_sync(kAll, low);
    high = __reduce_max_sync(kAll, high);
    if (lane == 0) {
      atomicMin(&state.low[h], low);
      atomicMax(&state.high[h], high);
    }
  }
  __syncthreads();
  if (tid < kHeads) {
    const bool any = state.high[tid] != 0;
    state.from[tid] = any ? score_of_key(state.low[tid]) : 0.0f;
    state.to[tid] = any ? score_of_key(state.high[tid]) : 0.0f;
  }
  for (int round = 0; round < kRounds; ++round) {
    for (int i = tid; i < kHeads * kBins; i += threads) bins[i] = 0;
    __syncthreads();
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      if (state.done[h] != 0) continue;
      const float from = state.from[h], to = state.to[h];
      const float per = static_cast<float>(kBins - 1) / (to - from);
      for (int i = tid; i < size; i += threads) {
        const float x = score_of_key(samples[h * size + i]);
        if (!(x >= from)) continue;
        int bin = kBins - 1;
        if (x < to) bin = min(static_cast<int>((x - from) * per), kBins - 2);
        atomicAdd(&bins[h * kBins + bin], 1);
      }
    }
    __syncthreads();
    if (warp < kHeads && state.done[warp] == 0) {
      // Lane 0 has the highest bins.
      const std::int32_t* own = bins + warp * kBins + kBins - 1 - lane * kLaneBins;
      int sum = 0;
      for (int j = 0; j < kLaneBins; ++j) sum += own[-j];
      int upto = sum;
#pragma unroll
      for (int apart = 1; apart < 32; apart *= 2) {
        const int other = __shfl_up_sync(kAll, upto, apart);
        if (lane >= apart) upto += other;
      }
      const unsigned reached = __ballot_sync(kAll, upto >= rank);
      if (reached == 0) {
        // So many are NaN or -infinity: whatever was found so far, or everything.
        if (lane == 0) {
          state.pivot[warp] = round == 0 ? bits_to_float(0x7fc00000u) : state.from[warp];
          state.done[warp] = 1;
        }
      } else if (lane == __ffs(static_cast<int>(reached)) - 1) {
        int above = upto - sum, bin = kBins - 1 - lane * kLaneBins;
        while (above + bins[warp * kBins + bin] < rank) above += bins[warp * kBins + bin--];
        const int in_bin = bins[warp * kBins + bin];
        const float from = state.from[warp], to = state.to[warp];
        const float width = (to - from) / static_cast<float>(kBins - 1);
        // A hundredth of a bin lower, for the roundings of the map.
        const float edge = from + (static_cast<float>(bin) - 0.01f) * width;
        state.pivot[warp] = bin == 0 ? from : edge;
        state.done[warp] = in_bin <= 2 + rank / 8 || bin == kBins - 1 || !(width > 0.0f) ? 1 : 0;
        state.from[warp] = bin == 0 ? from : edge;
        state.to[warp] = from + static_cast<float>(bin + 1) * width;
      }
    }
    __syncthreads();
    bool all = true;
#pragma unroll
    for (int h = 0; h < kHeads; ++h) all = all && state.done[h] != 0;
    if (all) break;
  }
}

}  // namespace quarry::cuda
