// SPDX-License-Identifier: Apache-2.0
//
// The forward pass of examples/smollm2 on a tiny random model, against a plain one in double
// that shares no code with it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>

#include "attention.h"
#include "capture.h"
#include "half.h"
#include "model.h"

namespace quarry::smollm2 {
namespace {

constexpr std::int32_t kN = 150;

Model tiny_model() {
  Model model;
  model.shape = {2, 32, 48, 50, kN, 4, 2, 8, 1e-5f, 100.0};
  std::mt19937 random(3);
  const auto values = [&](std::int64_t count, float scale, float mean) {
    std::normal_distribution<float> normal(mean, scale);
    std::vector<float> out(static_cast<std::size_t>(count));
    for (float& v : out) v = normal(random);
    return out;
  };
  const auto matrix = [&](std::int64_t out, std::int64_t in) {
    return Matrix{values(out * in, 0.3f, 0.0f), out, in};
  };
  for (std::int32_t l = 0; l < model.shape.layers; ++l) {
    LayerWeights w;
    w.attention_norm = values(32, 0.2f, 1.0f);
    w.ffn_norm = values(32, 0.2f, 1.0f);
    w.q = matrix(32, 32);
    w.k = matrix(16, 32);
    w.v = matrix(16, 32);
    w.output = matrix(32, 32);
    w.gate = matrix(48, 32);
    w.up = matrix(48, 32);
    w.down = matrix(32, 48);
    model.layers.push_back(std::move(w));
  }
  model.final_norm = values(32, 0.2f, 1.0f);
  model.embedding = matrix(50, 32);
  return model;
}

std::vector<std::int32_t> tokens() {
  std::vector<std::int32_t> out;
  for (std::int32_t i = 0; i < kN; ++i) out.push_back((i * i + 3 * i) % 50);
  return out;
}

using Row = std::vector<double>;
/// Which positions a query at the last of scores.size() positions attends to.
using Listing = std::function<std::vector<std::size_t>(const Row& scores)>;

std::vector<std::size_t> everything(const Row& scores) {
  std::vector<std::size_t> out(scores.size());
  std::iota(out.begin(), out.end(), std::size_t{0});
  return out;
}

/// The forward pass in double, a token and a head at a time.
class Plain {
 public:
  explicit Plain(const Model& model) : m_(model), keys_(2), values_(2) {}

  Row token(std::int32_t token, const Listing& listing) {
    const auto position = static_cast<double>(keys_[0].size());
    Row x(m_.embedding.data.begin() + token * 32, m_.embedding.data.begin() + (token + 1) * 32);
    for (std::size_t l = 0; l < 2; ++l) {
      const LayerWeights& w = m_.layers[l];
      const Row h = norm(x, w.attention_norm);
      Row q = times(w.q, h), k = times(w.k, h);
      rotate(&q, position);
      rotate(&k, position);
      keys_[l].push_back(k);
      values_[l].push_back(times(w.v, h));
      Row attended(32);
      for (std::size_t head = 0; head < 4; ++head) attend(l, head, q, listing, &attended);
      add(times(w.output, attended), &x);
      const Row f = norm(x, w.ffn_norm);
      Row gate = times(w.gate, f);
      const Row up = times(w.up, f);
      for (std::size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1 + std::exp(-gate[i]));
      add(times(w.down, gate), &x);
    }
    return norm(x, m_.final_norm);
  }

  const Row& key(std::size_t layer, std::size_t position) const { return keys_[layer][position]; }

 private:
  static Row norm(const Row& x, const std::vector<float>& weight) {
    double mean = 0;
    for (const double v : x) mean += v * v / static_cast<double>(x.size());
    Row out(x);
    for (std::size_t i = 0; i < x.size(); ++i) {
      out[i] *= double{weight[i]} / std::sqrt(mean + 1e-5);
    }
    return out;
  }
  static Row times(const Matrix& w, const Row& x) {
    Row out(static_cast<std::size_t>(w.out));
    for (std::size_t i = 0; i < w.data.size(); ++i) {
      out[i / x.size()] += double{w.data[i]} * x[i % x.size()];
    }
    return out;
  }
  static void rotate(Row* heads, double position) {
    for (std::size_t i = 0; i < heads->size(); ++i) {
      if (i % 8 >= 4) continue;
      const double angle = position / std::pow(100.0, static_cast<double>(i % 8) / 4);
      double &a = (*heads)[i], &b = (*heads)[i + 4];
      const double first = a * std::cos(angle) - b * std::sin(angle);
      b = b * std::cos(angle) + a * std::sin(angle);
      a = first;
    }
  }
  static void add(const Row& from, Row* to) {
    for (std::size_t i = 0; i < from.size(); ++i) (*to)[i] += from[i];
  }
  void attend(std::size_t l, std::size_t head, const Row& q, const Listing& listing, Row* out) {
    const std::size_t kv = head / 2 * 8;
    Row scores(keys_[l].size());
    for (std::size_t p = 0; p < scores.size(); ++p) {
      for (std::size_t i = 0; i < 8; ++i) scores[p] += q[head * 8 + i] * keys_[l][p][kv + i];
    }
    double sum = 0;
    const std::vector<std::size_t> list = listing(scores);
    for (const std::size_t p : list) sum += std::exp(scores[p] / std::sqrt(8.0));
    for (const std::size_t p : list) {
      const double weight = std::exp(scores[p] / std::sqrt(8.0)) / sum;
      for (std::size_t i = 0; i < 8; ++i) (*out)[head * 8 + i] += weight * values_[l][p][kv + i];
    }
  }

  const Model& m_;
  std::vector<std::vector<Row>> keys_, values_;  // [layer][position]
};

/// Hidden states of all tokens: `prompt` of them densely, then the rest in calls of `step`.
std::vector<float> run(const Model& model, Attention& attention, KvCache& cache, std::int32_t begin,
                       std::int32_t step) {
  const std::vector<std::int32_t> all = tokens();
  const Forward forward(model, kN);
  std::vector<float> out;
  for (std::int32_t p = begin; p < kN; p += step) {
    const auto count = static_cast<std::size_t>(std::min(step, kN - p));
    const std::span<const std::int32_t> part(all.data() + p, count);
    const std::vector<float> hidden = forward.run(part, p, attention, cache);
    out.insert(out.end(), hidden.begin(), hidden.end());
  }
  return out;
}

void expect_near(const std::vector<float>& got, const std::vector<float>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], 2e-4) << i;
}

TEST(Forward, DenseAgreesWithAPlainPassInDouble) {
  const Model model = tiny_model();
  KvCache cache(model.shape, kN);
  DenseAttention dense(model.shape);
  const std::vector<float> hidden = run(model, dense, cache, 0, kN);
  Plain plain(model);
  std::vector<float> expected;
  for (const std::int32_t token : tokens()) {
    for (const double v : plain.token(token, everything)) {
      expected.push_back(static_cast<float>(v));
    }
  }
  expect_near(hidden, expected);
}

TEST(Forward, TokenByTokenEqualsAllAtOnce) {
  const Model model = tiny_model();
  KvCache once(model.shape, kN), single(model.shape, kN);
  DenseAttention dense(model.shape);
  const std::vector<float> expected = run(model, dense, once, 0, kN);
  expect_near(run(model, dense, single, 0, 1), expected);
}

TEST(Forward, ExactListsAgreeWithAPlainPassThatSorts) {
  constexpr ListShape kShape{4, 10, 8};
  const Model model = tiny_model();
  KvCache cache(model.shape, kN);
  ExactLists lists(model.shape, kShape);
  const std::vector<float> hidden = run(model, lists, cache, 0, kN);
  const Listing listing = [&](const Row& scores) {
    std::vector<std::size_t> list, heavy;
    const std::size_t n = scores.size();
    for (std::size_t p = 0; p < n; ++p) {
      const bool fixed = p < 4 || p + 8 >= n;
      (fixed ? list : heavy).push_back(p);
    }
    std::stable_sort(heavy.begin(), heavy.end(),
                     [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
    heavy.resize(std::min<std::size_t>(heavy.size(), 10));
    list.insert(list.end(), heavy.begin(), heavy.end());
    return list;
  };
  Plain plain(model);
  std::vector<float> expected;
  for (const std::int32_t token : tokens()) {
    for (const double v : plain.token(token, listing)) expected.push_back(static_cast<float>(v));
  }
  expect_near(hidden, expected);
}

TEST(Forward, QuarryInItsDenseRangeIsDense) {
  const Model model = tiny_model();
  KvCache cache(model.shape, kN);
  DenseAttention dense(model.shape);
  const std::vector<float> all = run(model, dense, cache, 0, kN);
  IndexerConfig config;
  config.num_subspaces = 2;
  config.bits = 4;
  config.sink_size = config.window_size = 16;
  config.heavy_size = kN;
  QuarryLists lists(config, model.shape, cache, 100, {}, 1);
  const std::vector<float> hidden = run(model, lists, cache, 100, kN);
  expect_near(hidden, std::vector<float>(all.begin() + 100 * 32, all.end()));
}

TEST(Forward, CaptureKeepsWhatALayerAttendsWith) {
  const Model model = tiny_model();
  KvCache cache(model.shape, kN);
  Capture capture(model.shape, kN);
  DenseAttention dense(model.shape);
  const std::vector<float> hidden = run(model, capture, cache, 0, 64);
  expect_near(hidden, run(model, dense, cache, 0, kN));

  Plain plain(model);
  for (const std::int32_t token : tokens()) plain.token(token, everything);
  const tools::Trace trace = capture.trace(1, cache, "tiny", "none");
  EXPECT_EQ(trace.n, kN);
  EXPECT_EQ(trace.metadata.at("layer"), "1");
  ASSERT_EQ(trace.queries, 10);       // 75, 83, .. 147
  ASSERT_EQ(trace.train_queries, 5);  // 0, 16, .. 64
  EXPECT_EQ(trace.q_pos.front(), 75);
  EXPECT_EQ(trace.q_pos.back(), 147);
  ASSERT_EQ(trace.q.bytes.size(), 10u * 32 * 2);
  ASSERT_EQ(trace.k.bytes.size(), std::size_t{kN} * 16 * 2);
  for (std::int64_t p = 0; p < kN; ++p) {
    for (std::int64_t i = 0; i < 16; ++i) {
      const double expected =
          plain.key(1, static_cast<std::size_t>(p))[static_cast<std::size_t>(i)];
      ASSERT_NEAR(load_element(trace.k.bytes.data(), DType::float16, p * 16 + i), expected,
                  1e-3 * (1 + std::abs(expected)));
    }
  }
}

}  // namespace
}  // namespace quarry::smollm2
