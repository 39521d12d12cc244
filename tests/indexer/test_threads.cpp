// SPDX-License-Identifier: Apache-2.0
//
// The same bytes a hundred times, for any number of threads, and from several Indexers that
// run at once. The TSan run repeats this file (label `threads`).
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "support/backends.h"
#include "support/scenario.h"

namespace quarry::test {
namespace {

class Threads : public AlgorithmTest {
 protected:
  Scenario scenario(int threads) const {
    Scenario s;
    s.threads = threads;
    s.check = false;
    s.config = small_config();
    s.on(GetParam());
    s.config.block_size = 16;
    s.config.rotation = true;
    s.config.refine_factor = 3;
    s.config.max_sequences = 3;
    s.config.max_query_tokens = 2;
    s.config.window_size = 20;
    s.weights = s.dense_weights = true;
    return s;
  }
  static HostBatch batch() {
    HostBatch b;
    b.batch_size = 3;
    b.query_tokens = 2;
    b.lengths = {400, 401, 77, 78, 598, 599};
    return b;
  }
  StepOutput run(int threads, bool build) const {
    World world(scenario(threads));
    if (build) {
      const Codebook rotations = world.make_codebook(3);
      for (int slot = 0; slot < 3; ++slot) {
        const Status s = world.build(slot, 300, false, &rotations);
        EXPECT_TRUE(s.ok()) << s.detail();
      }
    } else {
      world.set_codebook(-1);
    }
    const StepOutput out = world.next(batch());
    EXPECT_EQ(world.error(), "");
    return out;
  }
};

TEST_P(Threads, AnyNumberGivesTheSameBytes) {
  for (const bool build : {false, true}) {
    const StepOutput first = run(1, build);
    for (const int threads : {0, 2, 3, 8}) EXPECT_TRUE(run(threads, build) == first) << threads;
  }
}

TEST_P(Threads, AHundredRunsAreByteEqual) {
  World world(scenario(4));
  world.set_codebook(-1);
  const StepOutput first = world.next(batch());
  for (int i = 0; i < 100; ++i) {
    // Every other run encodes everything anew.
    if (i % 2 == 0) world.truncate({}, {0, 0, 0});
    ASSERT_TRUE(world.next(batch()) == first) << i;
  }
  EXPECT_EQ(world.error(), "");
}

TEST_P(Threads, LongRowsAreByteEqual) {
  // Long enough that the stages cut rows into pieces, with ties that cross every cut.
  Scenario s = scenario(1);
  s.config = IndexerConfig{};
  s.on(GetParam());
  s.config.num_query_heads = s.config.num_kv_heads = 1;
  s.config.head_dim = 8;
  s.config.num_subspaces = 1;
  s.config.bits = 2;
  s.config.max_seq_len = 150000;
  s.config.heavy_size = 3000;
  s.keys = s.queries = s.centroids = Values::integers;
  s.weights = s.dense_weights = false;
  StepOutput first;
  for (const int threads : {1, 2, 5}) {
    s.threads = threads;
    s.check = threads == 1;
    World world(s);
    world.set_codebook(-1);
    const StepOutput out = world.next(lengths({150000}));
    ASSERT_EQ(world.error(), "");
    if (first.lengths.empty()) first = out;
    EXPECT_TRUE(out == first) << threads;
  }
}

TEST_P(Threads, LongRowsInPagesAreByteEqual) {
  // Four threads for two KV heads: pieces of rows whose heads are taken together.
  Scenario s = scenario(1);
  s.config = IndexerConfig{};
  s.on(GetParam());
  s.config.num_query_heads = s.config.num_kv_heads = 2;
  s.config.head_dim = 8;
  s.config.num_subspaces = 2;
  s.config.bits = 4;
  s.config.max_seq_len = 66000;
  s.weights = s.dense_weights = false;
  World contiguous(s);
  contiguous.set_codebook(-1);
  const StepOutput expected = contiguous.next(lengths({65990}));
  ASSERT_EQ(contiguous.error(), "");
  for (const int threads : {1, 4}) {
    s.threads = threads;
    use_pages(&s.config, 16);
    World paged(s);
    paged.set_codebook(-1);
    EXPECT_TRUE(paged.next(lengths({65990})) == expected) << threads;
    ASSERT_EQ(paged.error(), "");
  }
}

TEST_P(Threads, LongReducedRowsAreByteEqual) {
  // Every part of a row that stage reduce can make, and a last one that is not whole.
  for (const GqaReduction reduction :
       {GqaReduction::sum, GqaReduction::softmax_sum, GqaReduction::max}) {
    Scenario s = scenario(1);
    s.config = IndexerConfig{};
    s.config.num_query_heads = 3;
    s.config.num_kv_heads = 1;
    s.config.head_dim = 8;
    s.config.num_subspaces = 2;
    s.config.bits = 4;
    s.config.max_seq_len = 140001;
    s.config.heavy_size = 500;
    s.config.refine_factor = 2;
    s.config.gqa_reduction = reduction;
    if (!s.served_by(GetParam())) GTEST_SKIP() << "scan serves per_head alone here";
    s.on(GetParam());
    s.weights = s.dense_weights = false;
    for (const int n : {140001, 20000, 3000}) {
      StepOutput first;
      for (const int threads : {1, 2, 5}) {
        s.threads = threads;
        s.check = threads == 1;
        World world(s);
        world.set_codebook(-1);
        const StepOutput out = world.next(lengths({n}));
        ASSERT_EQ(world.error(), "");
        if (first.lengths.empty()) first = out;
        EXPECT_TRUE(out == first) << threads;
      }
    }
  }
}

TEST_P(Threads, IndexersRunAtOnce) {
  const StepOutput want = run(2, true);
  std::vector<std::thread> threads;
  std::vector<StepOutput> got(4);
  for (std::size_t i = 0; i < got.size(); ++i) {
    threads.emplace_back([this, i, &got] {
      for (int k = 0; k < 3; ++k) got[i] = run(1 + static_cast<int>(i % 3), true);
    });
  }
  for (std::thread& t : threads) t.join();
  for (const StepOutput& out : got) EXPECT_TRUE(out == want);
}

QUARRY_ON_EVERY_ALGORITHM(Threads);

}  // namespace
}  // namespace quarry::test
