// SPDX-License-Identifier: Apache-2.0
//
// The codes of some KV heads of a sequence, block after block. A contiguous cache and long pages
// are read where they are, tile beside tile. Short pages lie anywhere, and a page has few bytes of
// a KV head (m=2, 16 positions: half a cache line), so that one head after the other would read
// every line for a fraction of it, each at the price of a jump. Hence several heads that are
// neighbours in a page pass a block of positions in turn: a jump brings a whole stretch, and the
// heads that come next find it in the cache. Nothing is copied: every tile has a pointer.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/rows.h"
#include "cpu/score_tiles.h"

namespace quarry::cpu {

constexpr std::int32_t kScanTile = 32;
constexpr std::int32_t kScanBlock = 4096;  ///< positions all rows of a group look at in turn

/// Stretches of memory to be fetched for later, a few lines at a time between other work: given
/// more at once than it keeps track of, a processor waits for them.
struct Fetch {
  const std::uint8_t* const* stretches;
  std::int64_t bytes;      ///< of each
  std::int32_t next, end;  ///< still to be fetched
  std::int64_t at;         ///< of `next`, bytes done

  /// Lines that each of `steps` steps is to fetch.
  std::int64_t lines(std::int64_t steps) const {
    return ((end - next) * ((bytes + 63) / 64) + steps - 1) / steps;
  }
  void some(std::int64_t lines) {
    for (; lines > 0 && next < end; --lines) {
      __builtin_prefetch(stretches[next] + at);
      at += 64;
      if (at < bytes) continue;
      at = 0;
      ++next;
    }
  }
};

/// Codes of positions base + i, in whole tiles of 32 (or pairs of 16); only [first, end) counts.
struct Codes {
  CodeTiles tiles;
  std::int32_t base, first, end;
  Fetch* fetch;  ///< this head's share of the next block, or null

  /// Tiles of 32, or pairs of tiles of 16.
  std::int32_t count() const { return (end - base + kScanTile - 1) / kScanTile; }
  /// Byte 0 of position base + i's code; the next ones are tiles.tile apart.
  const std::uint8_t* key(std::int32_t i) const {
    return tiles.tile == 16 ? tiles[i >> 4] + (i & 15) : tiles[i >> 5] + (i & 31);
  }
};

/// scores[r * stride + i] of positions codes.first + i < codes.end of query's KV head.
void score_codes(const RowQuery& query, const RowTables& tables, const Codes& codes, float* scores,
                 std::int64_t stride);

class CodeWalk {
 public:
  /// Pages this long are read where they are.
  static constexpr std::int32_t kLongPage = kScanBlock;

  /// KV heads at most that pass together. With kStretch: of a block some 256 KB of codes.
  static constexpr std::int32_t kMostHeads = 32;

  /// How many KV heads (a divisor of their number) pay off, where `groups` groups of them each in
  /// `pieces` are dealt to so many threads.
  static std::int32_t heads_together(const IndexView& index, std::int64_t groups,
                                     std::int64_t pieces, std::int32_t num_threads) {
    if (index.tile < 16 || index.page_size >= kLongPage) return 1;
    const std::int64_t bytes = std::int64_t{index.page_slots} * index.code_bytes;
    std::int32_t heads = 1;
    while (2 * heads <= kMostHeads && index.num_kv_heads % (2 * heads) == 0 &&
           heads * bytes < kStretch) {
      const std::int64_t tasks = groups / (2 * heads) * pieces;
      if (tasks % num_threads != 0 && tasks < 4 * std::int64_t{num_threads}) break;
      heads *= 2;
    }
    return heads;
  }

  /// `heads` KV heads, query's own the first. `fetches`: codes() says what to fetch meanwhile.
  /// Stage score gains by it; the scan's filter has more loads under way by itself than pay.
  CodeWalk(const RowQuery& query, std::int32_t heads, bool fetches = false)
      : index_(query.index),
        table_(block_table_row(query.step, query.b)),
        slot_(query.slot()),
        first_head_(query.kv_head()),
        heads_(heads),
        fetches_(fetches),
        head_bytes_(std::int64_t{index_.page_slots} * index_.code_bytes) {}

  /// look() at [first, end), block by block: whoever is called asks codes() of each head, once.
  /// Pages without whole tiles of 16 give no tiles.
  template <class Look>
  void each_block(std::int32_t first, std::int32_t end, Look&& look) {
    if (first >= end) return;
    if (index_.tile < 16 || in_place()) return each_stretch(first, end, look);
    std::int32_t base = first & ~(kScanTile - 1);
    std::int32_t stop = block_end(base, end);
    Block* block = &blocks_[0];
    Block* next = &blocks_[1];
    fill(block, base, stop);
    const std::int64_t stretch = heads_ * head_bytes_;
    if (fetches_) {
      Fetch all{block->pages, stretch, 0, block->num_pages, 0};
      all.some(all.lines(1));
    }
    for (;;) {
      next->num_pages = 0;
      const std::int32_t next_stop = block_end(stop, end);
      if (stop < end) fill(next, stop, next_stop);
      current_ = {{nullptr, block->tiles, 0, index_.tile, index_.tile, index_.code_bytes},
                  base,
                  first,
                  stop,
                  nullptr};
      next_pages_ = fetches_ ? next->num_pages : 0;
      fetch_ = {next->pages, stretch, 0, 0, 0};
      look();
      if (stop == end) return;
      first = base = stop;
      stop = next_stop;
      std::swap(block, next);
    }
  }

  /// Of the block, the walk's head `head`.
  Codes codes(std::int32_t head) {
    Codes own = current_;
    if (own.tiles.each != nullptr) {
      own.tiles.offset = head * head_bytes_;
      fetch_.end = (head + 1) * next_pages_ / heads_;
      if (fetch_.next < fetch_.end) own.fetch = &fetch_;
    } else if (own.tiles.first != nullptr) {
      own.tiles.first += head * head_bytes_;
    }
    return own;
  }

 private:
  static constexpr std::int64_t kStretch = 1024;  ///< bytes of a page that are worth a jump

  struct Block {
    const std::uint8_t* tiles[kScanBlock / 16];  ///< of the first head
    const std::uint8_t* pages[kScanBlock / 16 + 1];
    std::int32_t num_pages;
  };

  bool in_place() const {
    return table_ == nullptr || (index_.tile == kScanTile && index_.page_size >= kLongPage);
  }

  static std::int32_t block_end(std::int32_t base, std::int32_t end) {
    return static_cast<std::int32_t>(std::min<std::int64_t>(end, std::int64_t{base} + kScanBlock));
  }

  const std::uint8_t* page_codes(std::int32_t number) const {
    const std::int64_t page = table_ == nullptr ? slot_ : table_[number];
    return index_.codes + (page * index_.num_kv_heads + first_head_) * head_bytes_;
  }

  /// Positions [base, end), from a multiple of 32 on, tiles in pairs. Whole tiles make a page of
  /// a cache in pages.
  void fill(Block* block, std::int32_t base, std::int32_t end) const {
    const std::int32_t tile = index_.tile, size = index_.page_size;
    const std::int64_t tile_bytes = std::int64_t{tile} * index_.code_bytes;
    const std::int32_t tiles = (end - base + tile - 1) / tile;
    const std::int32_t in_page = size / tile;
    std::int32_t number = base / size, pages = 0;
    std::int32_t at = (base - number * size) / tile;
    for (std::int32_t i = 0; i < tiles; at = 0) {
      const std::uint8_t* page = page_codes(number++);
      block->pages[pages++] = page;
      const std::int32_t some = std::min(in_page - at, tiles - i);
      const std::uint8_t* own = page + at * tile_bytes;
      for (std::int32_t j = 0; j < some; ++j, own += tile_bytes) block->tiles[i++] = own;
    }
    if (tile == 16 && tiles % 2 != 0) block->tiles[tiles] = block->tiles[tiles - 1];
    block->num_pages = pages;
  }

  /// look() at stretches that are not copied from one page, at most kScanBlock long.
  template <class Look>
  void each_stretch(std::int32_t first, std::int32_t end, Look&& look) {
    while (first < end) {
      const std::int32_t base = first & ~(kScanTile - 1);
      std::int64_t stop = std::min<std::int64_t>(end, std::int64_t{base} + kScanBlock);
      const std::uint8_t* tiles = nullptr;
      if (in_place()) {
        const std::int32_t number = first / index_.page_size, start = number * index_.page_size;
        stop = std::min(stop, std::int64_t{start} + index_.page_size);
        tiles = page_codes(number) + std::int64_t{base - start} * index_.code_bytes;
      }
      current_ = {{tiles, nullptr, 0, index_.tile, index_.tile, index_.code_bytes},
                  base,
                  first,
                  static_cast<std::int32_t>(stop),
                  nullptr};
      look();
      first = static_cast<std::int32_t>(stop);
    }
  }

  const IndexView& index_;
  const std::int32_t* table_;
  std::int32_t slot_, first_head_, heads_;
  bool fetches_;
  std::int64_t head_bytes_;  ///< of a page
  Codes current_{};
  Fetch fetch_{};
  std::int32_t next_pages_ = 0;  ///< of the next block, to be fetched
  Block blocks_[2];
};

}  // namespace quarry::cpu
