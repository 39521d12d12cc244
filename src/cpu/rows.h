// SPDX-License-Identifier: Apache-2.0
//
// What the stages do for one row or one run of positions. `staged` calls these over all rows a
// stage at a time, `scan` one row through all of them: the same arithmetic, hence the same bytes.
#pragma once

#include <cstdint>

#include "params.h"

namespace quarry::cpu {

/// A query head of a call.
struct RowQuery {
  const IndexView& index;
  const StepView& step;
  const QueryView& queries;
  std::int32_t b, t, head;  ///< head: the query head

  std::int32_t slot() const { return step.states[b].slot; }
  std::int32_t kv_head() const { return head / index.group_size; }
};

/// The LUT [m][ksub] of one row, from the rotated query.
void make_lut(const RowQuery& query, float* lut);

/// biases[g * stride + block] = q . mean for the blocks that positions [first, end) are in, of
/// the KV head's query heads (`query` is the first of them).
void make_biases(const RowQuery& query, std::int32_t first, std::int32_t end, float* biases,
                 std::int64_t stride);

/// The tables of query heads that share a KV head.
struct RowTables {
  std::int32_t rows;
  const float* luts;    ///< [rows][m][ksub]
  const float* biases;  ///< [rows][bias_stride] by block, where block_size > 0
  std::int64_t bias_stride;
};

/// Score of one position: byte 0 of its code is *code, byte i is i * tile further.
inline float score_position(const IndexView& index, const float* lut, const float* biases,
                            const std::uint8_t* code, std::int32_t tile, std::int32_t position) {
  // -0 + x is x, bit for bit.
  float score = index.block_size > 0 ? biases[position / index.block_size] : -0.0f;
  if (index.bits <= 4) {
    for (std::int32_t s = 0; s < index.num_subspaces; ++s, lut += index.ksub) {
      score += lut[code[s / 2 * tile] >> s % 2 * 4 & 15];
    }
  } else {
    for (std::int32_t s = 0; s < index.num_subspaces; ++s, lut += index.ksub) {
      score += lut[code[s * tile]];
    }
  }
  return score;
}

/// scores[h * stride + i] = q . key at positions[i], i < count, of `heads` query heads of one KV
/// head, `query` the first.
void refine_row(const RowQuery& query, std::int32_t heads, const KeyView& keys,
                const std::int32_t* positions, std::int32_t count, float* scores,
                std::int64_t stride);

/// The list of one row, and what the caller asked for beside it.
void emit_row(const EmitParams& p, std::int64_t row, const RowState& state,
              const std::int32_t* heavy, std::int32_t heavy_count);

}  // namespace quarry::cpu
