// SPDX-License-Identifier: Apache-2.0
// Arithmetic at its edges: what a GPU's bits are.
#include <bit>
#include <cmath>
#include <limits>

#include "ptx_test.h"

namespace quarry::emulator::testing {
namespace {

// An instruction of up to three 32-bit sources, by its bits.
uint32_t word(const std::string& instruction, uint32_t a, uint32_t b = 0, uint32_t c = 0) {
  const std::string body = R"(
  ld.global.u32 %r10, [%rd1];
  ld.global.u32 %r11, [%rd1+4];
  ld.global.u32 %r12, [%rd1+8];
  mov.b32 %f10, %r10; mov.b32 %f11, %r11; mov.b32 %f12, %r12;
  )" + instruction + R"(
  st.global.u32 [%rd2], %r20;)";
  const std::vector<uint32_t> in = {a, b, c};
  return words_of(body, in, {1}).at(0);
}
uint32_t real(const std::string& instruction, float a, float b = 0, float c = 0) {
  return word(instruction + " mov.b32 %r20, %f20;", std::bit_cast<uint32_t>(a),
              std::bit_cast<uint32_t>(b), std::bit_cast<uint32_t>(c));
}
uint32_t bits(float x) { return std::bit_cast<uint32_t>(x); }

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kTiny = 1e-40F;  // a subnormal
constexpr uint32_t kGpuNaN = 0x7FFFFFFFu;

TEST(PtxFloat, NaNResultsAreTheGpus) {
  EXPECT_EQ(real("add.f32 %f20, %f10, %f11;", kInf, -kInf), kGpuNaN);
  EXPECT_EQ(real("mul.rn.f32 %f20, %f10, %f11;", kNaN, 1), kGpuNaN);
  EXPECT_EQ(real("div.rn.f32 %f20, %f10, %f11;", 0, 0), kGpuNaN);
  EXPECT_EQ(real("sqrt.rn.f32 %f20, %f10;", -1), kGpuNaN);
  EXPECT_EQ(real("fma.rn.f32 %f20, %f10, %f11, %f12;", kInf, 0, 1), kGpuNaN);
}

TEST(PtxFloat, SubnormalsStayUnlessFlushed) {
  EXPECT_EQ(real("add.f32 %f20, %f10, %f11;", kTiny, kTiny), bits(kTiny + kTiny));
  EXPECT_EQ(real("add.ftz.f32 %f20, %f10, %f11;", kTiny, kTiny), 0u);
  EXPECT_EQ(real("mul.ftz.f32 %f20, %f10, %f11;", -1e-30F, 1e-10F), 0x80000000u);
  EXPECT_EQ(word("setp.gt.ftz.f32 %p1, %f10, %f11; selp.u32 %r20, 1, 0, %p1;", bits(kTiny), 0), 0u);
  EXPECT_EQ(word("setp.gt.f32 %p1, %f10, %f11; selp.u32 %r20, 1, 0, %p1;", bits(kTiny), 0), 1u);
}

TEST(PtxFloat, FmaRoundsOnce) {
  const float a = 1 + 0x1p-12F;
  const float c = -(1 + 0x1p-11F);
  EXPECT_EQ(real("fma.rn.f32 %f20, %f10, %f11, %f12;", a, a, c), bits(0x1p-24F));
  EXPECT_EQ(real("mul.f32 %f20, %f10, %f11; add.f32 %f20, %f20, %f12;", a, a, c), bits(0.0F));
}

TEST(PtxFloat, SaturationTakesNaNToZero) {
  EXPECT_EQ(real("add.sat.f32 %f20, %f10, %f11;", 2, 1), bits(1.0F));
  EXPECT_EQ(real("add.sat.f32 %f20, %f10, %f11;", -2, 1), bits(0.0F));
  EXPECT_EQ(real("add.sat.f32 %f20, %f10, %f11;", kNaN, 1), bits(0.0F));
}

TEST(PtxFloat, MinAndMaxPreferNumbersAndOrderZeros) {
  EXPECT_EQ(real("min.f32 %f20, %f10, %f11;", kNaN, 3), bits(3.0F));
  EXPECT_EQ(real("max.f32 %f20, %f10, %f11;", 3, kNaN), bits(3.0F));
  EXPECT_EQ(real("max.f32 %f20, %f10, %f11;", kNaN, -kNaN), kGpuNaN);
  EXPECT_EQ(real("min.f32 %f20, %f10, %f11;", 0.0F, -0.0F), bits(-0.0F));
  EXPECT_EQ(real("max.f32 %f20, %f10, %f11;", -0.0F, 0.0F), bits(0.0F));
  EXPECT_EQ(real("min.NaN.f32 %f20, %f10, %f11;", kNaN, 3), kGpuNaN);
}

TEST(PtxFloat, UnorderedComparisons) {
  const auto holds = [](const char* compare, float a, float b) {
    return word(std::string("setp.") + compare + ".f32 %p1, %f10, %f11; selp.u32 %r20, 1, 0, %p1;",
                bits(a), bits(b)) == 1;
  };
  for (const char* ordered : {"eq", "ne", "lt", "le", "gt", "ge", "num"}) {
    EXPECT_FALSE(holds(ordered, kNaN, 1)) << ordered;
  }
  for (const char* unordered : {"equ", "neu", "ltu", "leu", "gtu", "geu", "nan"}) {
    EXPECT_TRUE(holds(unordered, kNaN, 1)) << unordered;
  }
  EXPECT_TRUE(holds("eq", 0.0F, -0.0F));
  EXPECT_FALSE(holds("neu", 1, 1));
  EXPECT_TRUE(holds("num", 1, 2));
}

TEST(PtxConvert, FloatToIntegerSaturates) {
  const auto to = [](const char* op, float x) {
    return word(std::string(op) + " %r20, %f10;", bits(x));
  };
  EXPECT_EQ(to("cvt.rzi.s32.f32", 3e9F), 0x7FFFFFFFu);
  EXPECT_EQ(to("cvt.rzi.s32.f32", -3e9F), 0x80000000u);
  EXPECT_EQ(to("cvt.rzi.u32.f32", -1), 0u);
  EXPECT_EQ(to("cvt.rzi.u32.f32", 5e9F), 0xFFFFFFFFu);
  EXPECT_EQ(to("cvt.rzi.s32.f32", kNaN), 0u);
  EXPECT_EQ(to("cvt.rni.s32.f32", 2.5F), 2u);
  EXPECT_EQ(to("cvt.rni.s32.f32", 3.5F), 4u);
  EXPECT_EQ(to("cvt.rmi.s32.f32", -2.5F), static_cast<uint32_t>(-3));
  EXPECT_EQ(to("cvt.rpi.s32.f32", 2.1F), 3u);
  EXPECT_EQ(to("cvt.rzi.s8.f32", 300), 127u);
  EXPECT_EQ(word("cvt.rzi.u64.f32 %rd20, %f10; shr.u64 %rd20, %rd20, 32; cvt.u32.u64 %r20, %rd20;",
                 bits(kNaN)),
            0x80000000u);
}

TEST(PtxConvert, IntegersExtendBySourceAndTruncateByDestination) {
  EXPECT_EQ(word("cvt.s32.s8 %r20, %r10;", 0x1FF), 0xFFFFFFFFu);
  EXPECT_EQ(word("cvt.u32.u8 %r20, %r10;", 0x1FF), 0xFFu);
  EXPECT_EQ(word("cvt.s64.s32 %rd20, %r10; shr.u64 %rd20, %rd20, 32; cvt.u32.u64 %r20, %rd20;",
                 0x80000000u),
            0xFFFFFFFFu);
  EXPECT_EQ(word("cvt.u16.u32 %rs1, %r10; cvt.s32.s16 %r20, %rs1;", 0x18000), 0xFFFF8000u);
  EXPECT_EQ(word("cvt.rn.f32.u32 %f20, %r10; mov.b32 %r20, %f20;", 0x1000001u), bits(0x1p24F));
  EXPECT_EQ(word("cvt.rn.f32.s32 %f20, %r10; mov.b32 %r20, %f20;", 0x80000000u), bits(-0x1p31F));
}

uint32_t half(const char* type, float x) {
  return word(std::string("cvt.rn.") + type + ".f32 %rs1, %f10; cvt.u32.u16 %r20, %rs1;", bits(x));
}

TEST(PtxConvert, HalvesRoundToNearestEven) {
  EXPECT_EQ(half("f16", 1), 0x3C00u);
  EXPECT_EQ(half("f16", 1 + 0x1p-11F), 0x3C00u);  // a tie, to even
  EXPECT_EQ(half("f16", 1 + 0x1p-11F + 0x1p-20F), 0x3C01u);
  EXPECT_EQ(half("f16", 1 + 3 * 0x1p-11F), 0x3C02u);  // a tie, to even
  EXPECT_EQ(half("f16", 65519), 0x7BFFu);
  EXPECT_EQ(half("f16", 65520), 0x7C00u);  // to infinity
  EXPECT_EQ(half("f16", 0x1p-25F), 0u);    // half the least subnormal
  EXPECT_EQ(half("f16", 0x1.8p-25F), 1u);
  EXPECT_EQ(half("f16", 0x1.FFEp-15F), 0x0400u);  // up into the normal numbers
  EXPECT_EQ(half("f16", -0.0F), 0x8000u);
  EXPECT_EQ(half("f16", kNaN), 0x7FFFu);
  EXPECT_EQ(half("bf16", 1 + 0x1p-8F), 0x3F80u);
  EXPECT_EQ(half("bf16", 1 + 0x1p-8F + 0x1p-23F), 0x3F81u);
  EXPECT_EQ(half("bf16", 3.4e38F), 0x7F80u);
  EXPECT_EQ(half("bf16", kNaN), 0x7FFFu);
  EXPECT_EQ(word("cvt.rn.bf16x2.f32 %r20, %f10, %f11;", bits(1), bits(2)), 0x3F804000u);
}

TEST(PtxConvert, EveryFloat16GoesThereAndBack) {
  std::vector<uint32_t> in(65536);
  for (uint32_t i = 0; i < in.size(); ++i) in[i] = i;
  const std::string place = R"(
  mov.u32 %r2, %ctaid.x;
  mad.lo.s32 %r3, %r2, 1024, %r1;
  mul.wide.u32 %rd10, %r3, 4;
  add.s64 %rd11, %rd1, %rd10;
  add.s64 %rd12, %rd2, %rd10;)";
  const auto there = words_of(place + R"(
  ld.global.u16 %rs1, [%rd11];
  cvt.f32.f16 %f1, %rs1;
  st.global.f32 [%rd12], %f1;)",
                              in, {1024, 64});
  const auto back = words_of(place + R"(
  ld.global.f32 %f1, [%rd11];
  cvt.rn.f16.f32 %rs1, %f1;
  st.global.u16 [%rd12], %rs1;)",
                             there, {1024, 64});
  for (uint32_t i = 0; i < in.size(); ++i) {
    const int exponent = static_cast<int>(i >> 10) & 31;
    const int fraction = static_cast<int>(i) & 1023;
    if (exponent == 31 && fraction != 0) {
      ASSERT_EQ(there[i], kGpuNaN) << i;
      ASSERT_EQ(back[i], 0x7FFFu) << i;
      continue;
    }
    float expected = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                   : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    if (exponent == 31) expected = kInf;
    if ((i & 0x8000u) != 0) expected = -expected;
    ASSERT_EQ(there[i], bits(expected)) << i;
    ASSERT_EQ(back[i], i);
  }
}

TEST(PtxInteger, ProductsAndQuotients) {
  EXPECT_EQ(word("mul.hi.u32 %r20, %r10, %r11;", 0xFFFFFFFFu, 0xFFFFFFFFu), 0xFFFFFFFEu);
  EXPECT_EQ(word("mul.hi.s32 %r20, %r10, %r11;", 0xFFFFFFFFu, 0xFFFFFFFFu), 0u);
  EXPECT_EQ(
      word("mul.wide.s32 %rd20, %r10, %r11; shr.u64 %rd20, %rd20, 32; cvt.u32.u64 %r20, %rd20;",
           0xFFFFFFFFu, 2),
      0xFFFFFFFFu);
  EXPECT_EQ(word("mad.lo.s32 %r20, %r10, %r11, %r12;", 7, 6, 5), 47u);
  EXPECT_EQ(word("div.s32 %r20, %r10, %r11;", static_cast<uint32_t>(-7), 2),
            static_cast<uint32_t>(-3));
  EXPECT_EQ(word("rem.s32 %r20, %r10, %r11;", static_cast<uint32_t>(-7), 2),
            static_cast<uint32_t>(-1));
  EXPECT_EQ(word("div.s32 %r20, %r10, %r11;", 0x80000000u, 0xFFFFFFFFu), 0x80000000u);
  EXPECT_EQ(word("div.u32 %r20, %r10, %r11;", 5, 0), 0xFFFFFFFFu);
}

TEST(PtxInteger, Bits) {
  EXPECT_EQ(word("shl.b32 %r20, %r10, %r11;", 1, 32), 0u);
  EXPECT_EQ(word("shr.s32 %r20, %r10, %r11;", 0x80000000u, 40), 0xFFFFFFFFu);
  EXPECT_EQ(word("shr.u32 %r20, %r10, %r11;", 0x80000000u, 32), 0u);
  EXPECT_EQ(word("shf.l.wrap.b32 %r20, %r10, %r11, 8;", 0x12345678u, 0x9ABCDEF0u), 0xBCDEF012u);
  EXPECT_EQ(word("shf.r.clamp.b32 %r20, %r10, %r11, 40;", 1, 0x9ABCDEF0u), 0x9ABCDEF0u);
  EXPECT_EQ(word("bfe.u32 %r20, %r10, 8, 8;", 0x12345678u), 0x56u);
  EXPECT_EQ(word("bfe.s32 %r20, %r10, 28, 8;", 0x92345678u), 0xFFFFFFF9u);
  EXPECT_EQ(word("bfi.b32 %r20, %r10, %r11, 4, 8;", 0xFF, 0), 0xFF0u);
  EXPECT_EQ(word("bfind.shiftamt.u32 %r20, %r10;", 1), 31u);
  EXPECT_EQ(word("bfind.u32 %r20, %r10;", 0), 0xFFFFFFFFu);
  EXPECT_EQ(word("brev.b32 %r20, %r10;", 0x80000001u), 0x80000001u);
  EXPECT_EQ(word("brev.b32 %r20, %r10;", 0x12u), 0x48000000u);
  EXPECT_EQ(word("prmt.b32 %r20, %r10, %r11, 8452;", 0x33221100u, 0x77665544u), 0x22110044u);
  EXPECT_EQ(word("prmt.b32 %r20, %r10, %r11, 0x000B;", 0x80000000u, 0) & 0xFFu, 0xFFu);
  EXPECT_EQ(word("lop3.b32 %r20, %r10, %r11, %r12, 0x96;", 0xF0, 0xCC, 0xAA),
            0xF0u ^ 0xCCu ^ 0xAAu);
  EXPECT_EQ(word("max.u16x2 %r20, %r10, %r11;", 0x0001FFFFu, 0x00020001u), 0x0002FFFFu);
  EXPECT_EQ(word("dp4a.s32.s32 %r20, %r10, %r11, %r12;", 0xFF020304u, 0x01010101u, 10), 18u);
  EXPECT_EQ(word("clz.b32 %r20, %r10;", 0), 32u);
  EXPECT_EQ(word("popc.b32 %r20, %r10;", 0xF0F0u), 8u);
}

TEST(PtxHalf, PairsCompareAndFuse) {
  EXPECT_EQ(word("set.eq.f16x2.f16x2 %r20, %r10, %r11;", 0x3C000000u, 0x3C018000u), 0x00003C00u);
  // (1 + 2^-7)^2 - (1 + 2^-6) = 2^-14 in one rounding.
  EXPECT_EQ(word("fma.rn.bf16x2 %r20, %r10, %r11, %r12;", 0x3F813F81u, 0x3F813F81u, 0xBF82BF82u),
            0x38803880u);
}

}  // namespace
}  // namespace quarry::emulator::testing
