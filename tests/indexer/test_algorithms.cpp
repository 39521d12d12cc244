// SPDX-License-Identifier: Apache-2.0
//
// staged and scan give the same bytes: on score distributions made to break selections and
// low-precision bounds, at every K, and on whatever a random search comes upon. How long it
// searches is QUARRY_SEARCH_SECONDS (3 by default), from where QUARRY_SEARCH_SEED.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>

#include "support/backends.h"
#include "support/scenario.h"
#include "support/shapes.h"

namespace quarry::test {
namespace {

class Algorithms : public BackendTest {
 protected:
  void SetUp() override {
    if (!has_scan(GetParam())) GTEST_SKIP() << "this backend has staged alone";
  }
};

/// What both algorithms come to over the same steps; `prepare` readies each world.
template <class Prepare>
void expect_same(Scenario s, Backend backend, const std::vector<HostBatch>& steps,
                 const std::string& what, Prepare&& prepare) {
  s.check = false;
  std::vector<StepOutput> out[2];
  const Algorithm algorithms[] = {Algorithm::staged, Algorithm::scan};
  for (int a = 0; a < 2; ++a) {
    s.on({backend, algorithms[a]});
    World world(s);
    ASSERT_EQ(world.error(), "") << what;
    prepare(world);
    for (const HostBatch& step : steps) out[a].push_back(world.next(step));
    ASSERT_EQ(world.error(), "") << what << ", " << quarry::to_string(algorithms[a]);
  }
  for (std::size_t i = 0; i < steps.size(); ++i) {
    ASSERT_TRUE(out[0][i].lengths == out[1][i].lengths) << what << ", step " << i;
    ASSERT_TRUE(out[0][i].bits == out[1][i].bits) << what << ", step " << i;
    const auto first = std::mismatch(out[0][i].indices.begin(), out[0][i].indices.end(),
                                     out[1][i].indices.begin());
    if (first.first == out[0][i].indices.end()) continue;
    const std::size_t at = first.first - out[0][i].indices.begin();
    const std::size_t width = out[0][i].indices.size() / out[0][i].lengths.size();
    FAIL() << what << ", step " << i << ": row " << at / width << " entry " << at % width << " is "
           << *first.first << " staged, " << *first.second << " scan";
  }
}

/// One KV head of a shape, for ShapedScores.
template <class Shape>
Scenario scenario_of(const Shape& shape) {
  Scenario s;
  s.config = small_config();
  s.write_keys = false;  // ShapedScores does
  s.config.head_dim = shape.d;
  s.config.num_subspaces = shape.m;
  s.config.bits = shape.b;
  s.config.num_kv_heads = 1;
  s.config.num_query_heads = shape.group;
  s.config.max_seq_len = shape.n;
  s.config.heavy_size = shape.k;
  s.config.sink_size = 3;
  s.config.window_size = 5;
  return s;
}

TEST_P(Algorithms, GiveTheSameBytesWhateverTheDistribution) {
  struct Shape {
    int d, m, b, group, n, k;
  };
  const Shape shapes[] = {
      {16, 2, 6, 1, 5000, 128},   {64, 8, 4, 1, 5000, 128},  {32, 16, 4, 4, 4000, 64},
      {64, 64, 4, 1, 3000, 100},  {16, 2, 6, 3, 9500, 8192}, {64, 8, 4, 2, 9500, 8192},
      {16, 2, 6, 2, 3000, 1},     {32, 8, 4, 5, 3000, 1},    {16, 2, 6, 1, 2000, 2000},
      {32, 8, 4, 1, 2000, 2000},  {16, 1, 8, 2, 5000, 300},  {16, 2, 3, 8, 5000, 300},
      {24, 3, 4, 2, 5000, 300},   {16, 4, 1, 1, 5000, 300},  {16, 4, 7, 2, 4000, 50},
      {16, 2, 5, 2, 70000, 1000},
  };
  std::uint64_t seed = 0;
  for (const Shape& shape : shapes) {
    for (const ScoreShape scores : kScoreShapes) {
      // The longest is there for rows that are cut into pieces: ties and plain ones will do.
      if (shape.n > 10000 && scores != ScoreShape::random && scores != ScoreShape::two_valued) {
        continue;
      }
      Scenario s = scenario_of(shape);
      s.config.refine_factor = shape.k <= 64 && seed % 3 == 0 ? 4 : 1;
      s.threads = 1 + static_cast<int>(seed % 3);
      const std::uint64_t own = ++seed;
      const std::string what = std::string(to_string(scores)) + " d" + std::to_string(shape.d) +
                               " m" + std::to_string(shape.m) + " b" + std::to_string(shape.b) +
                               " group " + std::to_string(shape.group) + " n " +
                               std::to_string(shape.n) + " K " + std::to_string(shape.k);
      expect_same(s, GetParam(), {lengths({shape.n}), lengths({shape.n - 77})}, what,
                  [&](World& world) { ShapedScores(world, scores, own); });
      if (HasFatalFailure()) return;
    }
  }
}

/// Reductions that a backend's scan serves.
std::vector<GqaReduction> reductions(Backend backend) {
  if (backend != Backend::cpu) return {};
  return {GqaReduction::sum, GqaReduction::softmax_sum, GqaReduction::max};
}

TEST_P(Algorithms, GiveTheSameBytesUnderReductions) {
  if (reductions(GetParam()).empty()) GTEST_SKIP() << "scan serves per_head alone here";
  struct Shape {
    int d, m, b, group, n, k, block, refine, page;
    Metric metric = Metric::euclidean;
  };
  const Shape shapes[] = {
      {16, 2, 6, 1, 5000, 128, 0, 1, 0},
      {64, 8, 4, 4, 5000, 128, 0, 1, 0},
      {32, 16, 4, 2, 4000, 64, 0, 4, 0},
      {64, 64, 4, 3, 3000, 100, 64, 1, 0},
      {16, 2, 6, 3, 9500, 8192, 0, 1, 0},
      {64, 8, 4, 8, 5000, 1, 0, 1, 16},
      {32, 8, 4, 4, 5000, 1, 64, 4, 64},
      {32, 8, 4, 4, 2000, 2000, 0, 1, 0},
      {16, 1, 8, 2, 5000, 300, 0, 1, 48},
      {24, 3, 4, 8, 5000, 300, 16, 2, 0},
      {16, 2, 5, 4, 70000, 1000, 0, 1, 0},
      {16, 2, 6, 5, 70000, 50, 64, 4, 64},
      {32, 8, 3, 9, 3000, 20, 48, 4, 96},
      {16, 2, 6, 2, 3000, 60, 0, 1, 10},
      {32, 4, 4, 4, 5000, 128, 0, 4, 0, Metric::inner_product},
  };
  std::uint64_t seed = 0;
  for (const Shape& shape : shapes) {
    for (const ScoreShape scores : kScoreShapes) {
      if (shape.n > 10000 && scores != ScoreShape::random && scores != ScoreShape::two_valued) {
        continue;
      }
      for (const GqaReduction reduction : reductions(GetParam())) {
        Scenario s = scenario_of(shape);
        s.config.metric = shape.metric;
        s.config.window_size += shape.block;
        s.config.block_size = shape.block;
        s.config.refine_factor = shape.refine;
        s.config.gqa_reduction = reduction;
        if (shape.page > 0) use_pages(&s.config, shape.page);
        s.threads = 1 + static_cast<int>(seed % 3);
        const std::uint64_t own = ++seed;
        const std::string what = std::string(quarry::to_string(reduction)) + " " +
                                 to_string(scores) + " m" + std::to_string(shape.m) + " b" +
                                 std::to_string(shape.b) + " group " + std::to_string(shape.group) +
                                 " n " + std::to_string(shape.n) + " K " + std::to_string(shape.k) +
                                 " block " + std::to_string(shape.block) + " page " +
                                 std::to_string(shape.page);
        expect_same(s, GetParam(), {lengths({shape.n}), lengths({shape.n - 77})}, what,
                    [&](World& world) { ShapedScores(world, scores, own); });
        if (HasFatalFailure()) return;
      }
    }
  }
}

/// A configuration with room for selection to go wrong, and steps of it.
struct Found {
  Scenario s;
  ScoreShape scores;
  bool shaped;
  std::vector<HostBatch> steps;
  std::string text;
};

Found draw(std::uint64_t seed, Backend backend) {
  Random r(seed);
  Found f;
  IndexerConfig& c = f.s.config;
  const auto pick = [&](std::initializer_list<int> values) {
    return *(values.begin() + r.integer(0, static_cast<int>(values.size()) - 1));
  };
  c.num_kv_heads = r.integer(1, 2);
  c.num_query_heads = c.num_kv_heads * pick({1, 1, 2, 3, 4, 5, 8, 9});
  c.num_subspaces = pick({1, 2, 2, 3, 4, 5, 8, 8, 16, 16, 32, 64});
  c.bits = pick({1, 2, 3, 4, 4, 4, 4, 5, 6, 6, 7, 8});
  c.head_dim = c.num_subspaces % 8 == 0
                   ? c.num_subspaces * r.integer(1, std::max(1, 64 / c.num_subspaces))
                   : c.num_subspaces * 8;
  c.max_sequences = r.integer(1, 3);
  c.max_query_tokens = r.integer(0, 3) == 0 ? r.integer(1, 3) : 1;
  c.max_seq_len = pick({40, 300, 1000, 2500, 5000});
  c.metric = r.integer(0, 3) == 0 ? Metric::inner_product : Metric::euclidean;
  c.block_size = pick({0, 0, 0, 1, 3, 16, 32, 48, 64, 128});
  c.mean_dtype = static_cast<DType>(r.integer(0, 2));
  c.rotation = r.integer(0, 3) == 0;
  c.shared_codebook = r.integer(0, 1) == 0;
  c.sink_size = r.integer(0, 40);
  c.encode_from = r.integer(-1, c.sink_size);
  c.window_size = c.block_size + c.max_query_tokens - 1 + r.integer(0, 20);
  c.heavy_size = pick({1, 2, 15, 32, 100, 128, 512, 1024, 2000, 8192});
  c.refine_factor = c.heavy_size <= 2000 ? pick({1, 1, 2, 4}) : 1;
  c.dense_threshold = 0;
  if (r.integer(0, 1) == 0 && !reductions(backend).empty()) {
    c.gqa_reduction = reductions(backend)[static_cast<std::size_t>(r.integer(0, 2))];
    const float scales[] = {0, 0, 0, 1e-30f, 0.01f, 1, 20, 1e30f};
    c.softmax_scale = scales[r.integer(0, 7)];
  }
  if (r.integer(0, 2) == 0) {
    const int page = c.block_size > 0 ? c.block_size * r.integer(1, 3) : r.integer(1, 200);
    use_pages(&c, page);
  }
  constexpr DType kKeys[] = {DType::float32, DType::float32, DType::float16, DType::float8_e4m3};
  f.s.key_dtype = kKeys[r.integer(0, 3)];
  f.s.keys = static_cast<Values>(r.integer(0, static_cast<int>(Values::huge_cluster)));
  f.s.queries = static_cast<Values>(r.integer(0, static_cast<int>(Values::huge_cluster)));
  f.s.centroids = r.integer(0, 2) == 0 ? Values::integers : Values::gaussian;
  f.s.threads = r.integer(1, 5);
  f.s.seed = seed;
  // Shaped queries are those of one token a sequence.
  f.shaped = c.max_query_tokens == 1 && r.integer(0, 3) != 0;
  f.scores = kScoreShapes[r.integer(0, static_cast<int>(std::size(kScoreShapes)) - 1)];
  if (f.shaped) f.s.key_dtype = DType::float32;
  f.s.write_keys = !f.shaped;
  for (int i = r.integer(1, 3); i > 0; --i) {
    HostBatch b;
    b.batch_size = c.max_sequences;
    b.query_tokens = c.max_query_tokens;
    for (int k = 0; k < b.batch_size; ++k) {
      const int n = r.integer(0, 4) == 0 ? r.integer(0, c.max_seq_len)
                                         : c.max_seq_len - r.integer(0, c.max_seq_len / 8);
      for (int t = 0; t < b.query_tokens; ++t) b.lengths.push_back(std::min(n + t, c.max_seq_len));
    }
    f.steps.push_back(b);
  }
  f.text = "seed " + std::to_string(seed) + " (d " + std::to_string(c.head_dim) + " m " +
           std::to_string(c.num_subspaces) + " b " + std::to_string(c.bits) + " heads " +
           std::to_string(c.num_query_heads) + "/" + std::to_string(c.num_kv_heads) + " block " +
           std::to_string(c.block_size) + " page " + std::to_string(c.page_size) + " K " +
           std::to_string(c.heavy_size) + "x" + std::to_string(c.refine_factor) + " n " +
           std::to_string(c.max_seq_len) + " " + quarry::to_string(c.gqa_reduction) + " " +
           std::to_string(c.softmax_scale) + " " +
           (f.shaped ? to_string(f.scores) : to_string(f.s.keys)) + ")";
  return f;
}

double number_of(const char* name, double otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atof(text);
}

TEST_P(Algorithms, RandomSearchFindsNoDifference) {
  const double budget = number_of("QUARRY_SEARCH_SECONDS", 3);
  const auto first = static_cast<std::uint64_t>(number_of("QUARRY_SEARCH_SEED", 1));
  const auto begin = std::chrono::steady_clock::now();
  std::uint64_t seed = first;
  do {
    const Found f = draw(seed++, GetParam());
    expect_same(f.s, GetParam(), f.steps, f.text, [&](World& world) {
      if (f.shaped) {
        ShapedScores(world, f.scores, f.s.seed);
      } else {
        world.set_codebook(-1);
      }
    });
    if (HasFatalFailure()) return;
  } while (std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() <
           budget);
  RecordProperty("configurations", static_cast<int>(seed - first));
}

QUARRY_ON_EVERY_BACKEND(Algorithms);

}  // namespace
}  // namespace quarry::test
