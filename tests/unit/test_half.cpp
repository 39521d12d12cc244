// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/simd.h"
#include "half.h"
#include "support/oracle.h"
#include "support/random.h"

namespace quarry::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

double half_value(std::uint32_t h) {
  const double sign = h & 0x8000u ? -1.0 : 1.0;
  const int exponent = static_cast<int>(h >> 10 & 31u);
  const int fraction = static_cast<int>(h & 1023u);
  if (exponent == 31) return fraction == 0 ? sign * HUGE_VAL : std::nan("");
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

TEST(Half, WidensEveryPattern) {
  for (std::uint32_t h = 0; h < 0x10000u; ++h) {
    const float got = half_to_float(static_cast<std::uint16_t>(h));
    const double want = half_value(h);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(got)) << h;
    } else {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(got),
                std::bit_cast<std::uint32_t>(static_cast<float>(want)))
          << h;
    }
  }
}

TEST(Half, NarrowsBackEveryPattern) {
  for (std::uint32_t h = 0; h < 0x10000u; ++h) {
    const std::uint16_t back = float_to_half(half_to_float(static_cast<std::uint16_t>(h)));
    if (std::isnan(half_value(h))) {
      ASSERT_TRUE(std::isnan(half_to_float(back))) << h;
    } else {
      ASSERT_EQ(back, h);
    }
    const std::uint16_t b = float_to_bfloat16(bfloat16_to_float(static_cast<std::uint16_t>(h)));
    if (std::isnan(bfloat16_to_float(static_cast<std::uint16_t>(h)))) {
      ASSERT_TRUE(std::isnan(bfloat16_to_float(b))) << h;
    } else {
      ASSERT_EQ(b, h);
    }
  }
}

double float8_value(std::uint32_t h) {
  const double sign = h & 0x80u ? -1.0 : 1.0;
  const int exponent = static_cast<int>(h >> 3 & 15u);
  const int fraction = static_cast<int>(h & 7u);
  if (exponent == 15 && fraction == 7) return std::nan("");
  if (exponent == 0) return sign * std::ldexp(fraction, -9);
  return sign * std::ldexp(8 + fraction, exponent - 10);
}

TEST(Float8, WidensAndNarrowsBackEveryPattern) {
  for (std::uint32_t h = 0; h < 0x100u; ++h) {
    const float got = float8_to_float(static_cast<std::uint8_t>(h));
    const std::uint8_t back = float_to_float8(got);
    if (std::isnan(float8_value(h))) {
      ASSERT_TRUE(std::isnan(got)) << h;
      ASSERT_TRUE(std::isnan(float8_to_float(back))) << h;
    } else {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(got),
                std::bit_cast<std::uint32_t>(static_cast<float>(float8_value(h))))
          << h;
      ASSERT_EQ(back, h);
    }
  }
}

// What kernels widen with, and the product that a scaled key is: rounded once, subnormals kept.
TEST(Float8, EveryPatternTimesAScaleIsTheProductRoundedOnce) {
  for (const float scale : {1.0f, 0.0173f, -3.7f, 0.0f, 0x1p-140f, 1e-38f, 1e38f, kInf, -kInf,
                            std::numeric_limits<float>::quiet_NaN()}) {
    for (std::uint32_t h = 0; h < 0x100u; ++h) {
      const auto pattern = static_cast<std::uint8_t>(h);
      const float plain = float8_to_float(pattern),
                  by_product = float8_to_float_by_product(pattern);
      const float got = scaled_element(&pattern, DType::float8_e4m3, scale, 0);
      // A float32 product of at most 4 and 24 bits is exact in double.
      const auto want = static_cast<float>(float8_value(h) * static_cast<double>(scale));
      if (std::isnan(float8_value(h))) {
        ASSERT_TRUE(std::isnan(by_product)) << h;
      } else {
        ASSERT_EQ(std::bit_cast<std::uint32_t>(by_product), std::bit_cast<std::uint32_t>(plain))
            << h;
      }
      if (std::isnan(want)) {
        ASSERT_TRUE(std::isnan(got)) << h << " times " << scale;
      } else {
        ASSERT_EQ(std::bit_cast<std::uint32_t>(got), std::bit_cast<std::uint32_t>(want))
            << h << " times " << scale;
      }
    }
  }
}

// The vectors' loads, and the rest of a row that fills none.
TEST(Float8, RowsOfEveryPatternAreReadAsOneByOne) {
  constexpr int kCount = 256;
  std::vector<std::uint8_t> bytes(kCount + 8);
  for (int i = 0; i < kCount + 8; ++i) bytes[i] = static_cast<std::uint8_t>(i);
  for (const float scale : {1.0f, 0.0173f, 0x1p-140f}) {
    for (const int d : {8, 24, 256}) {
      for (const std::int64_t offset : {0, 3, 120}) {
        if (offset + d > kCount + 8) continue;
        std::vector<float> wide(d), sum(d, 0.5f), q(d);
        cpu::widen(bytes.data(), DType::float8_e4m3, scale, offset, d, nullptr, wide.data());
        cpu::accumulate(bytes.data(), DType::float8_e4m3, scale, offset, d, sum.data());
        float dot = 0;
        for (int i = 0; i < d; ++i) q[i] = static_cast<float>(i % 5 - 2);
        cpu::dots(q.data(), bytes.data(), DType::float8_e4m3, scale, &offset, 1, d, &dot);
        double want_dot = 0, magnitude = 0;
        for (int i = 0; i < d; ++i) {
          const auto value =
              static_cast<float>(float8_value(bytes[offset + i]) * static_cast<double>(scale));
          const float want_sum = 0.5f + value;
          want_dot += static_cast<double>(q[i]) * static_cast<double>(value);
          magnitude += std::abs(static_cast<double>(q[i]) * static_cast<double>(value));
          if (std::isnan(value)) {
            ASSERT_TRUE(std::isnan(wide[i]) && std::isnan(sum[i]));
            continue;
          }
          ASSERT_EQ(std::bit_cast<std::uint32_t>(wide[i]), std::bit_cast<std::uint32_t>(value));
          ASSERT_EQ(sum[i], want_sum);
        }
        if (std::isnan(want_dot)) {
          EXPECT_TRUE(std::isnan(dot));
        } else {
          EXPECT_NEAR(dot, want_dot, magnitude * 0x1p-16);
        }
      }
    }
  }
}

TEST(Float8, SaturatesAndHasNoInfinity) {
  for (const float f : {448.0f, 449.0f, 463.99f, 464.0f, 480.0f, 1e9f, 3e38f}) {
    EXPECT_EQ(float8_to_float(float_to_float8(f)), 448.0f) << f;
    EXPECT_EQ(float8_to_float(float_to_float8(-f)), -448.0f) << f;
  }
  EXPECT_TRUE(std::isnan(float8_to_float(float_to_float8(kInf))));
  EXPECT_TRUE(std::isnan(float8_to_float(float_to_float8(-kInf))));
}

/// Every narrowing of `f` against round_to(), which works in double.
void expect_rounded(float f) {
  for (const DType dtype : {DType::float16, DType::bfloat16, DType::float8_e4m3}) {
    alignas(4) std::uint16_t bits[2] = {};
    store_element(bits, dtype, 0, f);
    const float got = load_element(bits, dtype, 0);
    const float want = round_to(dtype, f);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(got));
    } else {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(got), std::bit_cast<std::uint32_t>(want))
          << to_string(dtype) << " of " << f;
    }
  }
}

TEST(Half, RoundsToNearestEvenAtEveryBorder) {
  for (std::uint32_t h = 0; h < 0x7c00u; ++h) {
    // Halfway to the next value, and one float to either side; 65520 is halfway to infinity.
    const double next = h == 0x7bffu ? 65536.0 : half_value(h + 1);
    const auto middle = static_cast<float>((half_value(h) + next) / 2);
    for (const float f : {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, kInf)}) {
      expect_rounded(f);
      expect_rounded(-f);
    }
  }
  for (std::uint32_t h = 0; h < 0x7f80u; ++h) {
    const std::uint32_t middle = h << 16 | 0x8000u;
    for (const std::uint32_t u : {middle - 1, middle, middle + 1}) {
      expect_rounded(std::bit_cast<float>(u));
    }
  }
}

TEST(Float8, RoundsToNearestEvenAtEveryBorder) {
  for (std::uint32_t h = 0; h < 0x7eu; ++h) {
    const auto middle = static_cast<float>((float8_value(h) + float8_value(h + 1)) / 2);
    for (const float f : {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, kInf)}) {
      expect_rounded(f);
      expect_rounded(-f);
    }
  }
}

TEST(Half, RoundsRandomFloats) {
  Random random(3);
  for (int i = 0; i < 200000; ++i) {
    expect_rounded(std::bit_cast<float>(static_cast<std::uint32_t>(random.bits())));
    expect_rounded(static_cast<float>(random.normal()));
  }
  expect_rounded(0.0f);
  expect_rounded(-0.0f);
  expect_rounded(kInf);
  expect_rounded(-kInf);
}

TEST(SelectionKey, OrdersAsTheContractSays) {
  const float ascending[] = {std::nanf(""), -kInf,  -3e38f, -1.0f, -1e-45f, 0.0f,
                             1e-45f,        1e-38f, 1.0f,   3e38f, kInf};
  for (std::size_t i = 0; i + 1 < std::size(ascending); ++i) {
    EXPECT_LT(selection_key(ascending[i]), selection_key(ascending[i + 1])) << i;
  }
  EXPECT_EQ(selection_key(-0.0f), selection_key(0.0f));
  EXPECT_EQ(selection_key(-std::nanf("")), selection_key(std::nanf("")));
  Random random(4);
  for (int i = 0; i < 100000; ++i) {
    const float a = std::bit_cast<float>(static_cast<std::uint32_t>(random.bits()));
    const float b = std::bit_cast<float>(static_cast<std::uint32_t>(random.bits()));
    if (std::isnan(a) || std::isnan(b)) continue;
    ASSERT_EQ(selection_key(a) < selection_key(b), a < b);
    ASSERT_EQ(selection_key(a) == selection_key(b), a == b);
  }
}

TEST(DistanceKey, NaNNeverWins) {
  EXPECT_LT(distance_key(0.0f), distance_key(1e-45f));
  EXPECT_LT(distance_key(1e-45f), distance_key(1.0f));
  EXPECT_LT(distance_key(3e38f), distance_key(kInf));
  EXPECT_LT(distance_key(kInf), distance_key(std::nanf("")));
  EXPECT_EQ(distance_key(-std::nanf("")), distance_key(std::nanf("")));
}

}  // namespace
}  // namespace quarry::test
