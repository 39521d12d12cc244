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
  Scanner(const ScanGroup* groups, std::int32_t count, std::int32_t first, std::int32_t end)
      : groups_(groups),
        count_(count),
        index_(groups->query.index),
        walk_(groups->query, count),
        scores_(groups->reduces() ? groups->scores : own_),
        stride_(groups->reduces() ? kScanStaged : kScanBlock),
        survivors_(index_, groups->reduces() ? groups->survivor_biases : own_biases_, scores_,
                   stride_),
        first_(first),
        end_(end) {}

  void run();

 private:
  bool open(const ScanGroup& group, ScanRow& row) const;
  bool open_sum(const ScanGroup& group, ScanRow& row) const;
  static bool aim(const ScanGroup& group, ScanRow& row, float threshold);
  void guess(const ScanGroup& group, ScanRow& row, std::int32_t slack);
  void look(const ScanGroup& group, ScanRow& row, const Codes& codes);
  void score_all(const ScanGroup& group, ScanRow& row, const Codes& codes);

  static RowTables tables(const ScanGroup& group, const ScanRow& row) {
    return {group.heads, row.luts, row.biases, group.bias_stride};
  }
  /// The list's scores of the first `count` positions in scores_, in place of its first head's.
  void reduce(const ScanGroup& group, std::int32_t count) {
    if (!group.reduces()) return;
    reduce_positions(group.reduction, scores_, stride_, group.heads, count, group.scale,
                     group.softmax);
  }

  const ScanGroup* groups_;
  std::int32_t count_;
  const IndexView& index_;
  CodeWalk walk_;
  TileHits hits_;
  float* scores_;  ///< [heads][stride_]
  std::int64_t stride_;
  Survivors survivors_;
  std::int32_t first_, end_;
  alignas(64) float own_[kScanBlock];  ///< the sample's too
  float own_biases_[Survivors::kMost];
  alignas(64) std::uint32_t keys_[kScanBlock];
};

/// A filter's bound of each head alone: one of them must reach what the list is to reach (max),
/// or a share of it (softmax_sum).
bool Scanner::open(const ScanGroup& group, ScanRow& row) const {
  if (group.reduction == GqaReduction::sum) return open_sum(group, row);
  const std::int64_t entries = std::int64_t{index_.num_subspaces} * index_.ksub;
  for (std::int32_t h = 0; h < group.heads; ++h) {
    const float* biases = index_.block_size > 0 ? row.biases + h * group.bias_stride : nullptr;
    float least = 0, largest = 0;
    if (!bias_range(index_, biases, first_, end_, &least, &largest)) return false;
    if (!row.filters[h].open(row.luts + h * entries, least, largest)) return false;
  }
  return true;
}

/// Scores that are added up are one score of tables that are added up.
bool Scanner::open_sum(const ScanGroup& group, ScanRow& row) const {
  const std::int64_t entries = std::int64_t{index_.num_subspaces} * index_.ksub;
  double magnitude = 0;
  float least = 0, largest = 0;
  std::fill_n(group.sum_lut, entries, -0.0f);
  std::int32_t block = 0, end_block = 0;
  if (index_.block_size > 0) {
    block = first_ / index_.block_size;
    end_block = (end_ - 1) / index_.block_size + 1;
    std::fill(group.sum_biases + block, group.sum_biases + end_block, -0.0f);
  }
  for (std::int32_t h = 0; h < group.heads; ++h) {
    const float* biases = index_.block_size > 0 ? row.biases + h * group.bias_stride : nullptr;
    if (!bias_range(index_, biases, first_, end_, &least, &largest)) return false;
    for (std::int32_t i = block; i < end_block; ++i) group.sum_biases[i] += biases[i];
    const float* lut = row.luts + h * entries;
    for (std::int64_t i = 0; i < entries; ++i) group.sum_lut[i] += lut[i];
    magnitude += filter_magnitude(lut, index_.num_subspaces, index_.ksub, least, largest);
  }
  if (!bias_range(index_, group.sum_biases, first_, end_, &least, &largest)) return false;
  return row.filters->open_sum(group.sum_lut, largest, group.heads, magnitude);
}

/// Lets keys pass whose score may reach `threshold`. False where no bound is known.
bool Scanner::aim(const ScanGroup& group, ScanRow& row, float threshold) {
  const IndexView& index = group.query.index;
  if (group.reduction == GqaReduction::sum) {
    row.filters->aim(group.sum_lut, threshold);
    return true;
  }
  const std::int64_t entries = std::int64_t{index.num_subspaces} * index.ksub;
  const bool softmax = group.reduction == GqaReduction::softmax_sum;
  if (softmax && !(threshold >= kLeastShare)) return false;
  for (std::int32_t h = 0; h < group.heads; ++h) {
    const double reach = softmax
                             ? softmax_reach(threshold, group.softmax[h], group.scale, group.heads)
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
void Scanner::guess(const ScanGroup& group, ScanRow& row, std::int32_t slack) {
  const std::int64_t length = end_ - first_;
  row.filtered = false;
  row.best.start();
  if (index_.tile < 16 || length < 2048 || group.k > length / 8 || !open(group, row)) return;

  // Of `samples` groups of neighbours' scores the rank-th; more is surer and slower.
  const std::int64_t above = 2 * std::int64_t{group.k} + 16;
  const std::int32_t low = (first_ + kScanSampled - 1) / kScanSampled, high = end_ / kScanSampled;
  const std::int64_t samples = std::clamp<std::int64_t>(
      length / above, 16, std::min((high - low) / 16 + 16, kScanBlock / kScanSampled));
  const std::int64_t count = samples * kScanSampled;
  constexpr std::int32_t kLot = kScanStaged / kScanSampled;
  const CodeReader reader(group.query);
  std::int32_t starts[kLot];
  for (std::int64_t i = 0; i < samples;) {
    float* to = own_ + i * kScanSampled;
    const auto some = static_cast<std::int32_t>(std::min<std::int64_t>(samples - i, kLot));
    for (std::int32_t j = 0; j < some; ++j, ++i) {
      starts[j] = kScanSampled * static_cast<std::int32_t>(low + i * (high - low) / samples);
    }
    if (group.reduces()) {
      reader.score_sample(tables(group, row), starts, some, scores_, stride_);
      reduce(group, some * kScanSampled);
      std::copy_n(scores_, some * kScanSampled, to);
    } else {
      reader.score_sample(tables(group, row), starts, some, to, 0);
    }
  }
  selection_keys(own_, static_cast<std::int32_t>(count), keys_);
  const std::int64_t rank = std::max<std::int64_t>(above * count / length, 1);
  const auto most = static_cast<std::int32_t>(std::min(slack * rank, count));
  const std::uint32_t key = kth_key(keys_, static_cast<std::int32_t>(count), most, most + most / 4);
  if (key == 0) return;  // NaN
  const float threshold = selected_score(key);
  if (!std::isfinite(threshold) || !aim(group, row, threshold)) return;
  row.filtered = true;
  // Strictly above the key below it: threshold is finite, so its key is not the lowest.
  row.best.start_above(selection_key(threshold) - 1);
}

/// Everything in `codes`, as many at a time as there is room for.
void Scanner::score_all(const ScanGroup& group, ScanRow& row, const Codes& codes) {
  Codes some = codes;
  while (some.first < codes.end) {
    some.end = std::min(codes.end, some.first + static_cast<std::int32_t>(stride_));
    score_codes(group.query, tables(group, row), some, scores_, stride_);
    reduce(group, some.end - some.first);
    row.best.add(scores_, some.first, 0, some.end - some.first);
    some.first = some.end;
  }
}

void Scanner::look(const ScanGroup& group, ScanRow& row, const Codes& codes) {
  if (!row.filtered) return score_all(group, row, codes);
  const float* biases = group.reduction == GqaReduction::sum ? group.sum_biases : row.biases;
  const std::int32_t found =
      hits_.find(index_, row.filters, group.num_filters(), biases, group.bias_stride, codes);
  if (found == 0) return;
  if (TileHits::most(found, codes)) {
    const std::uint32_t before = row.best.threshold();
    score_all(group, row, codes);
    if (row.best.threshold() != before) aim(group, row, selected_score(row.best.threshold()));
    return;
  }
  const auto use = [&](const std::int32_t* positions, std::int32_t n) {
    reduce(group, n);
    bool rose = false;
    for (std::int32_t i = 0; i < n; ++i) {
      rose = row.best.add(selection_key(scores_[i]), positions[i]) || rose;
    }
    if (rose) aim(group, row, selected_score(row.best.threshold()));
  };
  survivors_.score(tables(group, row), hits_, codes, use);
}

void Scanner::run() {
  const auto each_row = [&](const ScanGroup& group, auto&& use) {
    for (std::int32_t i = 0; i < group.lists; ++i) use(group.rows[i], i);
  };
  for (std::int32_t g = 0; g < count_; ++g) {
    const ScanGroup& group = groups_[g];
    each_row(group, [&](ScanRow& row, std::int32_t i) {
      row.biases =
          index_.block_size > 0 ? group.biases + i * group.heads * group.bias_stride : nullptr;
      row.done = false;
      row.attempts = 0;
      guess(group, row, 1);
    });
  }
  for (bool again = true; again;) {
    // All positions once, for every row that is not done.
    walk_.each_block(first_, end_, [&] {
      for (std::int32_t g = 0; g < count_; ++g) {
        const Codes codes = walk_.codes(g);
        each_row(groups_[g], [&](ScanRow& row, std::int32_t) {
          if (!row.done) look(groups_[g], row, codes);
        });
      }
    });
    again = false;
    for (std::int32_t g = 0; g < count_; ++g) {
      const ScanGroup& group = groups_[g];
      each_row(group, [&](ScanRow& row, std::int32_t) {
        if (row.done) return;
        row.done = row.best.satisfied();
        if (row.done) return row.best.compact();
        again = true;
        if (row.filtered && ++row.attempts < 2) {
          guess(group, row, 4);
        } else {
          row.filtered = false;
          row.best.start();
        }
      });
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

void scan_groups(const ScanGroup* groups, std::int32_t count, std::int32_t first,
                 std::int32_t end) {
  Scanner(groups, count, first, end).run();
}

}  // namespace quarry::cpu
