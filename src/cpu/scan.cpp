// SPDX-License-Identifier: Apache-2.0
//
// Algorithm scan: a step in two parallel regions, encode and the rest. A task takes the rows of
// a KV head through score, reduce, select, refine and emit while their codes are in the cache;
// scores are written to no more memory than a tile of them. Where there are few such groups, each
// is cut into pieces of consecutive positions whose best are merged in order, after what
// softmax_sum must know of the whole row.
#include <algorithm>
#include <cstddef>
#include <limits>
#include <new>

#include "cpu/reduce_rows.h"
#include "cpu/scan_codes.h"
#include "cpu/scan_group.h"
#include "cpu/scan_layout.h"
#include "cpu/stages.h"
#include "reduction.h"

namespace quarry::cpu {
namespace {

/// One call.
struct Scan {
  const ScanParams& p;
  const ScanLayout layout;
  const ScanScratch scratch;

  /// A group, and of its row what one of its pieces has.
  struct Task {
    std::int64_t index, group;
    std::int32_t b, t, kv_head;
    std::int32_t first, end;  ///< nothing to select where first >= end
  };

  Task task_of(std::int64_t index) const {
    const IndexView& ix = p.index;
    Task task{};
    task.index = index;
    task.group = index / layout.pieces;
    task.kv_head = static_cast<std::int32_t>(task.group % ix.num_kv_heads);
    const std::int64_t token = task.group / ix.num_kv_heads;
    task.b = static_cast<std::int32_t>(token / p.step.query_tokens);
    task.t = static_cast<std::int32_t>(token % p.step.query_tokens);
    const RowState& row = state(task);
    if (row.kind != RowKind::sparse) return task;
    // Whole blocks, so that each bias is written by one thread; whole tiles.
    const auto piece = index % layout.pieces;
    const std::int64_t unit = std::max(ix.block_size, 1) * std::int64_t{32};
    const std::int64_t chunk = (row.end / layout.pieces / unit + 1) * unit;
    task.first = static_cast<std::int32_t>(
        std::min<std::int64_t>(std::max<std::int64_t>(row.first, piece * chunk), row.end));
    task.end = static_cast<std::int32_t>(std::min<std::int64_t>(row.end, (piece + 1) * chunk));
    return task;
  }
  const RowState& state(const Task& task) const {
    return scratch.states[std::int64_t{task.b} * p.step.query_tokens + task.t];
  }
  RowQuery query(const Task& task) const {
    return {p.index, p.step, p.queries, task.b, task.t, task.kv_head * p.index.group_size};
  }
  HeadSoftmax* softmax(const Task& task) const {
    return layout.softmaxes ? scratch.softmax + task.group * p.index.group_size : nullptr;
  }
  ScanRow* rows(std::int64_t task) const { return scratch.rows + task * layout.lists; }

  ScanGroup group_of(const Task& task) const {
    const IndexView& ix = p.index;
    const std::int64_t g = ix.group_size, entries = std::int64_t{ix.num_subspaces} * ix.ksub;
    const auto at = [](bool there, auto* array, std::int64_t i) {
      return there ? array + i : nullptr;
    };
    const bool blocks = ix.block_size > 0;
    return {
        query(task),
        layout.lists,
        layout.heads,
        rows(task.index),
        layout.k,
        scratch.luts + task.index * g * entries,
        at(blocks, scratch.biases, task.group * g * layout.bias_stride),
        layout.bias_stride,
        ix.reduction,
        p.scale,
        at(layout.reduces, scratch.scores, task.index * g * kScanStaged),
        at(layout.reduces && blocks, scratch.survivor_biases, task.index * g * Survivors::kMost),
        at(layout.sums, scratch.sum_lut, task.index * entries),
        at(layout.sums && blocks, scratch.sum_biases, task.group * layout.bias_stride),
        softmax(task),
        at(layout.softmaxes, scratch.guesses, task.index * g),
        at(layout.softmaxes, scratch.likely, task.index)};
  }

  /// The task's rows, empty, and its tables.
  void start(const Task& task, const ScanGroup& group) const {
    const IndexView& ix = p.index;
    const std::int64_t entries = std::int64_t{ix.num_subspaces} * ix.ksub;
    const std::int64_t table = std::int64_t{ix.num_subspaces} * filter_entries(ix.bits);
    for (std::int32_t i = 0; i < layout.lists; ++i) {
      const std::int64_t list = task.index * layout.lists + i;
      Filter* filters = scratch.filters + list * layout.filters;
      for (std::int32_t f = 0; f < layout.filters; ++f) {
        new (filters + f)
            Filter(scratch.tables + (list * layout.filters + f) * table, ix.num_subspaces, ix.bits);
      }
      const Best empty(scratch.best + list * 2 * layout.capacity, layout.capacity, layout.k);
      new (group.rows + i) ScanRow{empty, filters, group.luts + i * layout.heads * entries};
    }
    if (layout.softmaxes) {
      new (group.likely) Best(scratch.likely_best + task.index * 2 * layout.likely_capacity,
                              layout.likely_capacity, ScanLayout::kLikely * layout.k);
    }
    if (task.first < task.end) scan_tables(group, task.first, task.end);
  }

  // What softmax_sum comes to before anything is selected, a piece or a group at a time.
  void find_largest(const Task& task, const ScanGroup& group) const {
    float* largest = scratch.largest + task.index * p.index.group_size;
    std::fill_n(largest, p.index.group_size, std::numeric_limits<float>::quiet_NaN());
    if (task.first < task.end) scan_largest(group, task.first, task.end, largest);
  }
  void join_largest(const Task& task) const {
    const std::int64_t g = p.index.group_size;
    const float* largest = scratch.largest + task.index * g;
    for (std::int64_t h = 0; h < g; ++h) {
      float whole = largest[h];
      for (std::int32_t i = 1; i < layout.pieces; ++i) whole = larger_of(whole, largest[i * g + h]);
      softmax(task)[h] = {whole, 0};
    }
  }
  void find_weights(const Task& task, const ScanGroup& group) const {
    std::uint64_t* weights = scratch.weights + task.index * p.index.group_size;
    std::fill_n(weights, p.index.group_size, std::uint64_t{0});
    if (task.first < task.end) scan_weights(group, task.first, task.end, weights);
  }
  void join_weights(const Task& task) const {
    const std::int64_t g = p.index.group_size;
    const std::uint64_t* weights = scratch.weights + task.index * g;
    for (std::int64_t h = 0; h < g; ++h) {
      std::uint64_t whole = 0;
      for (std::int32_t i = 0; i < layout.pieces; ++i) whole += weights[i * g + h];
      softmax(task)[h] = head_softmax(softmax(task)[h].largest, whole);
    }
  }

  /// A piece of the groups that are walked together: KV heads that are neighbours.
  class Together {
   public:
    Together(const Scan& call, std::int64_t index) : count_(call.layout.together) {
      const std::int64_t pieces = call.layout.pieces;
      for (std::int32_t i = 0; i < count_; ++i) {
        tasks_[i] = call.task_of((index / pieces * count_ + i) * pieces + index % pieces);
        new (groups() + i) ScanGroup(call.group_of(tasks_[i]));
      }
    }
    std::int32_t count() const { return count_; }
    const Task& task(std::int32_t i) const { return tasks_[i]; }
    ScanGroup* groups() { return reinterpret_cast<ScanGroup*>(memory_); }
    /// Positions to select from, of each of them.
    std::int32_t first() const { return tasks_->first; }
    std::int32_t end() const { return tasks_->end; }

   private:
    std::int32_t count_;
    Task tasks_[CodeWalk::kMostHeads]{};
    alignas(ScanGroup) std::byte memory_[CodeWalk::kMostHeads * sizeof(ScanGroup)];
  };

  void start(Together& all) const {
    for (std::int32_t i = 0; i < all.count(); ++i) start(all.task(i), all.groups()[i]);
  }

  void find_best(Together& all) const {
    if (layout.softmaxes && scan_likely(*all.groups())) return;
    scan_groups(all.groups(), all.count(), all.first(), all.end());
  }

  /// Groups that are in one piece, from their tables to their lists.
  void run_whole(std::int64_t index) const {
    Together all(*this, index);
    start(all);
    if (all.first() < all.end()) {
      if (layout.softmaxes) {
        const Task& task = all.task(0);
        find_largest(task, *all.groups());
        join_largest(task);
        find_weights(task, *all.groups());
        join_weights(task);
      }
      find_best(all);
    }
    for (std::int32_t g = 0; g < all.count(); ++g) {
      for (std::int32_t i = 0; i < layout.lists; ++i) {
        finish(all.task(g), i, all.groups()[g].rows[i].best);
      }
    }
  }

  enum class Part { largest, weights, select };
  /// One part of the work on a piece; the first of them begins it.
  void run_piece(std::int64_t index, Part part) const {
    Together all(*this, index);
    if (part == (layout.softmaxes ? Part::largest : Part::select)) start(all);
    if (part == Part::largest) find_largest(all.task(0), *all.groups());
    if (part == Part::weights) find_weights(all.task(0), *all.groups());
    if (part == Part::select && all.first() < all.end()) find_best(all);
  }

  /// One list from its best, where a group is cut.
  void merge(std::int64_t list) const {
    const Task task = task_of(list / layout.lists * layout.pieces);
    const auto i = static_cast<std::int32_t>(list % layout.lists);
    Best& best = rows(task.index)[i].best;
    for (std::int32_t piece = 1; piece < layout.pieces; ++piece) {
      best.add(rows(task.index + piece)[i].best);
    }
    best.compact();
    finish(task, i, best);
  }

  /// Refine and emit of the group's list i.
  void finish(const Task& task, std::int32_t i, Best& best) const {
    const IndexView& ix = p.index;
    const std::int64_t list = task.group * layout.lists + i;
    if (ix.refine_factor > 1 && best.count() > 0) {
      RowQuery head = query(task);
      head.head += i * layout.heads;
      float* scores = scratch.refined + list * layout.heads * layout.k;
      refine_row(head, layout.heads, p.keys, best.positions(), best.count(), scores, layout.k);
      if (layout.reduces) {
        reduce_positions(ix.reduction, scores, layout.k, layout.heads, best.count(), p.scale,
                         softmax(task));
      }
      Best again(scratch.reselect + list * 2 * layout.refine_capacity, layout.refine_capacity,
                 ix.heavy_size);
      again.scan(scores, 0, best.count());
      again.compact();
      best.keep(again.positions(), again.count());
    }
    emit_row(p.emit, list, state(task), best.positions(), best.count());
  }
};

}  // namespace

std::size_t scan_scratch_bytes(const IndexView& index, std::int32_t batch_size,
                               std::int32_t query_tokens) noexcept {
  const ScanLayout layout(index, batch_size, query_tokens, 1);
  Arena arena;
  const ScanScratch scratch(arena, index, layout, batch_size, query_tokens);
  // More than any Arena has, so that it is refused there.
  return arena.overflowed() ? (std::size_t{1} << 62) + 1 : arena.bytes();
}

Status scan(const ScanParams& p, const Launch& launch) noexcept {
  if (Status s = encode({p.index, p.step, p.keys}, launch); !s.ok()) return s;
  const ScanLayout layout(p.index, p.step.batch_size, p.step.query_tokens, launch.num_threads);
  Arena arena(p.backend_scratch);
  const Scan call{p, layout,
                  ScanScratch(arena, p.index, layout, p.step.batch_size, p.step.query_tokens)};
  if (Status s = mask({p.index, p.step, 1, call.scratch.states}, launch); !s.ok()) return s;
  const std::int64_t runs = layout.tasks / layout.together;
  const auto pieces = [&](Scan::Part part) {
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t i = 0; i < runs; ++i) call.run_piece(i, part);
  };
#pragma omp parallel num_threads(launch.num_threads)
  {
    if (layout.pieces == 1) {
#pragma omp for schedule(dynamic, 1)
      for (std::int64_t i = 0; i < runs; ++i) call.run_whole(i);
    } else {
      if (layout.softmaxes) {
        pieces(Scan::Part::largest);
#pragma omp for schedule(static)
        for (std::int64_t i = 0; i < layout.groups; ++i) {
          call.join_largest(call.task_of(i * layout.pieces));
        }
        pieces(Scan::Part::weights);
#pragma omp for schedule(static)
        for (std::int64_t i = 0; i < layout.groups; ++i) {
          call.join_weights(call.task_of(i * layout.pieces));
        }
      }
      pieces(Scan::Part::select);
#pragma omp for schedule(dynamic, 1)
      for (std::int64_t i = 0; i < layout.groups * layout.lists; ++i) call.merge(i);
    }
  }
  return Status();
}

}  // namespace quarry::cpu
