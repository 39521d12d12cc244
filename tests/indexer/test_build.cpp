// SPDX-License-Identifier: Apache-2.0
//
// build(): what k-means has to come to, and what it must not touch.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "support/backends.h"
#include "support/scenario.h"

namespace quarry::test {
namespace {

class Build : public AlgorithmTest {
 protected:
  Scenario scenario() const {
    Scenario s;
    s.config = small_config();
    s.on(GetParam());
    s.config.kmeans_iterations = 8;
    return s;
  }
};

/// Mean squared distance of the encoded keys (block_size 0, no rotation) from their codes.
double error_of(World& w, const Codebook& cb, int n) {
  const IndexerConfig& c = w.config();
  const int dsub = w.oracle().dsub(), dcent = w.oracle().dcent(), ksub = w.oracle().ksub();
  const std::vector<std::uint8_t> codes = w.codes(0, n);
  double sum = 0;
  std::size_t i = 0;
  for (int p = c.encode_from; p < n; ++p) {
    for (int h = 0; h < c.num_kv_heads; ++h) {
      const float* key = w.cache().key(w.oracle().cache_slot(w.pages(0), p), h);
      for (int s = 0; s < c.num_subspaces; ++s, ++i) {
        const float* centroid =
            cb.centroids.data() +
            ((static_cast<std::size_t>(h) * c.num_subspaces + s) * ksub + codes[i]) * dcent;
        for (int j = 0; j < dsub; ++j) {
          const double diff = key[s * dsub + j] - centroid[j];
          sum += diff * diff;
        }
      }
    }
  }
  return sum / (static_cast<double>(n - c.encode_from) * c.num_kv_heads);
}

TEST_P(Build, TrainsThenListsAsTheOracleDoes) {
  for (const int block : {0, 16}) {
    for (const Metric metric : {Metric::euclidean, Metric::inner_product}) {
      for (const DType dtype : {DType::float32, DType::float16}) {
        Scenario s = scenario();
        s.config.block_size = block;
        s.config.metric = metric;
        s.config.mean_dtype = dtype == DType::float32 ? DType::float8_e4m3 : dtype;
        s.key_dtype = dtype;
        s.padded = true;
        s.caller_memory = true;
        s.config.max_sequences = 2;
        if (block > 0) use_pages(&s.config, 32);
        World world(s);
        ASSERT_TRUE(world.build(1, 400).ok());
        ASSERT_TRUE(world.build(0, 333).ok());
        ASSERT_EQ(world.error(), "");
        for (const float v : world.oracle().codebook(0).centroids) ASSERT_TRUE(std::isfinite(v));
        world.next(lengths({334, 401}));
        world.next(lengths({350, 600}));
        EXPECT_EQ(world.error(), "") << "block " << block;
      }
    }
  }
}

TEST_P(Build, TrainsOnRotatedResiduals) {
  Scenario s = scenario();
  s.config.rotation = true;
  s.config.block_size = 16;
  World world(s);
  const Codebook rotations = world.make_codebook(3);
  ASSERT_TRUE(world.build(0, 400, false, &rotations).ok());
  world.next(lengths({500}));
  ASSERT_EQ(world.error(), "");
  // Retrained, the rotations stay.
  ASSERT_TRUE(world.build(0, 450, true).ok());
  world.next(lengths({501}));
  EXPECT_EQ(world.error(), "");
}

TEST_P(Build, PhiIsTheLargestNorm) {
  Scenario s = scenario();
  s.config.metric = Metric::inner_product;
  World world(s);
  const int n = 500;
  ASSERT_TRUE(world.build(0, n).ok());
  const Codebook& cb = world.oracle().codebook(0);
  const int dsub = world.oracle().dsub();
  for (int h = 0; h < s.config.num_kv_heads; ++h) {
    for (int m = 0; m < s.config.num_subspaces; ++m) {
      float largest = 0;
      for (int p = world.config().encode_from; p < n; ++p) {
        const float* x = world.cache().key(p, h) + m * dsub;
        float norm = 0;
        for (int j = 0; j < dsub; ++j) norm = std::fma(x[j], x[j], norm);
        largest = std::max(largest, norm);
      }
      EXPECT_EQ(cb.phi[h * s.config.num_subspaces + m], largest);
    }
  }
}

TEST_P(Build, AsManyKeysAsCentroidsAreKeptExactly) {
  Scenario s = scenario();
  const int n = s.config.sink_size + (1 << s.config.bits);
  World world(s);
  ASSERT_TRUE(world.build(0, n).ok());
  ASSERT_EQ(world.error(), "");
  EXPECT_EQ(error_of(world, world.oracle().codebook(0), n), 0.0);
}

TEST_P(Build, IterationsLowerTheError) {
  double before = std::numeric_limits<double>::infinity();
  for (const int iterations : {1, 4, 25}) {
    Scenario s = scenario();
    s.config.kmeans_iterations = iterations;
    World world(s);
    ASSERT_TRUE(world.build(0, 600).ok());
    const double error = error_of(world, world.oracle().codebook(0), 600);
    EXPECT_LT(error, before);
    before = error;
  }
  // A random codebook is far worse: the training has seen the keys.
  World random(scenario());
  random.set_codebook(-1);
  random.append(lengths({600}));
  EXPECT_LT(before, 0.7 * error_of(random, random.oracle().codebook(0), 600));
}

TEST_P(Build, CentroidsAreTheMeansOfTheirKeysWhereItConverged) {
  Scenario s = scenario();
  s.config.kmeans_iterations = 200;
  s.config.bits = 3;
  const int n = 300;
  World world(s);
  ASSERT_TRUE(world.build(0, n).ok());
  const Codebook& cb = world.oracle().codebook(0);
  const int dsub = world.oracle().dsub(), m = s.config.num_subspaces, ksub = 1 << s.config.bits;
  const std::vector<std::uint8_t> codes = world.codes(0, n);
  const int first = world.config().encode_from;
  for (int h = 0; h < s.config.num_kv_heads; ++h) {
    for (int k = 0; k < m; ++k) {
      std::vector<double> sum(static_cast<std::size_t>(ksub) * dsub, 0.0);
      std::vector<int> count(ksub, 0);
      for (int p = first; p < n; ++p) {
        const int id =
            codes[(static_cast<std::size_t>(p - first) * s.config.num_kv_heads + h) * m + k];
        ++count[id];
        for (int j = 0; j < dsub; ++j) sum[id * dsub + j] += world.cache().key(p, h)[k * dsub + j];
      }
      for (int id = 0; id < ksub; ++id) {
        ASSERT_GT(count[id], 0) << "an empty cluster was left";
        for (int j = 0; j < dsub; ++j) {
          const double mean = sum[id * dsub + j] / count[id];
          // Keys are below 16: 300 of them summed in float32 are off by 300 * 300 * 16 / 2^24 /
          // 300.
          EXPECT_NEAR(cb.centroids[((h * m + k) * ksub + id) * dsub + j], mean, 300 * 16 * 0x1p-24);
        }
      }
    }
  }
}

TEST_P(Build, ClustersAreFoundThoughSeedsMissThem) {
  // Nine in ten keys are the same, the rest far away: seeds fall on the crowd, clusters run
  // empty, and each must take the farthest key.
  Scenario s = scenario();
  s.keys = Values::huge_cluster;
  s.config.kmeans_iterations = 20;
  World world(s);
  ASSERT_TRUE(world.build(0, 500).ok());
  ASSERT_EQ(world.error(), "");
  const std::vector<std::uint8_t> codes = world.codes(0, 500);
  EXPECT_GT(std::set<std::uint8_t>(codes.begin(), codes.end()).size(), 8u);
  world.next(lengths({501}));
  EXPECT_EQ(world.error(), "");
}

TEST_P(Build, AdversarialKeysTrain) {
  for (const Values v : {Values::integers, Values::tied, Values::two_valued, Values::signed_zero,
                         Values::denormal, Values::nan, Values::infinite}) {
    // Blocks of 2: a fifth of the keys is not finite, and takes its whole block along.
    for (const int block : {0, 2}) {
      for (const Metric metric : {Metric::euclidean, Metric::inner_product}) {
        Scenario s = scenario();
        s.keys = v;
        s.config.block_size = block;
        s.config.metric = metric;
        s.config.bits = 2;
        World world(s);
        const Status status = world.build(0, 500);
        ASSERT_TRUE(status.ok()) << to_string(v) << ": " << status.detail();
        for (const float x : world.oracle().codebook(0).centroids) {
          ASSERT_TRUE(std::isfinite(x)) << to_string(v);
        }
        world.next(lengths({520}));
        ASSERT_EQ(world.error(), "") << to_string(v) << " block " << block;
      }
    }
  }
}

TEST_P(Build, IsDeterministicAndSeeded) {
  auto train = [&](std::uint64_t seed, int threads, int junk) {
    Scenario s = scenario();
    s.config.seed = seed;
    s.config.block_size = 16;
    s.threads = threads;
    World world(s);
    for (int i = 0; i < junk; ++i)
      world.set_codebook(0, 5);  // shifts what scratch is poisoned with
    EXPECT_TRUE(world.build(0, 500, true).ok());
    EXPECT_EQ(world.error(), "");
    return world.oracle().codebook(0).centroids;
  };
  const std::vector<float> first = train(0, 1, 0);
  for (const int threads : {1, 2, 3, 7}) EXPECT_TRUE(train(0, threads, threads % 2) == first);
  EXPECT_FALSE(train(1, 1, 0) == first);
  EXPECT_FALSE(train(std::uint64_t{1} << 40, 1, 0) == first);
}

TEST_P(Build, ManyKeysAreSampled) {
  // Above 256 * ksub positions training samples: still the same bytes for any thread count.
  Scenario s = scenario();
  s.config.bits = 1;
  s.config.max_seq_len = 1600;
  s.config.kmeans_iterations = 10;
  std::vector<float> first;
  for (const int threads : {1, 3}) {
    s.threads = threads;
    World world(s);
    ASSERT_TRUE(world.build(0, 1600).ok());
    ASSERT_EQ(world.error(), "");
    if (first.empty()) first = world.oracle().codebook(0).centroids;
    EXPECT_TRUE(world.oracle().codebook(0).centroids == first);
  }
}

TEST_P(Build, TooFewFiniteKeysLeaveTheSequenceDense) {
  Scenario s = scenario();
  s.config.dense_threshold = -1;
  s.config.max_sequences = 2;
  s.config.num_query_heads = s.config.num_kv_heads = 2;
  World world(s);
  const int first = world.config().encode_from, ksub = 1 << s.config.bits;
  const int n = first + ksub + 10;
  // Head 1 has one finite key too few.
  for (int p = first; p < first + 11; ++p) {
    world.cache().keys[world.cache().offset(p, 1) + 3] =
        p % 2 == 0 ? std::nanf("") : std::numeric_limits<float>::infinity();
  }
  Status status = world.build(0, n);
  if (GetParam().backend == Backend::cpu) {
    EXPECT_EQ(status.code(), StatusCode::too_few_keys) << status.detail();
    EXPECT_NE(std::string(status.detail()).find("ksub"), std::string::npos) << status.detail();
  }
  world.next(lengths({n, 0}));
  ASSERT_EQ(world.error(), "");
  // One key more is enough.
  status = world.build(0, n + 1);
  EXPECT_TRUE(status.ok()) << status.detail();
  world.next(lengths({n + 100, 0}));
  EXPECT_EQ(world.error(), "");
}

TEST_P(Build, AFailedRetrainingKeepsTheCodebook) {
  Scenario s = scenario();
  World world(s);
  ASSERT_TRUE(world.build(0, 300).ok());
  const StepOutput before = world.next(lengths({301}));
  const Codebook codebook = world.read_codebook(0);
  const Status few = world.build(0, s.config.sink_size + 3, true);
  EXPECT_EQ(few.code(), StatusCode::too_few_keys);
  EXPECT_TRUE(world.read_codebook(0).centroids == codebook.centroids);
  const StepOutput after = world.next(lengths({301}));
  EXPECT_TRUE(before == after);
  EXPECT_EQ(world.error(), "");
}

TEST_P(Build, WithACodebookItOnlyEncodes) {
  for (const bool shared : {false, true}) {
    Scenario s = scenario();
    s.config.shared_codebook = shared;
    s.config.block_size = 16;
    World built(s), appended(s);
    built.set_codebook(-1);
    appended.set_codebook(-1);
    ASSERT_TRUE(built.build(0, 400).ok());
    appended.append(lengths({400}));
    EXPECT_TRUE(built.codes(0, 400) == appended.codes(0, 400));
    EXPECT_TRUE(built.next(lengths({401})) == appended.next(lengths({401})));
    // Again with other keys: whatever was seen is encoded anew.
    built.overwrite(0, 0, 600, 71);
    ASSERT_TRUE(built.build(0, 380).ok());
    built.next(lengths({381}));
    EXPECT_EQ(built.error(), "");
    // Nothing to encode is fine, too.
    EXPECT_TRUE(built.build(0, 0).ok());
    EXPECT_TRUE(built.build(0, 3).ok());
    built.next(lengths({500}));
    EXPECT_EQ(built.error(), "");
    EXPECT_EQ(appended.error(), "");
  }
}

TEST_P(Build, ABuildAfterAFailedOneKeepsTheCodebookItFinds) {
  // Once a training failed where only the device could see it, the host is not sure of the
  // slot's codebook any more. The next build trains; those after it must leave what that gave.
  Scenario s = scenario();
  s.config.block_size = 0;
  World world(s);
  const int first = world.config().encode_from, ksub = 1 << s.config.bits;
  const int n = first + ksub + 20;
  const auto spoil = [&](int from, int to) {
    for (int p = from; p < to; ++p) {
      world.cache().keys[world.cache().offset(p, 0)] = std::nanf("");
    }
  };
  spoil(first, n - 3);
  const Status few = world.build(0, n);
  EXPECT_EQ(few.code(),
            GetParam().backend == Backend::cpu ? StatusCode::too_few_keys : StatusCode::ok);
  ASSERT_TRUE(world.build(0, 400).ok());
  const Codebook codebook = world.read_codebook(0);
  for (int round = 0; round < 2; ++round) {
    // Other keys, in a range that a new training would follow.
    world.overwrite(0, 0, 500, 71 + static_cast<std::uint64_t>(round));
    ASSERT_TRUE(world.build(0, 450).ok());
    EXPECT_TRUE(world.read_codebook(0).centroids == codebook.centroids);
    world.next(lengths({451}));
    ASSERT_EQ(world.error(), "");
  }
  // A retraining that fails leaves it, too, and does not make the next build train.
  spoil(first, 440);
  static_cast<void>(world.build(0, 441, true));
  EXPECT_TRUE(world.read_codebook(0).centroids == codebook.centroids);
  world.overwrite(0, 0, 500, 73);
  ASSERT_TRUE(world.build(0, 450).ok());
  EXPECT_TRUE(world.read_codebook(0).centroids == codebook.centroids);
  world.next(lengths({451}));
  EXPECT_EQ(world.error(), "");
}

TEST_P(Build, FewDistinctKeysAllBecomeCentroids) {
  // Seven distinct vectors for sixteen centroids, nine keys in ten the same: most seeds fall on
  // one vector and most clusters run empty, in every round. Each round gives at least one more
  // vector to an empty cluster, so in the end nothing is lost.
  constexpr int kDistinct = 7;
  for (const Metric metric : {Metric::euclidean, Metric::inner_product}) {
    Scenario s = scenario();
    s.config.block_size = 0;
    s.config.bits = 4;
    s.config.metric = metric;
    s.config.kmeans_iterations = 2 * kDistinct;
    World world(s);
    const int n = 600, d = s.config.head_dim;
    // Small integers: float32 sums of equal ones are exact on every backend.
    const auto vector = [&](int which, int head, int i) {
      return static_cast<float>((which * 5 + head * 3 + i * which) % 11 - 5);
    };
    for (int p = 0; p < n; ++p) {
      const int which = p % 10 == 3 ? 1 + p / 10 % (kDistinct - 1) : 0;
      for (int h = 0; h < s.config.num_kv_heads; ++h) {
        for (int i = 0; i < d; ++i) {
          world.cache().keys[world.cache().offset(p, h) + i] = vector(which, h, i);
        }
      }
    }
    ASSERT_TRUE(world.build(0, n).ok());
    ASSERT_EQ(world.error(), "");
    const Codebook& cb = world.oracle().codebook(0);
    EXPECT_EQ(error_of(world, cb, n), 0.0) << to_string(metric);
    // And an empty cluster takes a key, no more and no less: every centroid is one.
    const int dsub = world.oracle().dsub(), dcent = world.oracle().dcent();
    const int ksub = world.oracle().ksub(), m = s.config.num_subspaces;
    for (int h = 0; h < s.config.num_kv_heads; ++h) {
      for (int k = 0; k < m; ++k) {
        for (int id = 0; id < ksub; ++id) {
          const float* centroid =
              cb.centroids.data() + ((static_cast<std::size_t>(h) * m + k) * ksub + id) * dcent;
          bool found = false;
          for (int which = 0; which < kDistinct && !found; ++which) {
            found = true;
            for (int j = 0; j < dsub; ++j) {
              found = found && centroid[j] == vector(which, h, k * dsub + j);
            }
          }
          EXPECT_TRUE(found) << to_string(metric) << " head " << h << " subspace " << k
                             << " centroid " << id;
        }
      }
    }
  }
}

// A prefill may be encoded by other arithmetic than a decode step (tensor cores), to the same
// bytes: of codes and, through the next lists, of means. Shapes of every bulk kernel, keys with
// outliers, ties and non-finite values, contiguous and paged.
class BulkEncode : public BackendTest {};

TEST_P(BulkEncode, GivesTheBytesThatStepsGive) {
  struct Shape {
    int dim, m, b, block;
    bool rotation;
  };
  const Shape shapes[] = {{128, 16, 4, 64, true}, {128, 16, 4, 0, true}, {128, 16, 4, 32, true},
                          {128, 8, 6, 64, true},  {64, 8, 4, 64, true},  {64, 8, 4, 0, true},
                          {64, 4, 5, 64, true},   {128, 2, 6, 0, false}, {128, 4, 8, 64, false},
                          {64, 8, 3, 128, true},  {96, 12, 4, 64, true}};
  std::uint64_t seed = 90;
  for (const Shape& shape : shapes) {
    for (const DType dtype :
         {DType::bfloat16, DType::float16, DType::float32, DType::float8_e4m3}) {
      for (const Values keys : {Values::gaussian, Values::two_valued, Values::nan, Values::infinite,
                                Values::huge_cluster}) {
        const bool raw = dtype == DType::bfloat16 && shape.rotation && shape.m > 4;
        if (!raw && keys != Values::gaussian) continue;
        Scenario s;
        s.backend = GetParam();
        s.config = small_config();
        s.config.head_dim = shape.dim;
        s.config.num_subspaces = shape.m;
        s.config.bits = shape.b;
        s.config.block_size = shape.block;
        s.config.window_size = std::max(s.config.window_size, shape.block);
        s.config.rotation = shape.rotation;
        s.config.shared_codebook = true;
        s.config.mean_dtype = static_cast<DType>(seed % 3);
        s.config.max_seq_len = 600;
        if (seed % 2 == 0) use_pages(&s.config, 64);
        s.key_dtype = dtype;
        if (dtype == DType::float8_e4m3) s.key_scales = {0.0173f, 0.41f};
        s.keys = keys;
        s.seed = ++seed;
        s.check = false;  // the case table compares steps with the oracle
        const std::string name = "dim " + std::to_string(shape.dim) + " m " +
                                 std::to_string(shape.m) + " block " + std::to_string(shape.block) +
                                 " dtype " + std::to_string(static_cast<int>(dtype)) + " keys " +
                                 to_string(keys);
        World built(s), stepped(s);
        built.set_codebook(-1);
        stepped.set_codebook(-1);
        ASSERT_TRUE(built.build(0, 500).ok()) << name;
        for (const int n : {201, 202, 320, 500}) stepped.append(lengths({n}));
        ASSERT_TRUE(built.codes(0, 500) == stepped.codes(0, 500)) << name;
        ASSERT_TRUE(built.next(lengths({501})) == stepped.next(lengths({501}))) << name;
        ASSERT_EQ(built.error(), "") << name;
        ASSERT_EQ(stepped.error(), "") << name;
      }
    }
  }
}

// A bulk kernel's thread blocks take many tiles each where there are more than multiprocessors:
// rings of buffers come round, ties are settled a batch at a time, and sooner where all are ties.
// `positions`: enough for that on the device at hand.
void many_tiles_give_the_bytes_that_steps_give(Backend backend, int positions) {
  for (const int dim : {64, 128}) {
    for (const int block : {0, 64}) {
      for (const Values keys : {Values::gaussian, Values::huge_cluster}) {
        Scenario s;
        s.backend = backend;
        s.config = small_config();
        s.config.head_dim = dim;
        s.config.num_subspaces = dim / 8;
        s.config.block_size = block;
        s.config.window_size = 128;
        s.config.rotation = true;
        s.config.shared_codebook = true;
        s.config.max_seq_len = positions + 100;
        s.key_dtype = DType::bfloat16;
        s.keys = keys;
        s.seed = static_cast<std::uint64_t>(dim + block);
        s.check = false;
        const std::string name = "dim " + std::to_string(dim) + " block " + std::to_string(block) +
                                 " keys " + to_string(keys);
        World built(s), stepped(s);
        built.set_codebook(-1);
        stepped.set_codebook(-1);
        ASSERT_TRUE(built.build(0, positions).ok()) << name;
        stepped.append(lengths({positions}));
        ASSERT_TRUE(built.codes(0, positions) == stepped.codes(0, positions)) << name;
        ASSERT_TRUE(built.next(lengths({positions + 1})) == stepped.next(lengths({positions + 1})))
            << name;
        ASSERT_EQ(built.error(), "") << name;
        ASSERT_EQ(stepped.error(), "") << name;
      }
    }
  }
}

TEST_P(BulkEncode, OfManyTilesGivesTheBytesThatStepsGive) {
  many_tiles_give_the_bytes_that_steps_give(GetParam(), 1300);
}

// More than a hundred thousand positions: for a GPU alone.
class LargeBulkEncode : public BackendTest {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(LargeBulkEncode);

TEST_P(LargeBulkEncode, OfManyTilesGivesTheBytesThatStepsGive) {
  many_tiles_give_the_bytes_that_steps_give(GetParam(), 150000);
}

QUARRY_ON_EVERY_ALGORITHM(Build);
QUARRY_ON_EVERY_BACKEND(BulkEncode);
INSTANTIATE_TEST_SUITE_P(Cuda, LargeBulkEncode, testing::ValuesIn(cuda_backend_if_present()),
                         [](const auto& i) { return std::string(to_string(i.param)); });

}  // namespace
}  // namespace quarry::test
