// SPDX-License-Identifier: Apache-2.0
//
// Every configuration that cannot work is refused by name, everywhere one can be given.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "support/backends.h"
#include "support/scenario.h"

namespace quarry::test {
namespace {

constexpr std::int32_t kMax = std::numeric_limits<std::int32_t>::max();

struct Bad {
  const char* named;  ///< must be in the detail
  std::function<void(IndexerConfig&)> change;
  StatusCode code = StatusCode::invalid_argument;
};

std::vector<Bad> bad_configs() {
  using C = IndexerConfig&;
  return {
      {"num_query_heads", [](C c) { c.num_query_heads = 0; }},
      {"num_query_heads", [](C c) { c.num_query_heads = -4; }},
      {"num_query_heads", [](C c) { c.num_query_heads = 5; }},
      {"num_query_heads",
       [](C c) {
         c.num_query_heads = kMax;
         c.num_kv_heads = 1;
       }},
      {"num_query_heads",
       [](C c) {
         c.num_query_heads = 2;
         c.num_kv_heads = 4;
       }},
      {"num_kv_heads", [](C c) { c.num_kv_heads = 0; }},
      {"num_kv_heads", [](C c) { c.num_kv_heads = -1; }},
      {"head_dim", [](C c) { c.head_dim = 0; }},
      {"head_dim", [](C c) { c.head_dim = -8; }},
      {"head_dim", [](C c) { c.head_dim = 20; }},
      {"head_dim", [](C c) { c.head_dim = 520; }},
      {"max_sequences", [](C c) { c.max_sequences = 0; }},
      {"max_sequences", [](C c) { c.max_sequences = -1; }},
      {"max_query_tokens", [](C c) { c.max_query_tokens = 0; }},
      {"max_query_tokens", [](C c) { c.max_query_tokens = -3; }},
      {"max_seq_len", [](C c) { c.max_seq_len = 0; }},
      {"max_seq_len", [](C c) { c.max_seq_len = -1; }},
      {"max_seq_len", [](C c) { c.max_seq_len = kMax; }},
      {"page_size",
       [](C c) {
         c.page_size = -1;
         c.num_pages = 4;
       }},
      {"page_size",
       [](C c) {
         c.page_size = 24;
         c.num_pages = 100;
         c.block_size = 16;
       }},
      {"page_size",
       [](C c) {
         c.page_size = 12;
         c.num_pages = 100;
         c.block_size = 16;
       }},
      {"num_pages",
       [](C c) {
         c.page_size = 16;
         c.num_pages = 0;
       }},
      {"num_pages",
       [](C c) {
         c.page_size = 16;
         c.num_pages = -5;
       }},
      {"num_pages",
       [](C c) {
         c.page_size = 0;
         c.num_pages = 5;
       }},
      {"num_pages",
       [](C c) {
         c.page_size = 16;
         c.num_pages = std::numeric_limits<std::int64_t>::max();
       }},
      {"num_subspaces", [](C c) { c.num_subspaces = 0; }},
      {"num_subspaces", [](C c) { c.num_subspaces = -2; }},
      {"num_subspaces", [](C c) { c.num_subspaces = 5; }},
      {"num_subspaces",
       [](C c) {
         c.head_dim = 128;
         c.num_subspaces = 128;
       }},
      {"bits", [](C c) { c.bits = 0; }},
      {"bits", [](C c) { c.bits = 9; }},
      {"bits", [](C c) { c.bits = -1; }},
      {"metric", [](C c) { c.metric = static_cast<Metric>(2); }},
      {"block_size", [](C c) { c.block_size = -1; }},
      {"mean_dtype", [](C c) { c.mean_dtype = static_cast<DType>(4); }},
      {"sink_size", [](C c) { c.sink_size = -1; }},
      {"sink_size", [](C c) { c.sink_size = kMax; }},
      {"heavy_size", [](C c) { c.heavy_size = 0; }},
      {"heavy_size", [](C c) { c.heavy_size = -1; }},
      {"heavy_size", [](C c) { c.heavy_size = 8193; }},
      {"window_size", [](C c) { c.window_size = -1; }},
      {"window_size", [](C c) { c.window_size = kMax; }},
      {"window_size",
       [](C c) {
         c.block_size = 16;
         c.window_size = 15;
       }},
      {"window_size",
       [](C c) {
         c.window_size = 2;
         c.max_query_tokens = 4;
       }},
      {"window_size",
       [](C c) {
         c.block_size = 16;
         c.window_size = 17;
         c.max_query_tokens = 3;
       }},
      {"encode_from",
       [](C c) {
         c.sink_size = 8;
         c.encode_from = 9;
       }},
      {"encode_from", [](C c) { c.encode_from = -2; }},
      {"dense_threshold", [](C c) { c.dense_threshold = -2; }},
      {"refine_factor", [](C c) { c.refine_factor = 0; }},
      {"refine_factor", [](C c) { c.refine_factor = -1; }},
      {"refine_factor",
       [](C c) {
         c.heavy_size = 4096;
         c.refine_factor = 3;
       }},
      {"refine_factor",
       [](C c) {
         c.heavy_size = 8192;
         c.refine_factor = 8192;
       }},
      {"refine_factor",
       [](C c) {
         c.heavy_size = 2;
         c.refine_factor = kMax;
       }},
      {"kmeans_iterations", [](C c) { c.kmeans_iterations = 0; }},
      {"kmeans_iterations", [](C c) { c.kmeans_iterations = -1; }},
      {"algorithm", [](C c) { c.algorithm = static_cast<Algorithm>(7); }},
      {"gqa_reduction", [](C c) { c.gqa_reduction = static_cast<GqaReduction>(-1); }},
      {"max_sequences",
       [](C c) {
         c.max_sequences = 60000;
         c.max_query_tokens = 60000;
         c.window_size = 70000;
         c.num_query_heads = c.num_kv_heads = 60000;
       }},
      {"max_seq_len",
       [](C c) {
         c.page_size = 1 << 28;
         c.num_pages = 0x7fffffff;
         c.num_query_heads = c.num_kv_heads = 65536;
         c.head_dim = 512;
         c.num_subspaces = 64;
         c.bits = 8;
       }},
      {"algorithm", [](C c) { c.algorithm = Algorithm::scan; }, StatusCode::unsupported},
      {"algorithm",
       [](C c) {
         c.algorithm = Algorithm::scan;
         c.gqa_reduction = GqaReduction::sum;
       },
       StatusCode::unsupported},
      {"gqa_reduction", [](C c) { c.gqa_reduction = static_cast<GqaReduction>(4); }},
      {"softmax_scale", [](C c) { c.softmax_scale = std::numeric_limits<float>::quiet_NaN(); }},
      {"softmax_scale", [](C c) { c.softmax_scale = std::numeric_limits<float>::infinity(); }},
      {"softmax_scale", [](C c) { c.softmax_scale = -1.0f; }},
      {"softmax_scale",
       [](C c) {
         c.softmax_scale = -std::numeric_limits<float>::denorm_min();
         c.gqa_reduction = GqaReduction::softmax_sum;
       }},
  };
}

class ConfigMisuse : public BackendTest {};

TEST_P(ConfigMisuse, IsRefusedByName) {
  int i = 0;
  for (const Bad& bad : bad_configs()) {
    IndexerConfig c = small_config();
    bad.change(c);
    if (c.algorithm == Algorithm::scan && has_scan(GetParam())) continue;  // nothing is wrong
    const std::string which = "case " + std::to_string(i++) + " (" + bad.named + ")";
    IndexerConfig untouched;
    untouched.seed = 77;
    MemoryRequirements need;
    need.index_bytes = 77;
    Indexer indexer;
    const Status statuses[] = {memory_requirements(c, GetParam(), &need),
                               Indexer::create(c, Device{GetParam(), 0}, Resources{}, &indexer)};
    for (const Status& s : statuses) {
      EXPECT_EQ(s.code(), bad.code) << which << ": " << s.detail();
      EXPECT_NE(std::string(s.detail()).find(bad.named), std::string::npos)
          << which << ": " << s.detail();
    }
    EXPECT_EQ(need.index_bytes, 77u) << which;
    EXPECT_EQ(indexer.list_heads(), 0) << which;
    // resolve() refuses all but sizes that only the plan can add up.
    const Status resolved = resolve(c, GetParam(), &untouched);
    if (!resolved.ok()) {
      EXPECT_EQ(untouched.seed, 77u) << which;
    }
  }
}

TEST_P(ConfigMisuse, BordersAreAccepted) {
  using C = IndexerConfig&;
  const std::function<void(C)> good[] = {
      [](C c) { c.head_dim = 8; },
      [](C c) {
        c.head_dim = 512;
        c.num_subspaces = 64;
      },
      [](C c) { c.bits = 1; },
      [](C c) { c.bits = 8; },
      [](C c) { c.heavy_size = 8192; },
      [](C c) {
        c.heavy_size = 2048;
        c.refine_factor = 4;
      },
      [](C c) {
        c.block_size = 16;
        c.max_query_tokens = 3;
        c.window_size = 18;
      },
      [](C c) { c.window_size = 0; },
      [](C c) { c.sink_size = 0; },
      [](C c) {
        c.sink_size = 8;
        c.encode_from = 8;
      },
      [](C c) {
        c.sink_size = 8;
        c.encode_from = 0;
      },
      [](C c) { c.sink_size = 5000; },
      [](C c) { c.max_seq_len = 1; },
      [](C c) {
        c.block_size = 16;
        c.page_size = 32;
        c.num_pages = 9;
      },
      [](C c) {
        c.block_size = 16;
        c.page_size = 4;
        c.num_pages = 9;
      },
      [](C c) { c.num_query_heads = c.num_kv_heads = 1; },
      [](C c) { c.gqa_reduction = GqaReduction::sum; },
      [](C c) { c.gqa_reduction = GqaReduction::max; },
      [](C c) {
        c.gqa_reduction = GqaReduction::softmax_sum;
        c.softmax_scale = std::numeric_limits<float>::max();
      },
  };
  int i = 0;
  for (const auto& change : good) {
    IndexerConfig c = small_config();
    change(c);
    Indexer indexer;
    const Status s = Indexer::create(c, Device{GetParam(), 0}, Resources{}, &indexer);
    EXPECT_TRUE(s.ok()) << "case " << i << ": " << s.detail();
    ++i;
  }
}

TEST_P(ConfigMisuse, ReductionsResolve) {
  IndexerConfig c = small_config(), resolved;
  c.gqa_reduction = GqaReduction::softmax_sum;
  ASSERT_TRUE(resolve(c, GetParam(), &resolved).ok());
  EXPECT_EQ(resolved.algorithm, Algorithm::staged);
  EXPECT_FLOAT_EQ(resolved.softmax_scale, 1 / std::sqrt(static_cast<float>(c.head_dim)));
  IndexerConfig again;
  ASSERT_TRUE(resolve(resolved, GetParam(), &again).ok());
  EXPECT_EQ(again.softmax_scale, resolved.softmax_scale);
  c.softmax_scale = 0.75f;
  ASSERT_TRUE(resolve(c, GetParam(), &resolved).ok());
  EXPECT_EQ(resolved.softmax_scale, 0.75f);
  for (const auto reduction : {GqaReduction::sum, GqaReduction::softmax_sum, GqaReduction::max}) {
    c.gqa_reduction = reduction;
    Indexer indexer;
    ASSERT_TRUE(Indexer::create(c, Device{GetParam(), 0}, Resources{}, &indexer).ok());
    EXPECT_EQ(indexer.list_heads(), c.num_kv_heads);
    EXPECT_EQ(indexer.config().gqa_reduction, reduction);
    c.algorithm = Algorithm::scan;
    const Status s = Indexer::create(c, Device{GetParam(), 0}, Resources{}, &indexer);
    if (GetParam() == Backend::cpu) {
      ASSERT_TRUE(s.ok()) << s.detail();
      EXPECT_EQ(indexer.config().algorithm, Algorithm::scan);
      EXPECT_EQ(indexer.list_heads(), c.num_kv_heads);
    } else {
      // Of its own words, whatever a backend has of the algorithm.
      EXPECT_EQ(s.code(), StatusCode::unsupported);
      EXPECT_NE(std::string(s.detail()).find("algorithm scan"), std::string::npos) << s.detail();
    }
    c.algorithm = Algorithm::automatic;
  }
}

TEST_P(ConfigMisuse, CreateRefusesBadResources) {
  const IndexerConfig c = small_config();
  const Device device{GetParam(), 0};
  MemoryRequirements need;
  ASSERT_TRUE(memory_requirements(c, GetParam(), &need).ok());
  DeviceBytes memory(GetParam(), need.index_bytes + 256);
  auto expect_refused = [&](const Status& s, StatusCode code, const char* named) {
    EXPECT_EQ(s.code(), code) << s.detail();
    EXPECT_NE(std::string(s.detail()).find(named), std::string::npos) << s.detail();
  };
  Indexer indexer;
  Resources r;
  r.num_threads = -1;
  expect_refused(Indexer::create(c, device, r, &indexer), StatusCode::invalid_argument,
                 "num_threads");
  r = Resources{0, memory.data(), need.index_bytes - 1};
  expect_refused(Indexer::create(c, device, r, &indexer), StatusCode::invalid_argument,
                 "index_memory_bytes");
  r = Resources{0, static_cast<char*>(memory.data()) + 4, need.index_bytes};
  expect_refused(Indexer::create(c, device, r, &indexer), StatusCode::invalid_argument,
                 "index_memory");
  expect_refused(Indexer::create(c, device, Resources{}, nullptr), StatusCode::invalid_argument,
                 "out");
  EXPECT_EQ(memory_requirements(c, GetParam(), nullptr).code(), StatusCode::invalid_argument);
  EXPECT_EQ(resolve(c, GetParam(), nullptr).code(), StatusCode::invalid_argument);
  expect_refused(Indexer::create(c, Device{static_cast<Backend>(9), 0}, Resources{}, &indexer),
                 StatusCode::unsupported, "backend");
  EXPECT_EQ(indexer.list_heads(), 0);
  // Exactly enough is enough, and a refused create() leaves what was there.
  r = Resources{0, memory.data(), need.index_bytes};
  ASSERT_TRUE(Indexer::create(c, device, r, &indexer).ok());
  IndexerConfig bad = c;
  bad.bits = 0;
  EXPECT_FALSE(Indexer::create(bad, device, Resources{}, &indexer).ok());
  EXPECT_EQ(indexer.config().bits, c.bits);
  EXPECT_EQ(indexer.list_heads(), c.num_query_heads);
}

QUARRY_ON_EVERY_BACKEND(ConfigMisuse);

TEST(CudaBackend, IsRefusedWhereItIsNotBuiltOrAbsent) {
  if (backend_available(Backend::cuda)) return;  // then the suites above run on it
  Indexer indexer;
  const Status s = Indexer::create(small_config(), Device{Backend::cuda, 0}, Resources{}, &indexer);
  EXPECT_TRUE(s.code() == StatusCode::unsupported || s.code() == StatusCode::device_error)
      << s.detail();
  EXPECT_NE(std::string(s.detail()), "");
}

}  // namespace
}  // namespace quarry::test
