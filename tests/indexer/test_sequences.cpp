// SPDX-License-Identifier: Apache-2.0
//
// What becomes of sequences over time: rejected tokens, truncation, reset, new codebooks,
// shared pages, bad lengths and slots in device memory.
#include <gtest/gtest.h>

#include <algorithm>

#include "support/backends.h"
#include "support/scenario.h"

namespace quarry::test {
namespace {

class Sequences : public AlgorithmTest {
 protected:
  Scenario scenario(int block, int slots = 1, int tokens = 1) const {
    Scenario s;
    s.config = small_config();
    s.on(GetParam());
    s.config.block_size = block;
    s.config.max_sequences = slots;
    s.config.max_query_tokens = tokens;
    s.config.window_size = 24;
    s.config.max_seq_len = 300;
    return s;
  }
};

HostBatch drafts(int n, int tokens) {
  HostBatch b;
  b.query_tokens = tokens;
  for (int t = 0; t < tokens; ++t) b.lengths.push_back(n + t);
  return b;
}

TEST_P(Sequences, RollBackAndOverwriteEqualsNeverHavingHadTheRest) {
  for (const int block : {0, 8, 16}) {
    World went_back(scenario(block, 1, 4));
    went_back.set_codebook(-1);
    went_back.next(drafts(200, 4));
    // One of three drafts accepted, the others rejected and rewritten; twice in a row, and
    // across a block border; then far back.
    went_back.overwrite(0, 201, 300, 55);
    went_back.next(drafts(201, 4));
    went_back.overwrite(0, 202, 300, 56);
    went_back.next(drafts(202, 4));
    went_back.next(drafts(210, 4));
    went_back.overwrite(0, 203, 300, 57);
    const StepOutput a = went_back.next(drafts(204, 1));
    const StepOutput a2 = went_back.next(drafts(260, 4));

    Scenario s = scenario(block, 1, 4);
    World straight(s);
    straight.set_codebook(-1);
    straight.overwrite(0, 201, 300, 55);
    straight.overwrite(0, 202, 300, 56);
    straight.overwrite(0, 203, 300, 57);
    const StepOutput b = straight.next(drafts(204, 1));
    const StepOutput b2 = straight.next(drafts(260, 4));
    ASSERT_EQ(went_back.error(), "") << "block " << block;
    ASSERT_EQ(straight.error(), "");
    EXPECT_TRUE(a == b) << "block " << block;
    EXPECT_TRUE(a2 == b2) << "block " << block;
    EXPECT_TRUE(went_back.codes(0, 260) == straight.codes(0, 260));
  }
}

TEST_P(Sequences, TruncateForgetsAcceptedPositions) {
  for (const int block : {0, 16}) {
    World world(scenario(block, 3));
    world.set_codebook(-1);
    world.next(lengths({250, 240, 230}));
    // Accepted positions are rewritten: only truncate() can tell the index.
    world.overwrite(0, 100, 300, 91);
    world.overwrite(2, 5, 300, 92);
    world.truncate({2, 0}, {5, 100});
    world.next(lengths({251, 241, 231}));
    world.overwrite(1, 150, 300, 93);
    // Entries out of range are ignored, and forgetting what was not seen is nothing.
    world.truncate({-1, 1, 3}, {0, 150, 0});
    world.truncate({0, 2}, {-1, 5000});
    world.truncate({}, {290, 299, 299});
    world.next(lengths({252, 242, 232}));
    ASSERT_EQ(world.error(), "") << "block " << block;
    world.overwrite(0, 0, 300, 94);
    world.overwrite(1, 0, 300, 95);
    world.truncate({}, {0, 0});
    world.next(lengths({253, 243, 233}));
    EXPECT_EQ(world.error(), "") << "block " << block;
  }
}

TEST_P(Sequences, TokenByTokenEqualsAllAtOnce) {
  for (const int block : {0, 16}) {
    for (const bool rotation : {false, true}) {
      Scenario s = scenario(block);
      s.config.rotation = rotation;
      s.config.refine_factor = 2;
      s.config.metric = rotation ? Metric::inner_product : Metric::euclidean;
      World one(s), all(s), steps(s);
      for (World* w : {&one, &all, &steps}) w->set_codebook(-1);
      for (int n = 1; n < 200; ++n) one.append(lengths({n}));
      for (const int n : {3, 40, 41, 64, 65, 180}) steps.append(lengths({n}));
      const StepOutput a = one.next(lengths({200}));
      const StepOutput b = all.next(lengths({200}));
      const StepOutput c = steps.next(lengths({200}));
      for (const World* w : {&one, &all, &steps}) ASSERT_EQ(w->error(), "");
      EXPECT_TRUE(a == b);
      EXPECT_TRUE(a == c);
      EXPECT_TRUE(one.codes(0, 200) == all.codes(0, 200));
      EXPECT_TRUE(one.codes(0, 200) == steps.codes(0, 200));
    }
  }
}

TEST_P(Sequences, ASecondCodebookEncodesAnew) {
  for (const int block : {0, 16}) {
    World world(scenario(block, 2)), fresh(scenario(block, 2));
    world.set_codebook(-1, 1);
    world.next(lengths({200, 190}));
    world.set_codebook(1, 2);
    world.next(lengths({201, 191}));
    world.set_codebook(-1, 3);
    world.set_codebook(-1, 4);
    const StepOutput a = world.next(lengths({202, 192}));
    fresh.set_codebook(-1, 4);
    const StepOutput b = fresh.next(lengths({202, 192}));
    ASSERT_EQ(world.error(), "");
    ASSERT_EQ(fresh.error(), "");
    EXPECT_TRUE(a == b);
    EXPECT_TRUE(world.codes(1, 192) == fresh.codes(1, 192));
    const Codebook read = world.read_codebook(1);
    EXPECT_TRUE(read.centroids == world.make_codebook(4).centroids);
  }
}

TEST_P(Sequences, ResetForgetsPositionsAndItsOwnCodebook) {
  for (const bool shared : {false, true}) {
    Scenario s = scenario(16, 2);
    s.config.shared_codebook = shared;
    s.config.metric = Metric::inner_product;
    World world(s);
    world.set_codebook(-1);
    world.next(lengths({200, 190}));
    world.reset(0);
    world.overwrite(0, 0, 300, 33);
    // Without its codebook a sequence beyond the dense range is not built.
    const StepOutput out = world.next(lengths({150, 191}));
    EXPECT_EQ(out.bits[0], shared ? 0u : static_cast<std::uint32_t>(kNotBuilt));
    if (!shared) world.set_codebook(0, 12);
    world.next(lengths({151, 192}));
    EXPECT_EQ(world.error(), "");
  }
}

TEST_P(Sequences, NotBuiltListsSinkAndWindow) {
  Scenario s = scenario(0, 2, 2);
  s.weights = s.dense_weights = true;
  World world(s);
  const int limit = world.oracle().dense_limit();
  world.set_codebook(1);
  HostBatch b;
  b.batch_size = 2;
  b.query_tokens = 2;
  b.lengths = {limit, limit + 1, limit, limit + 1};
  StepOutput out = world.next(b);
  ASSERT_EQ(world.error(), "");
  EXPECT_EQ(out.bits[0], static_cast<std::uint32_t>(kNotBuilt));
  EXPECT_EQ(out.bits[1], 0u);
  EXPECT_EQ(out.lengths[0], limit);
  EXPECT_EQ(out.lengths[world.config().num_query_heads], 8 + 24);
  // Nothing was encoded without a codebook; all is once there is one.
  world.set_codebook(0);
  out = world.next(b);
  EXPECT_EQ(out.bits[0], 0u);
  EXPECT_EQ(world.error(), "");
}

TEST_P(Sequences, DeviceStatusTellsWhatOnlyTheDeviceSees) {
  Scenario s = scenario(16, 4, 3);
  s.weights = s.dense_weights = true;
  World world(s);
  world.set_codebook(-1);
  HostBatch good;
  good.batch_size = 4;
  good.query_tokens = 3;
  good.slots = {3, 1, 0, 2};
  for (int b = 0; b < 4; ++b) {
    for (int t = 0; t < 3; ++t) good.lengths.push_back(150 + b + t);
  }
  world.next(good);
  struct Case {
    const char* what;
    std::uint32_t bits;  ///< of sequence 1
    void (*change)(HostBatch&);
  };
  const Case cases[] = {
      {"n negative", kLengthOutOfRange, [](HostBatch& b) { b.lengths[3] = -1; }},
      {"n far too large", kLengthOutOfRange, [](HostBatch& b) { b.lengths[3] = 2000000000; }},
      {"n beyond", kLengthOutOfRange, [](HostBatch& b) { b.lengths[3] = 301; }},
      {"n lowest", kLengthOutOfRange, [](HostBatch& b) { b.lengths[3] = INT32_MIN; }},
      {"n_1 below n", kLengthOutOfRange, [](HostBatch& b) { b.lengths[4] = 100; }},
      {"n_2 falls", kLengthOutOfRange, [](HostBatch& b) { b.lengths[5] = b.lengths[4] - 1; }},
      {"n_2 too far", kLengthOutOfRange, [](HostBatch& b) { b.lengths[5] = b.lengths[3] + 3; }},
      {"n_2 largest", kLengthOutOfRange, [](HostBatch& b) { b.lengths[5] = INT32_MAX; }},
      {"slot beyond", kSlotOutOfRange, [](HostBatch& b) { b.slots[1] = 4; }},
      {"slot far beyond", kSlotOutOfRange, [](HostBatch& b) { b.slots[1] = INT32_MAX; }},
      {"slot inactive", 0, [](HostBatch& b) { b.slots[1] = INT32_MIN; }},
      {"count beyond", kQueryCountOutOfRange,
       [](HostBatch& b) {
         b.query_counts = {3, 4, 1, 0};
       }},
      {"count negative", kQueryCountOutOfRange,
       [](HostBatch& b) {
         b.query_counts = {3, -1, 3, 3};
       }},
      {"count zero, bad length", 0,
       [](HostBatch& b) {
         b.query_counts = {3, 0, 3, 3}, b.lengths[4] = -7;
       }},
      {"token past the count is bad", 0,
       [](HostBatch& b) {
         b.query_counts = {3, 2, 3, 3}, b.lengths[5] = -7;
       }},
  };
  for (const Case& c : cases) {
    HostBatch bad = good;
    for (int& n : bad.lengths) n += 1;
    c.change(bad);
    const StepOutput out = world.next(bad);
    ASSERT_EQ(world.error(), "") << c.what;
    EXPECT_EQ(out.bits[1], c.bits) << c.what;
    EXPECT_EQ(out.bits[0] | out.bits[2] | out.bits[3], 0u) << c.what;
    for (int& n : good.lengths) n += 1;
  }
  HostBatch last = good;
  last.lengths.assign(12, 300);
  world.next(last);  // n_t may stay where it is: the cache is full
  EXPECT_EQ(world.error(), "");
}

TEST_P(Sequences, ABadPageEmptiesItsRowsAlone) {
  Scenario s = scenario(16, 3);
  use_pages(&s.config, 8);
  s.weights = true;
  World world(s);
  world.set_codebook(-1);
  world.next(lengths({150, 160, 170}));
  const Pages good = world.pages(1);
  for (const std::int32_t page :
       {-1, static_cast<std::int32_t>(s.config.num_pages), INT32_MAX, INT32_MIN}) {
    for (const int at : {0, 7, 19}) {
      world.pages(1)[at] = page;
      const StepOutput out = world.next(lengths({151, 161, 171}));
      ASSERT_EQ(world.error(), "");
      EXPECT_EQ(out.bits[1], static_cast<std::uint32_t>(kPageOutOfRange));
      world.pages(1) = good;
    }
  }
  // Table entries beyond the length are the engine's business.
  world.pages(1)[30] = -1;
  StepOutput out = world.next(lengths({152, 162, 172}));
  EXPECT_EQ(out.bits[1], 0u);
  world.pages(1) = good;
  out = world.next(lengths({153, 190, 173}));
  EXPECT_EQ(out.bits[1], 0u);
  EXPECT_EQ(world.error(), "");
}

TEST_P(Sequences, SequencesShareTheIndexOfSharedPages) {
  for (const int block : {0, 16}) {
    Scenario s = scenario(block, 2);
    s.config.shared_codebook = true;
    use_pages(&s.config, 16);
    World world(s);
    world.set_codebook(-1);
    world.next(lengths({200, 0}));
    // Slot 1 takes over the first 9 pages, keeps its own behind them.
    std::copy_n(world.pages(0).begin(), 9, world.pages(1).begin());
    world.next(lengths({201, 230}));
    world.next(lengths({202, 231}));
    EXPECT_EQ(world.error(), "") << "block " << block;
  }
}

TEST_P(Sequences, ARowDoesNotDependOnItsBatch) {
  Scenario s = scenario(16, 4, 2);
  s.config.refine_factor = 2;
  World together(s), alone(s);
  together.set_codebook(-1);
  alone.set_codebook(-1);
  HostBatch b;
  b.batch_size = 4;
  b.query_tokens = 2;
  b.slots = {2, 0, 3, 1};
  b.lengths = {150, 151, 40, 41, 299, 300, 200, 200};
  const StepOutput all = together.next(b);
  const std::size_t rows = 2 * static_cast<std::size_t>(s.config.num_query_heads);
  const std::size_t width = rows * together.oracle().max_list();
  for (int i = 0; i < 4; ++i) {
    HostBatch one;
    one.query_tokens = 2;
    one.slots = {b.slots[i]};
    one.lengths = {b.lengths[2 * i], b.lengths[2 * i + 1]};
    const StepOutput single = alone.next(one);
    EXPECT_TRUE(
        std::equal(single.indices.begin(), single.indices.end(), all.indices.begin() + i * width));
    EXPECT_TRUE(
        std::equal(single.lengths.begin(), single.lengths.end(), all.lengths.begin() + i * rows));
  }
  EXPECT_EQ(together.error(), "");
  EXPECT_EQ(alone.error(), "");
}

TEST_P(Sequences, LengthsThatFallAndRise) {
  for (const int block : {0, 16}) {
    World world(scenario(block));
    world.set_codebook(-1);
    for (const int n : {300, 299, 200, 0, 150, 149, 160, 1, 64, 65, 80, 79, 300, 0, 7, 300}) {
      world.overwrite(0, std::max(n - 1, 0), 300, 1000 + static_cast<std::uint64_t>(n));
      world.next(lengths({n}));
      ASSERT_EQ(world.error(), "") << "block " << block << " n " << n;
    }
  }
}

QUARRY_ON_EVERY_ALGORITHM(Sequences);

}  // namespace
}  // namespace quarry::test
