// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <vector>

#include "philox.h"

namespace quarry::test {
namespace {

// Known answers of Random123 (Salmon et al., SC 2011; kat_vectors, philox4x32 10).
TEST(Philox, KnownAnswers) {
  struct Known {
    std::uint32_t counter[4], key[2], out[4];
  };
  const Known known[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
       {0xffffffff, 0xffffffff},
       {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       {0xa4093822, 0x299f31d0},
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (const Known& k : known) {
    const Philox4x32 out = philox4x32_10({{k.counter[0], k.counter[1], k.counter[2], k.counter[3]}},
                                         k.key[0], k.key[1]);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(out.word[i], k.out[i]);
  }
}

TEST(Philox, IndicesStayInRangeAndSpread) {
  for (const int count : {1, 2, 7, 100, 0x7fffffff}) {
    for (std::uint32_t draw = 0; draw < 1000; ++draw) {
      const std::int32_t i = philox_index(5, draw, 1, 2, count);
      ASSERT_GE(i, 0);
      ASSERT_LT(i, count);
    }
  }
  std::vector<int> hits(16, 0);
  for (std::uint32_t draw = 0; draw < 16000; ++draw) ++hits[philox_index(5, draw, 0, 0, 16)];
  // 1000 each expected; 6 standard deviations.
  for (const int h : hits) EXPECT_NEAR(h, 1000, 6 * 31);
}

}  // namespace
}  // namespace quarry::test
