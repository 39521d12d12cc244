// SPDX-License-Identifier: Apache-2.0
//
// Algorithm scan: a whole step in two kernels.
#include "scan/scan.h"

#include "encode/step.cuh"
#include "scan/launches.h"

namespace quarry::cuda {
namespace {

Status launch_chunks(const ScanParams& p, const ScanPlan& plan, const ScanScratch& scratch,
                     const Launch& launch) {
  ChunkParams chunks{};
  chunks.encode = {p.index, p.step, p.keys};
  chunks.queries = p.queries;
  chunks.plan = plan;
  // Clusters came with 9.0; before, a thread block is one.
  if (launch.compute_capability < 90) chunks.plan.cluster = 1;
  chunks.sizes = scan_sizes(p.index, plan);
  chunks.step_shape = step_shape(chunks.encode);
  const std::int64_t encode_blocks =
      std::int64_t{p.step.batch_size} * p.index.num_kv_heads * chunks.step_shape.shares;
  if (encode_blocks > 0x3fffffff) return too_many_blocks("encode", encode_blocks);
  const std::int64_t cluster = chunks.plan.cluster;
  chunks.encode_blocks =
      static_cast<std::int32_t>((encode_blocks + cluster - 1) / cluster * cluster);
  chunks.counts = scratch.counts;
  chunks.candidates = scratch.candidates;
  if (plan.stride == 16) return launch_chunks_16(chunks, launch);
  if (plan.stride == 64) return launch_chunks_64(chunks, launch);
  return launch_chunks_256(chunks, launch);
}

}  // namespace

bool scan_serves(const IndexView& ix) noexcept { return plan_serves(ix); }

std::size_t scan_scratch_bytes(const IndexView& ix, std::int32_t batch_size,
                               std::int32_t query_tokens) noexcept {
  const std::int64_t rows = std::int64_t{batch_size} * query_tokens * ix.num_query_heads;
  return static_cast<std::size_t>(
      ScanScratch(nullptr, scan_plan(ix, batch_size, query_tokens), rows).bytes);
}

Status scan(const ScanParams& p, const Launch& launch) noexcept {
  const ScanPlan plan = scan_plan(p.index, p.step.batch_size, p.step.query_tokens);
  const ScanScratch scratch(p.backend_scratch, plan, p.emit.num_rows);
  if (Status s = launch_chunks(p, plan, scratch, launch); !s.ok()) return s;
  return launch_finish(p, plan, scratch, launch);
}

}  // namespace quarry::cuda
