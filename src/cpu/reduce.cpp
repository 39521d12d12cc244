// SPDX-License-Identifier: Apache-2.0
//
// Stage reduce: the scores of a KV head's query heads become the list's, in place of the first
// one's. A softmax wants each head's largest score and sum of weights before.
#include "reduction.h"

#include "cpu/reduce_rows.h"
#include "cpu/stages.h"

namespace quarry::cpu {

Status reduce(const ReduceParams& p, const Launch& launch) noexcept {
  const bool softmax = p.reduction == GqaReduction::softmax_sum;
  if (p.group == 1 && !softmax) return Status();
  const std::int64_t query_rows = std::int64_t{p.num_rows} * p.group;
  const std::int64_t lists = p.num_rows, parts = p.parts;
  const auto row_of_query = [&](std::int64_t row) {
    return deal(reduce_range(p, row / p.group), p.parts);
  };
#pragma omp parallel num_threads(launch.num_threads)
  {
    if (softmax && p.shortlist_counts == nullptr) {
#pragma omp for schedule(dynamic, 1)
      for (std::int64_t task = 0; task < query_rows * parts; ++task) {
        const std::int64_t row = task / parts;
        const auto part = static_cast<std::int32_t>(task % parts);
        const ReduceParts dealt = row_of_query(row);
        if (part >= dealt.used) continue;
        const ReduceRange range = dealt[part];
        p.part_largest[task] =
            largest_of(p.scores + row * p.score_stride + range.first, range.end - range.first);
      }
#pragma omp for schedule(dynamic, 1)
      for (std::int64_t task = 0; task < query_rows * parts; ++task) {
        const std::int64_t row = task / parts;
        const auto part = static_cast<std::int32_t>(task % parts);
        const ReduceParts dealt = row_of_query(row);
        if (part >= dealt.used) continue;
        const ReduceRange range = dealt[part];
        const float largest = largest_of(p.part_largest + row * parts, dealt.used);
        p.part_weights[task] = weight_of(p.scores + row * p.score_stride + range.first,
                                         range.end - range.first, largest, p.scale);
      }
#pragma omp for schedule(static)
      for (std::int64_t row = 0; row < query_rows; ++row) {
        const ReduceParts dealt = row_of_query(row);
        std::uint64_t weights = 0;
        for (std::int32_t i = 0; i < dealt.used; ++i) weights += p.part_weights[row * parts + i];
        p.softmax[row] =
            head_softmax(largest_of(p.part_largest + row * parts, dealt.used), weights);
      }
    }
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t task = 0; task < lists * parts; ++task) {
      const std::int64_t row = task / parts;
      const ReduceParts dealt = deal(reduce_range(p, row), p.parts);
      const auto part = static_cast<std::int32_t>(task % parts);
      if (part >= dealt.used) continue;
      const ReduceRange range = dealt[part];
      const HeadSoftmax* heads = softmax ? p.softmax + row * p.group : nullptr;
      reduce_positions(p.reduction, p.scores + row * p.group * p.score_stride + range.first,
                       p.score_stride, p.group, range.end - range.first, p.scale, heads);
    }
  }
  return Status();
}

}  // namespace quarry::cpu
