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

/// Four consecutive elements of the block means; `i` is a multiple of 4.
__device__ __forceinline__ float4 load_mean4(const IndexView& ix, std::int64_t i) {
  if (ix.mean_dtype == DType::float32) {
    return __ldg(reinterpret_cast<const float4*>(static_cast<const float*>(ix.means) + i));
  }
  if (ix.mean_dtype == DType::float8_e4m3) {
    const std::uint32_t v = __ldg(
        reinterpret_cast<const std::uint32_t*>(static_cast<const std::uint8_t*>(ix.means) + i));
    const auto byte = [v](int at) { return float8_to_float(static_cast<std::uint8_t>(v >> at)); };
    return {byte(0), byte(8), byte(16), byte(24)};
  }
  const uint2 v =
      __ldg(reinterpret_cast<const uint2*>(static_cast<const std::uint16_t*>(ix.means) + i));
  const auto low = [](std::uint32_t w) { return static_cast<std::uint16_t>(w); };
  const auto high = [](std::uint32_t w) { return static_cast<std::uint16_t>(w >> 16); };
  if (ix.mean_dtype == DType::float16) {
    return {Float16::widen(low(v.x)), Float16::widen(high(v.x)), Float16::widen(low(v.y)),
            Float16::widen(high(v.y))};
  }
  return {BFloat16::widen(low(v.x)), BFloat16::widen(high(v.x)), BFloat16::widen(low(v.y)),
          BFloat16::widen(high(v.y))};
}

/// Element offset of block `block`'s mean for one KV head.
__device__ __forceinline__ std::int64_t block_mean(const IndexView& ix,
                                                   const std::int32_t* table_row, std::int32_t slot,
                                                   std::int32_t head, std::int32_t block) {
  const std::int32_t last = (block + 1) * ix.block_size - 1;
  const std::int64_t page = page_of(ix, table_row, slot, last);
  return mean_offset(ix, page < 0 ? 0 : page, head, last);
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
  constexpr int kAtOnce = kHeads == 1 ? 4 : 2;  // means in flight a warp
  constexpr unsigned kAll = 0xffffffffu;
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x) % 32;
  const std::int32_t warp = static_cast<std::int32_t>(threadIdx.x) / 32;
  const std::int32_t stride = static_cast<std::int32_t>(blockDim.x) / 32 * kAtOnce;
#pragma unroll 1
  for (std::int32_t block = first_block + warp * kAtOnce; block <= last_block; block += stride) {
    std::int64_t offset[kAtOnce];
    float acc[kAtOnce][kHeads];
    float finite[kAtOnce];  // stays 0 unless an element is infinite or NaN
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      offset[u] = block_mean(ix, table_row, slot, head, min(block + u, last_block));
      finite[u] = 0.0f;
#pragma unroll
      for (int h = 0; h < kHeads; ++h) acc[u][h] = 0.0f;
    }
#pragma unroll 1
    for (std::int32_t i = lane * 4; i < ix.head_dim; i += 128) {
      float4 v[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) v[u] = load_mean4(ix, offset[u] + i);
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
          acc[u][h] = fmaf(x.x, v[u].x, acc[u][h]);
          acc[u][h] = fmaf(x.y, v[u].y, acc[u][h]);
          acc[u][h] = fmaf(x.z, v[u].z, acc[u][h]);
          acc[u][h] = fmaf(x.w, v[u].w, acc[u][h]);
        }
      }
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const bool is_nan = __any_sync(kAll, finite[u] != finite[u]);
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
#pragma unroll
        for (int apart = 16; apart > 0; apart /= 2) {
          acc[u][h] += __shfl_xor_sync(kAll, acc[u][h], apart);
        }
        if (lane == 0 && block + u <= last_block) {
          bias[(block + u - first_block) * kHeads + h] =
              is_nan ? __uint_as_float(0x7fc00000u) : acc[u][h];
        }
      }
    }
  }
}

}  // namespace quarry::cuda
