// SPDX-License-Identifier: Apache-2.0
//
// First kernel of stage select, for long rows: thins a row to what reaches a pivot.
#pragma once

#include <cstdint>

#include "common/launch.h"
#include "half.h"
#include "params.h"
#include "select/sample.h"
#include "select/threshold.cuh"

namespace quarry::cuda {

constexpr int kFilterThreads = 256;

struct FilterBuffers {
  std::int32_t* counts;  ///< [rows][parts]: what reached the pivot; above capacity: overflowed
  Entry* entries;        ///< [rows][parts][capacity]
};

/// Candidates of a row of the first pass.
__device__ __forceinline__ std::int32_t candidates_of(const RowState& row) {
  return row.kind == RowKind::sparse && row.end > row.first ? row.end - row.first : 0;
}

/// A thread block takes one part of one row. Every block of a row finds the same pivot from the
/// same sample, so none waits for another. Of the keys equal to the pivot no part can give the
/// result more than its first k, so ties take no more room than that.
static __global__ void __launch_bounds__(kFilterThreads)
    filter_kernel(const __grid_constant__ SelectParams p, const FilterPlan plan,
                  const FilterBuffers buffers) {
  wait_for_predecessor();
  let_successor_start();
  constexpr int kWarps = kFilterThreads / 32;
  constexpr int kQuads = kFilterTile / kFilterThreads / 4;  // quads of positions a thread
  constexpr int kWarpTile = kFilterTile / kWarps;
  constexpr unsigned kAll = 0xffffffffu;
  using Search = ThresholdSearch<kFilterThreads>;
  __shared__ typename Search::Storage search;
  __shared__ std::uint32_t sample_keys[kMostSamples];
  __shared__ std::uint32_t warp_counts[2][kWarps];

  const auto tid = static_cast<std::int32_t>(threadIdx.x);
  const std::int32_t lane = tid % 32, warp = tid / 32;
  const std::int64_t segment = blockIdx.x;
  const std::int64_t row = segment / plan.parts;
  const auto part = static_cast<std::int32_t>(segment % plan.parts);
  const RowState state = p.rows[row];
  const std::int32_t n = candidates_of(state);
  const Sample sample = sample_of(n, p.k);
  if (sample.size == 0) {  // select_kernel sees it the same way
    if (tid == 0) buffers.counts[segment] = 0;
    return;
  }

  const float* scores = p.scores + row * p.score_stride;
  const std::int32_t base = state.first & ~3;
  const std::int32_t length = part_length(state.end - base, plan.parts);
  const std::int64_t start = base + static_cast<std::int64_t>(part) * length;
  const std::int64_t stop = min(start + length, static_cast<std::int64_t>(state.end));

  // Scores of quad j of the tile at `at`: a warp has 512 consecutive positions, its lanes
  // quads of them.
  float4 raw[kQuads];
  const auto load = [&](std::int64_t at) {
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      const std::int64_t q = at + warp * kWarpTile + j * 128 + lane * 4;
      if (q >= state.first && q + 4 <= stop) {
        raw[j] = *reinterpret_cast<const float4*>(scores + q);
      } else {
        const auto one = [&](std::int64_t i) {
          return i >= state.first && i < stop ? scores[i] : 0.0f;
        };
        raw[j] = {one(q), one(q + 1), one(q + 2), one(q + 3)};
      }
    }
  };
  load(start);  // on its way while the pivot is found

  for (std::int32_t i = tid; i < sample.size; i += kFilterThreads) {
    sample_keys[i] = selection_key(scores[state.first + sample_position(sample, n, i)]);
  }
  // The search's first barrier comes before its first read of the keys.
  const std::uint32_t pivot = Search::find(
                                  search, [&](std::int32_t i) { return sample_keys[i]; },
                                  sample.size, sample.rank, 2 + sample.rank / 8)
                                  .prefix;

  Entry* out = buffers.entries + segment * plan.capacity;
  std::int32_t greater = 0, equal = 0;  // so far, in this part
  int parity = 0;
  for (std::int64_t at = start; at < stop; at += kFilterTile, parity ^= 1) {
    std::uint32_t keys[kQuads][4];
    std::uint32_t reached[kQuads];  // above the pivot in the low half, equal in the high half
    std::uint32_t own = 0;
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      const std::int64_t q = at + warp * kWarpTile + j * 128 + lane * 4;
      const float x[4] = {raw[j].x, raw[j].y, raw[j].z, raw[j].w};
      reached[j] = 0;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        keys[j][c] = selection_key(x[c]);
        const bool inside = q + c >= state.first && q + c < stop;
        reached[j] += !inside ? 0u : keys[j][c] > pivot ? 1u : keys[j][c] == pivot ? 0x10000u : 0u;
      }
      own += reached[j];
    }
    if (at + kFilterTile < stop) load(at + kFilterTile);
    const std::uint32_t in_warp = __reduce_add_sync(kAll, own);
    if (lane == 0) warp_counts[parity][warp] = in_warp;
    // Two sets of counts: a warp that is a tile ahead writes the other one.
    __syncthreads();
    std::uint32_t before = 0, total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w == warp) before = total;
      total += warp_counts[parity][w];
    }
    if (in_warp != 0) {
#pragma unroll
      for (int j = 0; j < kQuads; ++j) {
        if (!__any_sync(kAll, reached[j] != 0)) continue;
        std::uint32_t inclusive = reached[j];
#pragma unroll
        for (int apart = 1; apart < 32; apart *= 2) {
          const std::uint32_t other = __shfl_up_sync(kAll, inclusive, apart);
          if (lane >= apart) inclusive += other;
        }
        std::int32_t g =
            greater + static_cast<std::int32_t>((before + inclusive - reached[j]) & 0xffffu);
        std::int32_t e = equal + static_cast<std::int32_t>((before + inclusive - reached[j]) >> 16);
        const std::int64_t q = at + warp * kWarpTile + j * 128 + lane * 4;
        if (reached[j] != 0) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            if (q + c < state.first || q + c >= stop || keys[j][c] < pivot) continue;
            const std::int32_t slot = g + min(e, p.k);
            const bool keep = keys[j][c] > pivot || e < p.k;
            if (keep && slot < plan.capacity) {
              out[slot] = {keys[j][c], static_cast<std::int32_t>(q + c)};
            }
            (keys[j][c] > pivot ? g : e) += 1;
          }
        }
        before += __shfl_sync(kAll, inclusive, 31);
      }
    }
    greater += static_cast<std::int32_t>(total & 0xffffu);
    equal += static_cast<std::int32_t>(total >> 16);
  }
  if (tid == 0) buffers.counts[segment] = greater + min(equal, p.k);
}

}  // namespace quarry::cuda
