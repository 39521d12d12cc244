// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>

#include "test_kernels.h"
#include "test_support.h"

namespace quarry::emulator::test {

cudaError_t increment(const Ints& ints, cudaStream_t stream) {
  int* data = ints.data();
  int count = ints.count();
  void* arguments[] = {&data, &count};
  return cudaLaunchKernel(increment_kernel(), dim3(static_cast<unsigned>(count + 31) / 32),
                          dim3(32), arguments, 0, stream);
}

namespace {

int compute_capability() {
  int major = 0;
  EXPECT_OK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  return major * 10;
}

cudaError_t launch_with(cudaLaunchAttribute attribute, unsigned blocks, const Ints& ints) {
  Fill fill{ints.data(), ints.count(), 1, {}};
  int first = 0;
  void* arguments[] = {&fill, &first};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(32);
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelExC(&config, fill_kernel(), arguments);
}

cudaLaunchAttribute cluster_of(unsigned blocks) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = blocks;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  return attribute;
}

TEST(EmulatedDevice, IsOne) {
  int count = 0, device = -1, warp = 0;
  EXPECT_OK(cudaGetDeviceCount(&count));
  EXPECT_EQ(count, 1);
  EXPECT_OK(cudaGetDevice(&device));
  EXPECT_EQ(device, 0);
  EXPECT_OK(cudaDeviceGetAttribute(&warp, cudaDevAttrWarpSize, 0));
  EXPECT_EQ(warp, 32);
  EXPECT_EQ(cudaDeviceGetAttribute(&warp, cudaDevAttrWarpSize, 1), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidDevice);
  const char* asked = std::getenv("QUARRY_EMULATED_CC");
  EXPECT_EQ(compute_capability(), asked != nullptr ? std::atoi(asked) : 90);
}

TEST(EmulatedErrors, GetClearsAndPeekDoesNot) {
  EXPECT_EQ(cudaSetDevice(7), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaPeekAtLastError(), cudaErrorInvalidDevice);
  EXPECT_OK(cudaSetDevice(0));
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_STREQ(cudaGetErrorName(cudaErrorInvalidDevice), "cudaErrorInvalidDevice");
}

TEST(EmulatedLaunch, ArgumentsArriveByTripleBrackets) {
  const Ints ints(70);
  EXPECT_OK(launch_fill({ints.data(), 70, 3, {}}, 5, 3, 32, nullptr));
  const std::vector<int> got = ints.get();
  for (int i = 0; i < 70; ++i) ASSERT_EQ(got[static_cast<std::size_t>(i)], 5 + 3 * i);
}

TEST(EmulatedLaunch, StaticSharedMemoryIsKnown) {
  cudaFuncAttributes attributes;
  EXPECT_OK(cudaFuncGetAttributes(&attributes, shared_kernel()));
  EXPECT_EQ(attributes.sharedSizeBytes, 40000u);
  Ints ints(3);
  ints.set({1, 2, 3});
  int* data = ints.data();
  void* arguments[] = {&data};
  EXPECT_OK(cudaLaunchKernel(shared_kernel(), dim3(1), dim3(3), arguments, 0, nullptr));
  EXPECT_EQ(ints.get(), (std::vector<int>{3, 2, 1}));
  // 40,000 and 10,000 bytes are more than the 48 KB that need no asking.
  EXPECT_EQ(cudaLaunchKernel(shared_kernel(), dim3(1), dim3(3), arguments, 10000, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
}

TEST(EmulatedLaunch, LargeSharedMemoryMustBeAskedFor) {
  const Ints ints(1);
  const Fill fill{ints.data(), 1, 1, {}};
  constexpr unsigned kMuch = 100 * 1024;
  cudaFuncAttributes before;
  EXPECT_OK(cudaFuncGetAttributes(&before, fill_kernel()));
  EXPECT_EQ(before.maxDynamicSharedSizeBytes, 48 * 1024);
  EXPECT_EQ(launch_fill(fill, 0, 1, 32, nullptr, kMuch), cudaErrorInvalidValue);
  int most = 0;
  EXPECT_OK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
  const auto which = cudaFuncAttributeMaxDynamicSharedMemorySize;
  EXPECT_EQ(cudaFuncSetAttribute(fill_kernel(), which, most + 1), cudaErrorInvalidValue);
  EXPECT_OK(cudaFuncSetAttribute(fill_kernel(), which, kMuch));
  static_cast<void>(cudaGetLastError());
  EXPECT_OK(launch_fill(fill, 0, 1, 32, nullptr, kMuch));
  EXPECT_EQ(launch_fill(fill, 0, 1, 32, nullptr, kMuch + 1), cudaErrorInvalidValue);
  EXPECT_OK(cudaFuncSetAttribute(fill_kernel(), which, before.maxDynamicSharedSizeBytes));
}

TEST(EmulatedLaunch, BadShapesAreRefused) {
  const Ints ints(1);
  const Fill fill{ints.data(), 1, 1, {}};
  EXPECT_EQ(launch_fill(fill, 0, 0, 32, nullptr), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch_fill(fill, 0, 1, 0, nullptr), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch_fill(fill, 0, 1, 1025, nullptr), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch_fill(fill, 0, 0x80000000u, 32, nullptr), cudaErrorInvalidConfiguration);
  int* data = ints.data();
  void* arguments[] = {&data};
  EXPECT_EQ(cudaLaunchKernel(bounded_kernel(), dim3(1), dim3(65), arguments, 0, nullptr),
            cudaErrorLaunchOutOfResources);
  EXPECT_EQ(cudaLaunchKernel(&data, dim3(1), dim3(1), arguments, 0, nullptr),
            cudaErrorInvalidDeviceFunction);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidDeviceFunction);
}

TEST(EmulatedLaunch, ClustersNeedCapability90) {
  const Ints ints(256);
  cudaLaunchAttribute serial{};
  serial.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  serial.val.programmaticStreamSerializationAllowed = 1;
  const bool hopper = compute_capability() >= 90;
  EXPECT_EQ(launch_with(cluster_of(4), 8, ints), hopper ? cudaSuccess : cudaErrorNotSupported);
  EXPECT_EQ(launch_with(serial, 8, ints), hopper ? cudaSuccess : cudaErrorNotSupported);
  if (hopper) {
    EXPECT_EQ(ints.get()[255], 255);
    EXPECT_EQ(launch_with(cluster_of(4), 6, ints), cudaErrorInvalidClusterSize);
    EXPECT_EQ(launch_with(cluster_of(16), 16, ints), cudaErrorInvalidClusterSize);
  }
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  EXPECT_EQ(launch_with(cooperative, 1, ints), cudaErrorNotSupported);
  EXPECT_EQ(cudaGetLastError(), cudaErrorNotSupported);
}

/// Exits with 0 where a trap is reported by a later synchronization at the latest, and by every
/// call from then on.
[[noreturn]] void trap_and_go_on() {
  static_cast<void>(cudaLaunchKernel(trap_kernel(), dim3(1), dim3(1), nullptr, 0, nullptr));
  int device = 0;
  const bool found = cudaDeviceSynchronize() == cudaErrorLaunchFailure &&
                     cudaGetLastError() == cudaErrorLaunchFailure &&
                     cudaGetLastError() == cudaErrorLaunchFailure &&
                     cudaGetDevice(&device) == cudaErrorLaunchFailure;
  std::exit(found ? 0 : 1);
}

TEST(EmulatedLaunchDeathTest, AFailedKernelsErrorStays) {
  EXPECT_EXIT(trap_and_go_on(), testing::ExitedWithCode(0), "trap_always.*grid 1x1x1.*trap");
}

}  // namespace
}  // namespace quarry::emulator::test
