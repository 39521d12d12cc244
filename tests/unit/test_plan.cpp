// SPDX-License-Identifier: Apache-2.0
//
// Layout of codes and means, and the memory plan.
#include "plan.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "reduction.h"
#include "support/random.h"

namespace quarry::test {
namespace {

IndexerConfig random_config(Random& random) {
  IndexerConfig c;
  c.num_kv_heads = random.integer(1, 4);
  c.num_query_heads = c.num_kv_heads * random.integer(1, 4);
  c.num_subspaces = 1 << random.integer(0, 4);
  c.head_dim = c.num_subspaces * 8 * random.integer(1, 32 / c.num_subspaces);
  c.bits = random.integer(1, 8);
  c.max_sequences = random.integer(1, 3);
  c.max_query_tokens = random.integer(1, 3);
  c.max_seq_len = random.integer(1, 500);
  c.metric = random.integer(0, 1) == 0 ? Metric::euclidean : Metric::inner_product;
  c.block_size = random.integer(0, 1) * (1 << random.integer(0, 6));
  c.mean_dtype = static_cast<DType>(random.integer(0, 3));
  c.sink_size = random.integer(0, 40);
  c.heavy_size = random.integer(1, 100);
  c.window_size = c.block_size + c.max_query_tokens - 1 + random.integer(0, 40);
  c.refine_factor = random.integer(1, 4);
  c.gqa_reduction = static_cast<GqaReduction>(random.integer(0, 3));
  c.rotation = random.integer(0, 1) == 0;
  c.shared_codebook = random.integer(0, 1) == 0;
  if (random.integer(0, 1) == 0) {
    c.page_size = random.integer(1, 96);
    if (c.block_size > 0) c.page_size = c.block_size * random.integer(1, 3);
    if (c.block_size > 1 && random.integer(0, 1) == 0) c.page_size = c.block_size / 2;
    c.num_pages = random.integer(1, 20);
  }
  return c;
}

Plan plan_of(const IndexerConfig& config) {
  IndexerConfig r;
  const Status s = resolve(config, Backend::cpu, &r);
  EXPECT_TRUE(s.ok()) << s.detail();
  Plan plan{};
  const Status t = make_plan(r, *stages_of(Backend::cpu), &plan);
  EXPECT_TRUE(t.ok()) << t.detail();
  return plan;
}

TEST(Layout, EveryCodeByteHasAPlaceOfItsOwn) {
  Random random(1);
  for (int trial = 0; trial < 60; ++trial) {
    const IndexView v = plan_of(random_config(random)).view;
    ASSERT_EQ(v.tile & (v.tile - 1), 0);
    ASSERT_EQ(v.page_slots % v.tile, 0);
    ASSERT_GE(v.page_slots, v.page_size);
    ASSERT_GE(v.code_bytes * 8, v.num_subspaces * (v.bits <= 4 ? 4 : 8));
    std::vector<char> used(
        static_cast<std::size_t>(v.num_pages * v.num_kv_heads) * v.page_slots * v.code_bytes, 0);
    for (int page = 0; page < v.num_pages; ++page) {
      for (int head = 0; head < v.num_kv_heads; ++head) {
        for (int slot = 0; slot < v.page_size; ++slot) {
          for (int byte = 0; byte < v.code_bytes; ++byte) {
            const std::int64_t at = code_offset(v, page, head, slot) + std::int64_t{byte} * v.tile;
            ASSERT_GE(at, 0);
            ASSERT_LT(at, static_cast<std::int64_t>(used.size()));
            ASSERT_EQ(used[at]++, 0);
          }
        }
      }
    }
  }
}

TEST(Layout, EveryBlockOfAPageHasAMeanOfItsOwn) {
  Random random(2);
  for (int trial = 0; trial < 200; ++trial) {
    const IndexView v = plan_of(random_config(random)).view;
    if (v.block_size == 0) continue;
    std::vector<char> used(
        static_cast<std::size_t>(v.num_pages) * v.num_kv_heads * v.blocks_per_page, 0);
    for (int page = 0; page < v.num_pages; ++page) {
      for (int head = 0; head < v.num_kv_heads; ++head) {
        // A contiguous page is its sequence; else pages hold whole blocks or a part of one.
        for (int last = v.block_size - 1; last < v.page_size; last += v.block_size) {
          const std::int64_t at = mean_offset(v, page, head, last);
          ASSERT_EQ(at % v.head_dim, 0);
          ASSERT_LT(at / v.head_dim, static_cast<std::int64_t>(used.size()));
          ASSERT_EQ(used[at / v.head_dim]++, 0);
        }
      }
    }
  }
}

struct Extent {
  const void* begin;
  std::size_t bytes;
};

/// All within [base, base + bytes), aligned, none overlapping.
void expect_disjoint(const std::vector<Extent>& extents, const std::byte* base, std::size_t bytes) {
  std::vector<char> used(bytes, 0);
  for (const Extent& e : extents) {
    if (e.bytes == 0) continue;
    ASSERT_NE(e.begin, nullptr);
    const std::ptrdiff_t at = static_cast<const std::byte*>(e.begin) - base;
    ASSERT_GE(at, 0);
    ASSERT_LE(static_cast<std::size_t>(at) + e.bytes, bytes);
    ASSERT_EQ(at % 256, 0);
    for (std::size_t i = 0; i < e.bytes; ++i) ASSERT_EQ(used[at + i]++, 0);
  }
}

TEST(Plan, CarvesWhatItCounts) {
  Random random(3);
  for (int trial = 0; trial < 60; ++trial) {
    IndexerConfig config = random_config(random);
    config.algorithm = trial % 2 != 0 ? Algorithm::scan : Algorithm::staged;
    Plan plan = plan_of(config);
    const Stages& stages = *stages_of(Backend::cpu);
    const IndexView& v = plan.view;

    std::vector<std::byte> memory(plan.memory.index_bytes);
    Arena index(memory.data());
    carve_index(index, &plan);
    ASSERT_EQ(index.bytes(), memory.size());
    const std::size_t books = static_cast<std::size_t>(v.codebook_slots) * v.num_kv_heads;
    const std::size_t square = books * v.head_dim * v.head_dim * 4;
    expect_disjoint(
        {{v.codes,
          static_cast<std::size_t>(v.num_pages) * v.num_kv_heads * v.page_slots * v.code_bytes},
         {v.means, static_cast<std::size_t>(v.num_pages) * v.num_kv_heads * v.blocks_per_page *
                       v.head_dim * static_cast<std::size_t>(dtype_size(v.mean_dtype))},
         {v.codebooks, books * v.num_subspaces * v.dcent * v.ksub * 4},
         {v.phi, v.metric == Metric::inner_product ? books * v.num_subspaces * 4 : 0},
         {v.rotation, config.rotation ? square : 0},
         {v.query_rotation, config.rotation ? square : 0},
         {v.seen, static_cast<std::size_t>(v.max_sequences) * 4},
         {v.has_codebook, static_cast<std::size_t>(v.max_sequences) * 4},
         {v.codebook_ids, static_cast<std::size_t>(v.max_sequences) * 8},
         {v.baseline, books * 4}},
        memory.data(), memory.size());

    for (int batch = 1; batch <= config.max_sequences; ++batch) {
      for (int tokens = 1; tokens <= config.max_query_tokens; ++tokens) {
        Arena count;
        carve_next(count, plan, stages, batch, tokens);
        ASSERT_LE(count.bytes(), plan.memory.next_workspace_bytes);
        if (batch == config.max_sequences && tokens == config.max_query_tokens) {
          ASSERT_EQ(count.bytes(), plan.memory.next_workspace_bytes);
        }
        std::vector<std::byte> scratch(count.bytes());
        Arena next(scratch.data());
        const NextBuffers b = carve_next(next, plan, stages, batch, tokens);
        if (config.algorithm == Algorithm::scan) {
          expect_disjoint({{b.states, batch * sizeof(SequenceState)},
                           {b.scan_scratch, stages.scan_scratch_bytes(v, batch, tokens)}},
                          scratch.data(), scratch.size());
          continue;
        }
        const std::size_t query_rows =
            static_cast<std::size_t>(batch) * tokens * config.num_query_heads;
        const bool reduces = config.gqa_reduction != GqaReduction::per_head;
        const std::size_t rows = reduces ? query_rows / v.group_size : query_rows;
        ASSERT_EQ(rows, static_cast<std::size_t>(batch) * tokens * plan.list_heads);
        const std::size_t shortlist = rows * config.heavy_size * config.refine_factor * 4;
        std::vector<Extent> extents = {
            {b.states, batch * sizeof(SequenceState)},
            {b.rows, rows * sizeof(RowState)},
            {b.luts, query_rows * v.num_subspaces * v.ksub * 4},
            {b.biases, v.block_size > 0
                           ? query_rows * static_cast<std::size_t>(v.max_seq_len / v.block_size) * 4
                           : 0},
            {b.scores, query_rows * static_cast<std::size_t>(plan.score_stride) * 4},
            {b.shortlist, shortlist},
            {b.shortlist_counts, rows * 4}};
        ASSERT_GE(plan.score_stride, v.max_seq_len);
        if (config.refine_factor > 1) {
          extents.push_back({b.refined_scores, shortlist / rows * query_rows});
          extents.push_back({b.heavy, rows * config.heavy_size * 4});
          extents.push_back({b.heavy_counts, rows * 4});
        }
        if (config.gqa_reduction == GqaReduction::softmax_sum) {
          const auto parts = static_cast<std::size_t>(reduce_parts(v.max_seq_len));
          extents.push_back({b.softmax, query_rows * sizeof(HeadSoftmax)});
          extents.push_back({b.part_largest, query_rows * parts * 4});
          extents.push_back({b.part_weights, query_rows * parts * 8});
        }
        expect_disjoint(extents, scratch.data(), scratch.size());

        for (const int every : {0, 1, 3, 1 << 30}) {
          Arena stats_count;
          carve_stats(stats_count, plan, stages, batch, tokens, every);
          std::vector<std::byte> stats_scratch(stats_count.bytes());
          Arena stats_arena(stats_scratch.data());
          const StatsBuffers sb = carve_stats(stats_arena, plan, stages, batch, tokens, every);
          const std::size_t samples = every == 0 ? 0 : (query_rows + every - 1) / every;
          ASSERT_EQ(static_cast<std::size_t>(sb.num_samples), samples);
          const std::size_t select = stages.select_scratch_bytes(static_cast<std::int32_t>(samples),
                                                                 v.heavy_size, v.max_seq_len);
          expect_disjoint({{sb.states, batch * sizeof(SequenceState)},
                           {sb.sampled, samples * 4},
                           {sb.rows, samples * sizeof(RowState)},
                           {sb.scores, samples * static_cast<std::size_t>(plan.score_stride) * 4},
                           {sb.selected, samples * v.heavy_size * 4},
                           {sb.selected_counts, samples * 4},
                           {sb.select_scratch, every == 0 ? 0 : select}},
                          stats_scratch.data(), stats_scratch.size());
        }
      }
    }
  }
}

TEST(Plan, StatesWhatAKeyCosts) {
  IndexerConfig c;
  c.max_seq_len = 32768;
  MemoryRequirements need;
  ASSERT_TRUE(memory_requirements(c, Backend::cpu, &need).ok());
  EXPECT_EQ(need.alignment, 256u);
  EXPECT_LE(need.code_bytes_per_key, 2.0);
  EXPECT_EQ(need.mean_bytes_per_key, 0.0);
  // 32 heads x 2 x 64 centroids of 64 floats.
  EXPECT_GE(need.codebook_bytes, 32u * 2 * 64 * 64 * 4);
  EXPECT_GE(need.index_bytes, need.codebook_bytes + 32768u * 32);
  c.block_size = 64;
  c.mean_dtype = DType::float16;
  ASSERT_TRUE(memory_requirements(c, Backend::cpu, &need).ok());
  EXPECT_EQ(need.mean_bytes_per_key, 128 * 2 / 64.0);
}

TEST(Plan, RefusesSizesThatDoNotFit) {
  IndexerConfig c;
  c.num_query_heads = c.num_kv_heads = 65536;
  c.head_dim = 512;
  c.max_seq_len = 1 << 28;
  c.page_size = 1 << 28;
  c.num_pages = 0x7fffffff;
  c.bits = 8;
  c.num_subspaces = 64;
  MemoryRequirements need;
  EXPECT_EQ(memory_requirements(c, Backend::cpu, &need).code(), StatusCode::invalid_argument);
}

TEST(Arena, CountsAsItHandsOut) {
  alignas(256) std::byte memory[2048];
  Arena arena(memory);
  EXPECT_EQ(static_cast<void*>(arena.take<float>(3)), memory);
  EXPECT_EQ(static_cast<void*>(arena.take<float>(65)), memory + 256);
  EXPECT_EQ(static_cast<void*>(arena.take<char>(1, 2, 3, 4)), memory + 768);
  EXPECT_EQ(arena.bytes(), 1024u);
  EXPECT_FALSE(arena.overflowed());
  Arena count;
  EXPECT_EQ(count.take<float>(1), nullptr);
  count.take<double>(std::int64_t{1} << 40, std::int64_t{1} << 30);
  EXPECT_TRUE(count.overflowed());
}

}  // namespace
}  // namespace quarry::test
