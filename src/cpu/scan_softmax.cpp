// SPDX-License-Identifier: Apache-2.0
//
// A softmax over a row's candidates, before any of them can be ranked: each head's largest score,
// which the filters find as they find the best K, and its sum of weights, for which every score
// must be made. Scores live in a tile's worth of memory.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/reduce_rows.h"
#include "cpu/scan_codes.h"
#include "cpu/scan_group.h"
#include "reduction.h"

namespace quarry::cpu {
namespace {

RowTables tables_of(const ScanGroup& group) {
  return {group.heads, group.luts, group.biases, group.bias_stride};
}

class LargestFinder {
 public:
  LargestFinder(const ScanGroup& group, std::int32_t first, std::int32_t end, float* largest)
      : group_(group),
        index_(group.query.index),
        reader_(group.query),
        survivors_(index_, group.survivor_biases, group.scores, kScanStaged),
        first_(first),
        end_(end),
        largest_(largest) {}

  void run() {
    std::fill_n(largest_, group_.heads, std::numeric_limits<float>::quiet_NaN());
    if (!open() || !sample()) return score(tables_of(group_), largest_, first_, end_);
    reader_.each_block(first_, end_, [&](const Codes& codes) {
      for (std::int32_t h = 0; h < group_.heads; ++h) look(h, codes);
    });
  }

 private:
  const float* lut(std::int32_t h) const {
    return group_.luts + std::int64_t{h} * index_.num_subspaces * index_.ksub;
  }
  const float* biases(std::int32_t h) const {
    return index_.block_size > 0 ? group_.biases + h * group_.bias_stride : nullptr;
  }

  bool open() {
    if (index_.tile < 16 || end_ - first_ < 2048) return false;
    for (std::int32_t h = 0; h < group_.heads; ++h) {
      float least = 0, most = 0;
      if (!bias_range(index_, biases(h), first_, end_, &least, &most)) return false;
      if (!group_.rows->filters[h].open(lut(h), least, most)) return false;
    }
    return true;
  }

  /// A first largest score of every head, from evenly spread neighbours. False where a head has
  /// none that is finite.
  bool sample() {
    // Whole tiles, at most kScanStaged positions of them and a part in 32 of all.
    const std::int32_t tile = index_.tile;
    const std::int32_t count = std::min((end_ - first_) / (tile * 32), kScanStaged / tile);
    const std::int64_t low = (first_ + tile - 1) / tile, high = end_ / tile;
    for (std::int32_t i = 0; i < count; ++i) {
      const auto at = static_cast<std::int32_t>(tile * (low + i * (high - low) / count));
      reader_.score(tables_of(group_), at, at + tile, group_.scores + i * tile, kScanStaged);
    }
    for (std::int32_t h = 0; h < group_.heads; ++h) {
      largest_[h] = largest_of(group_.scores + h * std::int64_t{kScanStaged}, count * tile);
      if (!std::isfinite(largest_[h])) return false;
    }
    for (std::int32_t h = 0; h < group_.heads; ++h) aim(h);
    return true;
  }

  /// Only what is larger matters from here on.
  void aim(std::int32_t h) {
    constexpr float kInfinite = std::numeric_limits<float>::infinity();
    group_.rows->filters[h].aim(lut(h), std::nextafter(largest_[h], kInfinite));
  }

  /// Exact scores of [first, end), all of them, in lots.
  void score(const RowTables& tables, float* largest, std::int32_t first, std::int32_t end) {
    while (first < end) {
      const std::int32_t some = std::min(end - first, kScanStaged);
      reader_.score(tables, first, first + some, group_.scores, kScanStaged);
      for (std::int32_t r = 0; r < tables.rows; ++r) {
        const float own = largest_of(group_.scores + r * std::int64_t{kScanStaged}, some);
        largest[r] = larger_of(largest[r], own);
      }
      first += some;
    }
  }

  void look(std::int32_t h, const Codes& codes) {
    const std::int32_t found =
        hits_.find(index_, group_.rows->filters + h, 1, biases(h), group_.bias_stride, codes);
    if (found == 0) return;
    const RowTables tables{1, lut(h), biases(h), group_.bias_stride};
    const float before = largest_[h];
    if (TileHits::most(found, codes)) {
      score(tables, largest_ + h, codes.first, codes.end);
    } else {
      survivors_.score(tables, hits_, codes, [&](const std::int32_t*, std::int32_t count) {
        largest_[h] = larger_of(largest_[h], largest_of(group_.scores, count));
      });
    }
    if (largest_[h] > before) aim(h);
  }

  const ScanGroup& group_;
  const IndexView& index_;
  CodeReader reader_;
  TileHits hits_;
  Survivors survivors_;
  std::int32_t first_, end_;
  float* largest_;
};

}  // namespace

void scan_largest(const ScanGroup& group, std::int32_t first, std::int32_t end, float* largest) {
  LargestFinder(group, first, end, largest).run();
}

void scan_weights(const ScanGroup& group, std::int32_t first, std::int32_t end,
                  std::uint64_t* weights) {
  const CodeReader reader(group.query);
  std::fill_n(weights, group.heads, std::uint64_t{0});
  while (first < end) {
    const std::int32_t some = std::min(end - first, kScanStaged);
    reader.score(tables_of(group), first, first + some, group.scores, kScanStaged);
    for (std::int32_t h = 0; h < group.heads; ++h) {
      weights[h] += weight_of(group.scores + h * std::int64_t{kScanStaged}, some,
                              group.softmax[h].largest, group.scale);
    }
    first += some;
  }
}

}  // namespace quarry::cpu
