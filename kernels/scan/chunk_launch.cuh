// SPDX-License-Identifier: Apache-2.0
//
// Launches the chunks' kernel for tables of one size; a translation unit a size.
#pragma once

#include "scan/chunk_kernel.cuh"

namespace quarry::cuda {

template <int kHeads, int kStride, bool kVector>
Status launch_chunks(const ChunkParams& p, const Launch& launch) {
  const std::int64_t groups = std::int64_t{p.step.batch_size} * p.step.query_tokens *
                              p.index.num_kv_heads * p.plan.head_groups;
  const std::int64_t grid = groups * p.plan.chunks;
  if (grid > 0x7fffffff) return too_many_blocks("chunks", grid);
  return launch_clusters<chunk_kernel<kHeads, kStride, kVector>>(
      "scan: chunks", launch, dim3(static_cast<unsigned>(grid)),
      static_cast<unsigned>(p.plan.cluster), kScanThreads, static_cast<std::size_t>(p.sizes.total),
      p);
}

template <int kStride>
Status launch_for_stride(const ChunkParams& p, const Launch& launch) {
  if (!reads_codes_by_four(p.index)) return launch_chunks<1, kStride, false>(p, launch);
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
