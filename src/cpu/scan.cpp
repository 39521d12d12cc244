// SPDX-License-Identifier: Apache-2.0
//
// Algorithm scan: a step in two parallel regions, encode and the rest. A task takes the rows of
// a KV head through score, select, refine and emit while their codes are in the cache; scores
// are written to no more memory than a tile of them. Where there are few such groups, each is cut
// into pieces of consecutive positions whose best are merged in order.
#include <algorithm>
#include <new>
#include <type_traits>

#include "cpu/scan_group.h"
#include "cpu/stages.h"
#include "plan.h"

namespace quarry::cpu {
namespace {

static_assert(std::is_trivially_destructible_v<ScanRow>);

/// How a call is cut, and what it needs: that is a function of shapes alone.
struct Layout {
  static constexpr std::int32_t kTasks = 64;        // enough for any machine's threads
  static constexpr std::int32_t kShortest = 16384;  // of a piece

  std::int32_t k, capacity, refine_capacity;
  std::int64_t rows, groups, tasks;
  std::int32_t pieces;      // of a group
  std::int64_t task_space;  // rows of a task's, never fewer for more rows
  std::int64_t bias_stride;

  /// More than one piece a group only where `num_threads` would have none or unequal work:
  /// each looks for its own best, so that pieces are more work.
  Layout(const IndexView& ix, std::int32_t batch_size, std::int32_t query_tokens,
         std::int32_t num_threads) {
    k = ix.refine_factor * ix.heavy_size;
    capacity = Best::capacity(k, ix.max_seq_len);
    refine_capacity = Best::capacity(ix.heavy_size, k);
    groups = std::int64_t{batch_size} * query_tokens * ix.num_kv_heads;
    rows = groups * ix.group_size;
    const std::int32_t most = std::max(ix.max_seq_len / std::max(kShortest, 16 * k), 1);
    const std::int64_t wanted = groups % num_threads == 0 ? 1 : 4 * num_threads / groups;
    pieces = static_cast<std::int32_t>(
        std::clamp<std::int64_t>(std::min(wanted, kTasks / groups), 1, most));
    tasks = groups * pieces;
    task_space = std::min(groups * most, std::max<std::int64_t>(groups, kTasks)) * ix.group_size;
    bias_stride = ix.block_size > 0 ? std::max(ix.max_seq_len / ix.block_size, 1) : 0;
  }
};

struct Scratch {
  RowState* states;  ///< [B, T]
  // Of a task's rows.
  ScanRow* rows;
  float* luts;           ///< [m][ksub] each
  std::uint8_t* tables;  ///< [m][filter_entries] each
  std::uint32_t* best;   ///< Best::bytes() each
  // Of a row.
  float* biases;            ///< [bias_stride] each
  float* refined;           ///< [r K] each, with refine
  std::uint32_t* reselect;  ///< Best::bytes() each, with refine

  Scratch(Arena& arena, const IndexView& ix, const Layout& layout, std::int32_t batch_size,
          std::int32_t query_tokens) {
    states = arena.take<RowState>(batch_size, query_tokens);
    rows = arena.take<ScanRow>(layout.task_space);
    luts = arena.take<float>(layout.task_space, ix.num_subspaces, ix.ksub);
    tables = arena.take<std::uint8_t>(layout.task_space, ix.num_subspaces, filter_entries(ix.bits));
    best = arena.take<std::uint32_t>(layout.task_space, 2, layout.capacity);
    biases = arena.take<float>(layout.rows, layout.bias_stride);
    const bool refines = ix.refine_factor > 1;
    refined = arena.take<float>(refines ? layout.rows : 0, layout.k);
    reselect = arena.take<std::uint32_t>(refines ? layout.rows : 0, 2, layout.refine_capacity);
  }
};

/// One call.
struct Scan {
  const ScanParams& p;
  const Layout layout;
  const Scratch scratch;

  const RowState& state(std::int32_t b, std::int32_t t) const {
    return scratch.states[std::int64_t{b} * p.step.query_tokens + t];
  }

  /// The best of one group's piece; where it is the only one, its lists too.
  void run_task(std::int64_t task) const {
    const IndexView& ix = p.index;
    const std::int64_t group = task / layout.pieces;
    const auto piece = static_cast<std::int32_t>(task % layout.pieces);
    const auto kv_head = static_cast<std::int32_t>(group % ix.num_kv_heads);
    const std::int64_t token = group / ix.num_kv_heads;
    const auto b = static_cast<std::int32_t>(token / p.step.query_tokens);
    const auto t = static_cast<std::int32_t>(token % p.step.query_tokens);
    const RowState& row = state(b, t);
    const RowQuery query{ix, p.step, p.queries, b, t, kv_head * ix.group_size};
    ScanRow* rows = make_rows(task);
    // Whole blocks, so that each bias is written by one thread; whole tiles.
    const std::int64_t unit = std::max(ix.block_size, 1) * std::int64_t{32};
    const std::int64_t chunk = (row.end / layout.pieces / unit + 1) * unit;
    const std::int64_t first = std::max<std::int64_t>(row.first, piece * chunk);
    const std::int64_t end = std::min<std::int64_t>(row.end, (piece + 1) * chunk);
    if (row.kind == RowKind::sparse && first < end) {
      const std::int64_t at = row_of(p.step, ix.num_query_heads, b, t, query.head);
      scan_group(
          {query, rows, layout.k, scratch.biases + at * layout.bias_stride, layout.bias_stride},
          static_cast<std::int32_t>(first), static_cast<std::int32_t>(end));
    }
    if (layout.pieces > 1) return;
    for (std::int32_t g = 0; g < ix.group_size; ++g) finish(query, g, rows[g].best);
  }

  /// Rows of a task in its scratch, empty.
  ScanRow* make_rows(std::int64_t task) const {
    const IndexView& ix = p.index;
    for (std::int32_t g = 0; g < ix.group_size; ++g) {
      const std::int64_t i = task * ix.group_size + g;
      new (scratch.rows + i)
          ScanRow(ix, scratch.best + i * 2 * layout.capacity, layout.capacity,
                  scratch.luts + i * ix.num_subspaces * ix.ksub,
                  scratch.tables + i * ix.num_subspaces * filter_entries(ix.bits), layout.k);
    }
    return scratch.rows + task * ix.group_size;
  }

  /// One row's list from its best, where a group is cut.
  void merge(std::int64_t row) const {
    const IndexView& ix = p.index;
    const std::int64_t group = row / ix.group_size;
    const auto g = static_cast<std::int32_t>(row % ix.group_size);
    const auto kv_head = static_cast<std::int32_t>(group % ix.num_kv_heads);
    const std::int64_t token = group / ix.num_kv_heads;
    const auto b = static_cast<std::int32_t>(token / p.step.query_tokens);
    const auto t = static_cast<std::int32_t>(token % p.step.query_tokens);
    const auto best = [&](std::int32_t piece) -> Best& {
      return scratch.rows[(group * layout.pieces + piece) * ix.group_size + g].best;
    };
    for (std::int32_t piece = 1; piece < layout.pieces; ++piece) best(0).add(best(piece));
    best(0).compact();
    finish({ix, p.step, p.queries, b, t, kv_head * ix.group_size}, g, best(0));
  }

  /// Refine and emit of query head query.head + g.
  void finish(RowQuery query, std::int32_t g, Best& best) const {
    const IndexView& ix = p.index;
    query.head += g;
    const std::int64_t row = row_of(p.step, ix.num_query_heads, query.b, query.t, query.head);
    if (ix.refine_factor > 1 && best.count() > 0) {
      float* scores = scratch.refined + row * layout.k;
      refine_row(query, p.keys, best.positions(), best.count(), scores);
      Best again(scratch.reselect + row * 2 * layout.refine_capacity, layout.refine_capacity,
                 ix.heavy_size);
      again.scan(scores, 0, best.count());
      again.compact();
      best.keep(again.positions(), again.count());
    }
    emit_row(p.emit, row, state(query.b, query.t), best.positions(), best.count());
  }
};

}  // namespace

std::size_t scan_scratch_bytes(const IndexView& index, std::int32_t batch_size,
                               std::int32_t query_tokens) noexcept {
  const Layout layout(index, batch_size, query_tokens, 1);
  Arena arena;
  const Scratch scratch(arena, index, layout, batch_size, query_tokens);
  // More than any Arena has, so that it is refused there.
  return arena.overflowed() ? (std::size_t{1} << 62) + 1 : arena.bytes();
}

Status scan(const ScanParams& p, const Launch& launch) noexcept {
  if (Status s = encode({p.index, p.step, p.keys}, launch); !s.ok()) return s;
  const Layout layout(p.index, p.step.batch_size, p.step.query_tokens, launch.num_threads);
  Arena arena(p.backend_scratch);
  const Scan call{p, layout,
                  Scratch(arena, p.index, layout, p.step.batch_size, p.step.query_tokens)};
  if (Status s = mask({p.index, p.step, 1, call.scratch.states}, launch); !s.ok()) return s;
#pragma omp parallel num_threads(launch.num_threads)
  {
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t task = 0; task < layout.tasks; ++task) call.run_task(task);
    if (layout.pieces > 1) {
#pragma omp for schedule(dynamic, 1)
      for (std::int64_t row = 0; row < layout.rows; ++row) call.merge(row);
    }
  }
  return Status();
}

}  // namespace quarry::cpu
