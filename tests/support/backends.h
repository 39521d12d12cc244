// SPDX-License-Identifier: Apache-2.0
//
// Runs a suite of TEST_P tests on every backend; ctest's `gpu` entries count the CUDA ones.
#pragma once

#include <gtest/gtest.h>

#include "device.h"

namespace quarry::test {

/// A test whose parameter is the backend alone.
class BackendTest : public testing::TestWithParam<Backend> {};

/// A test of lists, which must be the same whichever algorithm makes them.
class AlgorithmTest : public testing::TestWithParam<Target> {};

}  // namespace quarry::test

#define QUARRY_ON_EVERY_BACKEND(suite)                                                 \
  INSTANTIATE_TEST_SUITE_P(Cpu, suite, testing::ValuesIn(quarry::test::cpu_backend()), \
                           [](const auto& i) { return quarry::to_string(i.param); });  \
  INSTANTIATE_TEST_SUITE_P(Cuda, suite,                                                \
                           testing::ValuesIn(quarry::test::cuda_backend_if_present()), \
                           [](const auto& i) { return quarry::to_string(i.param); })

/// The same on every algorithm that a backend has.
#define QUARRY_ON_EVERY_ALGORITHM(suite)                                                          \
  INSTANTIATE_TEST_SUITE_P(Cpu, suite,                                                            \
                           testing::ValuesIn(quarry::test::targets(quarry::test::cpu_backend())), \
                           [](const auto& i) { return quarry::test::to_string(i.param); });       \
  INSTANTIATE_TEST_SUITE_P(                                                                       \
      Cuda, suite,                                                                                \
      testing::ValuesIn(quarry::test::targets(quarry::test::cuda_backend_if_present())),          \
      [](const auto& i) { return quarry::test::to_string(i.param); })
