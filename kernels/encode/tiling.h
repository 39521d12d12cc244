// SPDX-License-Identifier: Apache-2.0
//
// How a sequence's unseen positions are cut into tiles of at most `keys` positions. With
// blocks, a tile holds whole blocks, or a chunk of one that is larger than a tile. Plain
// arithmetic, for host and device.
#pragma once

#include "params.h"

namespace quarry::cuda {

/// Rows of a tile in shared memory are this far apart, in floats: 16-byte aligned, and eight rows
/// apart in one column fall into distinct banks of a 16-byte access.
QUARRY_HD constexpr int tile_stride(int head_dim) { return head_dim + 4; }

struct Tile {
  std::int32_t first;        ///< its first position
  std::int32_t count;        ///< positions, at most `keys`
  std::int32_t first_block;  ///< block of position `first`, where block_size > 0
  bool stores_means;         ///< it holds its blocks' last positions' mean to store
};

struct Tiling {
  std::int32_t keys;        ///< positions a tile has room for
  std::int32_t block_size;  ///< 0: none
  std::int32_t encode_from;

  QUARRY_HD std::int32_t blocks_per_tile() const {
    return block_size >= keys ? 1 : keys / block_size;
  }
  QUARRY_HD std::int32_t tiles_per_block() const { return (block_size + keys - 1) / keys; }

  /// Tiles of positions [begin, n): of all of them, or of the blocks that are complete below
  /// n and end above begin.
  QUARRY_HD std::int32_t tiles(std::int32_t begin, std::int32_t n) const {
    if (n <= begin) return 0;
    if (block_size == 0) return (n - begin + keys - 1) / keys;
    const std::int32_t blocks = n / block_size - begin / block_size;
    if (blocks <= 0) return 0;
    if (block_size > keys) return blocks * tiles_per_block();
    return (blocks + blocks_per_tile() - 1) / blocks_per_tile();
  }

  QUARRY_HD Tile tile(std::int32_t begin, std::int32_t n, std::int32_t i) const {
    Tile t{0, 0, 0, false};
    std::int32_t end = n;
    if (block_size == 0) {
      t.first = begin + i * keys;
      if (end - t.first > keys) end = t.first + keys;
    } else if (block_size > keys) {
      const std::int32_t chunk = i % tiles_per_block();
      t.first_block = begin / block_size + i / tiles_per_block();
      t.first = t.first_block * block_size + chunk * keys;
      end = (t.first_block + 1) * block_size;
      if (end - t.first > keys) end = t.first + keys;
      t.stores_means = end == (t.first_block + 1) * block_size;
    } else {
      t.first_block = begin / block_size + i * blocks_per_tile();
      t.first = t.first_block * block_size;
      std::int32_t last_block = t.first_block + blocks_per_tile();
      if (last_block > n / block_size) last_block = n / block_size;
      end = last_block * block_size;
      t.stores_means = true;
    }
    // A block that holds sink keys starts where encoding does; a chunk may lie below.
    if (block_size > 0 && t.first < encode_from) t.first = encode_from;
    t.count = end > t.first ? end - t.first : 0;
    return t;
  }
};

/// Positions [from, end) of a tile whose row k is position base + k: a block's rows are aligned
/// whatever of it lies below encode_from.
struct ColumnsTile {
  std::int32_t base, from, end;
};

/// A sequence's tiles of as many keys as a block has, where there are blocks.
struct ColumnsTiles {
  std::int32_t base, from, end;  ///< of all of them
  std::int32_t keys, count;

  QUARRY_HD ColumnsTiles(const Tiling& tiling, std::int32_t begin, std::int32_t n)
      : base(begin), from(begin), end(n), keys(tiling.keys), count(tiling.tiles(begin, n)) {
    if (tiling.block_size == 0) return;
    base = begin / tiling.block_size * tiling.block_size;
    from = base < tiling.encode_from ? tiling.encode_from : base;
    end = n / tiling.block_size * tiling.block_size;
  }
  QUARRY_HD ColumnsTile tile(std::int32_t i) const {
    ColumnsTile t{base + i * keys, from, end};
    if (t.from < t.base) t.from = t.base;
    if (t.end - t.base > keys) t.end = t.base + keys;
    return t;
  }
};

}  // namespace quarry::cuda
