// SPDX-License-Identifier: Apache-2.0
//
// A list's threshold is guessed from the exact scores of a sample; its filters (scan_filter.h)
// name the keys that may reach it, and those are scored exactly, in the contract's order. K or
// more that do reach it are proof that the best K are among them. Else the guess was too high:
// a lower one is tried, then everything is scored. What the sample decides is the cost of a
// list, never what is selected.
#include "cpu/scan_group.h"

#include <cmath>
#include <limits>

#include "cpu/reduce_rows.h"
#include "cpu/scan_codes.h"

namespace quarry::cpu {
namespace {

class Scanner {
 public:
  Scanner(const ScanGroup& group, std::int32_t first, std::int32_t end)
      : group_(group),
        index_(group.query.index),
        reader_(group.query),
        scores_(group.reduces() ? group.scores : own_),
        stride_(group.reduces() ? kScanStaged : kScanBlock),
        survivors_(index_, group.reduces() ? group.survivor_biases : own_biases_, scores_, stride_),
        first_(first),
        end_(end) {}

  void run();

 private:
  bool open(ScanRow& row);
  bool open_sum(ScanRow& row);
  bool aim(ScanRow& row, float threshold);
  void guess(ScanRow& row, std::int32_t slack);
  void filter(ScanRow& row, const Codes& codes);
  void score_all(ScanRow& row, std::int32_t first, std::int32_t end);

  RowTables tables(const ScanRow& row) const {
    return {group_.heads, row.luts, row.biases, group_.bias_stride};
  }
  /// The list's scores of the first `count` positions in scores_, in place of its first head's.
  void reduce(std::int32_t count) {
    if (!group_.reduces()) return;
    reduce_positions(group_.reduction, scores_, stride_, group_.heads, count, group_.scale,
                     group_.softmax);
  }

  const ScanGroup& group_;
  const IndexView& index_;
  CodeReader reader_;
  TileHits hits_;
  float* scores_;  ///< [heads][stride_]
  std::int64_t stride_;
  Survivors survivors_;
  std::int32_t first_, end_;
  alignas(64) float own_[kScanBlock + kScanSampled];  ///< the sample's too
  float own_biases_[Survivors::kMost];
  alignas(64) std::uint32_t keys_[kScanBlock];
};

/// A filter's bound of each head alone: one of them must reach what the list is to reach (max),
/// or a share of it (softmax_sum).
bool Scanner::open(ScanRow& row) {
  if (group_.reduction == GqaReduction::sum) return open_sum(row);
  const std::int64_t entries = std::int64_t{index_.num_subspaces} * index_.ksub;
  for (std::int32_t h = 0; h < group_.heads; ++h) {
    const float* biases = index_.block_size > 0 ? row.biases + h * group_.bias_stride : nullptr;
    float least = 0, largest = 0;
    if (!bias_range(index_, biases, first_, end_, &least, &largest)) return false;
    if (!row.filters[h].open(row.luts + h * entries, least, largest)) return false;
  }
  return true;
}

/// Scores that are added up are one score of tables that are added up.
bool Scanner::open_sum(ScanRow& row) {
  const std::int64_t entries = std::int64_t{index_.num_subspaces} * index_.ksub;
  double magnitude = 0;
  float least = 0, largest = 0;
  std::fill_n(group_.sum_lut, entries, -0.0f);
  std::int32_t block = 0, end_block = 0;
  if (index_.block_size > 0) {
    block = first_ / index_.block_size;
    end_block = (end_ - 1) / index_.block_size + 1;
    std::fill(group_.sum_biases + block, group_.sum_biases + end_block, -0.0f);
  }
  for (std::int32_t h = 0; h < group_.heads; ++h) {
    const float* biases = index_.block_size > 0 ? row.biases + h * group_.bias_stride : nullptr;
    if (!bias_range(index_, biases, first_, end_, &least, &largest)) return false;
    for (std::int32_t i = block; i < end_block; ++i) group_.sum_biases[i] += biases[i];
    const float* lut = row.luts + h * entries;
    for (std::int64_t i = 0; i < entries; ++i) group_.sum_lut[i] += lut[i];
    magnitude += filter_magnitude(lut, index_.num_subspaces, index_.ksub, least, largest);
  }
  if (!bias_range(index_, group_.sum_biases, first_, end_, &least, &largest)) return false;
  return row.filters->open_sum(group_.sum_lut, largest, group_.heads, magnitude);
}

/// Lets keys pass whose score may reach `threshold`. False where no bound is known.
bool Scanner::aim(ScanRow& row, float threshold) {
  if (group_.reduction == GqaReduction::sum) {
    row.filters->aim(group_.sum_lut, threshold);
    return true;
  }
  const std::int64_t entries = std::int64_t{index_.num_subspaces} * index_.ksub;
  const bool softmax = group_.reduction == GqaReduction::softmax_sum;
  if (softmax && !(threshold >= kLeastShare)) return false;
  for (std::int32_t h = 0; h < group_.heads; ++h) {
    const double reach =
        softmax ? softmax_reach(threshold, group_.softmax[h], group_.scale, group_.heads)
                : double{threshold};
    if (std::isfinite(reach)) {
      row.filters[h].aim(row.luts + h * entries, reach);
    } else {
      row.filters[h].close();
    }
  }
  return true;
}

/// A threshold that some 2 k candidates should reach, `slack` times that many where it was too
/// high before. The row is filtered where there is one, and a bound.
void Scanner::guess(ScanRow& row, std::int32_t slack) {
  const std::int64_t length = end_ - first_;
  row.filtered = false;
  row.best.start();
  if (index_.tile < 16 || length < 2048 || group_.k > length / 8 || !open(row)) return;

  // Of `samples` groups of neighbours' scores the rank-th; more is surer and slower.
  const std::int64_t above = 2 * std::int64_t{group_.k} + 16;
  const std::int32_t low = (first_ + kScanSampled - 1) / kScanSampled, high = end_ / kScanSampled;
  const std::int64_t samples = std::clamp<std::int64_t>(
      length / above, 16, std::min((high - low) / 16 + 16, kScanBlock / kScanSampled));
  const std::int64_t count = samples * kScanSampled;
  constexpr std::int32_t kLot = kScanStaged / kScanSampled;
  std::int32_t starts[kLot];
  for (std::int64_t i = 0; i < samples;) {
    float* to = own_ + i * kScanSampled;
    const auto some = static_cast<std::int32_t>(std::min<std::int64_t>(samples - i, kLot));
    for (std::int32_t j = 0; j < some; ++j, ++i) {
      starts[j] = kScanSampled * static_cast<std::int32_t>(low + i * (high - low) / samples);
    }
    if (group_.reduces()) {
      reader_.score_sample(tables(row), starts, some, scores_, stride_);
      reduce(some * kScanSampled);
      std::copy_n(scores_, some * kScanSampled, to);
    } else {
      reader_.score_sample(tables(row), starts, some, to, 0);
    }
  }
  selection_keys(own_, static_cast<std::int32_t>(count), keys_);
  const std::int64_t rank = std::max<std::int64_t>(above * count / length, 1);
  const auto most = static_cast<std::int32_t>(std::min(slack * rank, count));
  const std::uint32_t key = kth_key(keys_, static_cast<std::int32_t>(count), most, most + most / 4);
  if (key == 0) return;  // NaN
  const float threshold = selected_score(key);
  if (!std::isfinite(threshold) || !aim(row, threshold)) return;
  row.filtered = true;
  // Strictly above the key below it: threshold is finite, so its key is not the lowest.
  row.best.start_above(selection_key(threshold) - 1);
}

void Scanner::score_all(ScanRow& row, std::int32_t first, std::int32_t end) {
  while (first < end) {
    const std::int32_t some = std::min(end - first, static_cast<std::int32_t>(stride_));
    reader_.score(tables(row), first, first + some, scores_, stride_);
    reduce(some);
    row.best.add(scores_, first, 0, some);
    first += some;
  }
}

void Scanner::filter(ScanRow& row, const Codes& codes) {
  const float* biases = group_.reduction == GqaReduction::sum ? group_.sum_biases : row.biases;
  const std::int32_t found =
      hits_.find(index_, row.filters, group_.num_filters(), biases, group_.bias_stride, codes);
  if (found == 0) return;
  if (TileHits::most(found, codes)) {
    const std::uint32_t before = row.best.threshold();
    score_all(row, codes.first, codes.end);
    if (row.best.threshold() != before) aim(row, selected_score(row.best.threshold()));
    return;
  }
  survivors_.score(tables(row), hits_, codes, [&](const std::int32_t* positions, std::int32_t n) {
    reduce(n);
    bool rose = false;
    for (std::int32_t i = 0; i < n; ++i) {
      rose = row.best.add(selection_key(scores_[i]), positions[i]) || rose;
    }
    if (rose) aim(row, selected_score(row.best.threshold()));
  });
}

void Scanner::run() {
  for (std::int32_t i = 0; i < group_.lists; ++i) {
    ScanRow& row = group_.rows[i];
    row.biases =
        index_.block_size > 0 ? group_.biases + i * group_.heads * group_.bias_stride : nullptr;
    row.done = false;
    row.attempts = 0;
    guess(row, 1);
  }
  for (bool again = true; again;) {
    // All positions once, for every row that is not done.
    reader_.each_block(first_, end_, [&](const Codes& codes) {
      for (std::int32_t i = 0; i < group_.lists; ++i) {
        ScanRow& row = group_.rows[i];
        if (row.done) continue;
        if (row.filtered) {
          filter(row, codes);
        } else {
          score_all(row, codes.first, codes.end);
        }
      }
    });
    again = false;
    for (std::int32_t i = 0; i < group_.lists; ++i) {
      ScanRow& row = group_.rows[i];
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

void scan_tables(const ScanGroup& group, std::int32_t first, std::int32_t end) {
  const IndexView& ix = group.query.index;
  if (ix.block_size > 0) make_biases(group.query, first, end, group.biases, group.bias_stride);
  RowQuery query = group.query;
  for (std::int32_t g = 0; g < ix.group_size; ++g, ++query.head) {
    make_lut(query, group.luts + std::int64_t{g} * ix.num_subspaces * ix.ksub);
  }
}

bool bias_range(const IndexView& index, const float* biases, std::int32_t first, std::int32_t end,
                float* least, float* largest) {
  *least = *largest = 0;
  if (index.block_size == 0) return true;
  constexpr float kInfinite = std::numeric_limits<float>::infinity();
  float low = kInfinite, high = -kInfinite;
  const std::int32_t last = (end - 1) / index.block_size;
  for (std::int32_t block = first / index.block_size; block <= last; ++block) {
    const float bias = biases[block];
    if (bias == kInfinite) return false;
    if (!std::isfinite(bias)) continue;  // NaN, -infinity: below every threshold
    low = std::min(low, bias);
    high = std::max(high, bias);
  }
  if (low > high) return false;
  *least = low;
  *largest = high;
  return true;
}

void scan_group(const ScanGroup& group, std::int32_t first, std::int32_t end) {
  Scanner(group, first, end).run();
}

}  // namespace quarry::cpu
