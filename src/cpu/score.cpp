// SPDX-License-Identifier: Apache-2.0
//
// Stage score: each row's LUT, the block biases, and the candidates' scores.
#include <algorithm>

#include "cpu/score_tiles.h"
#include "cpu/simd.h"
#include "cpu/stages.h"
#include "cpu/vectors.h"

namespace quarry::cpu {
namespace {

void load_query(const ScoreParams& p, std::int32_t b, std::int32_t t, std::int32_t h, float* q) {
  widen(p.queries.data, p.queries.dtype,
        b * p.queries.batch_stride + t * p.queries.token_stride + h * p.queries.head_stride,
        p.index.head_dim, nullptr, q);
}

/// The LUT [m][ksub] of one row, from the rotated query.
void make_lut(const ScoreParams& p, std::int32_t slot, std::int32_t b, std::int32_t t,
              std::int32_t h) {
  const IndexView& ix = p.index;
  const std::int32_t d = ix.head_dim;
  alignas(64) float query[kMaxHeadDim];
  alignas(64) float rotated[kMaxHeadDim];
  load_query(p, b, t, h, query);
  const std::int64_t book = codebook_of(ix, slot);
  const std::int64_t head = book * ix.num_kv_heads + h / ix.group_size;
  const float* q = query;
  if (ix.rotation != nullptr) {
    product(query, 1, d, ix.query_rotation + head * d * d, d, d, rotated, d);
    q = rotated;
  }
  float* lut = p.luts + row_of(p.step, ix.num_query_heads, b, t, h) * ix.num_subspaces * ix.ksub;
  for (std::int32_t s = 0; s < ix.num_subspaces; ++s) {
    const float* centroids = ix.codebooks + (head * ix.num_subspaces + s) * ix.dcent * ix.ksub;
    product(q + s * ix.dsub, 1, d, centroids, ix.dsub, ix.ksub, lut + s * ix.ksub, ix.ksub);
  }
}

/// biases[row][block] = q . mean for the blocks that positions [first, end) are in.
void make_biases(const ScoreParams& p, const SequenceState& st, std::int32_t b, std::int32_t t,
                 std::int32_t head, std::int32_t first, std::int32_t end) {
  constexpr std::int32_t kChunk = 64;
  const IndexView& ix = p.index;
  const std::int32_t* table = block_table_row(p.step, b);
  const std::int32_t end_block = (end + ix.block_size - 1) / ix.block_size;
  std::int64_t offsets[kChunk];
  for (std::int32_t block = first / ix.block_size; block < end_block; block += kChunk) {
    const std::int32_t count = std::min(kChunk, end_block - block);
    for (std::int32_t i = 0; i < count; ++i) {
      const std::int32_t last = (block + i + 1) * ix.block_size - 1;
      offsets[i] = mean_offset(ix, page_of(ix, table, st.slot, last), head, last);
    }
    for (std::int32_t g = 0; g < ix.group_size; ++g) {
      const std::int32_t h = head * ix.group_size + g;
      alignas(64) float query[kMaxHeadDim];
      load_query(p, b, t, h, query);
      const std::int64_t row = row_of(p.step, ix.num_query_heads, b, t, h);
      dots(query, ix.means, ix.mean_dtype, offsets, count, ix.head_dim,
           p.biases + row * p.bias_stride + block);
    }
  }
}

/// Positions of a ragged edge or of narrow tiles, one by one.
void score_singly(const ScoreParams& p, std::int64_t row, const std::uint8_t* code,
                  std::int32_t position) {
  const IndexView& ix = p.index;
  for (std::int32_t g = 0; g < ix.group_size; ++g, ++row) {
    const float* lut = p.luts + row * ix.num_subspaces * ix.ksub;
    float score = ix.block_size > 0 ? p.biases[row * p.bias_stride + position / ix.block_size]
                                    : -0.0f;  // -0 + x is x, bit for bit
    for (std::int32_t s = 0; s < ix.num_subspaces; ++s, lut += ix.ksub) {
      const std::int32_t id =
          ix.bits <= 4 ? code[s / 2 * ix.tile] >> s % 2 * 4 & 15 : code[s * ix.tile];
      score += lut[id];
    }
    p.scores[row * p.score_stride + position] = score;
  }
}

/// Positions [first, end), all in one page.
void score_page(const ScoreParams& p, std::int64_t row, std::int64_t page, std::int32_t head,
                std::int32_t first, std::int32_t end) {
  const IndexView& ix = p.index;
  std::int32_t position = first;
  const auto singly_to = [&](std::int32_t limit) {
    for (; position < limit; ++position) {
      score_singly(p, row, ix.codes + code_offset(ix, page, head, position % ix.page_size),
                   position);
    }
  };
  if (ix.tile >= 16) {
    const std::int32_t in_tile = first % ix.page_size % ix.tile;
    singly_to(std::min(end, in_tile == 0 ? first : first + ix.tile - in_tile));
    const std::int32_t tiles = (end - position) / ix.tile;
    if (tiles > 0) {
      score_tiles({ix.codes + code_offset(ix, page, head, position % ix.page_size), tiles, ix.tile,
                   ix.code_bytes, ix.num_subspaces, ix.bits, ix.group_size,
                   p.luts + row * ix.num_subspaces * ix.ksub,
                   std::int64_t{ix.num_subspaces} * ix.ksub,
                   ix.block_size > 0 ? p.biases + row * p.bias_stride : nullptr, p.bias_stride,
                   ix.block_size, position, p.scores + row * p.score_stride, p.score_stride});
      position += tiles * ix.tile;
    }
  }
  singly_to(end);
}

void score_range(const ScoreParams& p, const SequenceState& st, std::int32_t b, std::int32_t t,
                 std::int32_t head, std::int32_t first, std::int32_t end) {
  const IndexView& ix = p.index;
  const std::int32_t* table = block_table_row(p.step, b);
  const std::int64_t row = row_of(p.step, ix.num_query_heads, b, t, head * ix.group_size);
  if (ix.block_size > 0) make_biases(p, st, b, t, head, first, end);
  while (first < end) {
    const std::int32_t page_end =
        std::min<std::int64_t>(end, (std::int64_t{first} / ix.page_size + 1) * ix.page_size);
    score_page(p, row, page_of(ix, table, st.slot, first), head, first, page_end);
    first = page_end;
  }
}

}  // namespace

Status score(const ScoreParams& p, const Launch& launch) noexcept {
  const IndexView& ix = p.index;
  const std::int32_t heads = ix.num_query_heads, tokens = p.step.query_tokens;
  const auto state_of = [&](std::int32_t b, std::int32_t t) {
    std::uint32_t ignored = 0;  // stage mask reports them
    return row_state(ix, p.step, p.step.states[b], b, t, &ignored);
  };
  std::int32_t longest = 0;
  for (std::int32_t b = 0; b < p.step.batch_size; ++b) {
    for (std::int32_t t = 0; t < tokens; ++t) {
      const RowState row = state_of(b, t);
      if (row.kind == RowKind::sparse) longest = std::max(longest, row.end);
    }
  }
  if (longest == 0) return Status();

  // A chunk's codes stay in the cache for all rows that share them. It holds whole blocks, so
  // that each bias is written by one thread.
  const std::int32_t unit = std::max(ix.block_size, 1);
  const std::int32_t chunk = std::max(8192 / unit, 1) * unit;
  const std::int32_t chunks = (longest - 1) / chunk + 1;
  const std::int64_t rows = std::int64_t{p.step.batch_size} * tokens * heads;
  const std::int64_t tasks = std::int64_t{p.step.batch_size} * ix.num_kv_heads * chunks;
#pragma omp parallel num_threads(launch.num_threads)
  {
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto b = static_cast<std::int32_t>(row / heads / tokens);
      const auto t = static_cast<std::int32_t>(row / heads % tokens);
      if (state_of(b, t).kind != RowKind::sparse) continue;
      make_lut(p, p.step.states[b].slot, b, t, static_cast<std::int32_t>(row % heads));
    }
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t task = 0; task < tasks; ++task) {
      const auto b = static_cast<std::int32_t>(task / chunks / ix.num_kv_heads);
      const auto head = static_cast<std::int32_t>(task / chunks % ix.num_kv_heads);
      const std::int64_t start = task % chunks * chunk;
      for (std::int32_t t = 0; t < tokens; ++t) {
        const RowState row = state_of(b, t);
        if (row.kind != RowKind::sparse) continue;
        const auto first = static_cast<std::int32_t>(std::max<std::int64_t>(start, row.first));
        const auto end = static_cast<std::int32_t>(std::min<std::int64_t>(start + chunk, row.end));
        if (first < end) score_range(p, p.step.states[b], b, t, head, first, end);
      }
    }
  }
  return Status();
}

}  // namespace quarry::cpu
