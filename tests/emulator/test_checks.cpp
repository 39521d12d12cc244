// SPDX-License-Identifier: Apache-2.0
// Deliberate errors: each must be told, with its line, block and thread.
#include "ptx_test.h"

namespace quarry::emulator::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr const char* kBuffer = ".shared .align 16 .b8 buffer[256];\n";

TEST(PtxErrors, UnknownTextIsNamedByItsLine) {
  EXPECT_THAT(failure("frobnicate.u32 %r2, %r1;"),
              AllOf(HasSubstr("line 2"), HasSubstr("frobnicate.u32")));
  EXPECT_THAT(failure("add.rz.f32 %f1, %f2, %f3;"), HasSubstr("rz"));
  EXPECT_THAT(failure("add.u32 %r2, %r1, %rd1;"), HasSubstr("64 bits"));
  EXPECT_THAT(failure("add.u32 %r2, %r1, %r99;"), HasSubstr("%r99"));
  EXPECT_THAT(failure("bra NOWHERE;"), HasSubstr("NOWHERE"));
}

TEST(PtxErrors, SharedBoundsAndAlignmentAreAlwaysChecked) {
  EXPECT_THAT(failure("mov.u32 %r2, buffer; ld.shared.u32 %r3, [%r2+256];", {}, kBuffer),
              AllOf(HasSubstr("byte 256 of 256"), HasSubstr("block (0,0,0), thread (0,0,0)")));
  EXPECT_THAT(
      failure("mov.u32 %r2, buffer; ld.shared.v4.u32 {%r3,%r4,%r5,%r6}, [%r2+8];", {}, kBuffer),
      HasSubstr("multiple of 16"));
  EXPECT_THAT(failure("ld.global.u32 %r3, [%rd2+2];"), HasSubstr("multiple of 4"));
  EXPECT_THAT(failure("ld.global.u32 %r3, [%rd3];"), HasSubstr("null"));
  EXPECT_THAT(failure("mov.u32 %r2, 0; ld.shared.u32 %r3, [%r2];", {}, kBuffer), HasSubstr("null"));
}

TEST(PtxErrors, Trap) {
  EXPECT_THAT(failure("setp.eq.s32 %p1, %r1, 5; @%p1 trap;"),
              AllOf(HasSubstr("thread (5,0,0)"), HasSubstr("trap")));
}

TEST(PtxErrors, DeadlockNamesWhoWaits) {
  // The second warp waits for a barrier the first never comes to, for it waits in a collective.
  const std::string told = failure(R"(
  setp.lt.u32 %p1, %r1, 31;
  @%p1 bra WAIT;
  bar.sync 0;
  bra.uni END;
WAIT:
  bar.warp.sync -1;
END:
  ret;)",
                                   {64});
  EXPECT_THAT(told, AllOf(HasSubstr("nothing can go on"), HasSubstr("warp 0 lanes 7fffffff"),
                          HasSubstr("warp 1 lanes ffffffff")));
}

TEST(PtxErrors, BarrierInBothArmsOfOneWarp) {
  EXPECT_THAT(failure(R"(
  setp.lt.u32 %p1, %r1, 16;
  @%p1 bra OTHER;
  bar.sync 0;
  ret;
OTHER:
  bar.sync 0;)"),
              HasSubstr("different places"));
}

TEST(PtxErrors, TooManyThreads) { EXPECT_THAT(failure("ret;", {1025}), HasSubstr("1025 threads")); }

std::string shared_round_trip(const std::string& between) {
  return R"(
  mov.u32 %r3, buffer;
  shl.b32 %r2, %r1, 2;
  add.s32 %r4, %r3, %r2;
  st.shared.u32 [%r4], %r1;
  )" + between +
         R"(
  xor.b32 %r5, %r2, 128;
  add.s32 %r5, %r3, %r5;
  ld.shared.u32 %r6, [%r5];
  st.global.u32 [%rd6], %r6;)";
}

TEST(PtxRace, MissingBarrierIsTold) {
  const Checks checks("race");
  EXPECT_THAT(failure(shared_round_trip(""), {64}, kBuffer), HasSubstr("race at shared byte"));
  EXPECT_EQ(failure(shared_round_trip("bar.sync 0;"), {64}, kBuffer), "");
}

TEST(PtxRace, WarpSyncOrdersLanesAlone) {
  const Checks checks("race");
  std::string body = shared_round_trip("bar.warp.sync -1;");
  EXPECT_THAT(failure(body, {64}, kBuffer), HasSubstr("race"));
  body.replace(body.find("128"), 3, "4");
  EXPECT_EQ(failure(body, {64}, kBuffer), "");
  std::string none = shared_round_trip("");
  none.replace(none.find("128"), 3, "4");
  EXPECT_THAT(failure(none, {64}, kBuffer), HasSubstr("race"));
}

TEST(PtxRace, WriteAfterReadsIsTold) {
  const Checks checks("race");
  const std::string body = R"(
  st.shared.u32 [buffer], 7;
  bar.sync 0;
  ld.shared.u32 %r2, [buffer];
  BARRIER
  setp.eq.s32 %p1, %r1, 0;
  @%p1 st.shared.u32 [buffer], 9;)";
  std::string without = body;
  std::string with = body;
  without.replace(without.find("BARRIER"), 7, "");
  with.replace(with.find("BARRIER"), 7, "bar.sync 0;");
  EXPECT_THAT(failure(without, {64}, kBuffer), HasSubstr("also read"));
  EXPECT_EQ(failure(with, {64}, kBuffer), "");
}

TEST(PtxRace, OneValueByManyIsNone) {
  const Checks checks("race");
  EXPECT_EQ(failure("st.shared.u32 [buffer], 7;", {64}, kBuffer), "");
  EXPECT_THAT(failure("st.shared.u32 [buffer], %r1;", {32}, kBuffer), HasSubstr("race"));
}

TEST(PtxRace, AtomicsAreExemptAmongThemselves) {
  const Checks checks("race");
  EXPECT_EQ(failure("atom.shared.add.u32 %r2, [buffer], 1;", {64}, kBuffer), "");
  EXPECT_THAT(
      failure("atom.shared.add.u32 %r2, [buffer], 1; ld.shared.u32 %r3, [buffer];", {64}, kBuffer),
      HasSubstr("race"));
}

TEST(PtxRace, ClusterNeedsItsBarrier) {
  const Checks checks("race");
  const std::string body = R"(
  mov.u32 %r5, buffer;
  st.shared.u32 [%r5], 1;
  BARRIER
  mov.u32 %r2, %cluster_ctarank;
  xor.b32 %r2, %r2, 1;
  mapa.shared::cluster.u32 %r10, %r5, %r2;
  ld.shared::cluster.u32 %r11, [%r10];
  barrier.cluster.arrive;
  barrier.cluster.wait;)";
  std::string without = body;
  std::string with = body;
  without.replace(without.find("BARRIER"), 7, "bar.sync 0;");
  with.replace(with.find("BARRIER"), 7, "barrier.cluster.arrive; barrier.cluster.wait;");
  EXPECT_THAT(failure(without, {32, 2, 2}, kBuffer), HasSubstr("race"));
  EXPECT_EQ(failure(with, {32, 2, 2}, kBuffer), "");
}

TEST(PtxInit, UnwrittenSharedMemoryIsTold) {
  const Checks checks("init");
  EXPECT_THAT(failure("ld.shared.u32 %r2, [buffer+8];", {}, kBuffer),
              AllOf(HasSubstr("shared byte 8"), HasSubstr("not written")));
  EXPECT_EQ(failure("st.shared.u32 [buffer+8], 1; ld.shared.u32 %r2, [buffer+8];", {}, kBuffer),
            "");
}

TEST(PtxInit, UnwrittenGlobalMemoryIsTold) {
  const Checks checks("init");
  std::vector<uint32_t> in(64);
  std::vector<uint32_t> out(64);
  register_memory(in.data(), 256, false);
  register_memory(out.data(), 256, true);
  const std::string text = kernel_text("ld.global.u32 %r2, [%rd5]; st.global.u32 [%rd6], %r2;");
  mark_written(in.data(), 64);
  EXPECT_NO_THROW(run_text(text, in.data(), out.data(), {16}));
  EXPECT_THROW(run_text(text, in.data(), out.data(), {17}), std::runtime_error);
  // A kernel's own writes count.
  EXPECT_NO_THROW(run_text(text, out.data(), in.data(), {64}));
  EXPECT_NO_THROW(run_text(text, in.data(), out.data(), {64}));
  forget_memory(in.data());
  forget_memory(out.data());
}

TEST(PtxMemory, AccessesOutsideKnownMemoryAreTold) {
  const Checks checks("memory");
  std::vector<uint32_t> in(64);
  std::vector<uint32_t> out(64);
  register_memory(in.data(), 128, true);
  register_memory(out.data(), 256, true);
  const std::string text = kernel_text("ld.global.u32 %r2, [%rd5]; st.global.u32 [%rd6], %r2;");
  EXPECT_NO_THROW(run_text(text, in.data(), out.data(), {32}));
  EXPECT_THROW(run_text(text, in.data(), out.data(), {33}), std::runtime_error);
  forget_memory(in.data());
  EXPECT_THROW(run_text(text, in.data(), out.data(), {1}), std::runtime_error);
  forget_memory(out.data());
  EXPECT_NO_THROW(run_text(text, in.data(), out.data(), {33}));  // none registered
}

}  // namespace
}  // namespace quarry::emulator::testing
