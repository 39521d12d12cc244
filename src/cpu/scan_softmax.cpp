// SPDX-License-Identifier: Apache-2.0
//
// A softmax over a row's candidates, before any of them can be ranked: each head's largest score,
// which the filters find as they find the best K, and its sum of weights, for which every score
// must be made. Scores live in a tile's worth of memory.
//
// While they pass, those are kept that rank high by guessed denominators D'. Once the true ones are
// known, how far the guesses were off, c = max_h inv_h / inv'_h, bounds all that were not kept: by
// D' they score at most B, hence (their G fused steps in either case off by (1 + u)^G, u = 2^-24)
// at most c B / (1 - (2 G + 4) u). K of the kept above that are proof that the best K are there.
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

/// group.scores of keys i .. end of `count`, whole tiles of neighbours spread evenly over
/// positions [first, last).
void score_spread(const ScanGroup& group, const CodeReader& reader, std::int32_t first,
                  std::int32_t last, std::int32_t i, std::int32_t end, std::int32_t count) {
  const std::int64_t low = (first + kScanTile - 1) / kScanTile, high = last / kScanTile;
  float* scores = group.scores;
  for (; i < end; i += kScanTile, scores += kScanTile) {
    const auto at = static_cast<std::int32_t>(
        kScanTile * (low + i / kScanTile * (high - low) * kScanTile / count));
    reader.score(tables_of(group), at, at + kScanTile, scores, kScanStaged);
  }
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
    CodeWalk walk(group_.query, 1);
    walk.each_block(first_, end_, [&] {
      const Codes codes = walk.codes(0);
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
    const std::int32_t count =
        std::min((end_ - first_) / 1024, kScanStaged / kScanTile) * kScanTile;
    score_spread(group_, reader_, first_, end_, 0, count, count);
    for (std::int32_t h = 0; h < group_.heads; ++h) {
      largest_[h] = largest_of(group_.scores + h * std::int64_t{kScanStaged}, count);
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

class WeightFinder {
 public:
  WeightFinder(const ScanGroup& group, std::int32_t first, std::int32_t end)
      : group_(group), reader_(group.query), first_(first), end_(end) {}

  void run(std::uint64_t* weights) {
    const bool collects = guess();
    std::fill_n(weights, group_.heads, std::uint64_t{0});
    for (std::int32_t first = first_; first < end_;) {
      const std::int32_t some = std::min(end_ - first, kScanStaged);
      reader_.score(tables_of(group_), first, first + some, group_.scores, kScanStaged);
      if (collects) {
        add_shares(some, weights);
        group_.likely->add(shares_, first, 0, some);
      } else {
        for (std::int32_t h = 0; h < group_.heads; ++h) {
          weights[h] += weight_of(scores(h), some, group_.softmax[h].largest, group_.scale);
        }
      }
      first += some;
    }
  }

 private:
  const float* scores(std::int32_t h) const {
    return group_.scores + h * std::int64_t{kScanStaged};
  }

  /// shares_[i], i < count, by the guesses; adds to weights[], where that is not null.
  void add_shares(std::int32_t count, std::uint64_t* weights) {
    std::fill_n(shares_, count, 0.0f);
    for (std::int32_t h = 0; h < group_.heads; ++h) {
      const std::uint64_t own = weigh(scores(h), count, group_.softmax[h].largest, group_.scale,
                                      group_.guesses[h].inverse, shares_);
      if (weights != nullptr) weights[h] += own;
    }
  }

  /// Denominators and a threshold that some 3 K shares should reach, from a sample. False where
  /// there is none, or none worth it: `likely` is open then.
  bool guess() {
    group_.likely->start();
    const std::int64_t length = end_ - first_, above = 3 * std::int64_t{group_.k} + 32;
    if (length < 2048 || above > length / 8) return false;
    // The 16th of the sample, in whole tiles.
    const auto count = static_cast<std::int32_t>(
        std::clamp<std::int64_t>(16 * length / above, 512,
                                 std::min<std::int64_t>(length / 4, kScanBlock)) /
        kScanTile * kScanTile);
    for (std::int32_t i = 0; i < count; i += kScanStaged) {
      const std::int32_t some = std::min(count - i, kScanStaged);
      score_spread(group_, reader_, first_, end_, i, i + some, count);
      for (std::int32_t h = 0; h < group_.heads && i == 0; ++h) {
        const float largest = group_.softmax[h].largest;
        const std::uint64_t own = weight_of(scores(h), some, largest, group_.scale);
        const double whole = static_cast<double>(own) * static_cast<double>(length) / some;
        group_.guesses[h] = head_softmax(largest, static_cast<std::uint64_t>(whole));
        if (!(group_.guesses[h].inverse > 0)) return false;
      }
      add_shares(some, nullptr);
      selection_keys(shares_, some, keys_ + i);
    }
    const auto rank = static_cast<std::int32_t>(above * count / length);
    const float threshold = selected_score(kth_key(keys_, count, rank, rank));
    if (!(threshold >= kLeastShare && std::isfinite(threshold))) return false;
    group_.likely->start_above(selection_key(threshold) - 1);
    return true;
  }

  const ScanGroup& group_;
  const CodeReader reader_;
  std::int32_t first_, end_;
  alignas(64) float shares_[kScanStaged];
  std::uint32_t keys_[kScanBlock];
};

}  // namespace

void scan_largest(const ScanGroup& group, std::int32_t first, std::int32_t end, float* largest) {
  LargestFinder(group, first, end, largest).run();
}

void scan_weights(const ScanGroup& group, std::int32_t first, std::int32_t end,
                  std::uint64_t* weights) {
  WeightFinder(group, first, end).run(weights);
}

bool scan_likely(const ScanGroup& group) {
  Best& likely = *group.likely;
  if (likely.open()) return false;
  double off = 0;
  for (std::int32_t h = 0; h < group.heads; ++h) {
    off = std::max(off, double{group.softmax[h].inverse} / double{group.guesses[h].inverse});
  }
  const double roundings = (2.0 * group.heads + 4) * 0x1p-24;
  if (!(roundings < 0.5 && std::isfinite(off))) return false;
  const double most = off * double{selected_score(likely.threshold())} / (1 - roundings);
  if (!(most < double{std::numeric_limits<float>::max()})) return false;
  const float above =
      std::nextafter(static_cast<float>(most), std::numeric_limits<float>::infinity());
  const CodeReader reader(group.query);
  Survivors survivors(group.query.index, group.survivor_biases, group.scores, kScanStaged);
  Best& best = group.rows->best;
  best.start_above(selection_key(above));
  survivors.score(tables_of(group), reader, likely.positions(), likely.count(),
                  [&](const std::int32_t* positions, std::int32_t count) {
                    reduce_positions(group.reduction, group.scores, kScanStaged, group.heads, count,
                                     group.scale, group.softmax);
                    for (std::int32_t i = 0; i < count; ++i) {
                      best.add(selection_key(group.scores[i]), positions[i]);
                    }
                  });
  if (!best.satisfied()) return false;
  best.compact();
  return true;
}

}  // namespace quarry::cpu
