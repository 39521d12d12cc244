// SPDX-License-Identifier: Apache-2.0
//
// How algorithm scan cuts a call into tasks, and its scratch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cpu/scan_codes.h"
#include "cpu/scan_group.h"
#include "plan.h"

namespace quarry::cpu {

static_assert(std::is_trivially_destructible_v<ScanRow>);
static_assert(std::is_trivially_destructible_v<ScanGroup>);
static_assert(std::is_trivially_destructible_v<Filter>);
static_assert(std::is_trivially_destructible_v<Best>);

/// How a call is cut, and what it needs: that is a function of shapes alone.
struct ScanLayout {
  static constexpr std::int32_t kTasks = 64;        // enough for any machine's threads
  static constexpr std::int32_t kShortest = 16384;  // of a piece
  static constexpr std::int32_t kLikely = 3;        // times K are kept of what may rank high

  std::int32_t k, capacity, refine_capacity, likely_capacity;
  std::int32_t lists, heads, filters;  // of a group; of a list; of a list
  std::int64_t groups, tasks;
  std::int32_t pieces;      // of a group
  std::int32_t together;    // groups of one sequence and token, walked together
  std::int64_t task_space;  // tasks, never fewer for more groups
  std::int64_t bias_stride;
  bool sums, softmaxes, reduces;

  /// More than one piece a group only where `num_threads` would have none or unequal work:
  /// each looks for its own best, so that pieces are more work.
  ScanLayout(const IndexView& ix, std::int32_t batch_size, std::int32_t query_tokens,
             std::int32_t num_threads) {
    k = ix.refine_factor * ix.heavy_size;
    capacity = Best::capacity(k, ix.max_seq_len);
    refine_capacity = Best::capacity(ix.heavy_size, k);
    likely_capacity = Best::capacity(kLikely * k, ix.max_seq_len);
    reduces = ix.reduction != GqaReduction::per_head;
    sums = ix.reduction == GqaReduction::sum;
    softmaxes = ix.reduction == GqaReduction::softmax_sum;
    lists = reduces ? 1 : ix.group_size;
    heads = reduces ? ix.group_size : 1;
    filters = sums ? 1 : heads;
    groups = std::int64_t{batch_size} * query_tokens * ix.num_kv_heads;
    const std::int32_t most = std::max(ix.max_seq_len / std::max(kShortest, 16 * k), 1);
    const std::int64_t wanted = groups % num_threads == 0 ? 1 : 4 * num_threads / groups;
    pieces = static_cast<std::int32_t>(
        std::clamp<std::int64_t>(std::min(wanted, kTasks / groups), 1, most));
    tasks = groups * pieces;
    // softmax_sum looks at a group three times, and with arithmetic that outweighs any jump.
    together = softmaxes ? 1 : CodeWalk::heads_together(ix, groups, pieces, num_threads);
    task_space = std::min(groups * most, std::max<std::int64_t>(groups, kTasks));
    bias_stride = ix.block_size > 0 ? std::max(ix.max_seq_len / ix.block_size, 1) : 0;
  }
};

struct ScanScratch {
  RowState* states;  ///< [B, T]
  // Of a task.
  ScanRow* rows;               ///< [lists]
  std::uint32_t* best;         ///< [lists], Best::bytes() each
  Filter* filters;             ///< [lists, filters]
  std::uint8_t* tables;        ///< [lists, filters][m][filter_entries]
  float* luts;                 ///< [G][m][ksub]
  float* scores;               ///< [G][kScanStaged], with a reduction
  float* survivor_biases;      ///< [G][Survivors::kMost], with a reduction and blocks
  float* sum_lut;              ///< [m][ksub], sum
  float* largest;              ///< [G], softmax_sum
  std::uint64_t* weights;      ///< [G], softmax_sum
  HeadSoftmax* guesses;        ///< [G], softmax_sum
  Best* likely;                ///< softmax_sum
  std::uint32_t* likely_best;  ///< Best::bytes(), softmax_sum
  // Of a group.
  float* biases;         ///< [G][bias_stride]
  float* sum_biases;     ///< [bias_stride], sum
  HeadSoftmax* softmax;  ///< [G], softmax_sum
  // Of a list.
  float* refined;           ///< [heads][r K], with refine
  std::uint32_t* reselect;  ///< Best::bytes(), with refine

  ScanScratch(Arena& arena, const IndexView& ix, const ScanLayout& layout, std::int32_t batch_size,
              std::int32_t query_tokens) {
    const std::int64_t tasks = layout.task_space, groups = layout.groups, g = ix.group_size;
    const std::int64_t entries = std::int64_t{ix.num_subspaces} * ix.ksub;
    const std::int64_t filters_each = std::int64_t{layout.lists} * layout.filters;
    const bool blocks = layout.reduces && ix.block_size > 0;
    const bool refines = ix.refine_factor > 1;
    states = arena.take<RowState>(batch_size, query_tokens);
    rows = arena.take<ScanRow>(tasks, layout.lists);
    best = arena.take<std::uint32_t>(tasks, layout.lists, 2, layout.capacity);
    filters = arena.take<Filter>(tasks, filters_each);
    tables =
        arena.take<std::uint8_t>(tasks, filters_each, ix.num_subspaces, filter_entries(ix.bits));
    luts = arena.take<float>(tasks, g, entries);
    scores = arena.take<float>(layout.reduces ? tasks : 0, g, kScanStaged);
    survivor_biases = arena.take<float>(blocks ? tasks : 0, g, Survivors::kMost);
    sum_lut = arena.take<float>(layout.sums ? tasks : 0, entries);
    largest = arena.take<float>(layout.softmaxes ? tasks : 0, g);
    weights = arena.take<std::uint64_t>(layout.softmaxes ? tasks : 0, g);
    guesses = arena.take<HeadSoftmax>(layout.softmaxes ? tasks : 0, g);
    likely = arena.take<Best>(layout.softmaxes ? tasks : 0);
    likely_best =
        arena.take<std::uint32_t>(layout.softmaxes ? tasks : 0, 2, layout.likely_capacity);
    biases = arena.take<float>(groups, g, layout.bias_stride);
    sum_biases = arena.take<float>(layout.sums ? groups : 0, layout.bias_stride);
    softmax = arena.take<HeadSoftmax>(layout.softmaxes ? groups : 0, g);
    refined = arena.take<float>(refines ? groups : 0, g, layout.k);
    reselect =
        arena.take<std::uint32_t>(refines ? groups : 0, layout.lists, 2, layout.refine_capacity);
  }
};

}  // namespace quarry::cpu
