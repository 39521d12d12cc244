// SPDX-License-Identifier: Apache-2.0
#pragma once

// Small PTX kernels for the interpreter's tests.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "ptx.h"

namespace quarry::emulator::testing {

// A kernel `k` of three pointers in %rd1 (in), %rd2 (out) and %rd3, with %r1 = thread, %rd4 = 4 *
// thread, %rd5 = in + 4 * thread, %rd6 = out + 4 * thread. `outer`: variables before it.
inline std::string kernel_text(const std::string& body, const std::string& outer = "") {
  return ".version 8.0\n.target sm_90\n.address_size 64\n" + outer + R"(
.visible .entry k(.param .u64 a, .param .u64 b, .param .u64 c)
{
  .reg .pred %p<20>;
  .reg .b16 %rs<20>;
  .reg .b32 %r<60>;
  .reg .f32 %f<40>;
  .reg .b64 %rd<40>;
  .reg .f64 %fd<20>;
  ld.param.u64 %rd1, [a];
  ld.param.u64 %rd2, [b];
  ld.param.u64 %rd3, [c];
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd4, %r1, 4;
  add.s64 %rd5, %rd1, %rd4;
  add.s64 %rd6, %rd2, %rd4;
)" + body +
         "\n}\n";
}

struct Shape {
  unsigned threads = 32, blocks = 1, cluster = 1;
  size_t dynamic_shared = 0;
};

inline void run_text(const std::string& text, const void* in, void* out, Shape shape = {},
                     void* third = nullptr) {
  const auto module = Module::load(text);
  const Kernel* kernel = module->kernel("k");
  ASSERT_NE(kernel, nullptr);
  const void* arguments[] = {&in, &out, &third};
  Launch launch;
  launch.grid.x = shape.blocks;
  launch.block.x = shape.threads;
  launch.cluster.x = shape.cluster;
  launch.dynamic_shared = shape.dynamic_shared;
  launch.arguments = arguments;
  run(*kernel, launch);
}

// One word a thread from `out` of this body.
template <class T = uint32_t>
std::vector<T> words_of(const std::string& body, const std::vector<T>& in = {}, Shape shape = {},
                        const std::string& outer = "") {
  std::vector<T> out(size_t{shape.threads} * shape.blocks, T{});
  run_text(kernel_text(body, outer), in.data(), out.data(), shape);
  return out;
}

// What a run says when it fails; empty where it does not.
inline std::string failure(const std::string& body, Shape shape = {},
                           const std::string& outer = "") {
  std::vector<uint32_t> in(4096);
  std::vector<uint32_t> out(4096);
  try {
    run_text(kernel_text(body, outer), in.data(), out.data(), shape);
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

// Switches checks on for one test.
class Checks {
 public:
  explicit Checks(const char* checks) { set_checks(checks); }
  ~Checks() {
    set_checks("");
    set_seed(0);
  }
  Checks(const Checks&) = delete;
  Checks& operator=(const Checks&) = delete;
};

}  // namespace quarry::emulator::testing
