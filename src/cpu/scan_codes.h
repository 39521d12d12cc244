// SPDX-License-Identifier: Apache-2.0
//
// The codes of one KV head of a sequence as algorithm scan reads them, in whole tiles of 32, and
// the keys that pass its filters.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "cpu/code_walk.h"
#include "cpu/rows.h"
#include "cpu/scan_filter.h"
#include "cpu/score_tiles.h"

namespace quarry::cpu {

constexpr std::int32_t kScanStaged = 1024;  ///< positions whose scores are held together
constexpr std::int32_t kScanSampled = 16;   ///< neighbours that are sampled together
constexpr std::int32_t kMostCodeBytes = 64;

/// Codes of one KV head, wherever its positions are asked for.
class CodeReader {
 public:
  explicit CodeReader(const RowQuery& query)
      : query_(query), index_(query.index), table_(block_table_row(query.step, query.b)) {}

  const std::uint8_t* at(std::int32_t position) const {
    return index_.codes + code_offset(index_, page_of(index_, table_, query_.slot(), position),
                                      query_.kv_head(), position % index_.page_size);
  }

  /// Exact scores [tables.rows][stride] of positions [first, end).
  void score(const RowTables& tables, std::int32_t first, std::int32_t end, float* scores,
             std::int64_t stride) const {
    CodeWalk walk(query_, 1);
    walk.each_block(first, end, [&] {
      const Codes codes = walk.codes(0);
      score_codes(query_, tables, codes, scores + (codes.first - first), stride);
    });
  }

  /// Scores [tables.rows][stride] of `count` groups of 16 neighbours, at most kScanStaged
  /// positions; `starts` are multiples of 16. A block's bias is added last, so that with blocks
  /// they may be a rounding off.
  void score_sample(const RowTables& tables, const std::int32_t* starts, std::int32_t count,
                    float* scores, std::int64_t stride) const {
    const std::uint8_t* groups[kScanStaged / kScanSampled];
    for (std::int32_t i = 0; i < count; ++i) {
      groups[i] = at(starts[i]);
      __builtin_prefetch(groups[i]);
    }
    score_tiles({{nullptr, groups, 0, kScanSampled, index_.tile, index_.code_bytes},
                 count,
                 index_.num_subspaces,
                 index_.bits,
                 tables.rows,
                 tables.luts,
                 std::int64_t{index_.num_subspaces} * index_.ksub,
                 nullptr,
                 0,
                 0,
                 0,
                 scores,
                 stride});
    if (index_.block_size == 0) return;
    for (std::int32_t r = 0; r < tables.rows; ++r) {
      const float* biases = tables.biases + r * tables.bias_stride;
      for (std::int32_t i = 0; i < count * kScanSampled; ++i) {
        const std::int32_t position = starts[i / kScanSampled] + i % kScanSampled;
        scores[r * stride + i] += biases[position / index_.block_size];
      }
    }
  }

 private:
  const RowQuery& query_;
  const IndexView& index_;
  const std::int32_t* table_;
};

/// Which keys of a block pass filters.
class TileHits {
 public:
  /// Keys that pass any of `count` filters, whose biases are a stride apart. Returns how many do,
  /// where the block begins or ends within a tile maybe too many.
  std::int32_t find(const IndexView& index, const Filter* filters, std::int32_t count,
                    const float* biases, std::int64_t bias_stride, const Codes& codes) {
    std::int32_t found = 0;
    for (std::int32_t f = 0; f < count; ++f) {
      set_limits(index, filters[f], biases + (index.block_size > 0 ? f * bias_stride : 0), codes);
      const std::int32_t own =
          filter_tiles({codes.tiles, codes.count(), index.num_subspaces, index.bits,
                        filters[f].tables(), filters[f].wide(), limits_, f == 0 ? hits_ : more_});
      if (f == 0) {
        found = own;
        continue;
      }
      if (own == 0) continue;
      found = 0;
      for (std::int32_t tile = 0; tile < codes.count(); ++tile) {
        hits_[tile] |= more_[tile];
        found += std::popcount(hits_[tile]);
      }
    }
    return found;
  }

  /// So many are scored faster one and all.
  static bool most(std::int32_t found, const Codes& codes) {
    return found > codes.count() * kScanTile / 8;
  }

  /// use(tile, bits) of every tile.
  template <class Use>
  void each(const Codes& codes, Use&& use) {
    const std::int32_t tiles = codes.count();
    hits_[0] &= ~std::uint32_t{0} << (codes.first - codes.base);
    if (codes.end - codes.base < tiles * kScanTile) {
      hits_[tiles - 1] &= ~(~std::uint32_t{0} << (codes.end - codes.base) % kScanTile);
    }
    for (std::int32_t tile = 0; tile < tiles; ++tile) use(tile, hits_[tile]);
  }

 private:
  /// limits_[tile]: the loosest of the tile's blocks.
  void set_limits(const IndexView& index, const Filter& filter, const float* biases,
                  const Codes& codes) {
    const std::int32_t size = index.block_size, tiles = codes.count();
    if (size == 0) {
      std::fill_n(limits_, tiles, filter.limit(0));
      return;
    }
    std::int32_t tile = 0;
    std::int32_t block = codes.first / size;
    if (size % kScanTile == 0) {
      while (tile < tiles) {
        const std::int64_t block_end = (std::int64_t{block} + 1) * size - codes.base;
        const auto stop =
            static_cast<std::int32_t>(std::min<std::int64_t>(tiles, block_end / kScanTile));
        const std::uint16_t limit = filter.limit(biases[block++]);
        while (tile < stop) limits_[tile++] = limit;
      }
      return;
    }
    for (; tile < tiles; ++tile) {
      const std::int32_t from = codes.base + tile * kScanTile;
      const std::int32_t last = (std::min(from + kScanTile, codes.end) - 1) / size;
      limits_[tile] = filter.limit(biases[block]);
      while (block < last) {
        limits_[tile] = std::max(limits_[tile], filter.limit(biases[++block]));
      }
      if ((from + kScanTile) / size != block) ++block;  // the next tile begins in another
    }
  }

  std::uint16_t limits_[kScanBlock / kScanTile + 1];
  std::uint32_t hits_[kScanBlock / kScanTile + 1], more_[kScanBlock / kScanTile + 1];
};

/// Keys that passed, scored exactly: their codes are copied together as tiles of 16, with a bias
/// a key, so that the arithmetic is that of all others.
class Survivors {
 public:
  static constexpr std::int32_t kMost = 256;

  /// `biases` [rows][kMost], where block_size > 0; scores [rows][stride], at least kMost each.
  Survivors(const IndexView& index, float* biases, float* scores, std::int64_t stride)
      : index_(index), biases_(biases), scores_(scores), stride_(stride) {}

  /// use(positions, count) each time the scores of some of the keys that passed are there.
  template <class Use>
  void score(const RowTables& tables, TileHits& hits, const Codes& codes, Use&& use) {
    hits.each(codes, [&](std::int32_t tile, std::uint32_t bits) {
      for (; bits != 0; bits &= bits - 1) {
        const std::int32_t i = tile * kScanTile + std::countr_zero(bits);
        put(tables, codes.base + i, codes.key(i), codes.tiles.tile);
      }
      if (found_ > kMost - kScanTile) flush(tables, use);
    });
    flush(tables, use);
  }
  /// The same of `count` positions.
  template <class Use>
  void score(const RowTables& tables, const CodeReader& reader, const std::int32_t* positions,
             std::int32_t count, Use&& use) {
    for (std::int32_t i = 0; i < count; ++i) {
      put(tables, positions[i], reader.at(positions[i]), index_.tile);
      if (found_ == kMost) flush(tables, use);
    }
    flush(tables, use);
  }

 private:
  /// `code`: its byte 0, the next ones `tile` apart.
  void put(const RowTables& tables, std::int32_t position, const std::uint8_t* code,
           std::int32_t tile) {
    std::uint8_t* to = codes_ + found_ / 16 * 16 * index_.code_bytes + found_ % 16;
    for (std::int32_t byte = 0; byte < index_.code_bytes; ++byte) to[byte * 16] = code[byte * tile];
    if (index_.block_size > 0) {
      const std::int32_t block = position / index_.block_size;
      for (std::int32_t r = 0; r < tables.rows; ++r) {
        biases_[r * kMost + found_] = tables.biases[r * tables.bias_stride + block];
      }
    }
    positions_[found_++] = position;
  }

  template <class Use>
  void flush(const RowTables& tables, Use&& use) {
    const std::int32_t found = found_;
    found_ = 0;
    if (found == 0) return;
    complete(tables, found);
    use(positions_, found);
  }

  void complete(const RowTables& tables, std::int32_t found) {
    const std::int32_t bytes = index_.code_bytes;
    for (std::int32_t i = found; i % 16 != 0; ++i) {  // no code is without a key
      std::uint8_t* to = codes_ + i / 16 * 16 * bytes + i % 16;
      for (std::int32_t byte = 0; byte < bytes; ++byte) to[byte * 16] = to[byte * 16 - 1];
      for (std::int32_t r = 0; r < tables.rows && index_.block_size > 0; ++r) {
        biases_[r * kMost + i] = 0;
      }
    }
    score_tiles({{codes_, nullptr, 0, 16, 16, bytes},
                 (found + 15) / 16,
                 index_.num_subspaces,
                 index_.bits,
                 tables.rows,
                 tables.luts,
                 std::int64_t{index_.num_subspaces} * index_.ksub,
                 biases_,
                 kMost,
                 index_.block_size > 0 ? 1 : 0,
                 0,
                 scores_,
                 stride_});
  }

  const IndexView& index_;
  float *biases_, *scores_;
  std::int64_t stride_;
  std::int32_t found_ = 0;
  std::int32_t positions_[kMost];
  alignas(64) std::uint8_t codes_[kMost * kMostCodeBytes];
};

}  // namespace quarry::cpu
