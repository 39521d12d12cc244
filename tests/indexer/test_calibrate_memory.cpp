// SPDX-License-Identifier: Apache-2.0
//
// Calibration of traces of any size: which keys are held, that nothing else grows with the
// traces, and that a trace within the limit gives the bytes that it always gave.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "calibration.h"
#include "half.h"
#include "key_sample.h"
#include "safetensors.h"
#include "support/sanitizers.h"
#include "support/tool_cli.h"

namespace quarry::tools {
namespace {

using testing::HasSubstr;

const std::string kBundled = std::string(QUARRY_TRACE_DIR) + "/smollm2-l14-kjv.safetensors";

class CalibrateMemory : public ToolCli {
 protected:
  std::string path(const char* name) const { return folder_ + "/" + name; }

  std::string saved(const LayerCalibration& made) const {
    save_calibration(path("saved"), made);
    return slurp(path("saved"));
  }

  /// A trace whose key of position p, head h and dimension j is p + h / 4 + j / 64: exact in
  /// float32 and, below 512 positions, nearly so in float16.
  std::string numbered(const char* name, std::int64_t n, DType dtype) const {
    const std::int64_t hkv = 2, d = 16;
    std::vector<std::byte> k(static_cast<std::size_t>(n * hkv * d * dtype_size(dtype)));
    for (std::int64_t i = 0; i < n * hkv * d; ++i) {
      const float value = static_cast<float>(i / (hkv * d)) + static_cast<float>(i / d % hkv) / 4 +
                          static_cast<float>(i % d) / 64;
      store_element(k.data(), dtype, i, value);
    }
    const std::vector<float> q(4 * 16, 1.0f);
    const std::int32_t q_pos = 0;
    write_safetensors(path(name),
                      {{"k", dtype == DType::float16 ? "F16" : "F32", {n, hkv, d}, k.data()},
                       {"q", "F32", {1, 4, 16}, q.data()},
                       {"q_pos", "I32", {1}, &q_pos}});
    return path(name);
  }

  static IndexerConfig config(std::int32_t block_size, std::int32_t sink) {
    IndexerConfig c, out;
    c.num_query_heads = 4;
    c.num_kv_heads = 2;
    c.head_dim = 16;
    c.num_subspaces = 4;
    c.bits = 3;
    c.block_size = block_size;
    c.window_size = std::max(block_size, 8);
    c.sink_size = sink;
    c.rotation = true;
    EXPECT_TRUE(resolve(c, Backend::cpu, &out).ok());
    return out;
  }

  static KeySample sample(const IndexerConfig& c, const std::vector<std::string>& paths,
                          std::int64_t max_keys) {
    std::vector<Trace> headers;
    for (const std::string& path : paths) headers.push_back(load_header(path));
    return read_keys(c, paths, headers, max_keys);
  }

  /// The positions that a view of numbered() traces holds.
  static std::vector<std::int64_t> positions(const CalibrationTrace& view) {
    std::vector<std::int64_t> out;
    for (std::int64_t i = 0; i < view.keys.count; ++i) {
      out.push_back(static_cast<std::int64_t>(
          load_element(view.keys.data, view.keys.dtype, i * view.keys.row_stride)));
    }
    return out;
  }

  /// The first positions of the blocks of `size` that they are.
  static std::vector<std::int64_t> blocks(const CalibrationTrace& view, std::int64_t size) {
    const std::vector<std::int64_t> all = positions(view);
    std::vector<std::int64_t> out;
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (i % static_cast<std::size_t>(size) == 0) {
        out.push_back(all[i]);
      } else {
        EXPECT_EQ(all[i], all[i - 1] + 1);
      }
    }
    EXPECT_EQ(all.size() % static_cast<std::size_t>(size), 0u);
    return out;
  }

  double recall(const std::string& calibration) const {
    const Outcome outcome = run_program(
        QUARRY_REPLAY, kBundled + " --calibration " + calibration + " --json " + path("json"));
    EXPECT_EQ(outcome.exit_code, 0) << outcome.error;
    return nlohmann::json::parse(slurp(path("json")))["recall"].get<double>();
  }

  /// Mostly holes on the disk: every 40th position of k, and of q, has values.
  std::string large(const char* name, std::int64_t n, std::int64_t queries) const {
    const std::int64_t k_bytes = n * 2 * 64 * 4, q_bytes = queries * 4 * 64 * 4;
    const nlohmann::json header = {
        {"k", {{"dtype", "F32"}, {"shape", {n, 2, 64}}, {"data_offsets", {0, k_bytes}}}},
        {"q",
         {{"dtype", "F32"},
          {"shape", {queries, 4, 64}},
          {"data_offsets", {k_bytes, k_bytes + q_bytes}}}},
        {"q_pos",
         {{"dtype", "I32"},
          {"shape", {queries}},
          {"data_offsets", {k_bytes + q_bytes, k_bytes + q_bytes + queries * 4}}}}};
    std::string text = header.dump();
    text.append((8 - text.size() % 8) % 8, ' ');
    std::ofstream file(path(name), std::ios::binary);
    const std::uint64_t length = text.size();
    file.write(reinterpret_cast<const char*>(&length), sizeof length);
    file << text;
    const auto start = static_cast<std::int64_t>(file.tellp());
    std::uint32_t seed = 1;
    const auto rows = [&](std::int64_t at, std::int64_t count, std::int64_t width) {
      std::vector<float> row(static_cast<std::size_t>(width));
      for (std::int64_t i = 0; i < count; i += 40) {
        for (float& x : row) {
          seed = seed * 1664525u + 1013904223u;
          x = static_cast<float>(seed >> 8) / 8388608.0f - 1.0f;
        }
        file.seekp(start + at + i * width * 4);
        file.write(reinterpret_cast<const char*>(row.data()), width * 4);
      }
    };
    rows(0, n, 2 * 64);
    rows(k_bytes, queries, 4 * 64);
    file.seekp(start + k_bytes + q_bytes);
    for (std::int32_t i = 0; i < queries; ++i) {
      file.write(reinterpret_cast<const char*>(&i), sizeof i);
    }
    EXPECT_TRUE(file.good());
    return path(name);
  }

  /// Peak resident bytes of a quarry-calibrate of its own.
  std::int64_t peak(const std::string& arguments) const {
    const std::string command = "exec '" QUARRY_CALIBRATE "' " + arguments +
                                " --threads 1 --out '" + path("out") + "' >'" + path("stdout") +
                                "'";
    const pid_t child = fork();
    if (child == 0) {
      execl("/bin/sh", "sh", "-c", command.c_str(), static_cast<char*>(nullptr));
      _exit(127);
    }
    int status = -1;
    rusage usage{};
    EXPECT_EQ(wait4(child, &status, 0, &usage), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << command;
    return std::int64_t{usage.ru_maxrss} * 1024;
  }
};

TEST_F(CalibrateMemory, PeakDoesNotGrowWithTheTrace) {
#if QUARRY_ADDRESS_SANITIZER || QUARRY_THREAD_SANITIZER
  GTEST_SKIP() << "a sanitizer keeps freed memory";
#endif
  constexpr std::int64_t kMiB = 1 << 20;
  // A child's peak counts what this process holds as it forks, hence this test is the first.
  if (peak("--version") > 64 * kMiB) GTEST_SKIP() << "this process is too large to measure from";
  const std::string small = large("small", 50000, 10000), big = large("big", 200000, 40000);
  const std::string limit = " --max-keys 4096";
  const std::int64_t of_small = peak(small + limit), of_big = peak(big + limit);
  EXPECT_LT(of_big - of_small, 8 * kMiB) << of_small << " " << of_big;
  // What it would be without a limit: the keys alone are 98 MiB.
  EXPECT_GT(peak(big + " --rotation none --max-keys 200000") - of_big, 64 * kMiB);
}

TEST_F(CalibrateMemory, WithinTheLimitNothingChanges) {
  // The bundled trace, and one whose queries take several parts and whose first block is cut by
  // the sink, beside one of another dtype.
  const std::int64_t n = 700, queries = 699;
  std::vector<float> k(static_cast<std::size_t>(n * 2 * 64)),
      q(static_cast<std::size_t>(queries * 10 * 64));
  std::uint32_t seed = 3;
  for (std::vector<float>* values : {&k, &q}) {
    for (float& x : *values) {
      seed = seed * 1664525u + 1013904223u;
      x = static_cast<float>(seed >> 8) / 8388608.0f - 1.0f;
    }
  }
  ASSERT_GT(static_cast<std::int64_t>(q.size() * sizeof(float)), kQueryPartBytes);
  std::vector<std::int32_t> q_pos(static_cast<std::size_t>(queries));
  for (std::size_t i = 0; i < q_pos.size(); ++i) q_pos[i] = static_cast<std::int32_t>(i);
  std::vector<std::byte> half(k.size() * 2);
  for (std::size_t i = 0; i < k.size(); ++i) {
    store_element(half.data(), DType::float16, static_cast<std::int64_t>(i), k[i] + 0.5f);
  }
  for (const bool second : {false, true}) {
    write_safetensors(path(second ? "b" : "a"),
                      {second ? TensorSource{"k", "F16", {n, 2, 64}, half.data()}
                              : TensorSource{"k", "F32", {n, 2, 64}, k.data()},
                       {"q", "F32", {queries, 10, 64}, q.data()},
                       {"q_train", "F32", {300, 10, 64}, q.data()},
                       {"q_pos", "I32", {queries}, q_pos.data()}});
  }
  const std::vector<std::vector<std::string>> cases = {{kBundled}, {path("a"), path("b")}};
  for (const std::vector<std::string>& paths : cases) {
    for (const std::int32_t block : {0, 16}) {
      if (paths.size() == 1 && block == 0) continue;
      IndexerConfig c;
      c.num_subspaces = 8;
      c.bits = 4;
      c.block_size = block;
      c.window_size = 16;
      c.sink_size = 20;
      c.kmeans_iterations = 3;
      c.rotation = true;
      std::vector<Trace> traces;
      std::vector<const Trace*> pointers;
      std::int64_t positions = 0;
      for (const std::string& path : paths) traces.push_back(load_trace(path, false));
      for (const Trace& trace : traces) {
        pointers.push_back(&trace);
        positions += trace.n;
      }
      const std::string whole = saved(calibrate_traces(c, pointers, paths, 2, {}));
      EXPECT_EQ(whole, saved(calibrate_files(c, paths, positions, 2, {})));
      EXPECT_EQ(whole, saved(calibrate_files(c, paths, kCalibrationMaxKeys, 1, {})));
      EXPECT_NE(whole, saved(calibrate_files(c, paths, positions - 1, 2, {})));
    }
  }
}

TEST_F(CalibrateMemory, WholeBlocksEvenlySpaced) {
  // The sink of 20 cuts the block at 16, the end at 300 that at 288: blocks 32 .. 272, of these
  // 16 numbers 0, 2, 5, 8, 10 and 13.
  const std::string trace = numbered("a", 300, DType::float32);
  const KeySample some = sample(config(16, 20), {trace}, 100);
  EXPECT_FALSE(some.whole);
  EXPECT_EQ(some.encode_from, 0);
  EXPECT_EQ(some.trace_keys, 288 - 20);
  ASSERT_EQ(some.views.size(), 1u);
  EXPECT_EQ(blocks(some.views[0], 16), (std::vector<std::int64_t>{32, 64, 112, 160, 192, 240}));
  const KeySample most = sample(config(16, 20), {trace}, 299);
  EXPECT_EQ(blocks(most.views[0], 16).size(), 16u);
  EXPECT_EQ(blocks(most.views[0], 16).back(), 272);
  const KeySample all = sample(config(16, 20), {trace}, 300);
  EXPECT_TRUE(all.whole);
  EXPECT_EQ(all.encode_from, 20);
  EXPECT_EQ(all.views[0].keys.count, 300);
}

TEST_F(CalibrateMemory, RunsWhereThereAreNoBlocks) {
  const std::string trace = numbered("a", 300, DType::float32);
  const KeySample some = sample(config(0, 10), {trace}, 130);
  EXPECT_EQ(some.trace_keys, 290);
  EXPECT_EQ(blocks(some.views[0], 64), (std::vector<std::int64_t>{10, 10 + 2 * 64}));
}

TEST_F(CalibrateMemory, TheLimitIsOfAllTraces) {
  const std::vector<std::string> paths = {
      numbered("a", 128, DType::float32), numbered("b", 96, DType::float16),
      numbered("c", 20, DType::float32), numbered("d", 64, DType::float32)};
  // Blocks of 16 past the sink: 7, 5, 0 and 3; of these 15 numbers 0, 2, 4, 6, 8, 10, 12.
  const KeySample some = sample(config(16, 16), paths, 7 * 16 + 5);
  ASSERT_EQ(some.views.size(), 2u);
  EXPECT_EQ(some.views[0].keys.dtype, DType::float32);
  EXPECT_EQ(blocks(some.views[0], 16), (std::vector<std::int64_t>{16, 48, 80, 112, 16}));
  EXPECT_EQ(some.views[1].keys.dtype, DType::float16);
  EXPECT_EQ(blocks(some.views[1], 16), (std::vector<std::int64_t>{32, 64}));
  EXPECT_EQ(some.trace_keys, 112 + 80 + 0 + 48);
  std::size_t held = 0;
  for (const TypedArray& array : some.arrays) {
    held += array.bytes.size() / static_cast<std::size_t>(dtype_size(array.dtype));
  }
  EXPECT_EQ(held, std::size_t{7 * 16 * 2 * 16});
}

TEST_F(CalibrateMemory, AFewKeysServeNearlyAsWellAndTheFileSaysSo) {
#if QUARRY_ADDRESS_SANITIZER
  // Minutes, for figures that are the same; CalibrateCli takes every path of it on less.
  GTEST_SKIP() << "figures are measured without sanitizers";
#endif
  const auto calibrate = [&](const std::string& options, const char* out) {
    const Outcome outcome =
        run_program(QUARRY_CALIBRATE, kBundled + " " + options + " --out " + path(out));
    EXPECT_EQ(outcome.exit_code, 0) << outcome.error;
    return outcome.out;
  };
  EXPECT_THAT(calibrate("", "full"), testing::Not(HasSubstr("max-keys")));
  EXPECT_THAT(calibrate("--max-keys 2048 --threads 1", "few"), HasSubstr("at most 2048 of 8176"));
  calibrate("--max-keys 2048 --threads 3", "again");
  EXPECT_EQ(slurp(path("few")), slurp(path("again")));
  EXPECT_NE(slurp(path("few")), slurp(path("full")));

  const LayerCalibration few = load_calibration(path("few")), full = load_calibration(path("full"));
  EXPECT_EQ(few.max_keys, 2048);
  EXPECT_EQ(few.trace_keys, 8176);
  EXPECT_EQ(few.keys, 2048);
  EXPECT_EQ(few.queries, full.queries);
  EXPECT_EQ(few.config.encode_from, 16);  // as the index encodes, not as the sample was taken
  EXPECT_EQ(full.max_keys, 0);
  EXPECT_EQ(full.trace_keys, full.keys);

  // Measured: 0.6559 of all 8176 keys, 0.6503 of 2048.
  const double of_all = recall(path("full")), of_few = recall(path("few"));
  RecordProperty("recall_full", std::to_string(of_all));
  RecordProperty("recall_2048", std::to_string(of_few));
  EXPECT_GT(of_all, 0.64);
  EXPECT_GT(of_few, of_all - 0.01);
}

TEST_F(CalibrateMemory, LimitsThatHoldNoBlock) {
  const std::string trace = numbered("a", 300, DType::float32);
  const std::string out = " --out " + path("out");
  expect_refused_by(QUARRY_CALIBRATE, trace + out + " --max-keys 0", "--max-keys");
  expect_refused_by(QUARRY_CALIBRATE, trace + out + " --max-keys -5", "--max-keys");
  expect_refused_by(QUARRY_CALIBRATE, trace + out + " --max-keys 63",
                    "--max-keys is 63, must be at least 64");
  expect_refused_by(QUARRY_CALIBRATE, trace + out + " --max-keys 128 --block-size 256 --sink 256",
                    "--max-keys is 128, must be at least 256");
  EXPECT_FALSE(std::filesystem::exists(path("out")));
}

}  // namespace
}  // namespace quarry::tools
