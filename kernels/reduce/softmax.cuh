// SPDX-License-Identifier: Apache-2.0
//
// What softmax_sum must know of every head before scores are reduced: three kernels, since the
// weights need the largest score of a whole row, and the result the sum of all its weights.
// Parts leave their share in memory, so that nothing has to be cleared before; maxima and
// integer sums are the same however a row is dealt.
#pragma once

#include <cstdint>

#include "common/launch.h"
#include "reduction.h"

namespace quarry::cuda {

constexpr int kSoftmaxThreads = 256;
static_assert(kMostReduceParts == 64, "a lane of a warp looks at two parts");

__device__ __forceinline__ float warp_largest(float value) {
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) {
    value = larger_of(value, __shfl_xor_sync(0xffffffffu, value, apart));
  }
  return value;
}

__device__ __forceinline__ unsigned long long warp_sum(unsigned long long value) {
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, apart);
  }
  return value;
}

__device__ __forceinline__ float nan_score() { return bits_to_float(0x7fc00000u); }

/// The largest score of a whole query row from its parts'; all lanes of a warp call it.
__device__ __forceinline__ float row_largest(const ReduceParams& p, std::int64_t row,
                                             std::int32_t used) {
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x) % 32;
  const float* parts = p.part_largest + row * p.parts;
  float largest = nan_score();
  if (lane < used) largest = parts[lane];
  if (lane + 32 < used) largest = larger_of(largest, parts[lane + 32]);
  return warp_largest(largest);
}

/// Four consecutive scores from position q, a multiple of 4, on; those outside [first, end) are
/// NaN. `wide`: rows are aligned to 16 bytes.
__device__ __forceinline__ float4 load_scores(const float* scores, const ReduceRange& range,
                                              std::int32_t q, bool wide) {
  if (wide && q >= range.first && q + 4 <= range.end) {
    return *reinterpret_cast<const float4*>(scores + q);
  }
  const auto one = [&](std::int32_t i) {
    return i >= range.first && i < range.end ? scores[i] : nan_score();
  };
  return {one(q), one(q + 1), one(q + 2), one(q + 3)};
}

/// part_largest of one part of one query row a thread block.
static __global__ void __launch_bounds__(kSoftmaxThreads)
    largest_kernel(const __grid_constant__ ReduceParams p, bool wide) {
  wait_for_predecessor();
  let_successor_start();
  __shared__ float of_warp[kSoftmaxThreads / 32];
  const std::int64_t row = blockIdx.x / p.parts;
  const std::int32_t part = static_cast<std::int32_t>(blockIdx.x) % p.parts;
  const ReduceParts dealt = deal(reduce_range(p, row / p.group), p.parts);
  if (part >= dealt.used) return;
  const ReduceRange range = dealt[part];
  const float* scores = p.scores + row * p.score_stride;
  const auto tid = static_cast<std::int32_t>(threadIdx.x);
  float largest = nan_score();
#pragma unroll 2
  for (std::int32_t q = (range.first & ~3) + tid * 4; q < range.end; q += kSoftmaxThreads * 4) {
    const float4 s = load_scores(scores, range, q, wide);
    largest = larger_of(larger_of(larger_of(larger_of(largest, s.x), s.y), s.z), s.w);
  }
  largest = warp_largest(largest);
  if (tid % 32 == 0) of_warp[tid / 32] = largest;
  __syncthreads();
  if (tid != 0) return;
  for (const float other : of_warp) largest = larger_of(largest, other);
  p.part_largest[row * p.parts + part] = largest;
}

/// part_weights, likewise, once all of part_largest is there.
static __global__ void __launch_bounds__(kSoftmaxThreads)
    weights_kernel(const __grid_constant__ ReduceParams p, bool wide) {
  wait_for_predecessor();
  let_successor_start();
  __shared__ unsigned long long of_warp[kSoftmaxThreads / 32];
  const std::int64_t row = blockIdx.x / p.parts;
  const std::int32_t part = static_cast<std::int32_t>(blockIdx.x) % p.parts;
  const ReduceParts dealt = deal(reduce_range(p, row / p.group), p.parts);
  if (part >= dealt.used) return;
  const ReduceRange range = dealt[part];
  const float* scores = p.scores + row * p.score_stride;
  const auto tid = static_cast<std::int32_t>(threadIdx.x);
  const float largest = row_largest(p, row, dealt.used);
  unsigned long long sum = 0;
#pragma unroll 2
  for (std::int32_t q = (range.first & ~3) + tid * 4; q < range.end; q += kSoftmaxThreads * 4) {
    const float4 s = load_scores(scores, range, q, wide);
    const float scores_of[4] = {s.x, s.y, s.z, s.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // NaN counts as 0
      sum += fixed_weight(softmax_weight(scores_of[i], largest, p.scale));
    }
  }
  sum = warp_sum(sum);
  if (tid % 32 == 0) of_warp[tid / 32] = sum;
  __syncthreads();
  if (tid != 0) return;
  sum = 0;
  for (const unsigned long long other : of_warp) sum += other;
  p.part_weights[row * p.parts + part] = sum;
}

/// softmax of one query row a warp.
static __global__ void __launch_bounds__(kSoftmaxThreads)
    softmax_kernel(const __grid_constant__ ReduceParams p) {
  wait_for_predecessor();
  let_successor_start();
  constexpr int kRows = kSoftmaxThreads / 32;
  const std::int64_t row = std::int64_t{blockIdx.x} * kRows + threadIdx.x / 32;
  if (row >= std::int64_t{p.num_rows} * p.group) return;  // a whole warp
  const ReduceParts dealt = deal(reduce_range(p, row / p.group), p.parts);
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x) % 32;
  const float largest = row_largest(p, row, dealt.used);
  const std::uint64_t* parts = p.part_weights + row * p.parts;
  unsigned long long sum = lane < dealt.used ? parts[lane] : 0;
  if (lane + 32 < dealt.used) sum += parts[lane + 32];
  sum = warp_sum(sum);
  if (lane == 0) p.softmax[row] = head_softmax(largest, sum);
}

}  // namespace quarry::cuda
