// SPDX-License-Identifier: Apache-2.0
//
// main() of the test programs. Without an argument of ours, the tests of the CPU backend;
// with --gpu those of the CUDA backend alone, which say loudly where they could not run.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "quarry/quarry.h"

namespace {

constexpr int kDidNotRun = 77;  // SKIP_RETURN_CODE of the ctest entries

}  // namespace

int main(int argc, char** argv) {
  // The same random cases every time; RC_PARAMS in the environment asks for others.
  setenv("RC_PARAMS", "seed=20240607 max_success=60", 0);
  bool gpu = false;
  for (int i = 1; i < argc; ++i) gpu = gpu || std::strcmp(argv[i], "--gpu") == 0;
  if (gpu && !quarry::backend_available(quarry::Backend::cuda)) {
    std::fprintf(stderr, "\n*** GPU TESTS DID NOT RUN: %s ***\n\n",
                 QUARRY_HAS_CUDA ? "no CUDA device is present"
                                 : "this build does not hold the cuda backend");
    return kDidNotRun;
  }
  testing::InitGoogleTest(&argc, argv);
  if (gpu) testing::GTEST_FLAG(filter) = "Cuda/*";
  const int result = RUN_ALL_TESTS();
  if (testing::UnitTest::GetInstance()->test_to_run_count() == 0) {
    std::fprintf(stderr, "\n*** NO TEST RAN: the filter matches none ***\n\n");
    return 1;
  }
  return result;
}
