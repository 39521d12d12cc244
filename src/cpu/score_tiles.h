// SPDX-License-Identifier: Apache-2.0
//
// Tiles of codes, wherever they are, and the inner kernel of stage score, dispatched at run time.
#pragma once

#include <cstdint>

namespace quarry::cpu {

/// Whole tiles of one KV head's codes, [code_bytes][tile] each: side by side, or each where a
/// pointer says.
struct CodeTiles {
  const std::uint8_t* first;        ///< side by side
  const std::uint8_t* const* each;  ///< or, not null: less `offset`
  std::int64_t offset;
  std::int32_t tile;    ///< positions: 16 or 32
  std::int32_t stride;  ///< from byte to byte of a code: tile, more where tiles are parts of others
  std::int32_t code_bytes;

  const std::uint8_t* operator[](std::int32_t i) const {
    return each != nullptr ? each[i] + offset : first + std::int64_t{i} * tile * code_bytes;
  }
  /// The tiles from number i on.
  CodeTiles from(std::int32_t i) const {
    CodeTiles later = *this;
    if (each != nullptr) later.each += i;
    if (first != nullptr) later.first += std::int64_t{i} * tile * code_bytes;
    return later;
  }
};

/// Tiles, scored for `rows` query heads.
struct TileRun {
  CodeTiles codes;
  std::int32_t tiles, num_subspaces, bits;
  std::int32_t rows;
  const float* luts;  ///< [rows][lut_stride]: [m][ksub] each
  std::int64_t lut_stride;
  const float* biases;  ///< [rows][bias_stride] by block, where block_size > 0
  std::int64_t bias_stride;
  std::int32_t block_size;
  std::int32_t position;  ///< of the first key
  float* scores;          ///< [rows][score_stride], of the first key on
  std::int64_t score_stride;
};

void score_tiles(const TileRun& run);

}  // namespace quarry::cpu
