// SPDX-License-Identifier: Apache-2.0
#include "check.h"

#include <algorithm>
#include <cmath>
#include <numeric>

std::vector<double> scores(const LayerStep& step, std::int32_t h) {
  std::vector<double> out(static_cast<std::size_t>(*step.length));
  for (std::int32_t p = 0; p < *step.length; ++p) {
    double dot = 0;
    for (std::int32_t i = 0; i < step.d; ++i) {
      dot += double{step.q[h * step.d + i]} *
             double{step.keys[step.offset(p, h / (step.query_heads / step.kv_heads)) + i]};
    }
    out[static_cast<std::size_t>(p)] = dot / std::sqrt(double(step.d));
  }
  return out;
}

std::vector<double> attend(const LayerStep& step, std::int32_t h, const std::vector<double>& score,
                           const std::vector<std::int32_t>& positions) {
  const double largest = *std::max_element(score.begin(), score.end());
  std::vector<double> out(static_cast<std::size_t>(step.d));
  double sum = 0;
  for (const std::int32_t p : positions) {
    const double weight = std::exp(score[static_cast<std::size_t>(p)] - largest);
    const float* value = step.values + step.offset(p, h / (step.query_heads / step.kv_heads));
    for (std::size_t i = 0; i < out.size(); ++i) out[i] += weight * double{value[i]};
    sum += weight;
  }
  for (double& v : out) v /= sum;
  return out;
}

std::vector<std::int32_t> exact_list(const quarry::IndexerConfig& config,
                                     const std::vector<double>& score) {
  const auto n = static_cast<std::int32_t>(score.size());
  std::vector<std::int32_t> heavy, list;
  for (std::int32_t p = 0; p < n; ++p) {
    const bool fixed = p < config.sink_size || p >= n - config.window_size;
    (fixed ? list : heavy).push_back(p);
  }
  const auto kept = std::min<std::ptrdiff_t>(config.heavy_size, std::ssize(heavy));
  std::partial_sort(
      heavy.begin(), heavy.begin() + kept, heavy.end(), [&](std::int32_t a, std::int32_t b) {
        return score[static_cast<std::size_t>(a)] > score[static_cast<std::size_t>(b)];
      });
  list.insert(list.end(), heavy.begin(), heavy.begin() + kept);
  return list;
}

std::vector<std::int32_t> every_position(const std::vector<double>& score) {
  std::vector<std::int32_t> out(score.size());
  std::iota(out.begin(), out.end(), 0);
  return out;
}
