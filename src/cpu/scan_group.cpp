// SPDX-License-Identifier: Apache-2.0
//
// A row's threshold is guessed from the exact scores of a sample; its filter (scan_filter.h)
// names the keys that may reach it, and those are scored exactly, in the contract's order. K or
// more that do reach it are proof that the best K are among them. Else the guess was too high:
// a lower one is tried, then everything is scored. What the sample decides is the cost of a
// row, never what is selected.
#include "cpu/scan_group.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/score_tiles.h"

namespace quarry::cpu {
namespace {

constexpr std::int32_t kTile = 32;
constexpr std::int32_t kBlock = 4096;   ///< positions all rows of a group look at in turn
constexpr std::int32_t kStaged = 1024;  ///< the same where codes are copied together first
constexpr std::int32_t kSurvivors = 256;
constexpr std::int32_t kMostBytes = 64;
constexpr std::int32_t kSampled = 16;  ///< neighbours that are sampled together

/// Codes of positions base + i, in whole tiles of 32; only [first, end) counts.
struct Codes {
  const std::uint8_t* data;
  std::int32_t base, first, end;
};

class Scanner {
 public:
  Scanner(const ScanGroup& group, std::int32_t first, std::int32_t end)
      : group_(group),
        index_(group.query.index),
        table_(block_table_row(group.query.step, group.query.b)),
        first_(first),
        end_(end) {}

  void run();

 private:
  void guess(ScanRow& row, std::int32_t slack);
  void pass();
  void look(const Codes& codes);
  void filter(ScanRow& row, const Codes& codes);
  void set_limits(const ScanRow& row, const Codes& codes, std::int32_t tiles);
  void score_hits(ScanRow& row, const Codes& codes, std::int32_t tiles);
  void score_all(ScanRow& row, std::int32_t first, std::int32_t end);
  bool finite_biases(const ScanRow& row, float* least, float* largest) const;

  const std::uint8_t* codes_at(std::int32_t position) const {
    const std::int64_t page = page_of(index_, table_, group_.query.slot(), position);
    return index_.codes +
           code_offset(index_, page, group_.query.kv_head(), position % index_.page_size);
  }
  /// Codes of the 16 positions from a multiple of 16 on, into half `half` of staged tiles.
  void stage(std::int32_t position, std::int32_t half) {
    const std::uint8_t* from = codes_at(position);
    std::uint8_t* to = staged_ + half / 2 * kTile * index_.code_bytes + half % 2 * 16;
    for (std::int32_t byte = 0; byte < index_.code_bytes; ++byte) {
      std::memcpy(to + byte * kTile, from + byte * index_.tile, 16);
    }
  }

  const ScanGroup& group_;
  const IndexView& index_;
  const std::int32_t* table_;
  std::int32_t first_, end_;
  std::int32_t positions_[kSurvivors];
  float biases_[kSurvivors];
  alignas(64) std::uint8_t survivors_[kSurvivors * kMostBytes];
  std::uint16_t limits_[kBlock / kTile + 1];
  std::uint32_t hits_[kBlock / kTile + 1];
  alignas(64) float scores_[kBlock + kSampled];  // score_tiles() writes whole tiles
  alignas(64) std::uint32_t keys_[kBlock];
  alignas(64) std::uint8_t staged_[kStaged * kMostBytes];
};

bool Scanner::finite_biases(const ScanRow& row, float* least, float* largest) const {
  *least = *largest = 0;
  if (index_.block_size == 0) return true;
  const float inf = std::numeric_limits<float>::infinity();
  float low = inf, high = -inf;
  const std::int32_t last = (end_ - 1) / index_.block_size;
  for (std::int32_t block = first_ / index_.block_size; block <= last; ++block) {
    const float bias = row.biases[block];
    if (bias == inf) return false;
    if (!std::isfinite(bias)) continue;  // NaN, -infinity: below every threshold
    low = std::min(low, bias);
    high = std::max(high, bias);
  }
  if (low > high) return false;
  *least = low;
  *largest = high;
  return true;
}

/// A threshold that some 2 k candidates should reach, `slack` times that many where it was too
/// high before. The row is filtered where there is one, and a bound.
void Scanner::guess(ScanRow& row, std::int32_t slack) {
  const std::int64_t length = end_ - first_;
  row.filtered = false;
  row.best.start();
  if (index_.tile < 16 || length < 2048 || group_.k > length / 8) return;
  float least = 0, largest = 0;
  if (!finite_biases(row, &least, &largest) || !row.filter.open(row.lut, least, largest)) return;

  // Of `samples` groups of neighbours' scores the rank-th; more is surer and slower.
  const std::int64_t above = 2 * std::int64_t{group_.k} + 16;
  const std::int32_t low = (first_ + kSampled - 1) / kSampled, high = end_ / kSampled;
  const std::int64_t samples = std::clamp<std::int64_t>(
      length / above, 16, std::min((high - low) / 16 + 16, kBlock / kSampled));
  const std::int64_t count = samples * kSampled;
  std::int32_t positions[kStaged / kSampled];
  for (std::int64_t i = 0; i < samples;) {
    float* scores = scores_ + i * kSampled;
    const auto some =
        static_cast<std::int32_t>(std::min<std::int64_t>(samples - i, kStaged / kSampled));
    for (std::int32_t half = 0; half < some; ++half, ++i) {
      positions[half] = kSampled * static_cast<std::int32_t>(low + i * (high - low) / samples);
      stage(positions[half], half);
    }
    score_tiles({staged_, (some + 1) / 2, kTile, index_.code_bytes, index_.num_subspaces,
                 index_.bits, 1, row.lut, 0, nullptr, 0, 0, 0, scores, 0});
    for (std::int32_t j = 0; j < some * kSampled && index_.block_size > 0; ++j) {
      scores[j] += row.biases[(positions[j / kSampled] + j % kSampled) / index_.block_size];
    }
  }
  selection_keys(scores_, static_cast<std::int32_t>(count), keys_);
  const std::int64_t rank = std::max<std::int64_t>(above * count / length, 1);
  const auto most = static_cast<std::int32_t>(std::min(slack * rank, count));
  const std::uint32_t key = kth_key(keys_, static_cast<std::int32_t>(count), most, most + most / 4);
  if (key == 0) return;  // NaN
  const float threshold = selected_score(key);
  if (!std::isfinite(threshold)) return;
  row.filtered = true;
  row.filter.aim(row.lut, threshold);
  // Strictly above the key below it: threshold is finite, so its key is not the lowest.
  row.best.start_above(selection_key(threshold) - 1);
}

/// Scores of positions [first, end), at most kBlock of them.
void Scanner::score_all(ScanRow& row, std::int32_t first, std::int32_t end) {
  const RowTables tables{1, row.lut, row.biases, 0};
  for (std::int32_t position = first; position < end;) {
    const auto page_end = static_cast<std::int32_t>(std::min<std::int64_t>(
        end, (std::int64_t{position} / index_.page_size + 1) * index_.page_size));
    score_page(index_, tables, page_of(index_, table_, group_.query.slot(), position),
               group_.query.kv_head(), position, page_end, scores_ + (position - first), kBlock);
    position = page_end;
  }
  row.best.add(scores_, first, 0, end - first);
}

void Scanner::filter(ScanRow& row, const Codes& codes) {
  const std::int32_t tiles = (codes.end - codes.base + kTile - 1) / kTile;
  set_limits(row, codes, tiles);
  const std::int32_t found =
      filter_tiles({codes.data, tiles, index_.code_bytes, index_.num_subspaces, index_.bits,
                    row.filter.tables(), row.filter.wide(), limits_, hits_});
  if (found == 0) return;
  // So many are scored faster one and all.
  if (found > tiles * kTile / 8) {
    const std::uint32_t before = row.best.threshold();
    score_all(row, codes.first, codes.end);
    if (row.best.threshold() != before) {
      row.filter.aim(row.lut, selected_score(row.best.threshold()));
    }
    return;
  }
  hits_[0] &= ~std::uint32_t{0} << (codes.first - codes.base);
  if (codes.end - codes.base < tiles * kTile) {
    hits_[tiles - 1] &= ~(~std::uint32_t{0} << (codes.end - codes.base) % kTile);
  }
  score_hits(row, codes, tiles);
}

/// Exact scores of the keys that passed: their codes are copied together as tiles of 16, with a
/// bias a key, so that the arithmetic is that of all others.
void Scanner::score_hits(ScanRow& row, const Codes& codes, std::int32_t tiles) {
  const std::int32_t bytes = index_.code_bytes;
  std::int32_t found = 0;
  const auto flush = [&] {
    if (found == 0) return;
    for (std::int32_t i = found; i % 16 != 0; ++i) {  // no code is without a key
      std::uint8_t* to = survivors_ + i / 16 * 16 * bytes + i % 16;
      for (std::int32_t byte = 0; byte < bytes; ++byte) to[byte * 16] = to[byte * 16 - 1];
      biases_[i] = 0;
    }
    score_tiles({survivors_, (found + 15) / 16, 16, bytes, index_.num_subspaces, index_.bits, 1,
                 row.lut, 0, biases_, 0, index_.block_size > 0 ? 1 : 0, 0, scores_, 0});
    bool rose = false;
    for (std::int32_t i = 0; i < found; ++i) {
      rose = row.best.add(selection_key(scores_[i]), positions_[i]) || rose;
    }
    if (rose) row.filter.aim(row.lut, selected_score(row.best.threshold()));
    found = 0;
  };
  for (std::int32_t tile = 0; tile < tiles; ++tile) {
    const std::uint8_t* code = codes.data + std::int64_t{tile} * kTile * bytes;
    for (std::uint32_t bits = hits_[tile]; bits != 0; bits &= bits - 1) {
      const std::int32_t in_tile = std::countr_zero(bits);
      const std::int32_t position = codes.base + tile * kTile + in_tile;
      std::uint8_t* to = survivors_ + found / 16 * 16 * bytes + found % 16;
      for (std::int32_t byte = 0; byte < bytes; ++byte) {
        to[byte * 16] = code[byte * kTile + in_tile];
      }
      if (index_.block_size > 0) biases_[found] = row.biases[position / index_.block_size];
      positions_[found++] = position;
    }
    if (found > kSurvivors - kTile) flush();
  }
  flush();
}

/// limits_[tile]: the loosest of the tile's blocks.
void Scanner::set_limits(const ScanRow& row, const Codes& codes, std::int32_t tiles) {
  const std::int32_t size = index_.block_size;
  if (size == 0) {
    std::fill_n(limits_, tiles, row.filter.limit(0));
    return;
  }
  std::int32_t tile = 0;
  std::int32_t block = codes.first / size;
  if (size % kTile == 0) {
    while (tile < tiles) {
      const std::int64_t block_end = (std::int64_t{block} + 1) * size - codes.base;
      const auto stop = static_cast<std::int32_t>(std::min<std::int64_t>(tiles, block_end / kTile));
      const std::uint16_t limit = row.filter.limit(row.biases[block++]);
      while (tile < stop) limits_[tile++] = limit;
    }
    return;
  }
  for (; tile < tiles; ++tile) {
    const std::int32_t from = codes.base + tile * kTile;
    const std::int32_t last = (std::min(from + kTile, codes.end) - 1) / size;
    limits_[tile] = row.filter.limit(row.biases[block]);
    while (block < last) {
      limits_[tile] = std::max(limits_[tile], row.filter.limit(row.biases[++block]));
    }
    if ((from + kTile) / size != block) ++block;  // the next tile begins in another
  }
}

void Scanner::look(const Codes& codes) {
  for (std::int32_t g = 0; g < index_.group_size; ++g) {
    ScanRow& row = group_.rows[g];
    if (row.done) continue;
    if (row.filtered) {
      filter(row, codes);
    } else {
      score_all(row, codes.first, codes.end);
    }
  }
}

/// All positions once, block after block, for every row that is not done.
void Scanner::pass() {
  // Tiles of 32 in long pages are looked at where they are.
  const bool in_place = index_.tile == kTile && index_.page_size >= kStaged;
  for (std::int32_t position = first_; position < end_;) {
    std::int32_t base = position & ~(kTile - 1);
    const std::int32_t most = in_place ? kBlock : kStaged;
    std::int32_t end =
        static_cast<std::int32_t>(std::min<std::int64_t>(end_, std::int64_t{base} + most));
    if (index_.tile < 16) {
      look({nullptr, base, position, end});  // not filtered
    } else if (in_place) {
      const std::int32_t page_end = static_cast<std::int32_t>(std::min<std::int64_t>(
          end, (std::int64_t{position} / index_.page_size + 1) * index_.page_size));
      end = page_end;
      look({codes_at(base), base, position, end});
    } else {
      const std::int32_t halves = (end - base + 15) / 16;
      for (std::int32_t half = 0; half < halves; ++half) {
        const std::int32_t from = base + half * 16;
        stage(from, half);
      }
      look({staged_, base, position, end});
    }
    position = end;
  }
}

void Scanner::run() {
  if (index_.block_size > 0) {
    make_biases(group_.query, first_, end_, group_.biases, group_.bias_stride);
  }
  for (std::int32_t g = 0; g < index_.group_size; ++g) {
    ScanRow& row = group_.rows[g];
    RowQuery query = group_.query;
    query.head += g;
    make_lut(query, row.lut);
    row.biases = index_.block_size > 0 ? group_.biases + g * group_.bias_stride : nullptr;
    row.done = false;
    row.attempts = 0;
    guess(row, 1);
  }
  for (bool again = true; again;) {
    pass();
    again = false;
    for (std::int32_t g = 0; g < index_.group_size; ++g) {
      ScanRow& row = group_.rows[g];
      if (row.done) continue;
      row.done = row.best.satisfied();
      if (row.done) {
        row.best.compact();
        continue;
      }
      again = true;
      if (row.filtered && ++row.attempts < 2) {
        guess(row, 4);
      } else {
        row.filtered = false;
        row.best.start();
      }
    }
  }
}

}  // namespace

void scan_group(const ScanGroup& group, std::int32_t first, std::int32_t end) {
  Scanner(group, first, end).run();
}

}  // namespace quarry::cpu
