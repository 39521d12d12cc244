// SPDX-License-Identifier: Apache-2.0
//
// Algorithm scan: a whole step in two kernels.
#include "scan/scan.h"

#include "encode/step.cuh"
#include "scan/launches.h"

namespace quarry::cuda {

bool scan_serves(const IndexView& ix) noexcept {
  return ix.reduction == GqaReduction::per_head && plan_serves(ix);
}

std::size_t scan_scratch_bytes(const IndexView& ix, std::int32_t batch_size,
                               std::int32_t query_tokens) noexcept {
  const std::int64_t rows = std::int64_t{batch_size} * query_tokens * ix.num_query_heads;
  return static_cast<std::size_t>(
      ScanScratch(nullptr, scan_plan(ix, batch_size, query_tokens), batch_size, rows).bytes);
}

Status scan(const ScanParams& p, const Launch& launch) noexcept {
  const IndexView& ix = p.index;
  const ScanPlan plan = scan_plan(ix, p.step.batch_size, p.step.query_tokens);
  const ScanScratch scratch(p.backend_scratch, plan, p.step.batch_size, p.emit.num_rows);
  ChunkParams chunks{};
  chunks.encode = {ix, p.step, p.keys};
  chunks.step_shape = step_shape(chunks.encode);
  chunks.queries = p.queries;
  chunks.plan = plan;
  // Clusters came with 9.0; before, a thread block is one.
  if (launch.compute_capability < 90) chunks.plan.cluster = 1;
  chunks.layout = scan_layout(ix, plan);
  chunks.encoded = scratch.encoded;
  chunks.counts = scratch.counts;
  chunks.candidates = scratch.candidates;
  const Status s = plan.stride == 16   ? launch_chunks_16(chunks, launch)
                   : plan.stride == 64 ? launch_chunks_64(chunks, launch)
                                       : launch_chunks_256(chunks, launch);
  if (!s.ok()) return s;
  return launch_finish(p, plan, scratch, launch);
}

}  // namespace quarry::cuda
