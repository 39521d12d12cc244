// SPDX-License-Identifier: Apache-2.0
//
// The case table: every row runs a decode through an Indexer on every backend, with every
// algorithm and in every launch mode of it, against the oracle and the check by score order
// (support/scenario.h).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "support/scenario.h"

namespace quarry::test {
namespace {

struct Case {
  std::string name;
  Scenario setup;
};

/// A prefill, single steps around the dense limit and block borders, a jump, a step back, the
/// end of the cache. With several sequences each at a length of its own, in changing order,
/// some inactive; with several query tokens also ragged and short counts.
std::vector<HostBatch> decode_steps(const IndexerConfig& c) {
  const Oracle shape(c);
  const int limit = shape.dense_limit(), last = c.max_seq_len, tokens = c.max_query_tokens;
  const int block = std::max(c.block_size, 1);
  const int middle = (limit + last) / 2 / block * block;
  std::vector<int> lengths{0,          1,          limit,      limit + 1,          limit + 2,
                           middle,     middle + 1, middle + 2, middle + block + 1, middle,
                           middle + 3, last};
  std::vector<HostBatch> steps;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    HostBatch b;
    b.batch_size = c.max_sequences;
    b.query_tokens = i % 4 == 3 ? 1 : tokens;
    for (int k = 0; k < b.batch_size; ++k) {
      b.slots.push_back((k + static_cast<int>(i)) % c.max_sequences);
      const int n = std::clamp(lengths[i] - 37 * b.slots[k], 0, last);
      for (int t = 0; t < b.query_tokens; ++t) {
        // Ragged: the second half of the tokens sees no more than the first; the last rows of
        // a full cache do not grow beyond it.
        const int grown = i % 3 == 2 ? t / 2 : t;
        b.lengths.push_back(std::min(n + grown, last));
      }
      if (i % 5 == 4) b.query_counts.push_back((k + 1) % (b.query_tokens + 1));
    }
    if (c.max_sequences > 1 && i % 4 == 2) b.slots[i % b.slots.size()] = -1;
    if (c.max_sequences == 1 && i % 2 == 0) b.slots.clear();
    steps.push_back(b);
  }
  return steps;
}

std::vector<Case> case_table() {
  std::vector<Case> cases;
  auto add = [&](std::string name, auto&& change) {
    Case c{std::move(name), {}};
    c.setup.config = small_config();
    c.setup.seed = cases.size() + 1;
    change(c.setup);
    cases.push_back(std::move(c));
  };
  using S = Scenario&;

  // Shapes of the codes.
  struct Shape {
    int dim, m, b;
  };
  const Shape shapes[] = {{8, 1, 1},    {8, 8, 8},  {16, 2, 6},  {24, 3, 4},   {32, 1, 8},
                          {32, 16, 2},  {40, 5, 5}, {64, 64, 4}, {72, 9, 3},   {128, 2, 6},
                          {128, 16, 4}, {64, 8, 7}, {256, 4, 4}, {512, 64, 4}, {512, 2, 6}};
  for (const Shape& s : shapes) {
    for (const Metric metric : {Metric::euclidean, Metric::inner_product}) {
      add("d" + std::to_string(s.dim) + "_m" + std::to_string(s.m) + "_b" + std::to_string(s.b) +
              (metric == Metric::inner_product ? "_ip" : ""),
          [&](S u) {
            u.config.head_dim = s.dim;
            u.config.num_subspaces = s.m;
            u.config.bits = s.b;
            u.config.metric = metric;
            if (s.dim >= 256 || s.b == 8) u.config.max_seq_len = 300;
          });
    }
  }

  // Groups of query heads.
  for (const int group : {1, 3, 4, 8, 12}) {
    for (const int block : {0, 16}) {
      add("group" + std::to_string(group) + "_block" + std::to_string(block), [&](S u) {
        u.config.num_kv_heads = 2;
        u.config.num_query_heads = 2 * group;
        u.config.block_size = block;
        u.config.window_size = 20;
        u.config.max_seq_len = 400;
      });
    }
  }

  // Blocks, their means, rotations and refine together.
  for (const int block : {1, 2, 16, 64, 96}) {
    for (const bool rotation : {false, true}) {
      for (const int refine : {1, 3}) {
        add("block" + std::to_string(block) + (rotation ? "_rotation" : "") +
                (refine > 1 ? "_refine" : ""),
            [&](S u) {
              u.config.block_size = block;
              u.config.window_size = block + 3;
              u.config.rotation = rotation;
              u.config.refine_factor = refine;
              u.config.num_subspaces = 4;
              u.config.mean_dtype = static_cast<DType>(block % 3);
            });
      }
    }
  }
  for (const Metric metric : {Metric::euclidean, Metric::inner_product}) {
    add(std::string("rotation_without_blocks_") + quarry::to_string(metric), [&](S u) {
      u.config.rotation = true;
      u.config.metric = metric;
    });
    add(std::string("everything_") + quarry::to_string(metric), [&](S u) {
      u.config.rotation = true;
      u.config.metric = metric;
      u.config.block_size = 16;
      u.config.mean_dtype = DType::float16;
      u.config.refine_factor = 4;
      u.config.num_query_heads = 8;
      u.config.max_sequences = 3;
      u.config.max_query_tokens = 3;
      u.config.window_size = 18;
      u.key_dtype = DType::bfloat16;
      u.query_dtype = DType::float16;
      u.weights = u.dense_weights = u.padded = u.caller_memory = true;
      use_pages(&u.config, 8);
    });
  }
  for (const int block : {8, 64}) {
    add("block" + std::to_string(block) + "_float8_means", [&](S u) {
      u.config.block_size = block;
      u.config.window_size = block + 3;
      u.config.mean_dtype = DType::float8_e4m3;
      u.config.rotation = block == 64;
      u.config.refine_factor = block == 8 ? 3 : 1;
      u.key_dtype = DType::float16;
      use_pages(&u.config, block);
    });
  }
  add("recommended", [](S u) {
    u.config = IndexerConfig::recommended(64);
    u.config.num_query_heads = 8;
    u.config.num_kv_heads = 2;
    u.config.max_seq_len = 700;
    u.config.dense_threshold = 0;
    u.config.heavy_size = 32;
    u.key_dtype = u.query_dtype = DType::bfloat16;
  });
  add("defaults", [](S u) {
    u.config = IndexerConfig{};
    u.config.num_query_heads = u.config.num_kv_heads = 2;
    u.config.max_seq_len = 700;
  });

  // Where a list begins and ends, and where encoding does.
  struct Parts {
    int sink, heavy, window, encode_from, threshold, block;
  };
  const Parts parts[] = {{0, 1, 0, 0, 0, 0},      {0, 24, 1, 0, 0, 0},     {8, 24, 16, 0, 0, 0},
                         {8, 24, 16, 3, 0, 0},    {40, 8, 4, 17, 100, 0},  {0, 600, 0, -1, 0, 0},
                         {8, 500, 16, -1, 0, 0},  {20, 24, 32, 5, 0, 16},  {20, 24, 32, 20, 0, 16},
                         {33, 24, 32, 32, 0, 16}, {64, 24, 64, 64, 0, 64}, {70, 24, 64, 1, 0, 64},
                         {8, 24, 16, 8, -1, 0},   {8, 24, 16, 8, 350, 0},  {8, 24, 16, 8, 5000, 0},
                         {0, 24, 0, 0, 0, 0}};
  for (const Parts& p : parts) {
    add("parts_" + std::to_string(p.sink) + "_" + std::to_string(p.heavy) + "_" +
            std::to_string(p.window) + "_from" +
            (p.encode_from < 0 ? "_sink" : std::to_string(p.encode_from)) + "_dense" +
            (p.threshold < 0 ? "_default" : std::to_string(p.threshold)) + "_block" +
            std::to_string(p.block),
        [&](S u) {
          u.config.sink_size = p.sink;
          u.config.heavy_size = p.heavy;
          u.config.window_size = p.window;
          u.config.encode_from = p.encode_from;
          u.config.dense_threshold = p.threshold;
          u.config.block_size = p.block;
          u.weights = true;
        });
  }

  // Element types and layouts.
  for (const DType key : {DType::float32, DType::float16, DType::bfloat16}) {
    for (const DType query : {DType::float32, DType::float16, DType::bfloat16}) {
      add(std::string("keys_") + quarry::to_string(key) + "_queries_" + quarry::to_string(query),
          [&](S u) {
            u.key_dtype = key;
            u.query_dtype = query;
            u.padded = key != query;
            u.misaligned = true;
            u.config.refine_factor = 2;
            u.config.block_size = query == DType::float16 ? 16 : 0;
            u.config.max_seq_len = 300;
          });
    }
  }
  // One-byte keys: without a scale, with one, with one a KV head; rows of whole pieces and not.
  for (const int scales : {0, 1, 2}) {
    for (const int block : {0, 64}) {
      for (const Metric metric : {Metric::euclidean, Metric::inner_product}) {
        add("keys_float8_e4m3_scales" + std::to_string(scales) + "_block" + std::to_string(block) +
                (metric == Metric::inner_product ? "_ip" : ""),
            [&](S u) {
              u.key_dtype = DType::float8_e4m3;
              u.key_scales = std::vector<float>{0.0172f, 0.31f};
              u.key_scales.resize(scales);
              u.query_dtype = static_cast<DType>(scales);
              u.config.metric = metric;
              u.config.block_size = block;
              u.config.window_size = block + 16;
              u.config.rotation = scales == 2;
              u.config.refine_factor = scales == 1 ? 1 : 3;
              u.config.head_dim = scales == 1 ? 24 : 64;
              u.config.num_subspaces = scales == 1 ? 3 : 8;
              u.config.num_query_heads = 6;
              u.config.max_sequences = u.config.max_query_tokens = 2;
              u.config.max_seq_len = 400;
              u.padded = u.misaligned = block == 0 && scales == 1;
              if (scales > 0) use_pages(&u.config, 16);
            });
      }
    }
  }
  for (const int dim : {8, 40, 128, 512}) {
    add("keys_float8_e4m3_d" + std::to_string(dim), [&](S u) {
      u.key_dtype = DType::float8_e4m3;
      u.key_scales = {0.05f, 0.02f};
      u.config.head_dim = dim;
      u.config.num_subspaces = dim / 8;
      u.config.refine_factor = 2;
      u.config.block_size = 16;
      u.config.max_seq_len = 300;
    });
  }
  for (const Values v : {Values::integers, Values::nan, Values::infinite, Values::two_valued,
                         Values::signed_zero, Values::denormal, Values::huge_cluster}) {
    for (const int block : {0, 16}) {
      add(std::string("keys_float8_e4m3_values_") + to_string(v) + "_block" + std::to_string(block),
          [&](S u) {
            u.key_dtype = DType::float8_e4m3;
            u.keys = v;
            if (v == Values::integers) u.queries = u.centroids = v;
            // Their products with an element are subnormal, as the keys are.
            if (v == Values::denormal) u.key_scales = {0x1.8p-141f, 0x1.4p-138f};
            if (v == Values::two_valued) u.key_scales = {0.02f, 0.03f};
            u.config.block_size = block;
            u.config.refine_factor = block == 0 ? 2 : 1;
            u.config.max_seq_len = 300;
          });
    }
  }
  for (const int page : {1, 4, 5, 16, 48, 64, 250}) {
    for (const int block : {0, 16}) {
      if (block > 0 && page % block != 0 && block % page != 0) continue;
      add("pages" + std::to_string(page) + "_block" + std::to_string(block), [&](S u) {
        u.config.max_sequences = 3;
        u.config.block_size = block;
        u.config.max_seq_len = 300;
        use_pages(&u.config, page);
        u.padded = page % 4 == 0;
        u.config.refine_factor = page == 64 ? 2 : 1;
      });
    }
  }

  // Several sequences and several query tokens.
  for (const int tokens : {1, 2, 5}) {
    for (const int block : {0, 16}) {
      for (const bool shared : {false, true}) {
        add("tokens" + std::to_string(tokens) + "_block" + std::to_string(block) +
                (shared ? "_shared" : ""),
            [&](S u) {
              u.config.max_sequences = 4;
              u.config.max_query_tokens = tokens;
              u.config.block_size = block;
              u.config.window_size = 24;
              u.config.max_seq_len = 330;
              u.config.shared_codebook = shared;
              u.weights = u.dense_weights = true;
              u.previous = !shared;
              u.index_padding = 5;
            });
      }
    }
  }

  // Adversarial values, in the keys, in the queries, in both.
  for (const Values v :
       {Values::integers, Values::tied, Values::two_valued, Values::nan, Values::infinite,
        Values::signed_zero, Values::denormal, Values::huge_cluster}) {
    for (const int block : {0, 16}) {
      for (const int refine : {1, 2}) {
        add(std::string("values_") + to_string(v) + "_block" + std::to_string(block) +
                (refine > 1 ? "_refine" : ""),
            [&](S u) {
              u.keys = v;
              if (v != Values::tied && v != Values::two_valued && v != Values::huge_cluster) {
                u.queries = v;
              }
              if (v == Values::integers || v == Values::signed_zero || v == Values::denormal) {
                u.centroids = v;
              }
              u.config.block_size = block;
              u.config.refine_factor = refine;
              u.config.metric = refine > 1 ? Metric::inner_product : Metric::euclidean;
              u.config.max_seq_len = 400;
            });
      }
    }
  }
  for (const Values v : {Values::nan, Values::infinite}) {
    add(std::string("finite_keys_") + to_string(v) + "_queries", [&](S u) {
      u.queries = v;
      u.config.block_size = 16;
    });
  }
  add("integers_inner_product_groups", [](S u) {
    u.keys = u.queries = u.centroids = Values::integers;
    u.config.metric = Metric::inner_product;
    u.config.num_query_heads = 6;
    u.config.max_sequences = 2;
    u.key_dtype = DType::float16;
    use_pages(&u.config, 32);
  });

  // One list a KV head: groups with blocks and refine, then what else a row's place depends on.
  for (const GqaReduction reduction :
       {GqaReduction::sum, GqaReduction::softmax_sum, GqaReduction::max}) {
    const std::string name = quarry::to_string(reduction);
    for (const int group : {1, 3, 4, 8, 12}) {
      for (const int block : {0, 16}) {
        for (const int refine : {1, 3}) {
          add(name + "_group" + std::to_string(group) + "_block" + std::to_string(block) +
                  (refine > 1 ? "_refine" : ""),
              [&](S u) {
                u.config.gqa_reduction = reduction;
                u.config.num_kv_heads = 2;
                u.config.num_query_heads = 2 * group;
                u.config.block_size = block;
                u.config.refine_factor = refine;
                u.config.window_size = 20;
                u.config.max_seq_len = 300;
                u.weights = block == 0;
              });
        }
      }
    }
    add(name + "_pages_tokens_rotation", [&](S u) {
      u.config.gqa_reduction = reduction;
      u.config.num_query_heads = 6;
      u.config.max_sequences = 3;
      u.config.max_query_tokens = 3;
      u.config.block_size = 16;
      u.config.window_size = 18;
      u.config.rotation = true;
      u.config.mean_dtype = DType::bfloat16;
      u.config.max_seq_len = 330;
      u.config.refine_factor = 2;
      u.key_dtype = DType::float16;
      u.query_dtype = DType::bfloat16;
      u.weights = u.dense_weights = u.previous = u.padded = u.host_copies = true;
      u.index_padding = 3;
      use_pages(&u.config, 8);
    });
    for (const Values v :
         {Values::integers, Values::tied, Values::two_valued, Values::nan, Values::infinite,
          Values::signed_zero, Values::denormal, Values::huge_cluster}) {
      for (const int refine : {1, 2}) {
        add(name + "_values_" + to_string(v) + (refine > 1 ? "_refine" : ""), [&](S u) {
          u.config.gqa_reduction = reduction;
          u.keys = v;
          if (v != Values::tied && v != Values::two_valued && v != Values::huge_cluster) {
            u.queries = v;
          }
          if (v == Values::integers || v == Values::signed_zero || v == Values::denormal) {
            u.centroids = v;
          }
          u.config.num_query_heads = 6;
          u.config.block_size = refine > 1 && v != Values::integers ? 16 : 0;
          u.config.refine_factor = refine;
          u.config.max_seq_len = 300;
        });
      }
    }
  }
  for (const float scale : {1e-30f, 0.01f, 2.0f, 1e30f}) {
    add("softmax_sum_scale" + std::to_string(static_cast<int>(std::log10(scale) + 40)), [&](S u) {
      u.config.gqa_reduction = GqaReduction::softmax_sum;
      u.config.softmax_scale = scale;
      u.config.refine_factor = 2;
      u.config.max_seq_len = 300;
    });
  }
  return cases;
}

struct Run {
  Case what;
  Target target;
  LaunchMode mode;
};

std::vector<Run> runs(const std::vector<Backend>& backends) {
  std::vector<Run> all;
  for (const Target& target : targets(backends)) {
    for (const LaunchMode mode : launch_modes(target.backend)) {
      for (const Case& c : case_table()) {
        if (c.setup.served_by(target)) all.push_back({c, target, mode});
      }
    }
  }
  return all;
}

std::string name_of(const testing::TestParamInfo<Run>& info) {
  return to_string(info.param.target) + "_" + to_string(info.param.mode) + "_" +
         info.param.what.name;
}

class CaseTable : public testing::TestWithParam<Run> {};

TEST_P(CaseTable, EveryStepAgreesWithTheOracle) {
  Scenario setup = GetParam().what.setup;
  setup.on(GetParam().target);
  setup.mode = GetParam().mode;
  World world(setup);
  world.set_codebook(-1);
  int sparse = 0;
  for (const HostBatch& step : decode_steps(setup.config)) {
    const StepOutput out = world.next(step);
    for (const int length : out.lengths) sparse += length > 0;
    ASSERT_EQ(world.error(), "");
  }
  EXPECT_GT(sparse, 0);
}

INSTANTIATE_TEST_SUITE_P(Cpu, CaseTable, testing::ValuesIn(runs(cpu_backend())), name_of);
INSTANTIATE_TEST_SUITE_P(Cuda, CaseTable, testing::ValuesIn(runs(cuda_backend_if_present())),
                         name_of);

}  // namespace
}  // namespace quarry::test
