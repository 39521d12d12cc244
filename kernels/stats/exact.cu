// SPDX-License-Identifier: Apache-2.0
//
// Stage exact: float32 q.k of every candidate of the sampled rows, in stage refine's order, so
// that a key that refine scored scores the same.
#include <algorithm>

#include "common/launch.h"
#include "refine/dots.cuh"
#include "stats/stats.h"
#include "stats_math.h"

namespace quarry::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMostParts = 128;  // thread blocks a row, which share its candidates

// Grid (samples, parts): a part takes every parts-th run of consecutive candidates.
template <typename E, int kPieces>
__global__ void __launch_bounds__(kThreads)
    exact_kernel(const __grid_constant__ ExactParams p, std::int32_t lanes, bool wide) {
  wait_for_predecessor();
  let_successor_start();
  const IndexView& ix = p.index;
  const std::int64_t i = blockIdx.x;
  const RowState row = p.rows[i];
  if (row.kind != RowKind::sparse) return;
  const SampledRow at = sampled_row(p.sampled[i], p.step.query_tokens, ix.num_query_heads);
  const std::int64_t query_base = at.b * p.queries.batch_stride + at.t * p.queries.token_stride +
                                  at.head * p.queries.head_stride;
  float* const scores = p.scores + i * p.score_stride;
  const std::int32_t groups = kThreads / lanes, run = groups * kKeysAtOnce;
  const std::int32_t count = row.end - row.first;  // below 2^28, as max_seq_len is
  for (auto first = static_cast<std::int32_t>(blockIdx.y) * run; first < count;
       first += static_cast<std::int32_t>(gridDim.y) * run) {
    exact_scores<E, kPieces>(
        ix, p.keys,
        [&](std::int32_t e) {
          return load_element(p.queries.data, p.queries.dtype, query_base + e);
        },
        at.head / ix.group_size, wide, lanes, groups,
        static_cast<std::int32_t>(threadIdx.x) / lanes, first, count,
        [&](std::int32_t entry) {
          return key_place(ix, p.keys, block_table_row(p.step, at.b), p.step.states[at.b].slot,
                           at.head / ix.group_size, row.first + entry);
        },
        [&](std::int32_t entry, float score) { scores[row.first + entry] = score; });
  }
}

}  // namespace

Status exact(const ExactParams& p, const Launch& launch) noexcept {
  return with_pieces(
      p.keys.dtype, p.index.head_dim,
      [&]<typename E, int kPieces>(E, std::integral_constant<int, kPieces>) {
        const std::int32_t lanes = lanes_of(p.index.head_dim, kPiece<E>);
        const std::int64_t run = kThreads / lanes * kKeysAtOnce;
        const std::int64_t parts = std::min((p.index.max_seq_len + run - 1) / run, kMostParts);
        const dim3 grid(static_cast<unsigned>(p.num_samples), static_cast<unsigned>(parts));
        const KeyView& k = p.keys;
        const bool wide = is_wide(k.data, k.dtype, {k.page_stride, k.slot_stride, k.head_stride});
        return launch_kernel<exact_kernel<E, kPieces>>("exact", launch, grid, kThreads, 0, p, lanes,
                                                       wide);
      });
}

}  // namespace quarry::cuda
