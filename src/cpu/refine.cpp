// SPDX-License-Identifier: Apache-2.0
//
// Stage refine: exact q.k of the shortlisted keys, read from the engine's cache.
#include <algorithm>

#include "cpu/simd.h"
#include "cpu/stages.h"
#include "cpu/vectors.h"

namespace quarry::cpu {

Status refine(const RefineParams& p, const Launch& launch) noexcept {
  constexpr std::int32_t kChunk = 64;
  const IndexView& ix = p.index;
  const std::int32_t heads = ix.num_query_heads, tokens = p.step.query_tokens;
  const std::int64_t rows = static_cast<std::int64_t>(p.step.batch_size) * tokens * heads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(launch.num_threads)
  for (std::int64_t row = 0; row < rows; ++row) {
    const auto b = static_cast<std::int32_t>(row / heads / tokens);
    const auto t = static_cast<std::int32_t>(row / heads % tokens);
    const auto h = static_cast<std::int32_t>(row % heads);
    const SequenceState& st = p.step.states[b];
    const std::int32_t count = p.shortlist_counts[row];
    if (st.slot < 0 || count <= 0) continue;

    alignas(64) float q[kMaxHeadDim];
    widen(p.queries.data, p.queries.dtype,
          b * p.queries.batch_stride + t * p.queries.token_stride + h * p.queries.head_stride,
          ix.head_dim, nullptr, q);
    const std::int32_t* table = block_table_row(p.step, b);
    const std::int32_t* positions = p.shortlist + row * p.shortlist_stride;
    float* scores = p.scores + row * p.shortlist_stride;
    std::int64_t offsets[kChunk];
    for (std::int32_t first = 0; first < count; first += kChunk) {
      const std::int32_t some = std::min(kChunk, count - first);
      for (std::int32_t i = 0; i < some; ++i) {
        const std::int32_t position = positions[first + i];
        const std::int64_t page = page_of(ix, table, st.slot, position);
        offsets[i] = key_offset(ix, p.keys, page, h / ix.group_size, position);
      }
      dots(q, p.keys.data, p.keys.dtype, offsets, some, ix.head_dim, scores + first);
    }
  }
  return Status();
}

}  // namespace quarry::cpu
