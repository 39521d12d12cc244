// SPDX-License-Identifier: Apache-2.0
//
// The usual step's encoding where keys are encoded as they are: a position or two, a warp a code
// byte, straight from the caches. It has no barrier and few instructions, since a step's time is
// latency. Distances are nearest.cuh's, bit for bit.
#pragma once

#include "encode/nearest.cuh"
#include "encode/step_tile.cuh"

namespace quarry::cuda {

/// Positions of a sequence that are worth a warp for every code byte.
constexpr std::int32_t kFewPositions = 8;

QUARRY_HD inline bool few_serve(const IndexView& ix, const SequenceState& st) {
  return ix.block_size == 0 && ix.rotation == nullptr && ix.metric == Metric::euclidean &&
         st.n - st.begin <= kFewPositions;
}

/// The nearest of a subspace's centroids, at `c` [dsub][ksub], to the key's subvector, which
/// begins at element `at`; kEach centroids a lane, lane + 32 l, or the same in several lanes.
template <int kEach>
__device__ __forceinline__ std::uint32_t nearest_of_warp(const KeySource& source, std::int64_t at,
                                                         const float* c) {
  constexpr unsigned kAll = 0xffffffffu;
  constexpr int kAhead = 32 / kEach;  // dimensions whose centroids are under way together
  const IndexView& ix = source.ix;
  const auto lane = static_cast<int>(threadIdx.x) % 32;
  const float scale = source.scale();
  const int first = kEach > 1 ? lane : lane & (ix.ksub - 1);  // ksub is a power of two
  float acc[kEach] = {};
#pragma unroll 1
  for (int from = 0; from < ix.dsub; from += 32) {
    const int count = min(32, ix.dsub - from);
    const float mine = lane < count
                           ? load_any(source.keys.data, source.keys.dtype, scale, at + from + lane)
                           : 0.0f;
#pragma unroll 1
    for (int j = 0; j < count; j += kAhead) {
      const float* row = c + (from + j) * ix.ksub + first;
      float v[kAhead][kEach];
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        if (j + u >= count) break;
#pragma unroll
        for (int l = 0; l < kEach; ++l) v[u][l] = __ldg(row + u * ix.ksub + l * 32);
      }
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
        if (j + u >= count) break;
        const float x = __shfl_sync(kAll, mine, j + u);
#pragma unroll
        for (int l = 0; l < kEach; ++l) {
          const float diff = x - v[u][l];
          acc[l] = fmaf(diff, diff, acc[l]);
        }
      }
    }
  }
  unsigned long long best = nearest_key(acc[0], first);
#pragma unroll
  for (int l = 1; l < kEach; ++l) {
    const unsigned long long key = nearest_key(acc[l], first + l * 32);
    best = key < best ? key : best;
  }
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) {
    const unsigned long long other = __shfl_xor_sync(kAll, best, apart);
    best = other < best ? other : best;
  }
  return static_cast<std::uint32_t>(best);
}

/// Encodes share `share` of `shares` of what is pending, where few_serve(). All warps call it.
__device__ __forceinline__ void encode_few(const EncodeParams& p, const SequenceState& st,
                                           std::int32_t b, std::int32_t head, std::int32_t share,
                                           std::int32_t shares) {
  if (st.slot < 0 || st.built == 0) return;
  const IndexView& ix = p.index;
  const auto warps = static_cast<std::int32_t>(blockDim.x) / 32;
  const KeySource source{ix, p.keys, block_table_row(p.step, b), st.slot, head, false};
  const float* const codebook =
      ix.codebooks + (std::int64_t{codebook_of(ix, st.slot)} * ix.num_kv_heads + head) *
                         ix.num_subspaces * ix.dcent * ix.ksub;
  const std::int32_t items = (st.n - st.begin) * ix.code_bytes;
#pragma unroll 1
  for (std::int32_t item = share * warps + static_cast<std::int32_t>(threadIdx.x) / 32;
       item < items; item += shares * warps) {
    const std::int32_t position = st.begin + item / ix.code_bytes, i = item % ix.code_bytes;
    const std::int64_t page = page_of(ix, source.table, source.slot, position);
    if (page < 0) continue;
    const std::int64_t key = key_offset(ix, p.keys, page, head, position);
    const std::int32_t a_byte = ix.bits <= 4 ? 2 : 1, first = i * a_byte;
    std::uint32_t byte = 0;
#pragma unroll 1
    for (std::int32_t s = first; s < min(first + a_byte, ix.num_subspaces); ++s) {
      const std::int64_t at = key + s * ix.dsub;
      const float* const c = codebook + std::int64_t{s} * ix.dcent * ix.ksub;
      const std::uint32_t code = ix.ksub <= 32    ? nearest_of_warp<1>(source, at, c)
                                 : ix.ksub == 64  ? nearest_of_warp<2>(source, at, c)
                                 : ix.ksub == 128 ? nearest_of_warp<4>(source, at, c)
                                                  : nearest_of_warp<8>(source, at, c);
      byte |= code << (s - first) * 4;
    }
    if (threadIdx.x % 32 == 0) {
      ix.codes[code_offset(ix, page, head, position % ix.page_size) + i * ix.tile] =
          static_cast<std::uint8_t>(byte);
    }
  }
}

}  // namespace quarry::cuda
