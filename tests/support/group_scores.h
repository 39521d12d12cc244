// SPDX-License-Identifier: Apache-2.0
//
// What a GQA reduction makes of a group's scores, in double, with a bound on what the float32
// form may differ by. Written from docs/design.md, sharing no code with the library.
#pragma once

#include <vector>

#include "oracle.h"

namespace quarry::test {

/// One list row: the scores of its heads' candidates, reduced.
class Reduction {
 public:
  /// `by_head` [heads][candidates]; per_head has one head.
  Reduction(const IndexerConfig& resolved, std::vector<std::vector<Score>> by_head);

  /// Of candidate i, first pass.
  Score score(std::size_t i) const;
  /// Of a position with these exact scores [heads], on the first pass's scale.
  Score exact(const std::vector<Score>& by_head) const;

 private:
  /// A head's softmax: its largest score and the sum of weights, as an interval.
  struct Head {
    double largest = 0, largest_bound = 0;  ///< of scores that are numbers; NaN: there are none
    double sum = 0, sum_low = 0, sum_high = 0;
  };
  /// exp(scale * (score - largest)), and how far float32 may be off.
  struct Weight {
    double value = 0, low = 0, high = 0;
  };
  Weight weight(const Head& head, const Score& score) const;
  Score share(const Head& head, const Score& score) const;
  Score combine(const std::vector<Score>& by_head) const;

  GqaReduction reduction_;
  double scale_;
  std::vector<std::vector<Score>> by_head_;
  std::vector<Head> softmax_;  // softmax_sum alone
};

}  // namespace quarry::test
