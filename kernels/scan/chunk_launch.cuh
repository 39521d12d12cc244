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
  const std::int64_t queries = std::int64_t{step.batch_size} * step.query_tokens;
  const std::int64_t groups = std::int64_t{p.encode.index.num_kv_heads} * p.plan.head_groups;
  if (queries > 0x7fffffff) return too_many_blocks("chunks", queries);
  const dim3 grid(static_cast<unsigned>(queries), static_cast<unsigned>(groups),
                  static_cast<unsigned>(p.plan.chunks));
  std::size_t bytes = std::max(static_cast<std::size_t>(p.layout.total), p.step_shape.shared_bytes);
  return launch_kernel<chunk_kernel<kHeads, kStride, kVector>>("scan: chunks", launch, grid,
                                                               kScanThreads, bytes, p);
}

template <int kStride>
Status launch_for_stride(const ChunkParams& p, const Launch& launch) {
  if (p.encode.index.tile < kRun) return launch_chunks<1, kStride, false>(p, launch);
  return launch_chunks<1, kStride, true>(p, launch);
}

}  // namespace quarry::cuda
