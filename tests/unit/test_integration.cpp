// SPDX-License-Identifier: Apache-2.0
//
// docs/integration.md tells engines how much memory to plan for: its table is computed here.
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>

#include "quarry/quarry.h"

namespace quarry::test {
namespace {

std::string row(const char* name, const IndexerConfig& config) {
  constexpr int kLayers = 32;
  constexpr double kMiB = 1 << 20;
  MemoryRequirements m;
  const Status status = memory_requirements(config, Backend::cpu, &m);
  EXPECT_TRUE(status.ok()) << status.detail();
  // Keys and values of float16.
  const double cache =
      2.0 * 2 * config.max_sequences * config.max_seq_len * config.num_kv_heads * config.head_dim;
  const auto index = static_cast<double>(m.index_bytes);
  char text[256];
  std::snprintf(text, sizeof text, "| %s | %.3g | %.3g | %.3g | %.3g %% | %.3g | %.3g |", name,
                index / kMiB, static_cast<double>(m.codebook_bytes) / kMiB, kLayers * index / kMiB,
                100 * index / cache, static_cast<double>(m.next_workspace_bytes) / kMiB,
                static_cast<double>(m.build_workspace_bytes) / kMiB);
  return text;
}

TEST(Integration, TheDocsFiguresAreTheLibrarys) {
  std::ifstream file(QUARRY_TEST_DATA_DIR "/../../docs/integration.md");
  ASSERT_TRUE(file.good());
  std::stringstream doc;
  doc << file.rdbuf();

  const auto shaped = [](IndexerConfig c) {
    c.num_query_heads = 32;
    c.num_kv_heads = 8;
    c.head_dim = 128;
    c.max_seq_len = 131072;
    c.heavy_size = 256;
    c.algorithm = Algorithm::staged;
    return c;
  };
  const IndexerConfig recommended = shaped(IndexerConfig::recommended(128));
  IndexerConfig eight = recommended;
  eight.max_sequences = 8;
  const IndexerConfig original = shaped(IndexerConfig{});
  IndexerConfig calibrated = original;
  calibrated.shared_codebook = true;
  for (const std::string& line :
       {row("recommended, 1 sequence", recommended), row("recommended, 8 sequences", eight),
        row("original (m=2, b=6), 1 sequence", original),
        row("original, one calibrated codebook", calibrated)}) {
    EXPECT_NE(doc.str().find(line), std::string::npos) << "docs/integration.md should have\n"
                                                       << line;
  }
  EXPECT_EQ(recommended.num_subspaces, 16);
}

}  // namespace
}  // namespace quarry::test
