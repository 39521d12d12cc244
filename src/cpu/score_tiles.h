// SPDX-License-Identifier: Apache-2.0
//
// The inner kernel of stage score, dispatched at run time: whole tiles of codes.
#pragma once

#include <cstdint>

namespace quarry::cpu {

/// Consecutive whole tiles of one page and KV head, scored for `rows` query heads.
struct TileRun {
  const std::uint8_t* codes;  ///< the first tile: [tiles][code_bytes][tile]
  std::int32_t tiles, tile;   ///< tile 16 or 32
  std::int32_t code_bytes, num_subspaces, bits;
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
