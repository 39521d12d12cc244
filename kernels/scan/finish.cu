// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "scan/finish_kernel.cuh"
#include "scan/launches.h"

namespace quarry::cuda {
namespace {

template <typename E, int kPieces>
Status launch_finish(const FinishParams& p, std::int64_t rows, unsigned cluster,
                     const Launch& launch) {
  const std::int64_t grid = p.encode_blocks + rows * cluster;
  if (grid > 0x7fffffff) return too_many_blocks("finish", grid);
  return launch_clusters<finish_kernel<E, kPieces>>(
      "scan: finish", launch, dim3(static_cast<unsigned>(grid)), cluster, kFinishThreads,
      std::max(static_cast<std::size_t>(p.layout.total), p.step_shape.shared_bytes), p);
}

}  // namespace

Status launch_finish(const ScanParams& p, const ScanPlan& plan, const ScanScratch& scratch,
                     const Launch& launch) {
  const IndexView& ix = p.index;
  const std::int64_t rows = p.emit.num_rows;
  FinishParams finish{};
  finish.encode = {ix, p.step, p.keys};
  finish.step_shape = step_shape(finish.encode);
  finish.layout = finish_layout(ix, plan.chunks, plan.select);
  finish.emit = p.emit;
  finish.queries = p.queries;
  finish.chunks = plan.chunks;
  finish.capacity = plan.capacity;
  finish.select = plan.select;
  finish.encoded = scratch.encoded;
  finish.counts = scratch.counts;
  finish.candidates = scratch.candidates;
  // Thread blocks a row, where there are keys to gather or a dense row to clear, as long as
  // they do not have to wait for each other's multiprocessor.
  const bool refines = ix.refine_factor > 1;
  unsigned cluster = 1;
  if (launch.compute_capability >= 90 && (refines || p.emit.dense_weights != nullptr)) {
    while (cluster < 8 && rows * cluster * 2 <= kScanBlocks) cluster *= 2;
  }
  const std::int64_t encode_blocks =
      (std::int64_t{p.step.batch_size} * ix.num_kv_heads * finish.step_shape.shares + cluster - 1) /
      cluster * cluster;
  if (encode_blocks > 0x3fffffff) return too_many_blocks("encode", encode_blocks);
  finish.encode_blocks = static_cast<std::int32_t>(encode_blocks);
  if (!refines) return launch_finish<Float32, 0>(finish, rows, cluster, launch);
  const KeyView& k = p.keys;
  finish.wide = is_wide(k.data, k.dtype, {k.page_stride, k.slot_stride, k.head_stride});
  return with_pieces(k.dtype, ix.head_dim,
                     [&]<typename E, int kPieces>(E, std::integral_constant<int, kPieces>) {
                       finish.lanes = lanes_of(ix.head_dim, kPiece<E>);
                       return launch_finish<E, kPieces>(finish, rows, cluster, launch);
                     });
}

}  // namespace quarry::cuda
