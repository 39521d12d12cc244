// SPDX-License-Identifier: Apache-2.0
//
// Random configurations, lengths and histories. Every step is compared with the oracle and
// checked by score order as in the case table; some properties need no oracle at all.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>

#include "support/backends.h"
#include "support/scenario.h"

namespace quarry::test {
namespace {

int in(int low, int high) { return *rc::gen::inRange(low, high + 1); }
bool coin() { return *rc::gen::arbitrary<bool>(); }
template <class T>
T one_of(std::initializer_list<T> values) {
  return *rc::gen::elementOf(std::vector<T>(values));
}

Scenario random_scenario(const Target& target) {
  Scenario s;
  s.on(target);
  IndexerConfig& c = s.config;
  c.num_kv_heads = in(1, 3);
  c.num_query_heads = c.num_kv_heads * in(1, 5);
  c.num_subspaces = one_of({1, 2, 3, 4, 5, 8, 16});
  c.bits = in(1, 7);
  c.head_dim =
      c.num_subspaces % 8 == 0 ? c.num_subspaces * in(1, 4) : c.num_subspaces * 8 * in(1, 2);
  c.max_sequences = in(1, 3);
  c.max_query_tokens = in(1, 4);
  c.max_seq_len = in(1, 260);
  c.metric = coin() ? Metric::euclidean : Metric::inner_product;
  c.block_size = one_of({0, 0, 1, 3, 8, 16, 32});
  c.mean_dtype = one_of({DType::float32, DType::float16, DType::bfloat16, DType::float8_e4m3});
  c.rotation = in(0, 3) == 0;
  c.shared_codebook = coin();
  c.sink_size = in(0, 30);
  c.encode_from = in(-1, c.sink_size);
  c.heavy_size = one_of({1, 2, 7, 31, 32, 33, 100, 1000});
  c.window_size = c.block_size + c.max_query_tokens - 1 + in(0, 20);
  c.dense_threshold = in(-1, 60);
  c.refine_factor = one_of({1, 1, 2, 5});
  c.gqa_reduction = one_of({GqaReduction::per_head, GqaReduction::per_head, GqaReduction::sum,
                            GqaReduction::softmax_sum, GqaReduction::max});
  if (!s.served_by(target)) c.gqa_reduction = GqaReduction::per_head;
  s.key_dtype = one_of({DType::float32, DType::float16, DType::bfloat16, DType::float8_e4m3});
  if (s.key_dtype == DType::float8_e4m3 && coin()) {
    s.key_scales.resize(static_cast<std::size_t>(coin() ? 1 : c.num_kv_heads));
    for (float& scale : s.key_scales) scale = one_of({0.01f, 0.0173f, 0.25f, 3.1f, -0.07f});
  }
  s.query_dtype = one_of({DType::float32, DType::float16, DType::bfloat16});
  s.keys = one_of({Values::gaussian, Values::gaussian, Values::integers, Values::two_valued,
                   Values::nan, Values::huge_cluster});
  s.queries = one_of({Values::gaussian, Values::integers});
  s.centroids = one_of({Values::gaussian, Values::integers});
  s.padded = coin();
  s.misaligned = coin();
  s.weights = coin();
  s.dense_weights = coin();
  s.previous = coin();
  s.caller_memory = coin();
  s.index_padding = in(0, 3);
  s.threads = in(1, 4);
  s.seed = static_cast<std::uint64_t>(in(0, 1000000));
  if (coin()) {
    const int page = c.block_size > 0 ? (coin() ? c.block_size * in(1, 3) : 1) : in(1, 40);
    use_pages(&c, page);
  }
  return s;
}

HostBatch random_batch(const IndexerConfig& c) {
  HostBatch b;
  b.query_tokens = in(1, c.max_query_tokens);
  std::vector<std::int32_t> slots(c.max_sequences);
  for (int i = 0; i < c.max_sequences; ++i) slots[i] = i;
  for (int i = c.max_sequences - 1; i > 0; --i) std::swap(slots[i], slots[in(0, i)]);
  b.batch_size = in(1, c.max_sequences);
  slots.resize(b.batch_size);
  for (std::int32_t& slot : slots) {
    if (in(0, 7) == 0) slot = -1;
    int n = in(0, c.max_seq_len);
    const int first = n;
    for (int t = 0; t < b.query_tokens; ++t) {
      b.lengths.push_back(n);
      n = std::min({n + in(0, 2), first + b.query_tokens - 1, c.max_seq_len});
    }
  }
  b.slots = slots;
  if (coin()) {
    for (int i = 0; i < b.batch_size; ++i) b.query_counts.push_back(in(0, b.query_tokens));
  }
  return b;
}

class Properties : public AlgorithmTest {};

TEST_P(Properties, AnyHistoryAgreesWithTheOracle) {
  EXPECT_TRUE(rc::check("any history agrees with the oracle", [] {
    World world(random_scenario(GetParam()));
    RC_ASSERT(world.error() == "");
    const IndexerConfig& c = world.config();
    if (coin()) world.set_codebook(-1);
    const int steps = in(1, 7);
    for (int i = 0; i < steps; ++i) {
      const int slot = in(0, c.max_sequences - 1);
      switch (in(0, 7)) {
        case 0:
          world.set_codebook(c.shared_codebook ? -1 : slot, static_cast<std::uint64_t>(in(0, 9)));
          break;
        case 1: {
          const int from = in(0, c.max_seq_len);
          world.overwrite(slot, from, c.max_seq_len, static_cast<std::uint64_t>(in(0, 9)));
          world.truncate({slot}, {from});
          break;
        }
        case 2: {
          HostBatch b = random_batch(c);
          HostBatch one = b;
          one.query_tokens = 1;
          one.query_counts.clear();
          one.lengths.clear();
          for (int k = 0; k < b.batch_size; ++k) one.lengths.push_back(b.length(k, 0));
          world.append(one);
          break;
        }
        case 3:
          world.reset(slot);
          break;
        default:
          world.next(random_batch(c));
      }
      RC_ASSERT(world.error() == "");
    }
    world.set_codebook(-1, 8);
    world.next(random_batch(c));
    RC_ASSERT(world.error() == "");
  }));
}

TEST_P(Properties, ThreadsAndBatchOrderLeaveTheBytes) {
  EXPECT_TRUE(rc::check("threads and batch order leave the bytes", [] {
    Scenario s = random_scenario(GetParam());
    s.check = false;
    s.dense_weights = s.weights = false;
    s.config.max_sequences = 3;
    if (s.config.page_size > 0) use_pages(&s.config, s.config.page_size);
    World a(s);
    s.threads = a.setup().threads % 4 + 1;
    World b(s);
    a.set_codebook(-1);
    b.set_codebook(-1);
    HostBatch batch;
    batch.batch_size = 3;
    batch.slots = {0, 1, 2};
    for (int i = 0; i < 3; ++i) batch.lengths.push_back(in(0, s.config.max_seq_len));
    HostBatch turned = batch;
    turned.slots = {2, 0, 1};
    turned.lengths = {batch.lengths[2], batch.lengths[0], batch.lengths[1]};
    const StepOutput x = a.next(batch), y = b.next(turned);
    RC_ASSERT(a.error() == "");
    RC_ASSERT(b.error() == "");
    const std::size_t heads = a.oracle().list_heads(), width = heads * a.oracle().max_list();
    const int from[] = {1, 2, 0};
    for (int i = 0; i < 3; ++i) {
      RC_ASSERT(std::equal(x.indices.begin() + i * width, x.indices.begin() + (i + 1) * width,
                           y.indices.begin() + from[i] * width));
      RC_ASSERT(std::equal(x.lengths.begin() + i * heads, x.lengths.begin() + (i + 1) * heads,
                           y.lengths.begin() + from[i] * heads));
      RC_ASSERT(a.codes(i, batch.lengths[i]) == b.codes(i, batch.lengths[i]));
    }
  }));
}

TEST_P(Properties, PagesDoNotMatter) {
  EXPECT_TRUE(rc::check("a paged cache gives the contiguous one's lists", [] {
    Scenario s = random_scenario(GetParam());
    s.check = false;
    s.config.page_size = 0;
    s.config.num_pages = 0;
    World contiguous(s);
    use_pages(&s.config, s.config.block_size > 0 ? s.config.block_size * in(1, 3) : in(1, 40));
    World paged(s);
    for (World* w : {&contiguous, &paged}) w->set_codebook(-1);
    for (int i = 0; i < 3; ++i) {
      const HostBatch batch = random_batch(s.config);
      const StepOutput x = contiguous.next(batch), y = paged.next(batch);
      RC_ASSERT(contiguous.error() == "");
      RC_ASSERT(paged.error() == "");
      RC_ASSERT(x == y);
    }
  }));
}

TEST_P(Properties, PagesOfLongSequencesDoNotMatter) {
  // Several of the stretches that KV heads are taken through together, whole and ragged.
  for (const int block : {0, 16}) {
    Scenario s;
    s.check = false;
    s.config.num_query_heads = 8;
    s.config.num_kv_heads = 4;
    s.config.head_dim = 8;
    s.config.max_seq_len = 9000;
    s.config.heavy_size = 100;
    s.config.max_sequences = 2;
    s.config.block_size = block;
    s.on(GetParam());
    HostBatch batch;
    batch.batch_size = 2;
    batch.lengths = {8990, 4357};
    World contiguous(s);
    contiguous.set_codebook(-1);
    const StepOutput expected = contiguous.next(batch);
    ASSERT_EQ(contiguous.error(), "");
    for (const int page : {16, 32, 48, 64, 4096, 4112}) {
      for (const int threads : {1, 3}) {
        use_pages(&s.config, page);
        s.threads = threads;
        World paged(s);
        paged.set_codebook(-1);
        EXPECT_TRUE(paged.next(batch) == expected) << "page " << page << " block " << block;
        ASSERT_EQ(paged.error(), "");
      }
    }
  }
}

QUARRY_ON_EVERY_ALGORITHM(Properties);

}  // namespace
}  // namespace quarry::test
