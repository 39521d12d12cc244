// SPDX-License-Identifier: Apache-2.0
#include "exact.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace quarry::tools {
namespace {

/// [n, hkv, d] to [hkv, n, d].
std::vector<float> by_head(const std::vector<float>& in, std::size_t n, std::size_t hkv,
                           std::size_t d) {
  std::vector<float> out(in.size());
  for (std::size_t p = 0; p < n; ++p) {
    for (std::size_t h = 0; h < hkv; ++h) {
      std::copy_n(in.data() + (p * hkv + h) * d, d, out.data() + (h * n + p) * d);
    }
  }
  return out;
}

double dot(const double* a, const float* b, std::size_t d) {
  // Eight partial sums: independent, so that the compiler may keep them in vectors without
  // being allowed to reorder.
  double partial[8] = {};
  std::size_t i = 0;
  for (; i + 8 <= d; i += 8) {
    for (std::size_t l = 0; l < 8; ++l) partial[l] += a[i + l] * static_cast<double>(b[i + l]);
  }
  for (std::size_t l = 0; i < d; ++i, ++l) partial[l] += a[i] * static_cast<double>(b[i]);
  return ((partial[0] + partial[4]) + (partial[2] + partial[6])) +
         ((partial[1] + partial[5]) + (partial[3] + partial[7]));
}

/// A softmax-weighted sum of values under construction.
struct Sum {
  double weight = 0;
  std::vector<double> output;

  void add(double w, const float* value) {
    weight += w;
    for (std::size_t i = 0; i < output.size(); ++i) output[i] += w * static_cast<double>(value[i]);
  }
};

double relative_error(const Sum& all, const Sum& part) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < all.output.size(); ++i) {
    const double o = all.output[i] / all.weight;
    const double delta = o - part.output[i] / part.weight;
    difference += delta * delta;
    norm += o * o;
  }
  if (difference == 0) return 0;
  return std::sqrt(difference / norm);
}

}  // namespace

std::vector<std::int32_t> exact_top(std::span<const double> scores, std::int32_t begin,
                                    std::int32_t end, std::int32_t k) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(std::max(0, end - begin)));
  std::iota(order.begin(), order.end(), begin);
  const auto better = [&](std::int32_t a, std::int32_t b) {
    const double sa = scores[static_cast<std::size_t>(a)];
    const double sb = scores[static_cast<std::size_t>(b)];
    const bool nan_a = std::isnan(sa), nan_b = std::isnan(sb);
    if (nan_a != nan_b) return nan_b;
    if (!nan_a && sa != sb) return sa > sb;
    return a < b;
  };
  const auto count =
      static_cast<std::ptrdiff_t>(std::min(order.size(), static_cast<std::size_t>(std::max(0, k))));
  std::nth_element(order.begin(), order.begin() + count, order.end(), better);
  order.resize(static_cast<std::size_t>(count));
  std::sort(order.begin(), order.end());
  return order;
}

ExactAttention::ExactAttention(const Trace& trace)
    : n_(trace.n), hq_(trace.hq), hkv_(trace.hkv), d_(trace.d), q_pos_(trace.q_pos) {
  const auto n = static_cast<std::size_t>(n_), hkv = static_cast<std::size_t>(hkv_),
             d = static_cast<std::size_t>(d_);
  keys_ = by_head(widen_keys(trace), n, hkv, d);
  if (!trace.v.empty()) values_ = by_head(widen(trace.v), n, hkv, d);
  queries_ = widen(trace.q);
}

ExactAttention::Head ExactAttention::head(std::int32_t t, std::int32_t h) const {
  const auto d = static_cast<std::size_t>(d_);
  const auto row =
      static_cast<std::size_t>(t) * static_cast<std::size_t>(hq_) + static_cast<std::size_t>(h);
  const auto at = static_cast<std::size_t>(h / (hq_ / hkv_)) * static_cast<std::size_t>(n_) * d;
  return {{queries_.begin() + static_cast<std::ptrdiff_t>(row * d),
           queries_.begin() + static_cast<std::ptrdiff_t>((row + 1) * d)},
          keys_.data() + at,
          has_values() ? values_.data() + at : nullptr};
}

ExactRow ExactAttention::exact(std::int32_t t, std::int32_t h, const ListBounds& bounds) const {
  const auto d = static_cast<std::size_t>(d_);
  const std::int32_t n = q_pos_[static_cast<std::size_t>(t)] + 1;
  const std::int32_t end = std::max(bounds.first, n - bounds.window);
  const Head from = head(t, h);
  std::vector<double> weights(static_cast<std::size_t>(n));
  for (std::size_t p = 0; p < weights.size(); ++p) {
    weights[p] = dot(from.query.data(), from.keys + p * d, d);
  }
  ExactRow row;
  row.top = exact_top(weights, bounds.first, end, bounds.heavy);

  // Scores become softmax weights, up to the sum that they are divided by later.
  row.largest = *std::max_element(weights.begin(), weights.end());
  const double scale = 1.0 / std::sqrt(static_cast<double>(d_));
  for (double& w : weights) w = std::exp((w - row.largest) * scale);

  Sum all{0, std::vector<double>(has_values() ? d : 0)}, oracle = all;
  const auto add = [&](Sum& sum, std::int32_t p) {
    const auto at = static_cast<std::size_t>(p);
    sum.add(weights[at], from.values == nullptr ? nullptr : from.values + at * d);
  };
  for (std::int32_t p = 0; p < n; ++p) add(all, p);
  for (std::int32_t p = 0; p < bounds.first; ++p) add(oracle, p);
  for (const std::int32_t p : row.top) add(oracle, p);
  for (std::int32_t p = end; p < n; ++p) add(oracle, p);
  row.oracle_mass = oracle.weight / all.weight;
  row.oracle_output_error = relative_error(all, oracle);
  row.weight = all.weight;
  row.output = std::move(all.output);
  return row;
}

RowQuality ExactAttention::judge(std::int32_t t, std::int32_t h, const ExactRow& exact,
                                 std::span<const std::int32_t> list) const {
  const auto d = static_cast<std::size_t>(d_);
  const Head from = head(t, h);
  const double scale = 1.0 / std::sqrt(static_cast<double>(d_));
  std::size_t hits = 0;
  Sum sparse{0, std::vector<double>(exact.output.size())};
  for (const std::int32_t p : list) {
    hits += std::binary_search(exact.top.begin(), exact.top.end(), p) ? 1 : 0;
    const auto at = static_cast<std::size_t>(p) * d;
    const double score = dot(from.query.data(), from.keys + at, d);
    sparse.add(std::exp((score - exact.largest) * scale),
               from.values == nullptr ? nullptr : from.values + at);
  }
  const Sum all{exact.weight, exact.output};
  RowQuality quality;
  quality.recall =
      exact.top.empty() ? 1.0 : static_cast<double>(hits) / static_cast<double>(exact.top.size());
  quality.mass = sparse.weight / all.weight;
  quality.output_error = relative_error(all, sparse);
  quality.oracle_mass = exact.oracle_mass;
  quality.oracle_output_error = exact.oracle_output_error;
  return quality;
}

}  // namespace quarry::tools
