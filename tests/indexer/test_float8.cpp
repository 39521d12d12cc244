// SPDX-License-Identifier: Apache-2.0
//
// A float8_e4m3 cache, with scales or without, gives what a cache of another type that holds the
// same numbers gives: codes, codebooks, lists, statistics.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "support/backends.h"
#include "support/scenario.h"

namespace quarry::test {
namespace {

Scenario base(const Target& target) {
  Scenario s;
  s.config = small_config();
  s.on(target);
  s.key_dtype = DType::float8_e4m3;
  s.check = false;  // the case table compares with the oracle
  return s;
}

/// The same cache as another type.
std::unique_ptr<World> as(DType dtype, World& world) {
  Scenario s = world.setup();
  s.key_dtype = dtype;
  s.key_scales.clear();
  auto other = std::make_unique<World>(s);
  other->cache().keys = world.cache().keys;
  return other;
}

struct Shape {
  int dim, m, b, block;
  bool rotation;
  Metric metric = Metric::euclidean;
};

// Of every kernel that encodes: bulk on tensor cores, bulk exactly, steps of whole pieces and not.
const Shape kShapes[] = {{128, 16, 4, 64, true},
                         {128, 16, 4, 0, true},
                         {128, 16, 4, 32, true},
                         {128, 8, 6, 128, true},
                         {64, 8, 4, 64, true},
                         {64, 4, 5, 64, false},
                         {128, 2, 6, 0, false},
                         {128, 4, 8, 64, false},
                         {96, 12, 4, 64, true},
                         {24, 3, 4, 16, false},
                         {32, 2, 4, 0, false, Metric::inner_product},
                         {64, 8, 3, 16, true, Metric::inner_product}};

std::string name_of(const Shape& s) {
  return "dim " + std::to_string(s.dim) + " m " + std::to_string(s.m) + " block " +
         std::to_string(s.block) + " " + quarry::to_string(s.metric);
}

void apply(const Shape& shape, Scenario* s) {
  s->config.head_dim = shape.dim;
  s->config.num_subspaces = shape.m;
  s->config.bits = shape.b;
  s->config.block_size = shape.block;
  s->config.window_size = std::max(s->config.window_size, shape.block);
  s->config.rotation = shape.rotation;
  s->config.metric = shape.metric;
}

class Float8Keys : public AlgorithmTest {};

// Any scales: float32 holds every product.
TEST_P(Float8Keys, GiveTheBytesOfAFloat32CacheOfTheirValues) {
  std::uint64_t seed = 300;
  for (const Shape& shape : kShapes) {
    for (const int scales : {1, 2}) {
      Scenario s = base(GetParam());
      apply(shape, &s);
      s.key_scales = std::vector<float>{0.0173f, 0.41f};
      s.key_scales.resize(static_cast<std::size_t>(scales));
      s.seed = ++seed;
      const Values values[] = {Values::gaussian, Values::nan, Values::huge_cluster};
      s.keys = values[seed % 3];
      s.padded = seed % 4 == 1;
      s.misaligned = seed % 5 == 0;
      if (seed % 2 == 0) use_pages(&s.config, 64);
      // On the CPU refine adds in one order whatever the type; on CUDA it depends on its size.
      s.config.refine_factor = GetParam().backend == Backend::cpu ? 2 : 1;
      const std::string name = name_of(shape) + " keys " + to_string(s.keys);
      World narrow(s);
      const std::unique_ptr<World> wide = as(DType::float32, narrow);
      for (World* w : {&narrow, wide.get()}) {
        w->set_codebook(-1);
        ASSERT_TRUE(w->build(0, 400).ok()) << name;
      }
      ASSERT_TRUE(narrow.codes(0, 400) == wide->codes(0, 400)) << name;
      for (const int n : {401, 464, 530, 600}) {
        ASSERT_TRUE(narrow.next(lengths({n})) == wide->next(lengths({n}))) << name << " n " << n;
      }
      ASSERT_TRUE(narrow.codes(0, 600) == wide->codes(0, 600)) << name;
      ASSERT_EQ(narrow.error(), "") << name;
      ASSERT_EQ(wide->error(), "") << name;
    }
  }
}

// Scales that are powers of two: a bfloat16 cache holds the values, and its elements are added in
// the same order on every backend.
TEST_P(Float8Keys, AreRefinedAsABfloat16CacheOfTheirValues) {
  std::uint64_t seed = 400;
  for (const int dim : {8, 40, 64, 128, 264, 512}) {
    Scenario s = base(GetParam());
    apply({dim, dim / 8, 4, dim == 64 ? 64 : 0, dim == 128}, &s);
    s.config.refine_factor = 4;
    s.key_scales = {0.0625f, 0.25f};
    s.seed = ++seed;
    s.padded = dim == 40;
    s.misaligned = dim == 64;
    s.config.max_query_tokens = 2;
    s.config.window_size += 1;
    World narrow(s);
    const std::unique_ptr<World> wide = as(DType::bfloat16, narrow);
    HostBatch two;
    two.query_tokens = 2;
    for (const int n : {300, 301, 590}) {
      two.lengths = {n, n + 1};
      if (n == 300) narrow.set_codebook(-1), wide->set_codebook(-1);
      ASSERT_TRUE(narrow.next(two) == wide->next(two)) << "dim " << dim << " n " << n;
    }
    ASSERT_EQ(narrow.error(), "");
    ASSERT_EQ(wide->error(), "");
  }
}

TEST_P(Float8Keys, TrainTheCodebookOfAFloat32CacheOfTheirValues) {
  for (const Shape& shape :
       {Shape{32, 2, 4, 0, false}, Shape{128, 2, 6, 0, false}, Shape{32, 2, 4, 16, false},
        Shape{64, 8, 3, 64, true}, Shape{64, 4, 4, 0, false, Metric::inner_product}}) {
    for (const Values keys : {Values::gaussian, Values::nan}) {
      if (shape.block > 0 && keys == Values::nan) continue;  // no block would be finite
      Scenario s = base(GetParam());
      apply(shape, &s);
      s.config.bits = std::min(s.config.bits, 4);
      s.keys = keys;
      s.key_scales = {0.0173f, 0.41f};
      World narrow(s);
      const std::unique_ptr<World> wide = as(DType::float32, narrow);
      const Codebook rotations = narrow.make_codebook(3);
      for (World* w : {&narrow, wide.get()}) {
        ASSERT_TRUE(w->build(0, 500, false, shape.rotation ? &rotations : nullptr).ok());
      }
      const Codebook a = narrow.read_codebook(0), b = wide->read_codebook(0);
      EXPECT_TRUE(a.centroids == b.centroids) << name_of(shape);
      EXPECT_TRUE(a.phi == b.phi) << name_of(shape);
      EXPECT_TRUE(narrow.codes(0, 500) == wide->codes(0, 500)) << name_of(shape);
      EXPECT_EQ(narrow.error(), "");
    }
  }
}

// Scales are read where the keys are, also by a graph that was captured before they changed.
TEST_P(Float8Keys, FollowScalesThatChange) {
  for (const LaunchMode mode : launch_modes(GetParam().backend)) {
    for (const int block : {0, 16}) {
      Scenario s = base(GetParam());
      s.mode = mode;
      s.check = true;
      s.key_scales = {0.02f, 0.3f};
      s.config.block_size = block;
      s.config.refine_factor = 2;
      World world(s);
      world.set_codebook(-1);
      const StepOutput before = world.next(lengths({500}));
      ASSERT_EQ(world.error(), "");
      world.rescale({0.7f, -0.011f});
      world.truncate({0}, {0});
      const StepOutput after = world.next(lengths({500}));
      ASSERT_EQ(world.error(), "") << "block " << block;
      EXPECT_FALSE(before == after) << "block " << block;
    }
  }
}

// No scale is refused: keys are what the products are.
TEST_P(Float8Keys, TakeAnyScale) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const float scale : {0.0f, -0.5f, std::nanf(""), inf, -inf, 1e38f, 0x1p-149f}) {
    for (const int block : {0, 16}) {
      for (const int refine : {1, 2}) {
        Scenario s = base(GetParam());
        s.check = true;
        s.key_scales = {scale, 0.1f};
        s.config.block_size = block;
        s.config.refine_factor = refine;
        World world(s);
        world.set_codebook(-1);
        for (const int n : {300, 301, 320}) world.next(lengths({n}));
        ASSERT_EQ(world.error(), "") << "scale " << scale << " block " << block;
      }
    }
  }
}

// Null scales are a scale of 1.
TEST_P(Float8Keys, WithoutScalesAreWhatTheyHold) {
  Scenario s = base(GetParam());
  s.config.block_size = 16;
  s.config.refine_factor = 3;
  World plain(s);
  s.key_scales = {1.0f};
  World scaled(s);
  for (World* w : {&plain, &scaled}) w->set_codebook(-1);
  for (const int n : {400, 401, 450}) {
    ASSERT_TRUE(plain.next(lengths({n})) == scaled.next(lengths({n}))) << n;
  }
  EXPECT_EQ(plain.error(), "");
  EXPECT_EQ(scaled.error(), "");
}

QUARRY_ON_EVERY_ALGORITHM(Float8Keys);

}  // namespace
}  // namespace quarry::test
