// SPDX-License-Identifier: Apache-2.0
#include "group_scores.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <utility>

namespace quarry::test {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
const double kNaN = std::nan("");

/// k float32 roundings change a term by at most this factor less one.
double gamma(double k) {
  const double ku = k * 0x1p-24;
  return ku / (1.0 - ku);
}

/// As float32 has it: what does not fit is infinite.
double as_float(double v) { return v > FLT_MAX ? kInf : v < -FLT_MAX ? -kInf : v; }

// The float32 exponential is within 2^-23 of its value, 0 below -87 and infinite above 88
// (Reduction.ExpIsAsExactAsItSays in test_reduce.cpp holds it to that). A weight lost below -87 is
// below this, rounding of the exponent included.
constexpr double kExpError = 0x1p-23;
const double kLost = std::exp(-86.9);

}  // namespace

Reduction::Reduction(const IndexerConfig& c, std::vector<std::vector<Score>> by_head)
    : reduction_(c.gqa_reduction), scale_(c.softmax_scale), by_head_(std::move(by_head)) {
  if (reduction_ != GqaReduction::softmax_sum) return;
  for (const std::vector<Score>& scores : by_head_) {
    Head head;
    head.largest = kNaN;
    for (const Score& s : scores) {
      if (std::isnan(s.value)) continue;
      if (!(head.largest >= as_float(s.value))) head.largest = as_float(s.value);
      head.largest_bound = std::max(head.largest_bound, s.bound);
    }
    for (const Score& s : scores) {
      if (std::isnan(s.value)) continue;
      const Weight w = weight(head, s);
      head.sum += w.value;
      head.sum_low += w.low;
      head.sum_high += w.high;
    }
    // Each weight is rounded to a multiple of 2^-32, and their float32 sum is at least 1.
    const double rounded = static_cast<double>(scores.size()) * 0x1.1p-33;
    head.sum_low /= 1 + rounded;
    head.sum_high *= 1 + rounded;
    softmax_.push_back(head);
  }
}

Reduction::Weight Reduction::weight(const Head& head, const Score& score) const {
  const double s = as_float(score.value);
  if (std::isnan(s) || std::isnan(head.largest)) return {kNaN, kNaN, kNaN};
  if (!std::isfinite(s) || !std::isfinite(head.largest)) {
    const double w = s == head.largest ? 1 : s > head.largest ? kInf : 0;
    return {w, w, w};
  }
  // Differences between scores are what counts, so an error of `largest` cancels against the
  // sum's; what is left is the score's own, and, of the exponent's two operations and of the
  // scale's two, roundings that grow with the exponent.
  const double x = scale_ * (s - head.largest), off = scale_ * score.bound;
  const double reach = std::abs(x) + off + scale_ * head.largest_bound;
  if (x + off + scale_ * head.largest_bound < -100) return {std::exp(x), 0, kLost};
  const double turn = gamma(4) * reach;
  if (x - off - scale_ * head.largest_bound - turn > 88) return {kInf, kInf, kInf};
  const bool may_overflow = x + off + scale_ * head.largest_bound + turn > 88;
  return {std::exp(std::min(x, 88.0)), std::exp(x - off - turn) * (1 - kExpError),
          may_overflow ? kInf : std::exp(x + off + turn) * (1 + kExpError)};
}

Score Reduction::share(const Head& head, const Score& score) const {
  const Weight w = weight(head, score);
  if (std::isnan(w.value)) return {kNaN, 0};
  if (w.low == kInf) return {kInf, 0};
  // The sum's own rounding to float32, its inverse and the product; and what is lost outright.
  const double value = w.value / head.sum;
  const double high = w.high / head.sum_low * (1 + gamma(4)) + kLost;
  const double low = w.low / head.sum_high * (1 - gamma(4)) - kLost;
  return {value, std::max(high - value, value - low)};
}

Score Reduction::combine(const std::vector<Score>& by_head) const {
  if (by_head.size() == 1) return by_head[0];
  Score result;
  if (reduction_ == GqaReduction::max) {
    result.value = kNaN;
    for (const Score& s : by_head) {
      if (std::isnan(s.value)) continue;
      if (!(result.value >= s.value)) result.value = s.value;
      result.bound = std::max(result.bound, s.bound);
    }
  } else {
    double magnitude = 0;
    for (const Score& s : by_head) {
      result.value += as_float(s.value);
      result.bound += s.bound;
      magnitude += std::abs(s.value) + s.bound;
    }
    result.bound += gamma(static_cast<double>(by_head.size())) * magnitude;
  }
  if (std::isfinite(result.value) && std::abs(result.value) - result.bound < FLT_MAX &&
      std::abs(result.value) + result.bound > 0.999 * FLT_MAX) {
    return {std::clamp(result.value, -1e38, 1e38), kInf};  // finite or not: anything goes
  }
  if (!std::isfinite(as_float(result.value))) result.bound = 0;
  return result;
}

Score Reduction::score(std::size_t i) const {
  std::vector<Score> of;
  for (std::size_t g = 0; g < by_head_.size(); ++g) {
    const Score& s = by_head_[g][i];
    of.push_back(reduction_ == GqaReduction::softmax_sum ? share(softmax_[g], s) : s);
  }
  return combine(of);
}

Score Reduction::exact(const std::vector<Score>& by_head) const {
  std::vector<Score> of = by_head;
  if (reduction_ == GqaReduction::softmax_sum) {
    for (std::size_t g = 0; g < of.size(); ++g) of[g] = share(softmax_[g], of[g]);
  }
  return combine(of);
}

}  // namespace quarry::test
