// SPDX-License-Identifier: Apache-2.0
//
// Stage refine: exact float32 q.k of the shortlist, keys gathered 16 bytes a lane.
#include "refine/refine.h"

#include "common/launch.h"
#include "refine/dots.cuh"

namespace quarry::cuda {
namespace {

constexpr int kThreads = 256;

/// A thread block takes kThreads / lanes * kKeysAtOnce entries of one query row: neighbouring
/// groups, neighbouring entries.
template <typename E, int kPieces>
__global__ void __launch_bounds__(kThreads)
    refine_kernel(const __grid_constant__ RefineParams p, std::int32_t lanes, std::int32_t chunks,
                  bool wide) {
  wait_for_predecessor();
  let_successor_start();
  const IndexView& ix = p.index;
  const std::int64_t row = blockIdx.x / chunks;
  const std::int32_t chunk = static_cast<std::int32_t>(blockIdx.x) % chunks;
  const std::int32_t groups = kThreads / lanes;
  const std::int32_t first = chunk * groups * kKeysAtOnce;
  const auto head = static_cast<std::int32_t>(row % ix.num_query_heads);
  const std::int64_t query = row / ix.num_query_heads;
  const auto t = static_cast<std::int32_t>(query % p.step.query_tokens);
  const auto b = static_cast<std::int32_t>(query / p.step.query_tokens);
  const std::int64_t list = row / (ix.num_query_heads / p.list_heads);
  const std::int32_t count = p.shortlist_counts[list];
  const std::int32_t slot = p.step.states[b].slot;
  if (first >= count || slot < 0) return;  // a row without a slot has no shortlist
  const std::int64_t query_base =
      b * p.queries.batch_stride + t * p.queries.token_stride + head * p.queries.head_stride;
  exact_scores<E, kPieces>(
      ix, p.keys,
      [&](std::int32_t i) { return load_element(p.queries.data, p.queries.dtype, query_base + i); },
      head / ix.group_size, wide, lanes, groups, static_cast<std::int32_t>(threadIdx.x) / lanes,
      first, count,
      [&](std::int32_t entry) {
        return key_place(ix, p.keys, block_table_row(p.step, b), slot, head / ix.group_size,
                         p.shortlist[list * p.shortlist_stride + entry]);
      },
      [&](std::int32_t entry, float score) { p.scores[row * p.shortlist_stride + entry] = score; });
}

template <typename E, int kPieces>
Status launch_refine(const RefineParams& p, const Launch& launch) {
  const std::int32_t lanes = lanes_of(p.index.head_dim, kPiece<E>);
  const std::int64_t per_block = kThreads / lanes * kKeysAtOnce;
  const std::int64_t chunks = (p.shortlist_stride + per_block - 1) / per_block;
  const std::int64_t rows =
      std::int64_t{p.step.batch_size} * p.step.query_tokens * p.index.num_query_heads;
  if (rows * chunks > 0x7fffffff) {
    return Status(StatusCode::unsupported, "refine: %lld thread blocks, must be at most 2^31 - 1",
                  static_cast<long long>(rows * chunks));
  }
  const KeyView& k = p.keys;
  const bool wide = is_wide(k.data, k.dtype, {k.page_stride, k.slot_stride, k.head_stride});
  return launch_kernel<refine_kernel<E, kPieces>>(
      "refine", launch, dim3(static_cast<unsigned>(rows * chunks)), kThreads, 0, p, lanes,
      static_cast<std::int32_t>(chunks), wide);
}

}  // namespace

Status refine(const RefineParams& p, const Launch& launch) noexcept {
  return with_pieces(p.keys.dtype, p.index.head_dim,
                     [&]<typename E, int kPieces>(E, std::integral_constant<int, kPieces>) {
                       return launch_refine<E, kPieces>(p, launch);
                     });
}

}  // namespace quarry::cuda
