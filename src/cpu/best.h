// SPDX-License-Identifier: Apache-2.0
//
// Exact top-K by streaming. Candidates pass in ascending position; once K are held, one enters
// only if its key is strictly better than the K-th best's, because an equal one at a later
// position ranks below. When the buffer is full the K best are kept, so work is O(n) whatever
// the data. Stages select and scan share it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/select_scan.h"
#include "half.h"

namespace quarry::cpu {

/// The best K of what has been passed in, in ascending position.
class Best {
 public:
  /// Entries the buffer wants for the best k of at most `longest`: room for twice what a guessed
  /// threshold aims at, and no more than all candidates. 64: scan_above() wants that much.
  static std::int32_t capacity(std::int32_t k, std::int32_t longest) {
    return std::min(2 * k + std::max(k, 1024), longest) + 64;
  }
  static std::size_t bytes(std::int32_t capacity) {
    return 2 * sizeof(std::uint32_t) * static_cast<std::size_t>(capacity);
  }

  /// `memory`: bytes(capacity) of them, uninitialized.
  Best(void* memory, std::int32_t capacity, std::int32_t k)
      : keys_(static_cast<std::uint32_t*>(memory)),
        positions_(reinterpret_cast<std::int32_t*>(keys_ + capacity)),
        capacity_(capacity),
        k_(k) {}

  /// Starts over: everything enters, NaN too.
  void start() {
    count_ = 0;
    threshold_ = 0;
    full_ = false;
    open_ = true;
  }
  /// Starts over: only keys above `threshold` enter. What comes out is the best K of all
  /// where satisfied(); otherwise the threshold was too high.
  void start_above(std::uint32_t threshold) {
    start();
    threshold_ = threshold;
    open_ = false;
  }
  bool satisfied() const { return open_ || full_ || count_ >= k_; }
  /// Keys up to this one no longer enter. Meaningless while everything does.
  std::uint32_t threshold() const { return threshold_; }
  bool open() const { return open_; }

  /// Positions base + first .. base + end, whose scores are scores[first .. end).
  void add(const float* scores, std::int32_t base, std::int32_t first, std::int32_t end) {
    while (open_ && first < end) {
      const std::int32_t some = std::min(end - first, capacity_ - count_);
      for (std::int32_t i = 0; i < some; ++i) {
        keys_[count_] = selection_key(scores[first]);
        positions_[count_++] = base + first++;
      }
      if (first < end) compact();
    }
    while (first < end) {
      std::int32_t found = 0;
      first = scan_above(scores, base, first, end, threshold_, capacity_ - count_, keys_ + count_,
                         positions_ + count_, &found);
      count_ += found;
      if (first < end) compact();
    }
  }

  /// One candidate. True where the threshold rose.
  bool add(std::uint32_t key, std::int32_t position) {
    if (!open_ && key <= threshold_) return false;
    keys_[count_] = key;
    positions_[count_++] = position;
    if (count_ < capacity_) return false;
    compact();
    return true;
  }

  /// What another has kept of later positions.
  void add(const Best& later) {
    for (std::int32_t i = 0; i < later.count_; ++i) add(later.keys_[i], later.positions_[i]);
  }

  /// All of scores[first .. end), with a threshold guessed from an even sample.
  void scan(const float* scores, std::int32_t first, std::int32_t end) {
    if (end - first >= std::max(4096, 16 * k_)) {
      start_above(guess(scores, first, end));
      add(scores, 0, first, end);
      if (satisfied()) return;
    }
    start();
    add(scores, 0, first, end);
  }

  /// Keeps the K best, in order, and their worst as the threshold.
  void compact() {
    if (count_ < k_ || (full_ && count_ == k_)) return;
    threshold_ = kth_key(keys_, count_, k_, k_);
    full_ = true;
    open_ = false;
    count_ = keep_from(threshold_, count_, keys_, positions_);
    if (count_ == k_) return;
    // Of the tied only the first ones fit.
    std::int32_t equals = k_;
    for (std::int32_t i = 0; i < count_; ++i) equals -= keys_[i] > threshold_ ? 1 : 0;
    std::int32_t kept = 0;
    for (std::int32_t i = 0; i < count_ && kept < k_; ++i) {
      const bool tied = keys_[i] == threshold_;
      const bool keep = !tied || equals > 0;
      equals -= tied ? 1 : 0;
      keys_[kept] = keys_[i];
      positions_[kept] = positions_[i];
      kept += keep ? 1 : 0;
    }
    count_ = kept;
  }

  /// Keeps the entries of these indices alone, which ascend.
  void keep(const std::int32_t* indices, std::int32_t count) {
    for (std::int32_t i = 0; i < count; ++i) {
      keys_[i] = keys_[indices[i]];
      positions_[i] = positions_[indices[i]];
    }
    count_ = count;
  }

  std::int32_t count() const { return count_; }
  const std::int32_t* positions() const { return positions_; }

 private:
  /// A key that some 4 K (for large K: 2 K) candidates are above, from an even sample.
  std::uint32_t guess(const float* scores, std::int32_t first, std::int32_t end) const {
    const std::int64_t above = k_ <= 256 ? 4 * k_ : 2 * k_;
    const std::int32_t rank = k_ <= 256 ? 8 : 16;  // in the sample; more is surer and slower
    const std::int64_t length = end - first;
    const std::int64_t size = std::min<std::int64_t>(capacity_, rank * length / above);
    // Nothing is kept yet: the buffer itself holds the sample.
    for (std::int64_t i = 0; i < size; ++i) {
      keys_[i] = selection_key(scores[first + i * length / size]);
    }
    return kth_key(keys_, static_cast<std::int32_t>(size), rank + 1, rank + 1);
  }

  std::uint32_t* keys_;
  std::int32_t* positions_;
  std::int32_t capacity_, k_;
  std::int32_t count_ = 0;
  std::uint32_t threshold_ = 0;
  bool full_ = false, open_ = true;
};

}  // namespace quarry::cpu
