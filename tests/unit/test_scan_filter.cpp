// SPDX-License-Identifier: Apache-2.0
//
// The CPU scan's parts alone, on every vector target this machine has: the filter lets every
// key pass that reaches the threshold and few others, and the selection loops do what std does.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "cpu/reduce_rows.h"
#include "cpu/scan_filter.h"
#include "cpu/select_scan.h"
#include "half.h"
#include "hwy/highway.h"
#include "reduction.h"
#include "support/random.h"

namespace quarry::test {
namespace {

using namespace quarry::cpu;  // NOLINT: they are what is tested

/// Runs `body` once for each target that calls are dispatched to.
void on_every_target(const std::function<void()>& body) {
  const std::int64_t targets[] = {0, HWY_AVX3, HWY_AVX2, HWY_SCALAR, HWY_EMU128};
  for (const std::int64_t target : targets) {
    hwy::SetSupportedTargetsForTest(0);
    if (target != 0) {
      // Tests may run on what this CPU has alone; generic code always runs.
      const bool generic = target == HWY_SCALAR || target == HWY_EMU128;
      if (!generic && (hwy::SupportedTargets() & target) == 0) continue;
      hwy::SetSupportedTargetsForTest(target);
    }
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    SCOPED_TRACE(target == 0 ? "best" : hwy::TargetName(target));
    body();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

constexpr float kInf = std::numeric_limits<float>::infinity();

enum class Entries { normal, outlier, tied, cancelling, denormal, narrow };

struct Problem {
  int m, b, tiles;
  Entries entries;
  std::vector<float> lut, biases;  // a bias a tile
  std::vector<std::uint8_t> codes;
  std::vector<float> scores;
};

Problem problem(int m, int b, Entries entries, bool blocks, std::uint64_t seed) {
  Random random(seed);
  Problem p{m, b, 33, entries, {}, {}, {}, {}};
  const int ksub = 1 << b, bytes = b <= 4 ? (m + 1) / 2 : m;
  for (int i = 0; i < m * ksub; ++i) {
    float x = static_cast<float>(random.normal());
    if (entries == Entries::outlier && i == ksub / 2) x = 1e30f;
    if (entries == Entries::tied) x = 0.3f;
    if (entries == Entries::cancelling) x = i / ksub % 2 == 0 ? x * 1e6f : -x * 1e6f;
    if (entries == Entries::denormal) x *= 0x1p-144f;
    if (entries == Entries::narrow) x = 1.0f + static_cast<float>(random.integer(0, 5)) * 0x1p-23f;
    p.lut.push_back(x);
  }
  for (int t = 0; t < p.tiles; ++t) {
    p.biases.push_back(blocks ? 3.0f * static_cast<float>(random.normal()) : 0.0f);
  }
  p.codes.resize(static_cast<std::size_t>(p.tiles) * bytes * 32);
  for (int k = 0; k < p.tiles * 32; ++k) {
    // The first term is there only with blocks: -0 + x is x.
    float score = blocks ? p.biases[k / 32] : -0.0f;
    for (int s = 0; s < m; ++s) {
      const int id = random.integer(0, ksub - 1);
      const int byte = b <= 4 ? s / 2 : s;
      p.codes[(static_cast<std::size_t>(k / 32) * bytes + byte) * 32 + k % 32] |=
          static_cast<std::uint8_t>(b <= 4 ? id << s % 2 * 4 : id);
      score += p.lut[s * ksub + id];
    }
    p.scores.push_back(score);
  }
  return p;
}

CodeTiles side_by_side(const Problem& p) {
  return {p.codes.data(), nullptr, 0, 32, 32, p.b <= 4 ? (p.m + 1) / 2 : p.m};
}

/// A problem's codes in tiles of 16 or 32 that lie in random order, as in pages.
class Scattered {
 public:
  Scattered(const Problem& p, int tile, std::uint64_t seed) : tile_(tile) {
    bytes_ = p.b <= 4 ? (p.m + 1) / 2 : p.m;
    Random random(seed);
    const int count = p.tiles * 32 / tile;
    std::vector<int> places;
    for (int i = 0; i < count; ++i) {
      places.insert(places.begin() + random.integer(0, i), i);
    }
    codes_.resize(p.codes.size() + kOffset);
    for (int i = 0; i < count; ++i) {
      std::uint8_t* own = codes_.data() + places[i] * tile * bytes_;
      each_.push_back(own);
      for (int k = 0; k < tile; ++k) {
        const int key = i * tile + k;
        for (int byte = 0; byte < bytes_; ++byte) {
          own[kOffset + byte * tile + k] =
              p.codes[(static_cast<std::size_t>(key / 32) * bytes_ + byte) * 32 + key % 32];
        }
      }
    }
  }
  CodeTiles tiles() const { return {nullptr, each_.data(), kOffset, tile_, tile_, bytes_}; }

 private:
  static constexpr int kOffset = 48;
  int tile_, bytes_;
  std::vector<std::uint8_t> codes_;
  std::vector<const std::uint8_t*> each_;
};

TEST(Filter, WhereTilesLieDoesNotMatter) {
  on_every_target([] {
    std::uint64_t seed = 300;
    for (const int m : {1, 2, 3, 8, 17, 64}) {
      for (const int b : {3, 4, 6, 7, 8}) {
        Problem p = problem(m, b, Entries::normal, true, ++seed);
        std::vector<std::uint8_t> tables(static_cast<std::size_t>(m) * filter_entries(b));
        Filter filter(tables.data(), m, b);
        const auto [least, largest] = std::minmax_element(p.biases.begin(), p.biases.end());
        ASSERT_TRUE(filter.open(p.lut.data(), *least, *largest));
        std::vector<float> sorted = p.scores;
        std::sort(sorted.rbegin(), sorted.rend());
        filter.aim(p.lut.data(), sorted[100]);
        std::vector<std::uint16_t> limits;
        for (const float bias : p.biases) limits.push_back(filter.limit(bias));
        limits[5] = limits[12] = limits[13] = 0;  // a tile, and a pair, that is passed over
        for (const int tiles : {1, 2, 32, 33}) {
          const auto passed_by = [&](const CodeTiles& codes, std::vector<std::uint32_t>* hits) {
            hits->assign(p.tiles, 0xa5a5a5a5u);
            return filter_tiles(
                {codes, tiles, m, b, tables.data(), filter.wide(), limits.data(), hits->data()});
          };
          std::vector<std::uint32_t> expected, hits;
          const int passed = passed_by(side_by_side(p), &expected);
          for (const int tile : {16, 32}) {
            const Scattered scattered(p, tile, seed);
            ASSERT_EQ(passed_by(scattered.tiles(), &hits), passed) << "m " << m << " b " << b;
            ASSERT_EQ(hits, expected) << "m " << m << " b " << b << " tile " << tile;
          }
        }
      }
    }
  });
}

TEST(ScoreTiles, WhereTilesLieDoesNotMatter) {
  on_every_target([] {
    std::uint64_t seed = 400;
    for (const int m : {1, 2, 3, 8, 64}) {
      for (const int b : {3, 4, 5, 6, 8}) {
        const Problem p = problem(m, b, Entries::normal, true, ++seed);
        const int keys = p.tiles * 32;
        for (const int rows : {1, 5}) {
          std::vector<float> luts;
          for (int r = 0; r < rows; ++r) luts.insert(luts.end(), p.lut.begin(), p.lut.end());
          const auto scores_of = [&](const CodeTiles& codes) {
            std::vector<float> scores(static_cast<std::size_t>(rows) * keys);
            score_tiles({codes, keys / codes.tile, m, b, rows, luts.data(), std::int64_t{m} << b,
                         p.biases.data(), 0, 32, 0, scores.data(), keys});
            return scores;
          };
          const std::vector<float> expected = scores_of(side_by_side(p));
          ASSERT_EQ(std::vector<float>(expected.begin(), expected.begin() + keys), p.scores)
              << "m " << m << " b " << b;
          for (const int tile : {16, 32}) {
            const Scattered scattered(p, tile, seed);
            ASSERT_EQ(scores_of(scattered.tiles()), expected)
                << "m " << m << " b " << b << " tile " << tile;
            const CodeTiles all = scattered.tiles(), later = all.from(1);
            ASSERT_EQ(later[0], all[1]);
          }
        }
      }
    }
  });
}

TEST(Filter, LetsEveryKeyPassThatReachesTheThreshold) {
  on_every_target([] {
    std::uint64_t seed = 0;
    for (const int m : {1, 2, 3, 7, 8, 16, 17, 32, 64}) {
      for (const int b : {1, 3, 4, 5, 6, 7, 8}) {
        for (const Entries entries : {Entries::normal, Entries::outlier, Entries::tied,
                                      Entries::cancelling, Entries::denormal, Entries::narrow}) {
          const bool blocks = ++seed % 2 == 0;
          const Problem p = problem(m, b, entries, blocks, seed);
          std::vector<std::uint8_t> tables(static_cast<std::size_t>(m) * filter_entries(b));
          Filter filter(tables.data(), m, b);
          const auto [least, largest] = std::minmax_element(p.biases.begin(), p.biases.end());
          ASSERT_TRUE(filter.open(p.lut.data(), *least, *largest));
          std::vector<float> sorted = p.scores;
          std::sort(sorted.rbegin(), sorted.rend());
          for (const std::size_t rank : {0, 9, 100, 1055}) {
            const float threshold = sorted[rank];
            filter.aim(p.lut.data(), threshold);
            std::vector<std::uint16_t> limits;
            for (const float bias : p.biases) limits.push_back(filter.limit(bias));
            std::vector<std::uint32_t> hits(p.tiles, 0xa5a5a5a5u);
            const int found = filter_tiles({side_by_side(p), p.tiles, m, b, tables.data(),
                                            filter.wide(), limits.data(), hits.data()});
            int passed = 0, reached = 0;
            for (int k = 0; k < p.tiles * 32; ++k) {
              const bool passes = hits[k / 32] >> k % 32 & 1;
              passed += passes;
              reached += p.scores[k] >= threshold;
              ASSERT_TRUE(passes || p.scores[k] < threshold)
                  << "m " << m << " b " << b << " entries " << static_cast<int>(entries) << " key "
                  << k << " scores " << p.scores[k] << " of " << threshold;
            }
            ASSERT_EQ(passed, found);
            // Worth its while on plain tables.
            if (entries == Entries::normal && rank < 100) {
              ASSERT_LE(passed, 2 * reached + 60) << "m " << m << " b " << b;
            }
          }
        }
      }
    }
  });
}

/// Scores of problem `p`'s keys by another LUT and other biases, in the contract's order.
std::vector<float> scores_by(const Problem& p, const Problem& tables, bool blocks) {
  const int bytes = p.b <= 4 ? (p.m + 1) / 2 : p.m;
  std::vector<float> scores;
  for (int k = 0; k < p.tiles * 32; ++k) {
    float score = blocks ? tables.biases[k / 32] : -0.0f;
    for (int s = 0; s < p.m; ++s) {
      const std::size_t at = (static_cast<std::size_t>(k / 32) * bytes + (p.b <= 4 ? s / 2 : s));
      const int byte = p.codes[at * 32 + k % 32];
      score += tables.lut[(s << p.b) + (p.b <= 4 ? byte >> s % 2 * 4 & 15 : byte)];
    }
    scores.push_back(score);
  }
  return scores;
}

TEST(Filter, LetsEveryKeyPassWhoseSumOverHeadsReachesTheThreshold) {
  std::uint64_t seed = 100;
  for (const int heads : {1, 2, 3, 4, 8, 100}) {
    for (const int m : {1, 2, 8, 16, 17, 64}) {
      for (const int b : {2, 4, 6, 8}) {
        for (const Entries entries : {Entries::normal, Entries::outlier, Entries::tied,
                                      Entries::cancelling, Entries::denormal, Entries::narrow}) {
          const bool blocks = ++seed % 2 == 0;
          const Problem p = problem(m, b, entries, blocks, seed);
          std::vector<float> lut(p.lut.size(), -0.0f), biases(p.biases.size(), -0.0f);
          std::vector<float> scores(p.scores.size(), -0.0f);
          double magnitude = 0;
          for (int h = 0; h < heads; ++h) {
            const Problem own = problem(m, b, entries, blocks, 1000 * seed + h);
            // Every other head takes most of the one before back: rounding is what is left.
            const float sign = entries == Entries::cancelling && h % 2 != 0 ? -1.0f : 1.0f;
            const Problem& of =
                sign < 0 ? problem(m, b, entries, blocks, 1000 * seed + h - 1) : own;
            Problem head = of;
            for (float& x : head.lut) x *= sign;
            for (float& x : head.biases) x *= sign;
            const std::vector<float> add = scores_by(p, head, blocks);
            for (std::size_t i = 0; i < scores.size(); ++i) scores[i] += add[i];
            for (std::size_t i = 0; i < lut.size(); ++i) lut[i] += head.lut[i];
            for (std::size_t i = 0; i < biases.size(); ++i) biases[i] += head.biases[i];
            const auto [least, largest] =
                std::minmax_element(head.biases.begin(), head.biases.end());
            magnitude += filter_magnitude(head.lut.data(), m, 1 << b, *least, *largest);
          }
          std::vector<std::uint8_t> tables(static_cast<std::size_t>(m) * filter_entries(b));
          Filter filter(tables.data(), m, b);
          const float largest = *std::max_element(biases.begin(), biases.end());
          ASSERT_TRUE(filter.open_sum(lut.data(), largest, heads, magnitude));
          std::vector<float> sorted = scores;
          std::sort(sorted.rbegin(), sorted.rend());
          for (const std::size_t rank : {0, 9, 100, 1055}) {
            filter.aim(lut.data(), sorted[rank]);
            std::vector<std::uint16_t> limits;
            for (const float bias : biases) limits.push_back(filter.limit(bias));
            std::vector<std::uint32_t> hits(p.tiles);
            const int passed = filter_tiles({side_by_side(p), p.tiles, m, b, tables.data(),
                                             filter.wide(), limits.data(), hits.data()});
            int reached = 0;
            for (int k = 0; k < p.tiles * 32; ++k) {
              reached += scores[k] >= sorted[rank];
              ASSERT_TRUE((hits[k / 32] >> k % 32 & 1) != 0 || scores[k] < sorted[rank])
                  << heads << " heads, m " << m << " b " << b << " entries "
                  << static_cast<int>(entries) << " key " << k;
            }
            if (entries == Entries::normal && rank < 100) {
              ASSERT_LE(passed, 2 * reached + 60) << heads << " heads, m " << m << " b " << b;
            }
          }
        }
      }
    }
  }
}

TEST(Filter, NothingPassesAClosedOne) {
  std::vector<std::uint8_t> tables(2 * 16);
  std::vector<float> lut(32, 1.0f);
  Filter filter(tables.data(), 2, 4);
  filter.close();
  EXPECT_EQ(filter.limit(5), 0);
  ASSERT_TRUE(filter.open(lut.data(), 0, 5));
  filter.aim(lut.data(), 2.0f);
  EXPECT_GT(filter.limit(5), 0);
  filter.close();
  EXPECT_EQ(filter.limit(5), 0);
}

TEST(SoftmaxReach, SomeHeadReachesItWhereTheSumReachesTheThreshold) {
  Random random(9);
  for (int trial = 0; trial < 20000; ++trial) {
    const int group = 1 << random.integer(0, 6);
    const float scales[] = {1e-30f, 0.01f, 0.3f, 1, 50};
    const float scale = scales[random.integer(0, 4)];
    std::vector<HeadSoftmax> heads(group);
    std::vector<float> scores(group);
    const double share = std::exp(-random.uniform() * 20);
    for (int g = 0; g < group; ++g) {
      heads[g].largest = static_cast<float>(random.normal() * (trial % 3 == 0 ? 1e4 : 5));
      heads[g].inverse = static_cast<float>(std::exp(-random.uniform() * 15));
      // All heads give about the same, which is where the bound is tight.
      const double x = std::min(std::log(share / heads[g].inverse), 0.0);
      scores[g] = std::min(static_cast<float>(heads[g].largest + x / scale), heads[g].largest);
      for (int i = random.integer(0, 3); i > 0; --i) scores[g] = std::nextafter(scores[g], -kInf);
    }
    const float sum =
        reduce_position(GqaReduction::softmax_sum, scores.data(), 1, group, scale, heads.data());
    if (sum < kLeastShare) continue;
    bool reached = false;
    for (int g = 0; g < group; ++g) {
      reached = reached || scores[g] >= softmax_reach(sum, heads[g], scale, group);
    }
    ASSERT_TRUE(reached) << "trial " << trial << " group " << group << " scale " << scale;
    if (group == 1) {
      const double reach = softmax_reach(sum, heads[0], scale, 1);
      ASSERT_GE(reach,
                scores[0] - 1e-5 * (std::abs(scores[0]) + std::abs(heads[0].largest) + 1 / scale));
    }
  }
}

TEST(SoftmaxReach, AHeadThatCannotReachItSaysSo) {
  EXPECT_EQ(softmax_reach(0.5f, {3, 0.4f}, 1, 1), kInf);  // its best is worth 0.4
  EXPECT_LT(softmax_reach(0.5f, {3, 0.4f}, 1, 2), 3);     // one of two need not give it all
  EXPECT_EQ(softmax_reach(0.5f, {3, 0}, 1, 2), kInf);     // NaN alone
  EXPECT_EQ(softmax_reach(0.5f, {std::nanf(""), 1}, 1, 2), kInf);
  EXPECT_LE(softmax_reach(0.4f, {3, 0.4f}, 1, 1), 3);
}

TEST(Filter, HasNoBoundWhereNumbersAreNotFinite) {
  std::vector<std::uint8_t> tables(2 * 16);
  Filter filter(tables.data(), 2, 4);
  for (const float bad : {kInf, -kInf, std::nanf(""), 3e38f}) {
    std::vector<float> lut(32, 1.0f);
    lut[21] = bad;
    EXPECT_FALSE(filter.open(lut.data(), 0, 0)) << bad;
  }
  std::vector<float> lut(32, 1.0f);
  EXPECT_FALSE(filter.open(lut.data(), -3e38f, 0));
  ASSERT_TRUE(filter.open(lut.data(), 0, 5));
  filter.aim(lut.data(), 2.0f);
  EXPECT_EQ(filter.limit(std::nanf("")), 0);
  EXPECT_EQ(filter.limit(-kInf), 0);
  EXPECT_GT(filter.limit(0), 0);
  EXPECT_EQ(filter.limit(-1), 0);
}

TEST(Weigh, IsWeightOfAndAddsShares) {
  on_every_target([] {
    Random random(5);
    for (const int count : {1, 15, 16, 33, 1000}) {
      std::vector<float> scores(count), before(count);
      for (int i = 0; i < count; ++i) {
        scores[i] = static_cast<float>(random.normal() * 10 - 30);
        if (random.integer(0, 20) == 0) scores[i] = i % 2 == 0 ? std::nanf("") : -kInf;
        before[i] = static_cast<float>(random.uniform());
      }
      scores[count / 2] = 3;
      std::vector<float> shares = before;
      std::uint64_t want = 0;
      for (const float s : scores) want += fixed_weight(softmax_weight(s, 3, 0.7f));
      EXPECT_EQ(weight_of(scores.data(), count, 3, 0.7f), want);
      EXPECT_EQ(weigh(scores.data(), count, 3, 0.7f, 0.3f, shares.data()), want);
      for (int i = 0; i < count; ++i) {
        const float share = std::fmaf(softmax_weight(scores[i], 3, 0.7f), 0.3f, before[i]);
        ASSERT_TRUE(shares[i] == share || (std::isnan(shares[i]) && std::isnan(share))) << i;
      }
    }
  });
}

TEST(SelectionLoops, AreWhatStdDoes) {
  on_every_target([] {
    Random random(3);
    for (const int count : {1, 2, 15, 16, 33, 100, 1000, 2049}) {
      for (const int distinct : {1, 2, 50, 1000000}) {
        std::vector<float> scores(count);
        std::vector<std::uint32_t> keys(count);
        std::vector<std::int32_t> positions(count);
        for (int i = 0; i < count; ++i) {
          scores[i] = static_cast<float>(random.integer(0, distinct) - distinct / 2);
          if (random.integer(0, 30) == 0) scores[i] = std::nanf("");
          if (random.integer(0, 30) == 0) scores[i] = -0.0f;
          positions[i] = 7 * i;
        }
        selection_keys(scores.data(), count, keys.data());
        for (int i = 0; i < count; ++i) {
          ASSERT_EQ(keys[i], selection_key(scores[i]));
          if (keys[i] != 0) {
            ASSERT_EQ(selected_score(keys[i]), scores[i]);
          }
        }
        std::vector<std::uint32_t> sorted = keys;
        std::sort(sorted.rbegin(), sorted.rend());
        for (const int k : {1, (count + 1) / 2, count}) {
          const std::uint32_t kth = kth_key(keys.data(), count, k, k);
          ASSERT_EQ(kth, sorted[k - 1]) << count << " " << k;
          const std::uint32_t near = kth_key(keys.data(), count, k, k + k / 4);
          ASSERT_LE(near, kth);
          const auto reach = [&](std::uint32_t key) {
            return std::count_if(keys.begin(), keys.end(),
                                 [&](std::uint32_t x) { return x >= key; });
          };
          ASSERT_TRUE(reach(near) <= k + k / 4 || near == kth);
          std::vector<std::uint32_t> kept = keys;
          std::vector<std::int32_t> at = positions;
          const int n = keep_from(kth, count, kept.data(), at.data());
          ASSERT_EQ(n, reach(kth));
          for (int i = 0, from = 0; i < n; ++i, ++from) {
            while (keys[from] < kth) ++from;
            ASSERT_EQ(kept[i], keys[from]);
            ASSERT_EQ(at[i], positions[from]);
          }
        }
      }
    }
  });
}

}  // namespace
}  // namespace quarry::test
