// SPDX-License-Identifier: Apache-2.0
//
// How a decode step's encoding is cut up, and what each piece needs of shared memory: plain
// arithmetic, for host and device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "encode/tiling.h"

namespace quarry::cuda {

/// One item of work: some keys of a tile, of them some consecutive bytes of code.
struct StepItem {
  Tile tile;
  std::int32_t tile_id;
  std::int32_t group;
  std::int32_t first_row, end_row;            ///< of the tile
  std::int32_t first_byte, end_byte;          ///< of a key's code
  std::int32_t first_subspace, end_subspace;  ///< those that the bytes hold
  bool stores_means;                          ///< of the subspaces' columns
};

/// The cut of one sequence's and KV head's pending positions into items, each the work of a
/// thread block. An item reads all keys of its tile, for the means, but of the rotation and the
/// codebook only what its own subspaces take: that is what most of a step's bytes are.
struct StepShape {
  Tiling tiling;
  std::int32_t groups;       ///< of a key's code bytes
  std::int32_t group_bytes;  ///< code bytes a group; the last may have fewer
  std::int32_t parts;        ///< of a tile's keys
  std::int32_t part_keys;
  std::int32_t shares;       ///< items of the positions that a call brings, at most
  bool wide;                 ///< is_wide() of the keys
  bool stages_rotation;      ///< the item's columns are copied to shared memory first
  bool stages_codebook;      ///< the item's centroids are
  std::size_t shared_bytes;  ///< dynamic shared memory that a thread block needs

  /// Items of positions [begin, n). Where more is pending than a call brings, there are more
  /// of them than `shares`, and thread blocks loop.
  QUARRY_HD std::int32_t items(std::int32_t begin, std::int32_t n) const {
    return tiling.tiles(begin, n) * groups * parts;
  }

  QUARRY_HD StepItem item(const IndexView& ix, std::int32_t begin, std::int32_t n,
                          std::int32_t i) const {
    StepItem it;
    const std::int32_t part = i % parts;
    it.group = i / parts % groups;
    it.tile_id = i / parts / groups;
    it.tile = tiling.tile(begin, n, it.tile_id);
    it.first_row = part * part_keys;
    it.end_row = it.first_row + part_keys;
    if (it.end_row > it.tile.count) it.end_row = it.tile.count;
    it.first_byte = it.group * group_bytes;
    it.end_byte = it.first_byte + group_bytes;
    if (it.end_byte > ix.code_bytes) it.end_byte = ix.code_bytes;
    const std::int32_t a_byte = ix.bits <= 4 ? 2 : 1;
    it.first_subspace = it.first_byte * a_byte;
    it.end_subspace = it.end_byte * a_byte;
    if (it.end_subspace > ix.num_subspaces) it.end_subspace = ix.num_subspaces;
    it.stores_means = it.tile.stores_means && part == 0;
    return it;
  }

  /// Subspaces a group has, at most.
  QUARRY_HD std::int32_t group_subspaces(const IndexView& ix) const {
    const std::int32_t count = group_bytes * (ix.bits <= 4 ? 2 : 1);
    return count < ix.num_subspaces ? count : ix.num_subspaces;
  }
  /// Columns of the rotation that a group takes, at most: its own, out to multiples of four.
  QUARRY_HD std::int32_t group_columns(const IndexView& ix) const {
    const std::int32_t own = group_subspaces(ix) * ix.dsub;
    const std::int32_t most = ix.dsub % 4 == 0 ? own : (own + 6) / 4 * 4;
    return most < ix.head_dim ? most : ix.head_dim;
  }
};

/// Dynamic shared memory of an item. The code that counts it carves it.
struct StepShared {
  float* xs;            ///< [keys][tile_stride(d)]
  float* ys;            ///< [part keys][tile_stride(group columns)], rotated
  float* rotation;      ///< [d][group columns], where staged
  float* codebook;      ///< [group subspaces][dcent][ksub], where staged
  float* means;         ///< [blocks of a tile][d]
  float* extra;         ///< [part keys][group subspaces], inner_product alone
  std::uint8_t* codes;  ///< [part keys][group subspaces]
  std::size_t bytes = 0;

  QUARRY_HD StepShared(unsigned char* base, const IndexView& ix, const StepShape& shape) {
    const auto take = [&](std::int64_t count, std::int64_t size) {
      unsigned char* const here = base == nullptr ? nullptr : base + bytes;
      bytes += static_cast<std::size_t>((count * size + 15) / 16 * 16);
      return here;
    };
    const std::int64_t d = ix.head_dim, rows = shape.part_keys;
    const std::int64_t columns = shape.group_columns(ix), subspaces = shape.group_subspaces(ix);
    const bool rotates = ix.rotation != nullptr;
    xs = reinterpret_cast<float*>(
        take(std::int64_t{shape.tiling.keys} * tile_stride(ix.head_dim), 4));
    ys = reinterpret_cast<float*>(
        take(rotates ? rows * tile_stride(static_cast<int>(columns)) : 0, 4));
    rotation = reinterpret_cast<float*>(take(shape.stages_rotation ? d * columns : 0, 4));
    codebook = reinterpret_cast<float*>(
        take(shape.stages_codebook ? subspaces * ix.dcent * ix.ksub : 0, 4));
    means = reinterpret_cast<float*>(
        take(ix.block_size > 0 ? shape.tiling.blocks_per_tile() * d : 0, 4));
    extra = reinterpret_cast<float*>(
        take(ix.metric == Metric::inner_product ? rows * subspaces : 0, 4));
    codes = take(rows * subspaces, 1);
  }
};

/// The most shared memory of an item: two thread blocks on every multiprocessor from 8.6
/// (100 KB) on would be better, but large blocks' means are worth more.
constexpr std::size_t kMostStepShared = 96 * 1024;
/// Thread blocks beyond this gain nothing: they would wait for each other.
constexpr std::int32_t kMostStepBlocks = 512;

/// Host: the cut of a step. most_bytes: of shared memory, at least 96 KB for every shape to
/// fit.
inline StepShape step_shape(const EncodeParams& p, bool wide,
                            std::size_t most_bytes = kMostStepShared) {
  const IndexView& ix = p.index;
  const std::int32_t bs = ix.block_size;
  StepShape shape{};
  shape.wide = wide;
  // A whole block a tile, where it fits, so that its mean comes from shared memory.
  shape.tiling = {bs <= 16 ? 16 : bs <= 128 ? bs : 64, bs, ix.encode_from};
  shape.parts = (shape.tiling.keys + 31) / 32;
  shape.group_bytes = 1;
  const bool heavy = ix.rotation != nullptr || bs > 0;
  const std::int32_t columns = heavy ? 16 : 64;
  while (shape.group_bytes < ix.code_bytes && shape.group_subspaces(ix) * ix.dsub < columns) {
    shape.group_bytes *= 2;
  }
  // encode_from clips no tile here: it only makes them shorter.
  std::int32_t positions = p.step.query_tokens;
  if (bs > 0) positions = ((positions - 1) / bs + 1) * bs;
  const std::int64_t heads = std::int64_t{p.step.batch_size} * ix.num_kv_heads;
  const auto cut = [&] {
    shape.part_keys = (shape.tiling.keys + shape.parts - 1) / shape.parts;
    shape.groups = (ix.code_bytes + shape.group_bytes - 1) / shape.group_bytes;
    shape.shares = shape.items(0, positions);
    shape.shared_bytes = StepShared(nullptr, ix, shape).bytes;
  };
  const auto fits = [&](bool rotation, bool codebook) {
    shape.stages_rotation = rotation && ix.rotation != nullptr;
    shape.stages_codebook = codebook;
    cut();
    return shape.shared_bytes <= most_bytes;
  };
  cut();
  while (heads * shape.shares > kMostStepBlocks && shape.parts > 1) --shape.parts, cut();
  while (heads * shape.shares > kMostStepBlocks && shape.groups > 1) shape.group_bytes *= 2, cut();
  while (!fits(true, true) && !fits(true, false) && !fits(false, true) && !fits(false, false)) {
    if (shape.parts > 1) {
      shape.parts = 1;  // halves of the tile from here on
    }
    if (shape.tiling.keys <= 8) break;
    shape.tiling.keys /= 2;
  }
  return shape;
}

}  // namespace quarry::cuda
