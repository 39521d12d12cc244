// SPDX-License-Identifier: Apache-2.0
#include "scan/finish_kernel.cuh"
#include "scan/launches.h"

namespace quarry::cuda {
namespace {

template <typename E, int kPieces>
Status launch_finish(const FinishParams& p, std::int64_t rows, unsigned cluster,
                     const Launch& launch) {
  const std::int64_t grid = rows * cluster;
  if (grid > 0x7fffffff) return too_many_blocks("finish", grid);
  const FinishShared shared(nullptr, p.emit.index, p.chunks, p.select);
  return launch_clusters<finish_kernel<E, kPieces>>(
      "scan: finish", launch, dim3(static_cast<unsigned>(grid)), cluster, kFinishThreads,
      static_cast<std::size_t>(shared.bytes), p);
}

}  // namespace

Status launch_finish(const ScanParams& p, const ScanPlan& plan, const ScanScratch& scratch,
                     const Launch& launch) {
  const IndexView& ix = p.index;
  const std::int64_t rows = p.emit.num_rows;
  FinishParams finish{};
  finish.emit = p.emit;
  finish.keys = p.keys;
  finish.queries = p.queries;
  finish.chunks = plan.chunks;
  finish.capacity = plan.capacity;
  finish.select = plan.select;
  finish.counts = scratch.counts;
  finish.candidates = scratch.candidates;
  // Thread blocks a row, where there are keys to gather or a dense row to clear, as long as
  // they do not have to wait for each other's multiprocessor.
  const bool refines = ix.refine_factor > 1;
  unsigned cluster = 1;
  if (launch.compute_capability >= 90 && (refines || p.emit.dense_weights != nullptr)) {
    while (cluster < 8 && rows * cluster * 2 <= kScanBlocks) cluster *= 2;
  }
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
