// SPDX-License-Identifier: Apache-2.0
//
// The figures quarry-replay reports, on inputs small enough to know the answers.
#include "exact.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "report.h"

namespace quarry::tools {
namespace {

TypedArray floats(const std::vector<float>& values) {
  TypedArray out;
  out.bytes.resize(values.size() * sizeof(float));
  std::memcpy(out.bytes.data(), values.data(), out.bytes.size());
  return out;
}

TEST(ExactTop, TiesGoToTheLowerPosition) {
  const std::vector<double> scores = {9, 1, 3, 3, 3, 0, 9};
  EXPECT_EQ(exact_top(scores, 1, 6, 2), (std::vector<std::int32_t>{2, 3}));
  EXPECT_EQ(exact_top(scores, 1, 6, 4), (std::vector<std::int32_t>{1, 2, 3, 4}));
  EXPECT_EQ(exact_top(scores, 1, 6, 99), (std::vector<std::int32_t>{1, 2, 3, 4, 5}));
  EXPECT_TRUE(exact_top(scores, 3, 3, 2).empty());
}

TEST(ExactTop, NanRanksLowest) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double inf = std::numeric_limits<double>::infinity();
  const std::vector<double> scores = {nan, -inf, nan, -5, -0.0, 0.0};
  EXPECT_EQ(exact_top(scores, 0, 6, 4), (std::vector<std::int32_t>{1, 3, 4, 5}));
  EXPECT_EQ(exact_top(scores, 0, 6, 1), (std::vector<std::int32_t>{4}));
  EXPECT_EQ(exact_top(scores, 0, 6, 5), (std::vector<std::int32_t>{0, 1, 3, 4, 5}));
}

TEST(Percentile, NearestRank) {
  EXPECT_EQ(percentile({4, 1, 3, 2}, 0.5), 2);
  EXPECT_EQ(percentile({4, 1, 3, 2}, 0.99), 4);
  EXPECT_EQ(percentile({7}, 0), 7);
  EXPECT_TRUE(std::isnan(percentile({}, 0.5)));
}

/// Two KV heads, two query heads each, d = 4, six positions. KV head 1's keys are those of
/// head 0 reversed, so that a mix-up of heads shows.
Trace tiny() {
  Trace trace;
  trace.n = 6;
  trace.hkv = 2;
  trace.hq = 4;
  trace.d = 4;
  trace.queries = 1;
  trace.q_pos = {5};
  const double log_weights[] = {0, 1, 2, 4, 3, 0};
  std::vector<float> k, v;
  for (int p = 0; p < 6; ++p) {
    for (int h = 0; h < 2; ++h) {
      const auto x = static_cast<float>(log_weights[h == 0 ? p : 5 - p]);
      k.insert(k.end(), {x, 0, 0, 0});
      // Value p is the unit vector of coordinate p % 4.
      for (int i = 0; i < 4; ++i) v.push_back(i == p % 4 ? 1.0f : 0.0f);
    }
  }
  std::vector<float> q;
  // Scale 1/sqrt(4) makes the softmax weight of key x exp(x).
  for (int h = 0; h < 4; ++h) q.insert(q.end(), {2, 0, 0, 0});
  trace.k = floats(k);
  trace.v = floats(v);
  trace.q = floats(q);
  return trace;
}

RowQuality judge(const ExactAttention& attention, std::int32_t h, const ListBounds& bounds,
                 const std::vector<std::int32_t>& list,
                 std::vector<std::int32_t>* exact_top = nullptr) {
  const ExactRow exact = attention.exact(0, h, bounds);
  if (exact_top != nullptr) *exact_top = exact.top;
  return attention.judge(0, h, exact, list);
}

TEST(ExactAttention, KnownAnswers) {
  const ExactAttention attention(tiny());
  const ListBounds bounds{1, 2, 1};  // candidates are positions 1 .. 4
  std::vector<std::int32_t> exact;
  const std::vector<std::int32_t> list = {0, 2, 3, 5};
  const RowQuality q = judge(attention, 0, bounds, list, &exact);
  EXPECT_EQ(exact, (std::vector<std::int32_t>{3, 4}));
  EXPECT_DOUBLE_EQ(q.recall, 0.5);
  const double e1 = std::exp(1), e2 = std::exp(2), e3 = std::exp(3), e4 = std::exp(4);
  const double all = 1 + e1 + e2 + e4 + e3 + 1;
  EXPECT_NEAR(q.mass, (1 + e2 + e4 + 1) / all, 1e-14);
  EXPECT_NEAR(q.oracle_mass, (1 + e4 + e3 + 1) / all, 1e-14);
  // Coordinates of o: positions 0 and 4, 1 and 5, 2, 3.
  const double o[] = {(1 + e3) / all, (e1 + 1) / all, e2 / all, e4 / all};
  const double part = 1 + e2 + e4 + 1;
  const double s[] = {1 / part, 1 / part, e2 / part, e4 / part};
  double difference = 0, norm = 0;
  for (int i = 0; i < 4; ++i) {
    difference += (o[i] - s[i]) * (o[i] - s[i]);
    norm += o[i] * o[i];
  }
  EXPECT_NEAR(q.output_error, std::sqrt(difference / norm), 1e-14);
  EXPECT_LT(q.oracle_output_error, q.output_error);
}

TEST(ExactAttention, QueryHeadsUseTheirKvHead) {
  const ExactAttention attention(tiny());
  const ListBounds bounds{1, 2, 1};
  std::vector<std::int32_t> exact;
  const std::vector<std::int32_t> list = {0, 1, 2, 5};
  EXPECT_DOUBLE_EQ(judge(attention, 1, bounds, list, &exact).recall, 0);
  EXPECT_DOUBLE_EQ(judge(attention, 2, bounds, list, &exact).recall, 1);
  EXPECT_EQ(exact, (std::vector<std::int32_t>{1, 2}));
  EXPECT_DOUBLE_EQ(judge(attention, 3, bounds, list, &exact).recall, 1);
}

TEST(ExactAttention, AFullListHasNoError) {
  const ExactAttention attention(tiny());
  const RowQuality q = judge(attention, 0, {1, 2, 1}, {0, 1, 2, 3, 4, 5});
  EXPECT_EQ(q.recall, 1);
  EXPECT_EQ(q.mass, 1);
  EXPECT_EQ(q.output_error, 0);
}

}  // namespace
}  // namespace quarry::tools
