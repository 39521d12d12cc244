// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <cstring>

#include "test_support.h"

namespace quarry::emulator::test {
namespace {

bool lazy() {
  const char* asked = std::getenv("QUARRY_EMULATOR_LAZY");
  return asked != nullptr && std::strcmp(asked, "0") != 0;
}

TEST(EmulatedStream, ANonBlockingStreamRunsAtItsSynchronizationOnly) {
  Ints ints(1);
  ints.set({1});
  const Stream stream(cudaStreamNonBlocking);
  EXPECT_OK(increment(ints, stream));
  // A host that did not synchronize reads, from the legacy stream, what lazy work did not write.
  EXPECT_EQ(ints.get()[0], lazy() ? 1 : 2);
  EXPECT_OK(cudaStreamSynchronize(stream));
  EXPECT_EQ(ints.get()[0], 2);
}

TEST(EmulatedStream, ABlockingStreamIsBeforeTheLegacyStreamsCopy) {
  Ints ints(1);
  ints.set({1});
  const Stream stream;
  EXPECT_OK(increment(ints, stream));
  EXPECT_EQ(ints.get()[0], 2);
}

TEST(EmulatedStream, AsynchronousCopiesAreInOrder) {
  Ints ints(2);
  const Stream stream(cudaStreamNonBlocking);
  int host[] = {5, 6};
  EXPECT_OK(cudaMemcpyAsync(ints.data(), host, 8, cudaMemcpyHostToDevice, stream));
  host[0] = host[1] = 0;  // pageable memory is free again
  EXPECT_OK(increment(ints, stream));
  EXPECT_OK(cudaMemcpyAsync(host, ints.data(), 8, cudaMemcpyDeviceToHost, stream));
  EXPECT_OK(cudaStreamSynchronize(stream));
  EXPECT_EQ(host[0], 6);
  EXPECT_EQ(host[1], 7);
}

TEST(EmulatedStream, EventsOrderStreams) {
  Ints ints(1);
  ints.set({1});
  int copy = 0;
  cudaEvent_t event = nullptr;
  EXPECT_OK(cudaEventCreate(&event));
  {
    const Stream first(cudaStreamNonBlocking), second(cudaStreamNonBlocking);
    EXPECT_OK(increment(ints, first));
    EXPECT_OK(cudaEventRecord(event, first));
    EXPECT_EQ(cudaEventQuery(event), lazy() ? cudaErrorNotReady : cudaSuccess);
    EXPECT_OK(cudaStreamWaitEvent(second, event, 0));
    EXPECT_OK(cudaMemcpyAsync(&copy, ints.data(), 4, cudaMemcpyDeviceToHost, second));
    EXPECT_EQ(copy, 2);
    EXPECT_OK(cudaEventQuery(event));
  }
  EXPECT_OK(cudaEventSynchronize(event));
  EXPECT_OK(cudaEventDestroy(event));
  EXPECT_OK(cudaPeekAtLastError());
}

TEST(EmulatedStream, ElapsedTimeNeedsTwoFinishedRecords) {
  cudaEvent_t start = nullptr, end = nullptr;
  EXPECT_OK(cudaEventCreate(&start));
  EXPECT_OK(cudaEventCreate(&end));
  float milliseconds = -1;
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, start, end), cudaErrorInvalidResourceHandle);
  const Stream stream(cudaStreamNonBlocking);
  EXPECT_OK(cudaEventRecord(start, stream));
  EXPECT_OK(cudaEventRecord(end, stream));
  EXPECT_OK(cudaEventSynchronize(end));
  EXPECT_OK(cudaEventElapsedTime(&milliseconds, start, end));
  EXPECT_GE(milliseconds, 0);
  EXPECT_OK(cudaEventDestroy(start));
  EXPECT_OK(cudaEventDestroy(end));
  EXPECT_EQ(cudaEventDestroy(end), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidResourceHandle);
}

TEST(EmulatedStream, FreeingWaitsForTheDevice) {
  Ints kept(1);
  kept.set({1});
  const Stream stream(cudaStreamNonBlocking);
  {
    Ints freed(1);
    freed.set({41});
    EXPECT_OK(increment(freed, stream));
    EXPECT_OK(cudaMemcpyAsync(kept.data(), freed.data(), 4, cudaMemcpyDeviceToDevice, stream));
  }
  EXPECT_EQ(kept.get()[0], 42);
}

TEST(EmulatedStream, DeadHandlesAreRefused) {
  cudaStream_t dead = nullptr;
  EXPECT_OK(cudaStreamCreate(&dead));
  EXPECT_OK(cudaStreamDestroy(dead));
  EXPECT_EQ(cudaStreamSynchronize(dead), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidResourceHandle);
}

}  // namespace
}  // namespace quarry::emulator::test
