// SPDX-License-Identifier: Apache-2.0
//
// What the tests of the tools' programs share: a small trace, and a folder in which a program
// is run with its output kept.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "half.h"
#include "safetensors.h"

namespace quarry::tools {

inline std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

struct Outcome {
  int exit_code = -1;  // -1: killed by a signal
  std::string out, error;
};

/// A small trace, sound unless a test spoils it.
struct TraceParts {
  std::int64_t n, hkv = 2, hq = 4, d = 16;
  std::vector<std::int32_t> q_pos;  // 60, 70 and 95 of 96
  std::vector<float> k, v, q;
  std::vector<TensorSource> tensors;

  explicit TraceParts(std::int32_t positions = 96)
      : n(positions), q_pos{positions - 36, positions - 26, positions - 1} {
    auto fill = [seed = 1u](std::vector<float>& x, std::int64_t count) mutable {
      for (std::int64_t i = 0; i < count; ++i) {
        seed = seed * 1664525u + 1013904223u;
        x.push_back(static_cast<float>(seed >> 8) / 8388608.0f - 1.0f);
      }
    };
    fill(k, n * hkv * d);
    fill(v, n * hkv * d);
    fill(q, 3 * hq * d);
    tensors = {{"k", "F32", {n, hkv, d}, k.data()},
               {"q", "F32", {3, hq, d}, q.data()},
               {"q_pos", "I32", {3}, q_pos.data()},
               {"v", "F32", {n, hkv, d}, v.data()}};
  }
  TraceParts(const TraceParts&) = delete;
  TraceParts& operator=(const TraceParts&) = delete;

  TensorSource& at(const std::string& name) {
    for (TensorSource& tensor : tensors) {
      if (tensor.name == name) return tensor;
    }
    throw std::out_of_range(name);
  }
  void remove(const std::string& name) {
    std::erase_if(tensors, [&](const TensorSource& tensor) { return tensor.name == name; });
  }
};

/// A trace's keys as an engine's FP8 cache would hold them, and as float32 of the same values.
struct Float8Keys {
  std::vector<std::uint8_t> bytes;
  std::vector<float> scale, values;

  /// `scales`: none (of 1), 1, or hkv.
  Float8Keys(const TraceParts& parts, std::int64_t scales) : bytes(parts.k.size()) {
    for (std::int64_t i = 0; i < scales; ++i) {
      scale.push_back(0.0171f * static_cast<float>(1 + 3 * i));
    }
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      const auto head = static_cast<std::int64_t>(i) / parts.d % parts.hkv;
      const float s = scales == 0 ? 1.0f : scale[static_cast<std::size_t>(scales == 1 ? 0 : head)];
      bytes[i] = float_to_float8(parts.k[i] / s);
      values.push_back(float8_to_float(bytes[i]) * s);
    }
  }
  /// Puts them in k's place; they must outlive what is written.
  void put(TraceParts* parts) const {
    parts->at("k").dtype = "F8_E4M3";
    parts->at("k").data = bytes.data();
    if (scale.empty()) return;
    parts->tensors.push_back(
        {"k_scale", "F32", {static_cast<std::int64_t>(scale.size())}, scale.data()});
  }
};

/// Runs a program in a folder of the test's own.
class ToolCli : public testing::Test {
 protected:
  void SetUp() override { enter(testing::UnitTest::GetInstance()->current_test_info()->name()); }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void enter(const std::string& name) {
    folder_ = testing::TempDir() + "quarry_cli_" + std::to_string(getpid()) + "_" + name;
    std::filesystem::create_directories(folder_);
    trace_ = folder_ + "/trace.safetensors";
  }
  Outcome run_program(const std::string& program, const std::string& arguments) const {
    const std::string out = folder_ + "/stdout", error = folder_ + "/stderr";
    const int status = std::system(
        ("'" + program + "' " + arguments + " >'" + out + "' 2>'" + error + "'").c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, slurp(out), slurp(error)};
  }
  /// Exit code 2, nothing on stdout, one line on stderr.
  void expect_refused_by(const std::string& program, const std::string& arguments,
                         const std::string& why) const {
    const Outcome outcome = run_program(program, arguments);
    const std::string name = std::filesystem::path(program).filename();
    EXPECT_EQ(outcome.exit_code, 2) << arguments;
    EXPECT_EQ(outcome.out, "") << arguments;
    EXPECT_THAT(outcome.error, testing::HasSubstr(why)) << arguments;
    EXPECT_EQ(outcome.error.rfind(name + ": ", 0), 0u) << outcome.error;
    EXPECT_EQ(std::count(outcome.error.begin(), outcome.error.end(), '\n'), 1) << outcome.error;
  }
  void write(const TraceParts& parts, const std::map<std::string, std::string>& metadata = {}) {
    write_safetensors(trace_, parts.tensors, metadata);
  }

  std::string folder_, trace_;
};

}  // namespace quarry::tools
