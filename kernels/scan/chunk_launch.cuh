// SPDX-License-Identifier: Apache-2.0
//
// Launches the chunks' kernel for tables of one size; a translation unit a size.
#pragma once

#include <algorithm>

#include "scan/chunk_kernel.cuh"

namespace quarry::cuda {

template <int kHeads, int kStride, bool kVector>
Status launch_chunks(const ChunkParams& p, const Launch& launch) {
  const StepView& step = p.encode.step;
  const std::int64_t groups = std::int64_t{step.batch_size} * step.query_tokens *
                              p.encode.index.num_kv_heads * p.plan.head_groups;
  const std::int64_t grid = groups * p.plan.chunks;
  if (grid > 0x7fffffff) return too_many_blocks("chunks", grid);
  std::size_t bytes = std::max(static_cast<std::size_t>(p.layout.total), p.step_shape.shared_bytes);
  return launch_clusters<chunk_kernel<kHeads, kStride, kVector>>(
      "scan: chunks", launch, dim3(static_cast<unsigned>(grid)),
      static_cast<unsigned>(p.plan.cluster), kScanThreads, bytes, p);
}

template <int kStride>
Status launch_for_stride(const ChunkParams& p, const Launch& launch) {
  if (!reads_codes_by_four(p.encode.index)) return launch_chunks<1, kStride, false>(p, launch);
  switch (p.plan.heads) {
    case 1:
      return launch_chunks<1, kStride, true>(p, launch);
    case 2:
      return launch_chunks<2, kStride, true>(p, launch);
    default:
      return launch_chunks<4, kStride, true>(p, launch);
  }
}

}  // namespace quarry::cuda
