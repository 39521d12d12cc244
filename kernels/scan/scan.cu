// SPDX-License-Identifier: Apache-2.0
//
// Algorithm scan: a whole step in two kernels, and beside the first of them, on multiprocessors
// that it leaves free, the step's encoding.
#include "scan/scan.h"

#include "encode/encode.h"
#include "scan/launches.h"

namespace quarry::cuda {

bool scan_serves(const IndexView& ix) noexcept {
  return ix.reduction == GqaReduction::per_head && plan_serves(ix);
}

std::size_t scan_scratch_bytes(const IndexView& ix, std::int32_t batch_size,
                               std::int32_t query_tokens) noexcept {
  const std::int64_t rows = std::int64_t{batch_size} * query_tokens * ix.num_query_heads;
  return static_cast<std::size_t>(
      ScanScratch(nullptr, scan_plan(ix, batch_size, query_tokens), rows).bytes);
}

Status scan(const ScanParams& p, const Launch& launch) noexcept {
  const ScanPlan plan = scan_plan(p.index, p.step.batch_size, p.step.query_tokens);
  const ScanScratch scratch(p.backend_scratch, plan, p.emit.num_rows);
  if (Status s = encode_beside({p.index, p.step, p.keys}, launch); !s.ok()) return s;
  ChunkParams chunks{
      p.index,           p.step, p.queries, plan, scan_sizes(p.index, plan), scratch.counts,
      scratch.candidates};
  // Clusters came with 9.0; before, a thread block is one.
  if (launch.compute_capability < 90) chunks.plan.cluster = 1;
  const Status s = plan.stride == 16   ? launch_chunks_16(chunks, launch)
                   : plan.stride == 64 ? launch_chunks_64(chunks, launch)
                                       : launch_chunks_256(chunks, launch);
  if (!s.ok()) return s;
  return launch_finish(p, plan, scratch, launch);
}

}  // namespace quarry::cuda
