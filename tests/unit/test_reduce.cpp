// SPDX-License-Identifier: Apache-2.0
//
// Stage reduce alone: sums and maxima against plain loops, softmax against its definition in
// double and, bit for bit, against the shared arithmetic.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "backend.h"
#include "reduction.h"
#include "support/backends.h"
#include "support/random.h"

namespace quarry::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr std::uint32_t kPoison = 0x5b5b5b5bu;

TEST(Reduction, ExpIsAsExactAsItSays) {
  double worst = 0;
  const std::uint32_t last = std::bit_cast<std::uint32_t>(-kExpLeast);
  for (std::uint32_t bits = 0; bits <= last; bits += 101) {
    for (const float x : {-std::bit_cast<float>(bits), std::bit_cast<float>(bits)}) {
      const double want = std::exp(static_cast<double>(x));
      worst = std::max(worst, std::abs(static_cast<double>(exp_of(x)) - want) / want);
      if (x > 0) continue;
      ASSERT_LE(exp_of(x), 1.0f);
    }
  }
  EXPECT_LT(worst, 0x1p-23);
  EXPECT_GT(worst, 0x1p-26);  // or nothing was measured
  EXPECT_EQ(exp_of(0.0f), 1.0f);
  EXPECT_EQ(exp_of(-0.0f), 1.0f);
  EXPECT_GE(exp_of(kExpLeast), std::numeric_limits<float>::min());
  EXPECT_LT(exp_of(kExpMost), std::numeric_limits<float>::max());
  EXPECT_EQ(exp_of(std::nextafter(kExpLeast, -kInf)), 0.0f);
  EXPECT_EQ(exp_of(std::nextafter(kExpMost, kInf)), kInf);
  EXPECT_EQ(exp_of(-kInf), 0.0f);
  EXPECT_EQ(exp_of(kInf), kInf);
  EXPECT_TRUE(std::isnan(exp_of(kNaN)));
}

TEST(Reduction, WeightsAreWholeUnits) {
  EXPECT_EQ(fixed_weight(1.0f), std::uint64_t{1} << 32);
  EXPECT_EQ(fixed_weight(0.0f), 0u);
  EXPECT_EQ(fixed_weight(kNaN), 0u);
  // Halves go to the even unit.
  EXPECT_EQ(fixed_weight(0x0.8p-32f), 0u);
  EXPECT_EQ(fixed_weight(0x1.8p-32f), 2u);
  EXPECT_EQ(fixed_weight(0x2.8p-32f), 2u);
  Random random(1);
  for (int i = 0; i < 100000; ++i) {
    const auto w = static_cast<float>(std::exp(-30 * random.uniform()));
    const double exact = static_cast<double>(w) * 0x1p32;
    ASSERT_EQ(fixed_weight(w), static_cast<std::uint64_t>(std::nearbyint(exact)));
  }
}

TEST(Reduction, PartsHaveEveryPositionOnce) {
  Random random(2);
  for (int trial = 0; trial < 3000; ++trial) {
    const int most = trial % 3 == 0 ? random.integer(1, 5000) : random.integer(1, 1 << 28);
    const int first = random.integer(0, trial % 2 == 0 ? most : std::min(most, 200));
    const int end = random.integer(first, most), parts = reduce_parts(most);
    ASSERT_GE(parts, 1);
    ASSERT_LE(parts, kMostReduceParts);
    const ReduceParts dealt = deal({first, end}, parts);
    ASSERT_LE(dealt.used, parts);
    int at = first;
    for (int i = 0; i < dealt.used; ++i) {
      const ReduceRange part = dealt[i];
      ASSERT_EQ(part.first, at);
      ASSERT_GT(part.end, part.first);
      ASSERT_TRUE(i == 0 || part.first % 4 == 0);
      at = part.end;
    }
    ASSERT_EQ(at, end);
  }
}

enum class Scores { random, wide, nan, head_of_nan, infinite, zeros, tied };
constexpr Scores kScores[] = {Scores::random,   Scores::wide,  Scores::nan, Scores::head_of_nan,
                              Scores::infinite, Scores::zeros, Scores::tied};

float score_of(Scores scores, int head, Random& random) {
  const auto x = static_cast<float>(random.normal());
  switch (scores) {
    case Scores::random:
      return 3 * x;
    case Scores::wide:
      return 1e4f * x;
    case Scores::nan:
      return random.integer(0, 3) == 0 ? kNaN : x;
    case Scores::head_of_nan:
      return head == 1 ? kNaN : x;
    case Scores::infinite:
      return random.integer(0, 9) == 0 ? (random.integer(0, 1) == 0 ? kInf : -kInf) : x;
    case Scores::zeros:
      return random.integer(0, 1) == 0 ? 0.0f : -0.0f;
    case Scores::tied:
      return -2.5f;
  }
  return 0;
}

class Reduce : public BackendTest {
 protected:
  void run(GqaReduction reduction, Scores kind, int group, bool wide);
};

/// Equal as scores are: -0 is +0, NaN is NaN.
bool same(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) ||
         std::bit_cast<std::uint32_t>(a + 0.0f) == std::bit_cast<std::uint32_t>(b + 0.0f);
}

void Reduce::run(GqaReduction reduction, Scores kind, int group, bool wide) {
  const Backend backend = GetParam();
  const Stages& stages = *stages_of(backend);
  Launch launch;
  ASSERT_TRUE(stages.open(0, 3, &launch).ok());
  StreamHandle stream(backend);
  launch.stream = stream.get();
  const float scale = 0.3f;
  const std::vector<RowState> rows{
      {RowKind::sparse, 7000, 3, 6990}, {RowKind::dense, 9, 3, 3},
      {RowKind::sparse, 40, 4, 5},      {RowKind::sparse, 40, 6, 30},
      {RowKind::not_built, 99, 3, 80},  {RowKind::sparse, 40, 3, 3},
      {RowKind::empty, 0, 3, 3},        {RowKind::sparse, 4200, 0, 4097}};
  const int lists = static_cast<int>(rows.size()), stride = wide ? 7008 : 7003,
            entries = wide ? 20 : 23;
  const std::vector<std::int32_t> counts{entries, 0, 1, 17, 0, 0, 0, 5};
  Random random(static_cast<std::uint64_t>(group) + 10 * static_cast<std::uint64_t>(kind));

  std::vector<float> first(static_cast<std::size_t>(lists) * group * stride,
                           std::bit_cast<float>(kPoison));
  std::vector<float> second(static_cast<std::size_t>(lists) * group * entries,
                            std::bit_cast<float>(kPoison));
  for (int r = 0; r < lists * group; ++r) {
    const RowState& row = rows[r / group];
    for (int p = row.first; row.kind == RowKind::sparse && p < row.end; ++p) {
      first[static_cast<std::size_t>(r) * stride + p] = score_of(kind, r % group, random);
    }
    for (int i = 0; i < counts[r / group]; ++i) {
      second[r * entries + i] = 1.5f * score_of(kind, r % group, random);
    }
  }
  const std::size_t parts = static_cast<std::size_t>(reduce_parts(7000));
  DeviceBuffer<RowState> device_rows(backend, rows);
  DeviceBuffer<std::int32_t> device_counts(backend, counts);
  DeviceBuffer<float> device_first(backend, first), device_second(backend, second),
      part_largest(backend, static_cast<std::size_t>(lists) * group * parts);
  DeviceBuffer<std::uint64_t> part_weights(backend,
                                           static_cast<std::size_t>(lists) * group * parts);
  DeviceBuffer<HeadSoftmax> softmax(backend, static_cast<std::size_t>(lists) * group);
  part_largest.fill(0x7f), part_weights.fill(0xff), softmax.fill(0xff);
  ReduceParams p{};
  p.num_rows = lists;
  p.group = group;
  p.reduction = reduction;
  p.scale = scale;
  p.rows = device_rows.data();
  p.scores = device_first.data();
  p.score_stride = stride;
  p.parts = static_cast<std::int32_t>(parts);
  p.softmax = softmax.data();
  p.part_largest = part_largest.data();
  p.part_weights = part_weights.data();
  ASSERT_TRUE(stages.reduce(p, launch).ok());
  p.scores = device_second.data();
  p.score_stride = entries;
  p.parts = 1;
  p.shortlist_counts = device_counts.data();
  ASSERT_TRUE(stages.reduce(p, launch).ok());
  stream.synchronize();
  const std::vector<float> got_first = device_first.download(),
                           got_second = device_second.download();

  const bool is_softmax = reduction == GqaReduction::softmax_sum;
  for (int list = 0; list < lists; ++list) {
    const RowState& row = rows[list];
    const bool sparse = row.kind == RowKind::sparse;
    std::vector<double> largest(group, std::nan("")), sums(group, 0);
    std::vector<HeadSoftmax> heads(group);
    for (int g = 0; sparse && g < group; ++g) {
      const float* scores = first.data() + static_cast<std::size_t>(list * group + g) * stride;
      float most = kNaN;
      for (int i = row.first; i < row.end; ++i) {
        if (std::isnan(most) || scores[i] > most) most = scores[i];
      }
      std::uint64_t weights = 0;
      for (int i = row.first; i < row.end; ++i) {
        weights += fixed_weight(softmax_weight(scores[i], most, scale));
        const double x = scores[i] == most ? 0 : scale * (static_cast<double>(scores[i]) - most);
        if (!std::isnan(x)) sums[g] += std::exp(x);
      }
      heads[g] = head_softmax(most, weights);
      largest[g] = most;
    }
    const auto expect = [&](const std::vector<float>& before, std::int64_t row_stride, int i,
                            float got, bool by_definition) {
      float want = is_softmax ? 0.0f : before[list * group * row_stride + i];
      double exact = 0, magnitude = 0;
      for (int g = is_softmax ? 0 : 1; g < group; ++g) {
        const float s = before[(static_cast<std::int64_t>(list) * group + g) * row_stride + i];
        if (reduction == GqaReduction::sum) want += s;
        if (reduction == GqaReduction::max && (std::isnan(want) || s > want)) want = s;
        if (!is_softmax) continue;
        want = std::fma(softmax_weight(s, heads[g].largest, scale), heads[g].inverse, want);
        const double x = s == largest[g] ? 0 : scale * (static_cast<double>(s) - largest[g]);
        exact += std::exp(x) / sums[g];
        magnitude += (8 + 3 * std::min(std::abs(x), 200.0)) * std::exp(x) / sums[g];
      }
      ASSERT_TRUE(same(got, want))
          << "list " << list << " entry " << i << ": " << got << ", want " << want;
      if (is_softmax && by_definition && std::isfinite(exact)) {
        // exp 2 units, exponent 2 operations, sum, inverse, product; 2^-32 a weight.
        ASSERT_NEAR(got, exact, 0x1p-24 * magnitude + exact * 7000 * 0x1p-32 + group * 2e-38);
      }
      if (is_softmax && by_definition) {
        ASSERT_EQ(std::isnan(exact), std::isnan(got));
      }
    };
    for (int g = 0; g < group; ++g) {
      const std::int64_t at = static_cast<std::int64_t>(list) * group + g;
      for (int i = 0; i < stride; ++i) {
        const float now = got_first[at * stride + i], before = first[at * stride + i];
        if (g == 0 && sparse && i >= row.first && i < row.end) {
          expect(first, stride, i, now, true);
          if (HasFatalFailure()) return;
        } else {
          ASSERT_EQ(std::bit_cast<std::uint32_t>(now), std::bit_cast<std::uint32_t>(before))
              << "list " << list << " head " << g << " position " << i << " is not to be written";
        }
      }
      for (int i = 0; i < entries; ++i) {
        const float now = got_second[at * entries + i], before = second[at * entries + i];
        if (g == 0 && i < counts[list]) {
          expect(second, entries, i, now, kind == Scores::random);
          if (HasFatalFailure()) return;
        } else {
          ASSERT_EQ(std::bit_cast<std::uint32_t>(now), std::bit_cast<std::uint32_t>(before))
              << "list " << list << " head " << g << " entry " << i << " is not to be written";
        }
      }
    }
  }
}

TEST_P(Reduce, AgreesWithItsDefinition) {
  for (const GqaReduction reduction :
       {GqaReduction::sum, GqaReduction::softmax_sum, GqaReduction::max}) {
    for (const Scores scores : kScores) {
      for (const int group : {1, 2, 3, 4, 8, 12, 37}) {
        run(reduction, scores, group, group % 2 == 0);
        ASSERT_FALSE(HasFatalFailure())
            << to_string(reduction) << " scores " << static_cast<int>(scores) << " group " << group;
      }
    }
  }
}

QUARRY_ON_EVERY_BACKEND(Reduce);

}  // namespace
}  // namespace quarry::test
