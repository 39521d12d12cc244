// SPDX-License-Identifier: Apache-2.0
//
// What the runtime hands to the interpreter, by the double's recording.
#include <algorithm>
#include <cstdlib>

#include "test_double.h"
#include "test_kernels.h"
#include "test_support.h"

extern "C" {
void** __cudaRegisterFatBinary(void* wrapper);
void __cudaRegisterFunction(void** image, const char* function, char* device_function,
                            const char* name, int thread_limit, uint3* tid, uint3* bid, dim3* block,
                            dim3* grid, int* warp_size);
}

namespace quarry::emulator::test {
namespace {

const Memory* registered(const void* begin) {
  const auto& live = recording().live;
  const auto i = std::find_if(live.begin(), live.end(), [&](auto& m) { return m.begin == begin; });
  return i != live.end() ? &*i : nullptr;
}

TEST(EmulatedModule, IsReadOnceAndIsThePtxOfTheDevice) {
  const Ints ints(1);
  EXPECT_OK(launch_fill({ints.data(), 1, 1, {}}, 0, 1, 32, nullptr));
  EXPECT_OK(increment(ints, nullptr));
  EXPECT_OK(cudaDeviceSynchronize());
  ASSERT_EQ(recording().modules.size(), 1u);
  const char* asked = std::getenv("QUARRY_EMULATED_CC");
  const std::string target = std::string(".target sm_") + (asked != nullptr ? asked : "90");
  EXPECT_NE(recording().modules[0].find(target), std::string::npos);
}

TEST(EmulatedModule, AnUnreadableOneIsAnErrorOfEveryLaunch) {
  static struct {
    unsigned magic = 0x12345678, version = 1;
    const void* data = nullptr;
    void* unused = nullptr;
  } wrapper;
  static char function;
  void** image = __cudaRegisterFatBinary(&wrapper);
  __cudaRegisterFunction(image, &function, &function, "lost", -1, nullptr, nullptr, nullptr,
                         nullptr, nullptr);
  for (int i = 0; i < 2; ++i) {
    testing::internal::CaptureStderr();
    EXPECT_EQ(cudaLaunchKernel(&function, dim3(1), dim3(1), nullptr, 0, nullptr),
              cudaErrorInvalidKernelImage);
    const std::string said = testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find("lost: the fat binary that nvcc embedded: its wrapper begins with "
                        "0x12345678"),
              std::string::npos)
        << said;
  }
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidKernelImage);
}

TEST(EmulatedLaunch, ShapesArriveAsTheyWereGiven) {
  const Ints ints(1);
  EXPECT_OK(launch_fill({ints.data(), 1, 1, {}}, 0, 5, 96, nullptr, 1000));
  EXPECT_OK(cudaDeviceSynchronize());
  const Seen& seen = recording().launches.back();
  EXPECT_NE(seen.kernel.find("fill_with"), std::string::npos);
  EXPECT_EQ(seen.launch.grid.x, 5u);
  EXPECT_EQ(seen.launch.block.x, 96u);
  EXPECT_EQ(seen.launch.cluster.x, 1u);
  EXPECT_EQ(seen.launch.dynamic_shared, 1000u);
}

TEST(EmulatedLaunch, ClustersArrive) {
  const char* asked = std::getenv("QUARRY_EMULATED_CC");
  if (asked != nullptr && std::string(asked) == "80") GTEST_SKIP() << "no clusters";
  const Ints ints(1);
  Fill fill{ints.data(), 1, 1, {}};
  int first = 0;
  void* arguments[] = {&fill, &first};
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = 2;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(4);
  config.blockDim = dim3(32);
  config.attrs = &attribute;
  config.numAttrs = 1;
  EXPECT_OK(cudaLaunchKernelExC(&config, fill_kernel(), arguments));
  EXPECT_OK(cudaDeviceSynchronize());
  EXPECT_EQ(recording().launches.back().launch.cluster.x, 2u);
  EXPECT_EQ(recording().launches.back().launch.cluster.y, 1u);
}

TEST(EmulatedMemory, TheInterpreterKnowsWhatIsAliveAndWritten) {
  const void* gone = nullptr;
  {
    Ints ints(5);
    gone = ints.data();
    ASSERT_NE(registered(gone), nullptr);
    EXPECT_EQ(registered(gone)->bytes, 20u);
    EXPECT_FALSE(registered(gone)->initialised);
    EXPECT_OK(cudaMemset(ints.data() + 1, 0, 8));
    EXPECT_OK(cudaDeviceSynchronize());
    EXPECT_EQ(recording().written.back().begin, ints.data() + 1);
    EXPECT_EQ(recording().written.back().bytes, 8u);
    ints.set({1, 2, 3, 4, 5});
    EXPECT_EQ(recording().written.back().begin, ints.data());
    EXPECT_EQ(recording().written.back().bytes, 20u);
  }
  EXPECT_EQ(registered(gone), nullptr);
  void* managed = nullptr;
  EXPECT_OK(cudaMallocManaged(&managed, 5));
  EXPECT_TRUE(registered(managed)->initialised);
  EXPECT_OK(cudaFree(managed));
}

}  // namespace
}  // namespace quarry::emulator::test
