// SPDX-License-Identifier: Apache-2.0
//
// What the cuda backend alone promises. Built where the build holds it.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include "support/backends.h"
#include "support/scenario.h"

namespace quarry::test {
namespace {

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CudaPromises);

class CudaPromises : public AlgorithmTest {
 protected:
  Scenario scenario() const {
    Scenario s;
    s.config = small_config();
    s.on(GetParam());
    s.config.block_size = 16;
    s.config.refine_factor = 2;
    s.weights = s.dense_weights = true;
    return s;
  }
};

TEST_P(CudaPromises, EarlierErrorsAreNeitherSwallowedNorBlamedOnUs) {
  World world(scenario());
  world.set_codebook(-1);
  // An error that does not stick to the context, of a call before ours.
  const cudaError_t earlier = cudaSetDevice(1 << 20);
  ASSERT_NE(earlier, cudaSuccess);
  world.next(lengths({200}));
  EXPECT_EQ(world.error(), "");
  EXPECT_EQ(cudaGetLastError(), earlier);
}

TEST_P(CudaPromises, StreamsAndThreadsOfOneDeviceDoNotMix) {
  Scenario s = scenario();
  World a(s);
  s.seed = 2;
  World b(s);
  a.set_codebook(-1);
  b.set_codebook(-1);
  for (int n = 200; n < 220; ++n) {
    a.next(lengths({n}));
    b.next(lengths({n + 100}));
  }
  EXPECT_EQ(a.error(), "");
  EXPECT_EQ(b.error(), "");
}

TEST_P(CudaPromises, NextOnlyUsesTheCallersStream) {
  // Work of the default stream would end this capture with an error, and so would an
  // allocation or a synchronization.
  Scenario s = scenario();
  s.mode = LaunchMode::graph;
  World world(s);
  world.set_codebook(-1);
  world.append(lengths({150}));
  world.next(lengths({200}));
  EXPECT_EQ(world.error(), "");
}

TEST_P(CudaPromises, ACpuTwinGivesTheSameBytesOnIntegers) {
  for (const Metric metric : {Metric::euclidean, Metric::inner_product}) {
    Scenario s = scenario();
    s.config.block_size = 0;
    s.config.metric = metric;
    s.keys = s.queries = s.centroids = Values::integers;
    World gpu(s);
    s.on({Backend::cpu, Algorithm::staged});
    World cpu(s);
    gpu.set_codebook(-1);
    cpu.set_codebook(-1);
    for (const int n : {100, 101, 333, 600}) {
      EXPECT_TRUE(gpu.next(lengths({n})) == cpu.next(lengths({n}))) << n;
      EXPECT_TRUE(gpu.codes(0, n) == cpu.codes(0, n)) << n;
    }
    EXPECT_EQ(gpu.error(), "");
    EXPECT_EQ(cpu.error(), "");
  }
}

INSTANTIATE_TEST_SUITE_P(Cuda, CudaPromises, testing::ValuesIn(targets(cuda_backend_if_present())),
                         [](const auto& i) { return to_string(i.param); });

}  // namespace
}  // namespace quarry::test
