// SPDX-License-Identifier: Apache-2.0
//
// Stage recall: how much of the exact top-K the sampled rows' lists hold.
#include "common/launch.h"
#include "stats/stats.h"
#include "stats_math.h"

namespace quarry::cuda {
namespace {

constexpr int kThreads = 128;

// Grid (samples).
__global__ void __launch_bounds__(kThreads) recall_kernel(const __grid_constant__ RecallParams p) {
  wait_for_predecessor();
  let_successor_start();
  const std::int64_t i = blockIdx.x;
  const std::int32_t row = p.sampled[i];
  const std::int32_t count = row < 0 ? 0 : p.selected_counts[i];
  const std::int64_t at = row < 0 ? 0 : list_row(p, row);
  const std::int32_t length = count > 0 ? readable_length(p, at) : 0;
  std::int32_t found = 0;
  for (std::int32_t first = 0; first < count; first += kThreads) {
    const std::int32_t k = first + static_cast<std::int32_t>(threadIdx.x);
    const bool hit =
        k < count && lists(p.indices + at * p.index_stride, length, p.selected[i * p.k + k]);
    found += __syncthreads_count(hit);
  }
  if (threadIdx.x == 0) p.recall[i] = recall_stats(row, count, found);
}

}  // namespace

Status recall(const RecallParams& p, const Launch& launch) noexcept {
  return launch_kernel<recall_kernel>("recall", launch, dim3(static_cast<unsigned>(p.num_samples)),
                                      kThreads, 0, p);
}

}  // namespace quarry::cuda
