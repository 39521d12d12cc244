// SPDX-License-Identifier: Apache-2.0
//
// Continuous batching for a long time: QUARRY_SOAK_STEPS steps (300 if it is not set).
#include <gtest/gtest.h>

#include <cstdlib>
#include <optional>

#include "support/allocations.h"
#include "support/backends.h"
#include "support/soak.h"
#if QUARRY_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

namespace quarry::test {
namespace {

int soak_steps() {
  const char* text = std::getenv("QUARRY_SOAK_STEPS");
  const int steps = text == nullptr ? 0 : std::atoi(text);
  return steps > 0 ? steps : 300;
}

std::vector<Algorithm> algorithms(const IndexerConfig& config, Backend backend) {
  std::vector<Algorithm> all;
  for (const Algorithm algorithm : {Algorithm::staged, Algorithm::scan}) {
    IndexerConfig c = config, out;
    c.algorithm = algorithm;
    if (resolve(c, backend, &out).ok()) all.push_back(algorithm);
  }
  return all;
}

/// Bytes of the device nobody has taken; nothing on the CPU.
std::optional<std::size_t> free_device_memory([[maybe_unused]] Backend backend) {
#if QUARRY_HAS_CUDA
  std::size_t free = 0, total = 0;
  if (backend == Backend::cuda && cudaMemGetInfo(&free, &total) == cudaSuccess) return free;
#endif
  return {};
}

IndexerConfig soak_config(bool blocks) {
  IndexerConfig c;
  c.num_query_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = 16;
  c.num_subspaces = 4;
  c.bits = 4;
  c.max_sequences = 12;
  c.max_query_tokens = 3;
  c.max_seq_len = 192;
  c.sink_size = 5;
  c.heavy_size = 12;
  c.window_size = 20;
  c.dense_threshold = 0;
  // With blocks a page is half a block: the hardest case of sharing.
  c.block_size = blocks ? 16 : 0;
  c.page_size = blocks ? 8 : 16;
  c.num_pages = blocks ? 170 : 85;
  c.refine_factor = blocks ? 2 : 1;
  c.shared_codebook = blocks;
  return c;
}

class SoakTest : public BackendTest {};

TEST_P(SoakTest, ManySequencesComeAndGo) {
  const int steps = soak_steps();
  for (const bool blocks : {true, false}) {
    std::optional<std::uint64_t> digest;
    for (const Algorithm algorithm : algorithms(soak_config(blocks), GetParam())) {
      // The second run goes through graphs (where there are any) with another number of
      // threads: the same seed must give the same bytes.
      for (const LaunchMode mode : {LaunchMode::stream, LaunchMode::replay}) {
        SoakSetup setup;
        setup.config = soak_config(blocks);
        setup.config.algorithm = algorithm;
        setup.backend = GetParam();
        setup.mode = GetParam() == Backend::cpu ? LaunchMode::stream : mode;
        setup.threads = mode == LaunchMode::stream ? 2 : 1;
        setup.check_every = mode == LaunchMode::stream ? 8 : 64;
        Soak soak(setup);
        std::optional<std::size_t> memory;
        for (int i = 0; i < steps && soak.error().empty(); ++i) {
          soak.step();
          if (i == steps / 2) memory = free_device_memory(GetParam());
        }
        ASSERT_EQ(soak.error(), "");
        // The emulated device's launches are calls of the host, which allocate.
        if (GetParam() == Backend::cpu || !QUARRY_CUDA_EMULATED) {
          EXPECT_EQ(soak.allocations(), 0);
        }
        EXPECT_EQ(free_device_memory(GetParam()), memory);
        if (!digest) digest = soak.digest();
        EXPECT_EQ(soak.digest(), *digest) << "the same seed gave other lists";
        const SoakCounts& n = soak.counts();
        EXPECT_GT(n.forks, 0);
        EXPECT_GT(n.restored, 0);
        EXPECT_GT(n.truncated, 0);
        EXPECT_GT(n.copied_pages, 0);
        EXPECT_GT(n.rejected_drafts, 0);
        EXPECT_GT(n.checked_rows, 0);
        EXPECT_GT(n.checked_codes, 0);
        EXPECT_GT(blocks ? n.attached : n.refused, 0);
        std::string text =
            std::to_string(n.steps) + " steps: prompts " + std::to_string(n.prompts) +
            ", attached " + std::to_string(n.attached) + ", refused " + std::to_string(n.refused) +
            ", forks " + std::to_string(n.forks) + ", restored " + std::to_string(n.restored) +
            ", left " + std::to_string(n.left) + ", saved " + std::to_string(n.saved) +
            ", rewound " + std::to_string(n.truncated) + ", pages copied " +
            std::to_string(n.copied_pages) + ", evicted " + std::to_string(n.evicted) +
            ", drafts rejected " + std::to_string(n.rejected_drafts) + ", rows checked " +
            std::to_string(n.checked_rows);
        RecordProperty(
            std::string(to_string(algorithm)) + (blocks ? "_blocks" : "") + "_" + to_string(mode),
            text);
        if (std::getenv("QUARRY_SOAK_STEPS") != nullptr) std::puts(text.c_str());
      }
    }
  }
}

TEST(AllocationWatch, CountsWhatItShould) {
  if (!AllocationWatch::works()) GTEST_SKIP() << "the sanitizer has operator new";
  const long before = AllocationWatch::count();
  {
    const AllocationWatch watch;
    std::vector<int> v(1000);
    EXPECT_EQ(v.size(), 1000u);
  }
  EXPECT_GT(AllocationWatch::count(), before);
  const long after = AllocationWatch::count();
  const std::vector<int> unwatched(1000);
  EXPECT_EQ(AllocationWatch::count(), after + static_cast<long>(unwatched[0]));
}

QUARRY_ON_EVERY_BACKEND(SoakTest);

}  // namespace
}  // namespace quarry::test
