// SPDX-License-Identifier: Apache-2.0
//
// How a decode step's encoding is cut up: plain arithmetic, for host and device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "encode/tiling.h"

namespace quarry::cuda {

/// The cut of one sequence's and KV head's pending positions into items of work, each the
/// work of a thread block. Where more is pending than a call brings, there are more items
/// than `shares`, and thread blocks loop.
struct StepShape {
  Tiling tiling;
  std::int32_t shares;       ///< items of the positions that a call brings, at most
  bool wide;                 ///< keys may be read 16 bytes at a time
  std::size_t shared_bytes;  ///< dynamic shared memory that a thread block needs

  /// Items of positions [begin, n).
  QUARRY_HD std::int32_t items(std::int32_t begin, std::int32_t n) const {
    return tiling.tiles(begin, n);
  }
};

/// A tile with fewer subvectors than this is encoded a thread a centroid.
constexpr int kManySubvectors = 128;

/// Dynamic shared memory of a tile on its way to codes. The code that counts it carves it.
struct TileShared {
  float* xs;                 ///< [keys][stride]
  float* ys;                 ///< [keys][stride], rotated
  float* means;              ///< [blocks of a tile][d]
  float* extra;              ///< [keys][m]
  unsigned long long* best;  ///< [kManySubvectors]
  std::uint8_t* codes;       ///< [keys][m]
  std::size_t bytes = 0;

  QUARRY_HD TileShared(unsigned char* base, const IndexView& ix, const Tiling& tiling) {
    const auto take = [&](std::size_t size) {
      unsigned char* const here = base == nullptr ? nullptr : base + bytes;
      bytes += (size + 15) / 16 * 16;
      return here;
    };
    const auto keys = static_cast<std::size_t>(tiling.keys);
    const auto d = static_cast<std::size_t>(ix.head_dim);
    const auto m = static_cast<std::size_t>(ix.num_subspaces);
    const std::size_t tile = keys * static_cast<std::size_t>(tile_stride(ix.head_dim)) * 4;
    const bool blocks = ix.block_size > 0, ip = ix.metric == Metric::inner_product;
    xs = reinterpret_cast<float*>(take(tile));
    ys = reinterpret_cast<float*>(take(ix.rotation != nullptr ? tile : 0));
    means = reinterpret_cast<float*>(
        take(blocks ? static_cast<std::size_t>(tiling.blocks_per_tile()) * d * 4 : 0));
    extra = reinterpret_cast<float*>(take(ip ? keys * m * 4 : 0));
    best = reinterpret_cast<unsigned long long*>(take(kManySubvectors * 8));
    codes = take(keys * m);
  }
};

/// The largest tile of at most `keys` that leaves room for two thread blocks on every
/// multiprocessor from 8.6 (100 KB) on.
inline Tiling tiling_of(const IndexView& ix, std::int32_t keys) {
  constexpr std::size_t kMost = 96 * 1024;
  Tiling t{keys, ix.block_size, ix.encode_from};
  while (t.keys > 8 && TileShared(nullptr, ix, t).bytes > kMost) t.keys /= 2;
  return t;
}

/// Host. A step has positions for what a call may bring and one block completed.
inline StepShape step_shape(const EncodeParams& p, bool wide) {
  const IndexView& ix = p.index;
  StepShape shape{};
  shape.tiling = tiling_of(ix, 16);
  std::int32_t positions = p.step.query_tokens;
  if (ix.block_size > 0) {
    positions = ((positions - 1) / ix.block_size + 1) * ix.block_size;
  }
  // encode_from clips no tile here: it only makes them shorter.
  shape.shares = shape.tiling.tiles(0, positions);
  shape.wide = wide;
  shape.shared_bytes = TileShared(nullptr, ix, shape.tiling).bytes;
  return shape;
}

}  // namespace quarry::cuda
