// SPDX-License-Identifier: Apache-2.0
// Lanes, warps, blocks and clusters: forks and joins, collectives, barriers.
#include <numeric>

#include "ptx_test.h"

namespace quarry::emulator::testing {
namespace {

using ::testing::HasSubstr;

TEST(PtxWarp, LanesForkAndMeetAgain) {
  // Lane i loops i times; all meet at a full shuffle.
  const auto out = words_of(R"(
  mov.u32 %r2, 0;
  mov.u32 %r3, 0;
LOOP:
  setp.ge.u32 %p1, %r2, %r1;
  @%p1 bra DONE;
  add.s32 %r3, %r3, %r2;
  add.s32 %r2, %r2, 1;
  bra LOOP;
DONE:
  shfl.sync.bfly.b32 %r4|%p2, %r3, 1, 31, -1;
  st.global.u32 [%rd6], %r4;)");
  for (unsigned i = 0; i < 32; ++i) {
    const unsigned other = i ^ 1u;
    EXPECT_EQ(out[i], other * (other - 1) / 2) << i;
  }
}

TEST(PtxWarp, ShufflesUnderPartialMasksInBothArms) {
  // Even and odd lanes shuffle among themselves in different arms of a branch.
  const auto out = words_of(R"(
  and.b32 %r2, %r1, 1;
  setp.eq.s32 %p1, %r2, 0;
  @%p1 bra EVEN;
  shfl.sync.down.b32 %r3|%p2, %r1, 2, 31, 0xAAAAAAAA;
  bra.uni END;
EVEN:
  shfl.sync.up.b32 %r3|%p2, %r1, 2, 0, 0x55555555;
END:
  selp.u32 %r4, 1000, 0, %p2;
  add.s32 %r3, %r3, %r4;
  st.global.u32 [%rd6], %r3;)");
  for (unsigned i = 0; i < 32; ++i) {
    const bool odd = (i & 1u) != 0;
    const bool inside = odd ? i + 2 < 32 : i >= 2;
    EXPECT_EQ(out[i], inside ? 1000 + (odd ? i + 2 : i - 2) : i) << i;
  }
}

TEST(PtxWarp, SegmentsOfAShuffle) {  // width 8
  const auto out = words_of(R"(
  shfl.sync.idx.b32 %r3|%p2, %r1, 3, 0x181F, -1;
  st.global.u32 [%rd6], %r3;)");
  for (unsigned i = 0; i < 32; ++i) EXPECT_EQ(out[i], (i & ~7u) | 3u) << i;
}

TEST(PtxWarp, VotesMatchesAndReductions) {
  const auto out = words_of(R"(
  and.b32 %r2, %r1, 3;
  match.any.sync.b32 %r3, %r2, -1;
  setp.lt.u32 %p1, %r1, 5;
  vote.sync.ballot.b32 %r4, %p1, -1;
  redux.sync.max.u32 %r5, %r1, -1;
  redux.sync.min.s32 %r6, %r1, -1;
  vote.sync.any.pred %p2, %p1, -1;
  vote.sync.all.pred %p3, !%p1, -1;
  selp.u32 %r7, 1, 0, %p2;
  selp.u32 %r8, 2, 0, %p3;
  xor.b32 %r3, %r3, %r4;
  mad.lo.u32 %r3, %r5, 65536, %r3;
  add.u32 %r3, %r3, %r6;
  add.u32 %r3, %r3, %r7;
  add.u32 %r3, %r3, %r8;
  st.global.u32 [%rd6], %r3;)");
  for (unsigned i = 0; i < 32; ++i) {
    EXPECT_EQ(out[i], ((0x11111111u << (i & 3u)) ^ 31u) + 31 * 65536 + 1) << i;
  }
}

TEST(PtxWarp, MasksOfAMatchServeAsMasks) {
  // Each group of equal values reduces among itself, all in one instruction.
  const auto out = words_of(R"(
  rem.u32 %r2, %r1, 5;
  match.any.sync.b32 %r3, %r2, -1;
  redux.sync.add.u32 %r4, %r1, %r3;
  st.global.u32 [%rd6], %r4;)");
  for (unsigned i = 0; i < 32; ++i) {
    unsigned sum = 0;
    for (unsigned k = i % 5; k < 32; k += 5) sum += k;
    EXPECT_EQ(out[i], sum) << i;
  }
}

TEST(PtxWarp, ALaneMaySpinForAnother) {
  // Lane 0 waits at the lower place for what lane 1 writes further down.
  const auto out = words_of(R"(
  setp.ne.s32 %p1, %r1, 0;
  @%p1 bra WRITE;
SPIN:
  ld.volatile.global.u32 %r2, [%rd2+124];
  setp.eq.s32 %p2, %r2, 0;
  @%p2 bra SPIN;
  st.global.u32 [%rd2], %r2;
  ret;
WRITE:
  st.global.u32 [%rd6], %r1;)");
  EXPECT_EQ(out[0], 31u);
}

constexpr const char* kReverse = R"(
  mov.u32 %r9, %ntid.x;
  shl.b32 %r2, %r1, 2;
  mov.u32 %r3, buffer;
  add.s32 %r4, %r3, %r2;
  st.shared.u32 [%r4], %r1;
  BARRIER
  sub.s32 %r5, %r9, %r1;
  shl.b32 %r5, %r5, 2;
  add.s32 %r5, %r3, %r5;
  ld.shared.u32 %r6, [%r5+-4];
  st.global.u32 [%rd6], %r6;)";
constexpr const char* kBuffer = ".shared .align 4 .b8 buffer[1024];\n";

std::string reverse(const std::string& barrier) {
  std::string body = kReverse;
  return body.replace(body.find("BARRIER"), 7, barrier);
}

TEST(PtxBlock, BarrierBetweenWarps) {
  for (const uint64_t seed : {0, 1, 2, 3}) {
    const Checks checks("all");
    set_seed(seed);
    const auto out = words_of<uint32_t>(reverse("bar.sync 0;"), {}, {256}, kBuffer);
    for (unsigned i = 0; i < 256; ++i) ASSERT_EQ(out[i], 255 - i);
  }
}

TEST(PtxBlock, ExitedLanesDoNotHoldABarrier) {
  const auto out = words_of<uint32_t>(R"(
  setp.ge.u32 %p1, %r1, 40;
  @%p1 ret;
  bar.sync 0;
  setp.lt.u32 %p2, %r1, 3;
  bar.red.popc.u32 %r2, 0, %p2;
  bar.red.or.pred %p3, 0, !%p2;
  bar.red.and.pred %p4, 0, %p2;
  @!%p3 trap;
  @%p4 trap;
  st.global.u32 [%rd6], %r2;)",
                                      {}, {128});
  for (unsigned i = 0; i < 40; ++i) EXPECT_EQ(out[i], 3u);
}

TEST(PtxBlock, DynamicSharedMemoryFollowsStatic) {
  const auto out = words_of<uint32_t>(
      R"(
  mov.u32 %r2, more;
  shl.b32 %r3, %r1, 2;
  add.s32 %r2, %r2, %r3;
  st.shared.u32 [%r2], %r1;
  st.shared.u32 [buffer], %r1;
  ld.shared.u32 %r4, [%r2];
  { .reg .b64 %tmp;
    cvt.u64.u32 %tmp, %r2;
    cvta.shared.u64 %rd10, %tmp; }
  ld.u32 %r5, [%rd10];
  add.s32 %r4, %r4, %r5;
  st.global.u32 [%rd6], %r4;)",
      {}, {32, 1, 1, 128}, std::string(kBuffer) + ".extern .shared .align 16 .b8 more[];\n");
  for (unsigned i = 0; i < 32; ++i) EXPECT_EQ(out[i], 2 * i);
}

TEST(PtxBlock, DynamicSharedMemoryIsAlignedAsAsked) {
  const auto out = words_of<uint32_t>(
      R"(
  st.shared.u32 [buffer], %r1;
  mov.u32 %r2, more;
  and.b32 %r2, %r2, 1023;
  st.global.u32 [%rd6], %r2;)",
      {}, {32, 1, 1, 128}, std::string(kBuffer) + ".extern .shared .align 1024 .b8 more[];\n");
  for (unsigned i = 0; i < 32; ++i) EXPECT_EQ(out[i], 0u);
}

TEST(PtxCluster, ReadsItsNeighboursSharedMemory) {
  for (const uint64_t seed : {0, 1, 2}) {
    const Checks checks("all");
    set_seed(seed);
    const auto out = words_of<uint32_t>(R"(
  mov.u32 %r2, %cluster_ctarank;
  mov.u32 %r3, %cluster_nctarank;
  mov.u32 %r4, %ctaid.x;
  mov.u32 %r5, buffer;
  shl.b32 %r6, %r1, 2;
  add.s32 %r5, %r5, %r6;
  mad.lo.s32 %r7, %r4, 1000, %r1;
  st.shared.u32 [%r5], %r7;
  barrier.cluster.arrive;
  barrier.cluster.wait;
  add.s32 %r8, %r2, 1;
  rem.u32 %r8, %r8, %r3;
  cvt.u64.u32 %rd10, %r5;
  cvta.shared.u64 %rd10, %rd10;
  mapa.u64 %rd11, %rd10, %r8;
  ld.u32 %r9, [%rd11];
  mapa.shared::cluster.u32 %r10, %r5, %r8;
  ld.shared::cluster.u32 %r11, [%r10];
  setp.ne.s32 %p1, %r9, %r11;
  @%p1 trap;
  mad.lo.s32 %r12, %r4, 64, %r1;
  mul.wide.u32 %rd12, %r12, 4;
  add.s64 %rd13, %rd2, %rd12;
  st.global.u32 [%rd13], %r9;
  barrier.cluster.arrive;
  barrier.cluster.wait;)",
                                        {}, {64, 8, 4}, kBuffer);
    for (unsigned i = 0; i < 512; ++i) {
      const unsigned block = i / 64;
      ASSERT_EQ(out[i], (block / 4 * 4 + (block + 1) % 4) * 1000 + i % 64) << i;
    }
  }
}

TEST(PtxCluster, ABlockThatHasEndedHasNoSharedMemory) {
  const std::string told = failure(R"(
  mov.u32 %r2, %cluster_ctarank;
  setp.eq.s32 %p1, %r2, 0;
  @%p1 ret;
  mov.u32 %r5, buffer;
  mapa.shared::cluster.u32 %r10, %r5, 0;
  ld.shared::cluster.u32 %r11, [%r10];)",
                                   {32, 2, 2}, kBuffer);
  EXPECT_THAT(told, HasSubstr("has ended"));
}

TEST(PtxGrid, ABlockMaySpinForALaterOne) {
  const auto out = words_of<uint32_t>(R"(
  mov.u32 %r2, %ctaid.x;
  setp.ne.s32 %p1, %r2, 0;
  @%p1 bra WRITE;
SPIN:
  atom.global.or.b32 %r3, [%rd2+4], 0;
  setp.eq.s32 %p2, %r3, 0;
  @%p2 bra SPIN;
  st.global.u32 [%rd2], %r3;
  ret;
WRITE:
  mov.u32 %r4, 7;
  atom.global.exch.b32 %r5, [%rd2+4], %r4;)",
                                      {}, {1, 2});
  EXPECT_EQ(out[0], 7u);
}

TEST(PtxCall, FunctionsWithTheirOwnMemory) {
  const auto out = words_of<uint32_t>(R"(
  .local .align 8 .b8 depot[8];
  mov.u64 %rd10, depot;
  cvta.local.u64 %rd11, %rd10;
  st.local.u32 [%rd10], %r1;
  st.local.u32 [%rd10+4], 5;
  setp.lt.u32 %p1, %r1, 16;
  mov.u32 %r5, 0;
  @%p1 bra END;
  {
  .param .b64 param0;
  st.param.b64 [param0+0], %rd11;
  .param .b32 retval0;
  call.uni (retval0), product, (param0);
  ld.param.b32 %r5, [retval0+0];
  }
END:
  shfl.sync.idx.b32 %r6, %r5, %r1, 31, -1;
  st.global.u32 [%rd6], %r6;)",
                                      {}, {}, R"(
.func (.param .b32 func_retval0) product(.param .b64 product_param_0)
{
  .reg .b32 %r<4>;
  .reg .b64 %rd<4>;
  ld.param.u64 %rd1, [product_param_0];
  cvta.to.local.u64 %rd2, %rd1;
  ld.local.u32 %r1, [%rd2];
  ld.local.u32 %r2, [%rd2+4];
  mul.lo.s32 %r3, %r1, %r2;
  st.param.b32 [func_retval0+0], %r3;
  ret;
}
)");
  for (unsigned i = 0; i < 32; ++i) EXPECT_EQ(out[i], i < 16 ? 0 : 5 * i) << i;
}

TEST(PtxModule, VariablesAndTheirInitialValues) {
  const auto module = Module::load(kernel_text("ret;", R"(
.const .align 4 .b8 table[4] = {1, 2, 3, 4};
.global .align 4 .f32 scale = 0f3F800000;
)"));
  size_t bytes = 0;
  const auto* table = static_cast<const uint8_t*>(module->variable("table", &bytes));
  ASSERT_NE(table, nullptr);
  EXPECT_EQ(bytes, 4u);
  EXPECT_EQ(table[2], 3);
  EXPECT_EQ(*static_cast<float*>(module->variable("scale", &bytes)), 1.0F);
  EXPECT_EQ(module->variable("other", &bytes), nullptr);
  EXPECT_EQ(module->kernel("other"), nullptr);
  EXPECT_EQ(module->kernel("k")->parameters(), 3u);
}

}  // namespace
}  // namespace quarry::emulator::testing
