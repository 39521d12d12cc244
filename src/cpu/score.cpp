// SPDX-License-Identifier: Apache-2.0
//
// Stage score: each row's LUT, the block biases, and the candidates' scores.
#include <algorithm>

#include "cpu/code_walk.h"
#include "cpu/rows.h"
#include "cpu/score_tiles.h"
#include "cpu/simd.h"
#include "cpu/stages.h"
#include "cpu/vectors.h"

namespace quarry::cpu {
namespace {

void load_query(const RowQuery& row, std::int32_t head, float* q) {
  widen(row.queries.data, row.queries.dtype, 1.0f,
        row.b * row.queries.batch_stride + row.t * row.queries.token_stride +
            head * row.queries.head_stride,
        row.index.head_dim, nullptr, q);
}

}  // namespace

void make_lut(const RowQuery& row, float* lut) {
  const IndexView& ix = row.index;
  const std::int32_t d = ix.head_dim;
  alignas(64) float query[kMaxHeadDim];
  alignas(64) float rotated[kMaxHeadDim];
  load_query(row, row.head, query);
  const std::int64_t book = codebook_of(ix, row.slot());
  const std::int64_t head = book * ix.num_kv_heads + row.kv_head();
  const float* q = query;
  if (ix.rotation != nullptr) {
    product(query, 1, d, ix.query_rotation + head * d * d, d, d, rotated, d);
    q = rotated;
  }
  for (std::int32_t s = 0; s < ix.num_subspaces; ++s) {
    const float* centroids = ix.codebooks + (head * ix.num_subspaces + s) * ix.dcent * ix.ksub;
    product(q + s * ix.dsub, 1, d, centroids, ix.dsub, ix.ksub, lut + s * ix.ksub, ix.ksub);
  }
}

void make_biases(const RowQuery& row, std::int32_t first, std::int32_t end, float* biases,
                 std::int64_t stride) {
  constexpr std::int32_t kChunk = 64;
  const IndexView& ix = row.index;
  const std::int32_t head = row.kv_head();
  const std::int32_t* table = block_table_row(row.step, row.b);
  const std::int32_t end_block = (end + ix.block_size - 1) / ix.block_size;
  std::int64_t offsets[kChunk];
  for (std::int32_t block = first / ix.block_size; block < end_block; block += kChunk) {
    const std::int32_t count = std::min(kChunk, end_block - block);
    for (std::int32_t i = 0; i < count; ++i) {
      const std::int32_t last = (block + i + 1) * ix.block_size - 1;
      offsets[i] = mean_offset(ix, page_of(ix, table, row.slot(), last), head, last);
    }
    for (std::int32_t g = 0; g < ix.group_size; ++g) {
      alignas(64) float query[kMaxHeadDim];
      load_query(row, row.head + g, query);
      dots(query, ix.means, ix.mean_dtype, 1.0f, offsets, count, ix.head_dim,
           biases + g * stride + block);
    }
  }
}

namespace {

/// Positions [first, end), one by one, byte 0 of a code where `code_of` says.
template <class CodeOf>
void score_singly(const IndexView& ix, const RowTables& tables, std::int32_t first,
                  std::int32_t end, CodeOf&& code_of, float* scores, std::int64_t stride) {
  const std::int64_t lut_stride = std::int64_t{ix.num_subspaces} * ix.ksub;
  for (std::int32_t position = first; position < end; ++position) {
    const std::uint8_t* code = code_of(position);
    for (std::int32_t r = 0; r < tables.rows; ++r) {
      const float* biases =
          tables.biases == nullptr ? nullptr : tables.biases + r * tables.bias_stride;
      scores[r * stride + position - first] =
          score_position(ix, tables.luts + r * lut_stride, biases, code, ix.tile, position);
    }
  }
}

}  // namespace

void score_codes(const RowQuery& query, const RowTables& tables, const Codes& codes, float* scores,
                 std::int64_t stride) {
  const IndexView& ix = query.index;
  const std::int32_t end = codes.end;
  std::int32_t first = codes.first;
  if (codes.tiles.tile < 16) {
    const std::int32_t* table = block_table_row(query.step, query.b);
    while (first < end) {
      const std::int64_t page = page_of(ix, table, query.slot(), first);
      const auto page_end = static_cast<std::int32_t>(
          std::min<std::int64_t>(end, (std::int64_t{first} / ix.page_size + 1) * ix.page_size));
      const auto code_of = [&](std::int32_t position) {
        return ix.codes + code_offset(ix, page, query.kv_head(), position % ix.page_size);
      };
      score_singly(ix, tables, first, page_end, code_of, scores, stride);
      scores += page_end - first;
      first = page_end;
    }
    return;
  }
  // Ragged edges, and whole tiles between them.
  const std::int32_t tile = codes.tiles.tile;
  const auto code_of = [&](std::int32_t position) { return codes.key(position - codes.base); };
  const std::int32_t in_tile = (first - codes.base) % tile;
  const std::int32_t whole = in_tile == 0 ? first : std::min(end, first + tile - in_tile);
  score_singly(ix, tables, first, whole, code_of, scores, stride);
  const std::int32_t tiles = (end - whole) / tile;
  if (tiles > 0) {
    score_tiles({codes.tiles.from((whole - codes.base) / tile), tiles, ix.num_subspaces, ix.bits,
                 tables.rows, tables.luts, std::int64_t{ix.num_subspaces} * ix.ksub, tables.biases,
                 tables.bias_stride, ix.block_size, whole, scores + (whole - first), stride});
  }
  const std::int32_t rest = whole + tiles * tile;
  score_singly(ix, tables, rest, end, code_of, scores + (rest - first), stride);
}

namespace {

/// Positions [first, end) of so many KV heads, query's own the first.
void score_range(const ScoreParams& p, const RowQuery& query, std::int32_t kv_heads,
                 std::int32_t first, std::int32_t end) {
  const IndexView& ix = p.index;
  const std::int64_t row = row_of(p.step, ix.num_query_heads, query.b, query.t, query.head);
  if (ix.block_size > 0) {
    RowQuery own = query;
    for (std::int32_t i = 0; i < kv_heads; ++i, own.head += ix.group_size) {
      make_biases(own, first, end, p.biases + (row + i * ix.group_size) * p.bias_stride,
                  p.bias_stride);
    }
  }
  CodeWalk walk(query, kv_heads, true);
  walk.each_block(first, end, [&] {
    RowQuery own = query;
    for (std::int32_t i = 0; i < kv_heads; ++i, own.head += ix.group_size) {
      const std::int64_t own_row = row + i * ix.group_size;
      const RowTables tables{ix.group_size, p.luts + own_row * ix.num_subspaces * ix.ksub,
                             ix.block_size > 0 ? p.biases + own_row * p.bias_stride : nullptr,
                             p.bias_stride};
      const Codes codes = walk.codes(i);
      float* scores = p.scores + own_row * p.score_stride;
      // In lots, where there is something to fetch between them.
      const std::int32_t lot = codes.fetch == nullptr ? kScanBlock : 256;
      const std::int64_t lines =
          codes.fetch == nullptr ? 0 : codes.fetch->lines((codes.end - codes.base) / lot + 1);
      for (Codes some = codes; some.first < codes.end; some.first = some.end) {
        some.end = std::min(codes.end, codes.base + ((some.first - codes.base) / lot + 1) * lot);
        if (lines > 0) codes.fetch->some(lines);
        score_codes(own, tables, some, scores + some.first, p.score_stride);
      }
    }
  });
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
  const std::int32_t together = CodeWalk::heads_together(
      ix, std::int64_t{p.step.batch_size} * ix.num_kv_heads, chunks, launch.num_threads);
  const std::int32_t teams = ix.num_kv_heads / together;
  const std::int64_t tasks = std::int64_t{p.step.batch_size} * teams * chunks;
#pragma omp parallel num_threads(launch.num_threads)
  {
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto b = static_cast<std::int32_t>(row / heads / tokens);
      const auto t = static_cast<std::int32_t>(row / heads % tokens);
      if (state_of(b, t).kind != RowKind::sparse) continue;
      make_lut({ix, p.step, p.queries, b, t, static_cast<std::int32_t>(row % heads)},
               p.luts + row * ix.num_subspaces * ix.ksub);
    }
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t task = 0; task < tasks; ++task) {
      const auto b = static_cast<std::int32_t>(task / chunks / teams);
      const auto kv_head = static_cast<std::int32_t>(task / chunks % teams) * together;
      const std::int64_t start = task % chunks * chunk;
      for (std::int32_t t = 0; t < tokens; ++t) {
        const RowState row = state_of(b, t);
        if (row.kind != RowKind::sparse) continue;
        const auto first = static_cast<std::int32_t>(std::max<std::int64_t>(start, row.first));
        const auto end = static_cast<std::int32_t>(std::min<std::int64_t>(start + chunk, row.end));
        const RowQuery query{ix, p.step, p.queries, b, t, kv_head * ix.group_size};
        if (first < end) score_range(p, query, together, first, end);
      }
    }
  }
  return Status();
}

}  // namespace quarry::cpu
