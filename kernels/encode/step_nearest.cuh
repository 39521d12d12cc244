// SPDX-License-Identifier: Apache-2.0
//
// A decode step's few subvectors against their centroids: a group of lanes a subvector. The
// distances are nearest.cuh's, bit for bit.
#pragma once

#include "encode/nearest.cuh"
#include "encode/step_shape.h"
#include "encode/tile.cuh"

namespace quarry::cuda {

/// Subvectors of an item, and what they are compared with.
struct StepNearest {
  const float* xs;  ///< coordinate j of key k's subvector s at k * stride + s * dsub + j
  int stride;
  const float* extra;  ///< [keys][subspaces], inner_product alone
  const float* codebook;
  int keys, subspaces;
};

/// A lane's least of `count` centroids of one subvector, ids lane + l * lanes.
template <int kAtOnce>
__device__ unsigned long long nearest_of_lane(const IndexView& ix, const float* c, const float* x,
                                              const float* extra, int lane, int lanes, int count) {
  unsigned long long best = ~0ull;
  for (int i = 0; i < count; i += kAtOnce) {
    const float* row = c + lane + i * lanes;
    float acc[kAtOnce] = {};
    const auto add = [&](float v) {
#pragma unroll
      for (int l = 0; l < kAtOnce; ++l) {
        const float diff = v - row[l * lanes];
        acc[l] = fmaf(diff, diff, acc[l]);
      }
      row += ix.ksub;
    };
    if (ix.dsub % 8 == 0) {
#pragma unroll 2
      for (int j = 0; j < ix.dsub; j += 8) {
        const float4 u = *reinterpret_cast<const float4*>(x + j);
        const float4 v = *reinterpret_cast<const float4*>(x + j + 4);
        add(u.x), add(u.y), add(u.z), add(u.w);
        add(v.x), add(v.y), add(v.z), add(v.w);
      }
    } else {
      for (int j = 0; j < ix.dsub; ++j) add(x[j]);
    }
    if (extra != nullptr) add(*extra);
#pragma unroll
    for (int l = 0; l < kAtOnce; ++l) {
      const unsigned long long key = nearest_key(acc[l], lane + (i + l) * lanes);
      best = key < best ? key : best;
    }
  }
  return best;
}

/// codes[k * subspaces + s]: a group of lanes a subvector, as many as there are threads for.
/// Keys innermost, so that a warp shares centroids.
__device__ inline void step_nearest(const IndexView& ix, const StepNearest& in,
                                    std::uint8_t* codes) {
  const int threads = static_cast<int>(blockDim.x), total = in.keys * in.subspaces;
  int lanes = 1;
  while (lanes < 32 && lanes < ix.ksub && total * lanes < threads) lanes *= 2;
  const int lane = static_cast<int>(threadIdx.x) % lanes, count = ix.ksub / lanes;
  // Warps stay whole for the shuffles.
  for (int first = static_cast<int>(threadIdx.x) & ~31; first < total * lanes; first += threads) {
    const int item = (first + static_cast<int>(threadIdx.x & 31)) / lanes;
    const int k = item < total ? item % in.keys : 0, s = item < total ? item / in.keys : 0;
    const float* c = in.codebook + s * ix.dcent * ix.ksub;
    const float* x = in.xs + k * in.stride + s * ix.dsub;
    const float* extra = in.extra == nullptr ? nullptr : in.extra + k * in.subspaces + s;
    unsigned long long best =
        count % 4 == 0   ? nearest_of_lane<4>(ix, c, x, extra, lane, lanes, count)
        : count % 2 == 0 ? nearest_of_lane<2>(ix, c, x, extra, lane, lanes, count)
                         : nearest_of_lane<1>(ix, c, x, extra, lane, lanes, count);
    for (int step = lanes / 2; step > 0; step /= 2) {
      const unsigned long long other = __shfl_xor_sync(0xffffffffu, best, step);
      best = other < best ? other : best;
    }
    if (lane == 0 && item < total) {
      codes[k * in.subspaces + s] = static_cast<std::uint8_t>(best);
    }
  }
}

/// The item's codes [rows][subspaces] into the index, two a byte where they fit.
__device__ inline void store_step_codes(const KeySource& source, const StepItem& it,
                                        const std::uint8_t* codes) {
  const IndexView& ix = source.ix;
  const int rows = it.end_row - it.first_row, m = it.end_subspace - it.first_subspace;
  for (int item = static_cast<int>(threadIdx.x); item < rows * (it.end_byte - it.first_byte);
       item += static_cast<int>(blockDim.x)) {
    const int k = item % rows, i = item / rows;
    const std::uint8_t* row = codes + k * m;
    std::uint8_t byte = row[ix.bits <= 4 ? 2 * i : i];
    if (ix.bits <= 4 && 2 * i + 1 < m) byte |= static_cast<std::uint8_t>(row[2 * i + 1] << 4);
    const std::int32_t position = it.tile.first + it.first_row + k;
    const std::int64_t page = page_of(ix, source.table, source.slot, position);
    if (page < 0) continue;
    ix.codes[code_offset(ix, page, source.head, position % ix.page_size) +
             (it.first_byte + i) * ix.tile] = byte;
  }
}

}  // namespace quarry::cuda
