// SPDX-License-Identifier: Apache-2.0
//
// Stage refine: exact q.k of the shortlisted keys, read from the engine's cache. The heads of
// a list take a chunk of keys one after the other, while it is in the cache.
#include <algorithm>

#include "cpu/rows.h"
#include "cpu/simd.h"
#include "cpu/stages.h"
#include "cpu/vectors.h"

namespace quarry::cpu {

void refine_row(const RowQuery& row, std::int32_t heads, const KeyView& keys,
                const std::int32_t* positions, std::int32_t count, float* scores,
                std::int64_t stride) {
  constexpr std::int32_t kChunk = 64;
  const IndexView& ix = row.index;
  const std::int32_t* table = block_table_row(row.step, row.b);
  const float scale = key_scale(keys, row.kv_head());
  std::int64_t offsets[kChunk];
  for (std::int32_t first = 0; first < count; first += kChunk) {
    const std::int32_t some = std::min(kChunk, count - first);
    for (std::int32_t i = 0; i < some; ++i) {
      const std::int32_t position = positions[first + i];
      const std::int64_t page = page_of(ix, table, row.slot(), position);
      offsets[i] = key_offset(ix, keys, page, row.kv_head(), position);
    }
    for (std::int32_t g = 0; g < heads; ++g) {
      alignas(64) float q[kMaxHeadDim];
      widen(row.queries.data, row.queries.dtype, 1.0f,
            row.b * row.queries.batch_stride + row.t * row.queries.token_stride +
                (row.head + g) * row.queries.head_stride,
            ix.head_dim, nullptr, q);
      dots(q, keys.data, keys.dtype, scale, offsets, some, ix.head_dim,
           scores + g * stride + first);
    }
  }
}

Status refine(const RefineParams& p, const Launch& launch) noexcept {
  const std::int32_t heads = p.list_heads, tokens = p.step.query_tokens;
  const std::int32_t group = p.index.num_query_heads / heads;
  const std::int64_t rows = static_cast<std::int64_t>(p.step.batch_size) * tokens * heads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(launch.num_threads)
  for (std::int64_t row = 0; row < rows; ++row) {
    const auto b = static_cast<std::int32_t>(row / heads / tokens);
    const auto t = static_cast<std::int32_t>(row / heads % tokens);
    const std::int32_t first_head = static_cast<std::int32_t>(row % heads) * group;
    const std::int32_t count = p.shortlist_counts[row];
    if (p.step.states[b].slot < 0 || count <= 0) continue;
    refine_row({p.index, p.step, p.queries, b, t, first_head}, group, p.keys,
               p.shortlist + row * p.shortlist_stride, count,
               p.scores + row * group * p.shortlist_stride, p.shortlist_stride);
  }
  return Status();
}

}  // namespace quarry::cpu
