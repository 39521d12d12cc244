// SPDX-License-Identifier: Apache-2.0
//
// Algorithm scan for the rows of one KV head over a piece of a sequence.
#pragma once

#include <cstdint>

#include "cpu/best.h"
#include "cpu/rows.h"
#include "cpu/scan_filter.h"

namespace quarry::cpu {

/// One row's state while its positions pass.
struct ScanRow {
  ScanRow(const IndexView& index, void* best_memory, std::int32_t capacity, float* lut_memory,
          std::uint8_t* tables, std::int32_t k)
      : best(best_memory, capacity, k),
        filter(tables, index.num_subspaces, index.bits),
        lut(lut_memory) {}

  Best best;
  Filter filter;
  float* lut;                     ///< [m][ksub]
  const float* biases = nullptr;  ///< by block, where block_size > 0
  bool filtered = false;          ///< keys go through the filter, else all are scored
  bool done = false;
  std::int32_t attempts = 0;
};

/// Rows of one KV head: `rows` is [group_size], `query` the first of them.
struct ScanGroup {
  const RowQuery& query;
  ScanRow* rows;
  std::int32_t k;
  float* biases;  ///< [group_size][bias_stride], where block_size > 0
  std::int64_t bias_stride;
};

/// Leaves in rows[g].best the best k of positions [first, end).
void scan_group(const ScanGroup& group, std::int32_t first, std::int32_t end);

}  // namespace quarry::cpu
