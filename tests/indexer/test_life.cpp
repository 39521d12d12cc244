// SPDX-License-Identifier: Apache-2.0
//
// Sequences that share pages, split and are taken over: attach, copy_pages, fork, codebook
// ids, physical indices. What may be read and what must be equal is World's to check.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "support/backends.h"
#include "support/scenario.h"

namespace quarry::test {
namespace {

class Life : public AlgorithmTest {
 protected:
  Scenario scenario(int block, int page, int slots = 2, int tokens = 1) const {
    Scenario s;
    s.config = small_config();
    s.on(GetParam());
    s.config.block_size = block;
    s.config.max_sequences = slots;
    s.config.max_query_tokens = tokens;
    s.config.window_size = 24;
    s.config.max_seq_len = 288;
    s.config.shared_codebook = true;
    if (page > 0) use_pages(&s.config, page);
    return s;
  }
};

/// Slot `to` names the pages of slot `from` that the two can share at `length`; the number of
/// positions in them.
int share(World& world, int from, int to, int length) {
  const int whole = world.indexer().shareable_positions(length);
  const int pages = world.config().page_size > 0 ? whole / world.config().page_size : 0;
  std::copy_n(world.pages(from).begin(), pages, world.pages(to).begin());
  return whole;
}

/// The keys of positions [0, end) of slot `from`, for slot `to`: what an engine's prefill
/// of the same tokens would write.
void copy_keys(World& world, int from, int to, int end) {
  Cache& cache = world.cache();
  for (int p = 0; p < end; ++p) {
    const std::int64_t a = world.oracle().cache_slot(world.pages(from), p);
    const std::int64_t b = world.oracle().cache_slot(world.pages(to), p);
    if (a == b) continue;
    std::copy_n(cache.key(a, 0), cache.heads * cache.dim, cache.keys.data() + cache.offset(b, 0));
  }
}

struct Shape {
  int block, page;
};
const Shape kPaged[] = {{0, 16}, {0, 5}, {16, 16}, {16, 48}, {16, 4}, {1, 8}};

TEST_P(Life, AttachGoesOnFromPagesThatAreEncoded) {
  for (const Shape& shape : kPaged) {
    World world(scenario(shape.block, shape.page));
    world.set_codebook(-1);
    world.next(lengths({200, 0}));
    const std::vector<std::uint8_t> before = world.codes(0, 200);
    const int whole = share(world, 0, 1, 170);
    EXPECT_EQ(whole % std::max({shape.block, shape.page, 1}), 0);
    EXPECT_GT(whole, 100);
    ASSERT_TRUE(world.attach({1}, {whole}, world.indexer().codebook_id(0)).ok());
    world.overwrite(1, whole, 288, 71);
    // Keys of positions before `whole` (of the block they are in) are NaN during these calls.
    world.next(lengths({200, whole + 1}));
    world.next(lengths({201, whole + 2}));
    world.next(lengths({202, 288}));
    ASSERT_EQ(world.error(), "") << "block " << shape.block << " page " << shape.page;
    EXPECT_TRUE(world.codes(0, 200) == before);
  }
}

TEST_P(Life, APartlyFilledPageIsCopiedWithItsIndex) {
  for (const Shape& shape : kPaged) {
    for (const int length : {61, 150}) {
      World world(scenario(shape.block, shape.page));
      world.set_codebook(-1);
      world.next(lengths({200, 0}));
      const int whole = share(world, 0, 1, length);
      std::vector<std::int32_t> from, to;
      for (int p = whole; p < length; p += shape.page) {
        from.push_back(world.pages(0)[p / shape.page]);
        to.push_back(world.pages(1)[p / shape.page]);
      }
      from.push_back(-1), to.push_back(0);  // out of range: ignored
      from.push_back(0), to.push_back(static_cast<std::int32_t>(world.config().num_pages));
      ASSERT_TRUE(world.copy_pages(from, to).ok());
      ASSERT_TRUE(world.attach({1}, {length}, world.indexer().codebook_id(0)).ok());
      world.overwrite(1, length, 288, 72);
      world.overwrite(0, 200, 288, 73);
      for (const int more : {1, 2, 40}) world.next(lengths({200 + more, length + more}));
      ASSERT_EQ(world.error(), "")
          << "block " << shape.block << " page " << shape.page << " length " << length;
    }
  }
}

TEST_P(Life, AttachIgnoresWhatItCannotTake) {
  Scenario s = scenario(0, 16, 4);
  s.config.shared_codebook = false;
  World world(s);
  world.set_codebook(-1, 1);
  world.next(lengths({200, 150, 0, 0}));
  const std::uint64_t id = world.indexer().codebook_id(0);
  world.set_codebook(2, 2);
  std::copy_n(world.pages(0).begin(), 10, world.pages(3).begin());
  std::vector<std::uint32_t> bits;
  const auto attach = [&](std::vector<std::int32_t> slots, std::vector<std::int32_t> to) {
    EXPECT_TRUE(world.attach(slots, to, id, &bits).ok());
  };
  attach({2, -1, 4, 3}, {100, 5, 100, 160});
  EXPECT_EQ(bits, (std::vector<std::uint32_t>{kCodebookMismatch, 0, kSlotOutOfRange, 0}));
  attach({0, 1}, {-1, 289});
  EXPECT_EQ(bits, (std::vector<std::uint32_t>{kLengthOutOfRange, kLengthOutOfRange}));
  attach({INT32_MAX, INT32_MIN}, {0, 0});
  EXPECT_EQ(bits, (std::vector<std::uint32_t>{kSlotOutOfRange, 0}));
  world.next(lengths({201, 151, 40, 161}));
  EXPECT_EQ(world.error(), "");
}

TEST_P(Life, ForkThenDivergeEqualsTwoThatWereAlwaysTwo) {
  const Shape shapes[] = {{0, 0}, {16, 0}, {0, 16}, {0, 5}, {16, 16}, {16, 48}, {16, 4}};
  int combination = 0;
  for (const Shape& shape : shapes) {
    for (const int n : {shape.page == 5 ? 1 : 96, 143}) {
      const bool own_codebooks = ++combination % 2 == 0;
      Scenario s = scenario(shape.block, shape.page, 2, 2);
      s.config.shared_codebook = !own_codebooks;
      s.config.rotation = own_codebooks;
      s.config.metric = own_codebooks ? Metric::inner_product : Metric::euclidean;
      s.config.mean_dtype = own_codebooks ? DType::float16 : DType::float32;
      World forked(s), straight(s);
      HostBatch first = lengths({n, 0}), second = lengths({n, n});
      for (World* w : {&forked, &straight}) w->set_codebook(own_codebooks ? 0 : -1);
      if (own_codebooks) straight.set_codebook(1);
      copy_keys(straight, 0, 1, n);
      forked.next(first);
      straight.next(second);
      share(forked, 0, 1, n);
      ASSERT_TRUE(forked.fork(0, 1).ok());
      EXPECT_EQ(forked.indexer().codebook_id(0), forked.indexer().codebook_id(1));
      std::vector<StepOutput> outputs[2];
      int of = 0;
      for (World* w : {&forked, &straight}) {
        w->overwrite(0, n, 288, 41);
        w->overwrite(1, n, 288, 42);
        HostBatch drafts;
        drafts.batch_size = drafts.query_tokens = 2;
        // Drafts, of which one is rejected and rewritten, then growth at different speeds.
        drafts.lengths = {n + 1, n + 2, n + 1, n + 2};
        outputs[of].push_back(w->next(drafts));
        w->overwrite(1, n + 1, 288, 43);
        drafts.lengths = {n + 3, n + 4, n + 2, n + 3};
        outputs[of].push_back(w->next(drafts));
        outputs[of].push_back(w->next(lengths({n + 20, n + 3})));
        outputs[of].push_back(w->next(lengths({n + 21, 288})));
        ++of;
      }
      ASSERT_EQ(forked.error(), "") << "block " << shape.block << " page " << shape.page << " n "
                                    << n << " own " << own_codebooks;
      ASSERT_EQ(straight.error(), "");
      EXPECT_TRUE(outputs[0] == outputs[1]);
      EXPECT_TRUE(forked.codes(1, 288) == straight.codes(1, 288));
      EXPECT_TRUE(forked.codes(0, n + 21) == straight.codes(0, n + 21));
    }
  }
}

TEST_P(Life, AForkMayTakeLessThanAllAndReplacesWhatTheSlotHeld) {
  for (const Shape& shape : {Shape{0, 0}, Shape{16, 0}, Shape{16, 16}, Shape{0, 48}}) {
    Scenario s = scenario(shape.block, shape.page, 3);
    s.config.shared_codebook = false;
    World world(s);
    world.set_codebook(0, 1);
    world.set_codebook(1, 2);
    world.next(lengths({200, 180, 30}));
    const std::uint64_t replaced = world.indexer().codebook_id(1);
    const Pages own = world.pages(1);
    share(world, 0, 1, 120);
    ASSERT_TRUE(world.fork(0, 1, 120).ok());
    EXPECT_NE(world.indexer().codebook_id(1), replaced);
    world.overwrite(1, 120, 288, 51);
    world.next(lengths({201, 121, 31}));
    // A source without a codebook leaves none.
    world.pages(1) = own;
    ASSERT_TRUE(world.fork(2, 1).ok());
    EXPECT_EQ(world.indexer().codebook_id(1), 0u);
    world.overwrite(1, 0, 288, 52);
    const StepOutput out = world.next(lengths({202, 122, 32}));
    EXPECT_EQ(out.bits[1], static_cast<std::uint32_t>(kNotBuilt));
    world.set_codebook(1, 3);
    world.next(lengths({203, 123, 33}));
    ASSERT_EQ(world.error(), "") << "block " << shape.block << " page " << shape.page;
  }
}

TEST_P(Life, CodebookIdsNameTheirContent) {
  Scenario s = scenario(16, 0, 4);
  s.config.shared_codebook = false;
  World world(s), other(s);
  const auto id = [&](int slot) { return world.indexer().codebook_id(slot); };
  EXPECT_EQ(id(0), 0u);
  world.set_codebook(-1, 1);
  other.set_codebook(-1, 1);
  EXPECT_NE(id(0), 0u);
  for (const int slot : {1, 2, 3}) EXPECT_EQ(id(slot), id(0));
  EXPECT_NE(other.indexer().codebook_id(0), id(0));
  EXPECT_EQ(id(-1), 0u);
  EXPECT_EQ(id(4), 0u);
  EXPECT_EQ(Indexer().codebook_id(0), 0u);
  const std::uint64_t first = id(0);
  world.set_codebook(1, 2);
  EXPECT_EQ(id(0), first);
  EXPECT_NE(id(1), first);
  ASSERT_TRUE(world.build(2, 200).ok());  // has a codebook: encodes alone
  EXPECT_EQ(id(2), first);
  ASSERT_TRUE(world.build(2, 200, true).ok());
  EXPECT_NE(id(2), first);
  EXPECT_NE(id(2), id(1));
  world.reset(3);
  EXPECT_EQ(id(3), 0u);
  ASSERT_TRUE(world.build(3, 200).ok());
  EXPECT_NE(id(3), 0u);
  EXPECT_EQ((std::set<std::uint64_t>{id(0), id(1), id(2), id(3)}).size(), 4u);
  // The device knows them too: attach() asks it.
  std::vector<std::uint32_t> bits;
  for (int slot = 0; slot < 4; ++slot) {
    ASSERT_TRUE(world.attach({0, 1, 2, 3}, {0, 0, 0, 0}, id(slot), &bits).ok());
    for (int i = 0; i < 4; ++i) EXPECT_EQ(bits[i], i == slot ? 0u : kCodebookMismatch) << slot;
  }
  EXPECT_EQ(world.error(), "");
}

TEST_P(Life, SharedCodebooksKeepTheirIdOverReset) {
  World world(scenario(0, 16));
  world.set_codebook(-1);
  const std::uint64_t id = world.indexer().codebook_id(1);
  world.reset(1);
  EXPECT_EQ(world.indexer().codebook_id(1), id);
  std::vector<std::uint32_t> bits;
  world.next(lengths({200, 0}));
  share(world, 0, 1, 160);
  ASSERT_TRUE(world.attach({}, {200, 160}, id, &bits).ok());
  EXPECT_EQ(bits, (std::vector<std::uint32_t>{0, 0}));
  world.overwrite(1, 160, 288, 3);
  world.next(lengths({201, 161}));
  EXPECT_EQ(world.error(), "");
}

TEST_P(Life, PhysicalIndicesAreTheSlotsOfTheListedPositions) {
  for (const Shape& shape : {Shape{0, 0}, Shape{16, 0}, Shape{0, 5}, Shape{16, 16}, Shape{16, 4}}) {
    for (const LaunchMode mode : launch_modes(GetParam().backend)) {
      Scenario s = scenario(shape.block, shape.page, 4, 3);
      s.mode = mode;
      s.physical = s.weights = s.dense_weights = s.previous = true;
      s.index_padding = 3;
      World world(s);
      world.set_codebook(-1);
      HostBatch b;
      b.batch_size = 4;
      b.query_tokens = 3;
      for (int step = 0; step < 5; ++step) {
        b.slots = {(step + 2) % 4, step % 4, -1, (step + 1) % 4};
        const int n[] = {2 + 20 * step, 250 - step, 90, 150 + 10 * step};
        b.lengths.clear();
        b.query_counts = {3, 1 + step % 3, 3, step % 4};
        for (const int first : n) {
          for (int t = 0; t < 3; ++t) b.lengths.push_back(first + t);
        }
        world.next(b);
        ASSERT_EQ(world.error(), "") << "block " << shape.block << " page " << shape.page;
      }
    }
  }
}

TEST_P(Life, PhysicalIndicesMayStandAlone) {
  Scenario s = scenario(16, 16, 2, 2);
  World world(s);
  world.set_codebook(-1);
  HostBatch b;
  b.batch_size = b.query_tokens = 2;
  b.lengths = {200, 201, 30, 31};
  const StepOutput want = world.next(b);
  ASSERT_EQ(world.error(), "");
  const int max_list = world.oracle().max_list();
  const std::size_t rows = want.lengths.size();
  DeviceBuffer<std::int32_t> batch_lengths(s.backend, b.lengths), lens(s.backend, rows);
  std::vector<std::int32_t> rows_of_table;
  for (int slot = 0; slot < 2; ++slot) {
    rows_of_table.insert(rows_of_table.end(), world.pages(slot).begin(), world.pages(slot).end());
  }
  DeviceBuffer<std::int32_t> table(s.backend, rows_of_table);
  DeviceBuffer<std::int64_t> physical(s.backend, rows * max_list);
  DeviceBuffer<float> weights(s.backend, rows * max_list), dense(s.backend, rows * 288);
  const std::size_t bytes = world.indexer().workspace_bytes(2, 2);
  DeviceBytes scratch(s.backend, bytes);
  physical.fill(0x5b), weights.fill(0x5b), dense.fill(0x5b);
  NextArgs args;
  args.batch.batch_size = args.batch.query_tokens = 2;
  args.batch.lengths = batch_lengths.data();
  args.keys = world.key_view();
  args.keys.block_table = table.data();
  args.queries = world.query_view();
  args.workspace = {scratch.data(), bytes};
  args.index_stride = max_list;
  args.list_lengths = lens.data();
  args.physical_indices64 = physical.data();
  args.weights = weights.data();
  args.dense_weights = dense.data();
  args.dense_stride = 288;
  ASSERT_TRUE(world.indexer().next(args, world.launcher().stream()).ok());
  world.launcher().synchronize();
  EXPECT_TRUE(lens.download() == want.lengths);
  const std::vector<std::int64_t> got = physical.download();
  const std::vector<float> got_weights = weights.download(), got_dense = dense.download();
  for (std::size_t r = 0; r < rows; ++r) {
    std::vector<float> want_dense(288, 0.0f);
    for (int i = 0; i < max_list; ++i) {
      const std::size_t at = r * max_list + i;
      const int p = want.indices[at];
      const int slot = static_cast<int>(r / (rows / 2));
      ASSERT_EQ(got[at], p < 0 ? -1 : world.oracle().cache_slot(world.pages(slot), p));
      ASSERT_EQ(got_weights[at], p < 0 ? 0.0f : 1.0f);
      if (p >= 0) want_dense[p] = 1.0f;
    }
    ASSERT_TRUE(std::equal(want_dense.begin(), want_dense.end(), got_dense.begin() + r * 288));
  }
}

// One graph, captured with a short batch, serves sequences that join by prefill, attach and
// fork, are inactive, roll back and leave.
TEST_P(Life, OneGraphServesSequencesThatComeAndGo) {
  for (const LaunchMode mode : launch_modes(GetParam().backend)) {
    for (const int block : {0, 16}) {
      Scenario s = scenario(block, 16, 4, 2);
      s.mode = mode;
      s.physical = true;
      s.config.refine_factor = 2;
      World world(s);
      world.set_codebook(-1);
      const std::uint64_t id = world.indexer().codebook_id(0);
      HostBatch b;
      b.batch_size = 4;
      b.query_tokens = 2;
      const auto step = [&](std::vector<std::int32_t> slots, std::vector<std::int32_t> n,
                            std::vector<std::int32_t> counts) {
        b.slots = std::move(slots);
        b.query_counts = std::move(counts);
        b.lengths.clear();
        for (const int first : n) b.lengths.insert(b.lengths.end(), {first, first + 1});
        world.next(b);
        ASSERT_EQ(world.error(), "") << to_string(mode) << " block " << block;
      };
      step({0, -1, -1, -1}, {1, 0, 0, 0}, {1, 0, 2, 2});
      step({-1, 0, 2, -1}, {9, 150, 0, 3}, {2, 2, 2, 2});
      share(world, 0, 1, 130);
      const int whole = world.indexer().shareable_positions(130);
      ASSERT_TRUE(world.attach({1}, {whole}, id).ok());
      world.overwrite(1, whole, 288, 5);
      step({1, 0, 2, 3}, {whole + 1, 152, 40, 64}, {2, 1, 2, 0});
      share(world, 0, 3, 152);
      ASSERT_TRUE(world.fork(0, 3).ok());
      world.overwrite(3, 152, 288, 6);
      world.overwrite(0, 153, 288, 7);
      step({3, 2, 1, 0}, {153, 41, whole + 3, 154}, {2, 2, 2, 2});
      world.overwrite(3, 154, 288, 8);  // a rejected draft
      world.reset(2);
      step({3, -1, 1, 0}, {154, 7, whole + 40, 156}, {2, 2, 1, 2});
      world.overwrite(2, 0, 288, 9);
      step({2, 3, 1, 0}, {286, 170, whole + 41, 157}, {2, 2, 2, 2});
    }
  }
}

QUARRY_ON_EVERY_ALGORITHM(Life);

}  // namespace
}  // namespace quarry::test
