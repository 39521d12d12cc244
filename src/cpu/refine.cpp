// SPDX-License-Identifier: Apache-2.0
//
// Stage refine: exact q.k of the shortlisted keys, read from the engine's cache. The heads of
// a list take a chunk of keys one after the other, while it is in the cache.
#include <algorithm>

#include "cpu/simd.h"
#include "cpu/stages.h"
#include "cpu/vectors.h"

namespace quarry::cpu {

Status refine(const RefineParams& p, const Launch& launch) noexcept {
  constexpr std::int32_t kChunk = 64;
  const IndexView& ix = p.index;
  const std::int32_t heads = p.list_heads, tokens = p.step.query_tokens;
  const std::int32_t group = ix.num_query_heads / heads;
  const std::int64_t rows = static_cast<std::int64_t>(p.step.batch_size) * tokens * heads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(launch.num_threads)
  for (std::int64_t row = 0; row < rows; ++row) {
    const auto b = static_cast<std::int32_t>(row / heads / tokens);
    const auto t = static_cast<std::int32_t>(row / heads % tokens);
    const std::int32_t first_head = static_cast<std::int32_t>(row % heads) * group;
    const std::int32_t kv = first_head / ix.group_size;
    const SequenceState& st = p.step.states[b];
    const std::int32_t count = p.shortlist_counts[row];
    if (st.slot < 0 || count <= 0) continue;

    const std::int32_t* table = block_table_row(p.step, b);
    const std::int32_t* positions = p.shortlist + row * p.shortlist_stride;
    float* scores = p.scores + row * group * p.shortlist_stride;
    std::int64_t offsets[kChunk];
    for (std::int32_t first = 0; first < count; first += kChunk) {
      const std::int32_t some = std::min(kChunk, count - first);
      for (std::int32_t i = 0; i < some; ++i) {
        const std::int32_t position = positions[first + i];
        const std::int64_t page = page_of(ix, table, st.slot, position);
        offsets[i] = key_offset(ix, p.keys, page, kv, position);
      }
      for (std::int32_t g = 0; g < group; ++g) {
        alignas(64) float q[kMaxHeadDim];
        widen(p.queries.data, p.queries.dtype,
              b * p.queries.batch_stride + t * p.queries.token_stride +
                  (first_head + g) * p.queries.head_stride,
              ix.head_dim, nullptr, q);
        dots(q, p.keys.data, p.keys.dtype, offsets, some, ix.head_dim,
             scores + g * p.shortlist_stride + first);
      }
    }
  }
  return Status();
}

}  // namespace quarry::cpu
