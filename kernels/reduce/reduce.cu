// SPDX-License-Identifier: Apache-2.0
//
// Stage reduce: one score a position of the query heads that share a list, in place of the
// first one's.
#include "reduce/reduce.h"

#include "common/launch.h"
#include "reduce/softmax.cuh"
#include "reduction.h"

namespace quarry::cuda {
namespace {

constexpr int kThreads = 256;

/// A thread block takes one part of one list row, a thread four consecutive positions: it reads
/// them of every head before it writes them, and nobody else touches them.
template <GqaReduction kReduction>
__global__ void __launch_bounds__(kThreads)
    reduce_kernel(const __grid_constant__ ReduceParams p, bool wide) {
  wait_for_predecessor();
  let_successor_start();
  const std::int64_t row = blockIdx.x / p.parts;
  const std::int32_t part = static_cast<std::int32_t>(blockIdx.x) % p.parts;
  const ReduceParts dealt = deal(reduce_range(p, row), p.parts);
  if (part >= dealt.used) return;
  const ReduceRange range = dealt[part];
  float* const scores = p.scores + row * p.group * p.score_stride;
  const HeadSoftmax* const softmax =
      kReduction == GqaReduction::softmax_sum ? p.softmax + row * p.group : nullptr;
  const auto tid = static_cast<std::int32_t>(threadIdx.x);
  for (std::int32_t q = (range.first & ~3) + tid * 4; q < range.end; q += kThreads * 4) {
    const float start = reduce_start(kReduction);
    float acc[4] = {start, start, start, start};
#pragma unroll 4
    for (std::int32_t g = 0; g < p.group; ++g) {
      const float4 s = load_scores(scores + g * p.score_stride, range, q, wide);
      const HeadSoftmax head = softmax == nullptr ? HeadSoftmax{0.0f, 0.0f} : softmax[g];
      acc[0] = reduce_head(kReduction, acc[0], s.x, p.scale, head);
      acc[1] = reduce_head(kReduction, acc[1], s.y, p.scale, head);
      acc[2] = reduce_head(kReduction, acc[2], s.z, p.scale, head);
      acc[3] = reduce_head(kReduction, acc[3], s.w, p.scale, head);
    }
    if (wide && q >= range.first && q + 4 <= range.end) {
      *reinterpret_cast<float4*>(scores + q) = {acc[0], acc[1], acc[2], acc[3]};
      continue;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (q + i >= range.first && q + i < range.end) scores[q + i] = acc[i];
    }
  }
}

Status launch_softmax(const ReduceParams& p, const Launch& launch, dim3 grid, bool wide) {
  if (Status s = launch_kernel<largest_kernel>("reduce: largest", launch, grid, kSoftmaxThreads, 0,
                                               p, wide);
      !s.ok()) {
    return s;
  }
  if (Status s = launch_kernel<weights_kernel>("reduce: weights", launch, grid, kSoftmaxThreads, 0,
                                               p, wide);
      !s.ok()) {
    return s;
  }
  const std::int64_t rows = std::int64_t{p.num_rows} * p.group;
  return launch_kernel<softmax_kernel>("reduce: softmax", launch,
                                       dim3(blocks_for(rows, kSoftmaxThreads / 32)),
                                       kSoftmaxThreads, 0, p);
}

}  // namespace

Status reduce(const ReduceParams& p, const Launch& launch) noexcept {
  const bool softmax = p.reduction == GqaReduction::softmax_sum;
  if (p.group == 1 && !softmax) return {};
  const std::int64_t lists = std::int64_t{p.num_rows} * p.parts;
  if (lists * p.group > 0x7fffffff) {
    return Status(StatusCode::unsupported, "reduce: %lld thread blocks, must be at most 2^31 - 1",
                  static_cast<long long>(lists * p.group));
  }
  const bool wide = p.score_stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(p.scores) % 16 == 0;
  if (softmax && p.shortlist_counts == nullptr) {
    const dim3 heads(static_cast<unsigned>(lists * p.group));
    if (Status s = launch_softmax(p, launch, heads, wide); !s.ok()) return s;
  }
  const dim3 grid(static_cast<unsigned>(lists));
  switch (p.reduction) {
    case GqaReduction::sum:
      return launch_kernel<reduce_kernel<GqaReduction::sum>>("reduce", launch, grid, kThreads, 0, p,
                                                             wide);
    case GqaReduction::softmax_sum:
      return launch_kernel<reduce_kernel<GqaReduction::softmax_sum>>("reduce", launch, grid,
                                                                     kThreads, 0, p, wide);
    case GqaReduction::max:
      return launch_kernel<reduce_kernel<GqaReduction::max>>("reduce", launch, grid, kThreads, 0, p,
                                                             wide);
    case GqaReduction::per_head:
      break;
  }
  return {};
}

}  // namespace quarry::cuda
