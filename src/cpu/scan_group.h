// SPDX-License-Identifier: Apache-2.0
//
// Algorithm scan for the lists of one KV head over a piece of a sequence: one of each of its query
// heads or, under a GQA reduction, one of them all.
#pragma once

#include <cstdint>

#include "cpu/best.h"
#include "cpu/rows.h"
#include "cpu/scan_filter.h"

namespace quarry::cpu {

/// One list's state while its positions pass. It has `heads` query heads and a filter for each,
/// but one for all where their scores are added up.
struct ScanRow {
  Best best;
  Filter* filters;
  const float* luts;              ///< [heads][m][ksub]
  const float* biases = nullptr;  ///< [heads][bias_stride] by block, where block_size > 0
  bool filtered = false;          ///< keys go through the filters, else all are scored
  bool done = false;
  std::int32_t attempts = 0;
};

/// Lists of one KV head: `lists` of `heads` query heads, lists * heads = group_size. `query` is
/// the first head of all.
struct ScanGroup {
  RowQuery query;
  std::int32_t lists, heads;
  ScanRow* rows;  ///< [lists]
  std::int32_t k;
  float* luts;    ///< [group_size][m][ksub]
  float* biases;  ///< [group_size][bias_stride], where block_size > 0
  std::int64_t bias_stride;
  // Under a reduction.
  GqaReduction reduction;
  float scale;
  float* scores;               ///< [group_size][kScanStaged]
  float* survivor_biases;      ///< [group_size][Survivors::kMost], where block_size > 0
  float* sum_lut;              ///< [m][ksub], sum alone
  float* sum_biases;           ///< [bias_stride], sum alone
  const HeadSoftmax* softmax;  ///< [group_size], softmax_sum alone
  HeadSoftmax* guesses;        ///< [group_size], softmax_sum alone: softmax as a sample has it
  Best* likely;                ///< softmax_sum alone: those that rank high by `guesses`

  bool reduces() const { return reduction != GqaReduction::per_head; }
  /// Of a list.
  std::int32_t num_filters() const { return reduction == GqaReduction::sum ? 1 : heads; }
};

/// The LUTs and the biases of positions [first, end), which what follows reads.
void scan_tables(const ScanGroup& group, std::int32_t first, std::int32_t end);

/// The least and the largest finite one of the biases of positions [first, end); 0, 0 without
/// blocks. False where one is +infinity or none is finite: no filter then.
bool bias_range(const IndexView& index, const float* biases, std::int32_t first, std::int32_t end,
                float* least, float* largest);

/// Leaves in rows[i].best the best k of positions [first, end), for `count` groups of KV heads
/// that are neighbours.
void scan_groups(const ScanGroup* groups, std::int32_t count, std::int32_t first, std::int32_t end);

// What softmax_sum must know before that, from all pieces of a list.

/// largest[g]: of head g's scores of positions [first, end), NaN aside; NaN where there is
/// nothing else. The group has one row, whose filters are used.
void scan_largest(const ScanGroup& group, std::int32_t first, std::int32_t end, float* largest);

/// weights[g]: the sum of head g's fixed weights, given softmax[g].largest. In passing, what is
/// likely to rank high goes to `likely`.
void scan_weights(const ScanGroup& group, std::int32_t first, std::int32_t end,
                  std::uint64_t* weights);

/// scan_groups() from `likely` alone. False, and nothing is left, where they might not be all.
bool scan_likely(const ScanGroup& group);

}  // namespace quarry::cpu
