// SPDX-License-Identifier: Apache-2.0
// mma.sync and ldmatrix against plain loops, from memory to memory.
#include <bit>

#include "half.h"
#include "ptx_test.h"

namespace quarry::emulator::testing {
namespace {

// A [16, 16] and B [16, 8] (its columns as rows of 16: B^T) as halves in shared memory by
// ldmatrix, C = A B + 1.
std::string text(const std::string& type, bool transposed_b) {
  return kernel_text(R"(
  mov.u32 %r2, buffer;
  // Each lane copies 32 bytes: 512 of A, 256 of B and 256 unused.
  mul.wide.u32 %rd10, %r1, 32;
  add.s64 %rd11, %rd1, %rd10;
  shl.b32 %r3, %r1, 5;
  add.s32 %r3, %r2, %r3;
  cp.async.cg.shared.global [%r3], [%rd11], 16;
  cp.async.ca.shared.global [%r3+16], [%rd11+16], 8;
  cp.async.ca.shared.global [%r3+24], [%rd11+24], 8, 8;
  cp.async.wait_all;
  bar.warp.sync -1;
  // A: lane l names row l % 16, half l / 16.
  and.b32 %r4, %r1, 15;
  shl.b32 %r4, %r4, 5;
  shr.u32 %r5, %r1, 4;
  shl.b32 %r5, %r5, 4;
  add.s32 %r4, %r4, %r5;
  add.s32 %r4, %r4, %r2;
  ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10,%r11,%r12,%r13}, [%r4];
)" +
                         std::string(transposed_b ? R"(
  // B as [16, 8]: lane l names row l % 16.
  and.b32 %r6, %r1, 15;
  shl.b32 %r6, %r6, 4;
  add.s32 %r6, %r6, %r2;
  ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r14,%r15}, [%r6+512];
)"
                                                  : R"(
  // B as [8, 16]: lane l names row l % 8, half l / 8.
  and.b32 %r6, %r1, 7;
  shl.b32 %r6, %r6, 5;
  shl.b32 %r7, %r1, 1;
  and.b32 %r7, %r7, 16;
  add.s32 %r6, %r6, %r7;
  add.s32 %r6, %r6, %r2;
  ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r14,%r15}, [%r6+512];
)") + R"(
  mov.f32 %f1, 0f3F800000;
  mma.sync.aligned.m16n8k16.row.col.f32.)" +
                         type + "." + type + R"(.f32
    {%f2,%f3,%f4,%f5}, {%r10,%r11,%r12,%r13}, {%r14,%r15}, {%f1,%f1,%f1,%f1};
  // D: rows l / 4 and l / 4 + 8, columns 2 * (l % 4) and the next.
  shr.u32 %r20, %r1, 2;
  shl.b32 %r20, %r20, 5;
  and.b32 %r21, %r1, 3;
  shl.b32 %r21, %r21, 3;
  add.s32 %r20, %r20, %r21;
  cvt.u64.u32 %rd12, %r20;
  add.s64 %rd12, %rd2, %rd12;
  st.global.v2.f32 [%rd12], {%f2, %f3};
  st.global.v2.f32 [%rd12+256], {%f4, %f5};)",
                     ".shared .align 16 .b8 buffer[1024];\n");
}

template <class F>
void compare(const std::string& type, bool transposed_b) {
  std::vector<uint16_t> in(512);
  for (size_t i = 0; i < 384; ++i) {
    in[i] = narrow<F>(static_cast<double>((i * 37) % 61) / 8 - 3);
  }
  std::vector<float> out(128);
  const Checks checks("all");
  run_text(text(type, transposed_b), in.data(), out.data());
  for (size_t row = 0; row < 16; ++row) {
    for (size_t n = 0; n < 8; ++n) {
      double sum = 1;
      for (size_t k = 0; k < 16; ++k) {
        sum += widen<F>(in[row * 16 + k]) *
               widen<F>(in[256 + (transposed_b ? k * 8 + n : n * 16 + k)]);
      }
      EXPECT_EQ(out[row * 8 + n], static_cast<float>(sum)) << row << ' ' << n;
    }
  }
}

TEST(PtxMatrix, MultipliesFloat16) { compare<Float16>("f16", false); }
TEST(PtxMatrix, MultipliesBFloat16) { compare<BFloat16>("bf16", false); }
TEST(PtxMatrix, MultipliesTransposed) { compare<Float16>("f16", true); }

}  // namespace
}  // namespace quarry::emulator::testing
