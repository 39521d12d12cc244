// SPDX-License-Identifier: Apache-2.0
#include <csignal>
#include <cstdlib>
#include <cstring>

#include "test_support.h"

namespace quarry::emulator::test {
namespace {

TEST(EmulatedMemory, NewMemoryIsPoisoned) {
  const Ints ints(1000);
  for (const int value : ints.get()) ASSERT_EQ(static_cast<unsigned>(value), 0xa5a5a5a5u);
}

TEST(EmulatedMemory, CopiesGoThereAndBack) {
  Ints a(3), b(3);
  a.set({1, 2, 3});
  EXPECT_OK(cudaMemcpy(b.data(), a.data(), a.bytes(), cudaMemcpyDeviceToDevice));
  EXPECT_EQ(b.get(), (std::vector<int>{1, 2, 3}));
  EXPECT_OK(cudaMemset(b.data() + 1, 0, sizeof(int)));
  EXPECT_EQ(b.get(), (std::vector<int>{1, 0, 3}));
}

TEST(EmulatedMemory, CopiesBeyondAnAllocationAreRefused) {
  const Ints ints(3);
  int host[4] = {};
  EXPECT_EQ(cudaMemcpy(ints.data(), host, 16, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(host, ints.data() + 1, 12, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(ints.data() + 3, 0, 1), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(host, 0, 1), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
}

TEST(EmulatedMemory, TheSidesOfACopyAreChecked) {
  const Ints ints(1);
  int host = 0;
  EXPECT_EQ(cudaMemcpy(ints.data(), &host, 4, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(&host, ints.data(), 4, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_OK(cudaMemcpy(ints.data(), &host, 4, cudaMemcpyDefault));
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
}

TEST(EmulatedMemory, FreedMemoryIsNoLongerDeviceMemory) {
  void* memory = nullptr;
  EXPECT_OK(cudaMalloc(&memory, 64));
  EXPECT_EQ(cudaFree(static_cast<char*>(memory) + 8), cudaErrorInvalidValue);
  EXPECT_OK(cudaFree(memory));
  EXPECT_EQ(cudaFree(memory), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemset(memory, 0, 1), cudaErrorInvalidValue);
  EXPECT_OK(cudaFree(nullptr));
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
}

TEST(EmulatedMemory, MoreThanThereIsCannotBeAllocated) {
  std::size_t free = 0, total = 0, after = 0;
  EXPECT_OK(cudaMemGetInfo(&free, &total));
  EXPECT_LE(free, total);
  void* memory = &free;
  EXPECT_EQ(cudaMalloc(&memory, free + 1), cudaErrorMemoryAllocation);
  EXPECT_EQ(memory, nullptr);
  EXPECT_EQ(cudaMalloc(&memory, ~std::size_t{0}), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  {
    const Ints ints(1 << 20);
    EXPECT_OK(cudaMemGetInfo(&after, &total));
    EXPECT_EQ(free - after, ints.bytes());
  }
  EXPECT_OK(cudaMemGetInfo(&after, &total));
  EXPECT_EQ(free, after);
}

TEST(EmulatedMemory, ManagedMemoryIsTheHostsToo) {
  void* memory = nullptr;
  EXPECT_OK(cudaMallocManaged(&memory, 8));
  std::memset(memory, 7, 8);
  unsigned char copy[8];
  EXPECT_OK(cudaMemcpy(copy, memory, 8, cudaMemcpyDeviceToHost));
  EXPECT_EQ(copy[7], 7);
  EXPECT_OK(cudaFree(memory));
}

TEST(EmulatedMemoryDeathTest, HostCodeCannotTouchDeviceMemory) {
  const Ints ints(4);
  volatile int* pointer = ints.data();
  EXPECT_EXIT(std::exit(*pointer), testing::KilledBySignal(SIGSEGV), "");
  EXPECT_EXIT(*pointer = 1, testing::KilledBySignal(SIGSEGV), "");
}

}  // namespace
}  // namespace quarry::emulator::test
