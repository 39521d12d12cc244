// SPDX-License-Identifier: Apache-2.0
//
// Block biases: q . mean of each block, the first term of a score where block_size > 0.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/vec.cuh"
#include "half.h"
#include "params.h"

namespace quarry::cuda {

/// Four consecutive elements of each of kCount block means; the offsets are multiples of 4. One
/// branch for all of them.
template <int kCount>
__device__ __forceinline__ void load_means4(const IndexView& ix, const std::int64_t (&at)[kCount],
                                            std::int32_t i, float4 (&v)[kCount]) {
  if (ix.mean_dtype == DType::float32) {
    const auto* means = static_cast<const float*>(ix.means) + i;
#pragma unroll
    for (int u = 0; u < kCount; ++u) v[u] = __ldg(reinterpret_cast<const float4*>(means + at[u]));
    return;
  }
  if (ix.mean_dtype == DType::float8_e4m3) {
    const auto* means = static_cast<const std::uint8_t*>(ix.means) + i;
    std::uint32_t word[kCount];
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      word[u] = __ldg(reinterpret_cast<const std::uint32_t*>(means + at[u]));
    }
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      const auto byte = [&](int of) {
        return float8_to_float(static_cast<std::uint8_t>(word[u] >> of));
      };
      v[u] = {byte(0), byte(8), byte(16), byte(24)};
    }
    return;
  }
  const auto* means = static_cast<const std::uint16_t*>(ix.means) + i;
  const bool half = ix.mean_dtype == DType::float16;
  uint2 word[kCount];
#pragma unroll
  for (int u = 0; u < kCount; ++u) {
    word[u] = __ldg(reinterpret_cast<const uint2*>(means + at[u]));
  }
#pragma unroll
  for (int u = 0; u < kCount; ++u) {
    const auto element = [&](std::uint32_t w, int shift) {
      const auto bits = static_cast<std::uint16_t>(w >> shift);
      return half ? Float16::widen(bits) : BFloat16::widen(bits);
    };
    v[u] = {element(word[u].x, 0), element(word[u].x, 16), element(word[u].y, 0),
            element(word[u].y, 16)};
  }
}

/// Element offset of block `block`'s mean for one KV head.
__device__ __forceinline__ std::int64_t block_mean(const IndexView& ix,
                                                   const std::int32_t* table_row, std::int32_t slot,
                                                   std::int32_t head, std::int32_t block) {
  const std::int32_t last = (block + 1) * ix.block_size - 1;
  const std::int64_t page = page_of(ix, table_row, slot, last);
  return mean_offset(ix, page < 0 ? 0 : page, head, last);
}

/// Sums of each of kCount values over the warp's lanes, those 16, 8, 4, 2 and 1 apart in turn;
/// lane l ends with that of value l / (32 / kCount). At every step a lane keeps the half of the
/// values that it will finish: as many shuffles as values, and one a step once a single one is
/// left.
template <int kCount>
__device__ __forceinline__ float sum_of_lanes(float (&v)[kCount], std::int32_t lane) {
  constexpr unsigned kAll = 0xffffffffu;
  static_assert(kCount <= 32 && (kCount & (kCount - 1)) == 0);
#pragma unroll
  for (int apart = 16, count = kCount; apart > 0; apart /= 2) {
    count /= 2;
    if (count == 0) {
      v[0] += __shfl_xor_sync(kAll, v[0], apart);
      continue;
    }
    const bool upper = (lane & apart) != 0;
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      if (i >= count) break;
      const float own = upper ? v[i + count] : v[i], other = upper ? v[i] : v[i + count];
      v[i] = own + __shfl_xor_sync(kAll, other, apart);
    }
  }
  return v[0];
}

/// bias[(block - first_block) * kHeads + h] = q[h] . mean for blocks first_block ..
/// last_block, by all warps of the thread block; NaN where the mean is not finite. Each mean
/// is read once for all heads. The sum's order is fixed: lane l of a warp takes elements
/// 4l .. 4l+3, then those 128 further, by fma; then lanes 16, 8, 4, 2 and 1 apart are added.
template <int kHeads>
__device__ __forceinline__ void block_biases(const IndexView& ix, const std::int32_t* table_row,
                                             std::int32_t slot, std::int32_t head,
                                             std::int32_t first_block, std::int32_t last_block,
                                             const float* q, float* bias) {
  constexpr int kAtOnce = 4;  // means in flight a warp
  constexpr int kValues = kAtOnce * kHeads;
  constexpr unsigned kAll = 0xffffffffu;
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x) % 32;
  const std::int32_t warp = static_cast<std::int32_t>(threadIdx.x) / 32;
  const std::int32_t stride = static_cast<std::int32_t>(blockDim.x) / 32 * kAtOnce;
  // One after the other where the cache is contiguous; a page's place takes divisions.
  const std::int64_t first_mean =
      table_row == nullptr ? block_mean(ix, nullptr, slot, head, first_block) : 0;
#pragma unroll 1
  for (std::int32_t block = first_block + warp * kAtOnce; block <= last_block; block += stride) {
    std::int64_t offset[kAtOnce];
    float acc[kValues];
    float finite[kAtOnce];  // stays 0 unless an element is infinite or NaN
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const std::int32_t of = min(block + u, last_block);
      offset[u] = table_row == nullptr ? first_mean + std::int64_t{of - first_block} * ix.head_dim
                                       : block_mean(ix, table_row, slot, head, of);
      finite[u] = 0.0f;
#pragma unroll
      for (int h = 0; h < kHeads; ++h) acc[u * kHeads + h] = 0.0f;
    }
#pragma unroll 1
    for (std::int32_t i = lane * 4; i < ix.head_dim; i += 128) {
      float4 v[kAtOnce];
      load_means4(ix, offset, i, v);
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        finite[u] = fmaf(v[u].x, 0.0f, finite[u]);
        finite[u] = fmaf(v[u].y, 0.0f, finite[u]);
        finite[u] = fmaf(v[u].z, 0.0f, finite[u]);
        finite[u] = fmaf(v[u].w, 0.0f, finite[u]);
      }
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        const float4 x = *reinterpret_cast<const float4*>(q + h * ix.head_dim + i);
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
          acc[u * kHeads + h] = fmaf(x.x, v[u].x, acc[u * kHeads + h]);
          acc[u * kHeads + h] = fmaf(x.y, v[u].y, acc[u * kHeads + h]);
          acc[u * kHeads + h] = fmaf(x.z, v[u].z, acc[u * kHeads + h]);
          acc[u * kHeads + h] = fmaf(x.w, v[u].w, acc[u * kHeads + h]);
        }
      }
    }
    std::uint32_t nan = 0;  // bit u: mean u is not finite
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      nan |= (__any_sync(kAll, finite[u] != finite[u]) != 0 ? 1u : 0u) << u;
    }
    const float sum = sum_of_lanes(acc, lane);
    constexpr int kEach = 32 / kValues;  // lanes that have the same value
    const int value = lane / kEach, u = value / kHeads;
    if (lane % kEach == 0 && block + u <= last_block) {
      bias[(block + u - first_block) * kHeads + value % kHeads] =
          (nan >> u & 1u) != 0 ? __uint_as_float(0x7fc00000u) : sum;
    }
  }
}

}  // namespace quarry::cuda
