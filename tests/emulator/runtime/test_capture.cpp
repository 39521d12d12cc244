// SPDX-License-Identifier: Apache-2.0
#include <thread>

#include "test_kernels.h"
#include "test_support.h"

namespace quarry::emulator::test {
namespace {

constexpr auto kThreadLocal = cudaStreamCaptureModeThreadLocal;

TEST(EmulatedCapture, IsRecordedAndReplayedOverChangedMemory) {
  Ints a(3), b(3);
  a.set({1, 2, 3});
  b.set({0, 0, 0});
  const Stream stream(cudaStreamNonBlocking);
  EXPECT_OK(cudaStreamBeginCapture(stream, kThreadLocal));
  EXPECT_OK(increment(a, stream));
  EXPECT_OK(cudaMemcpyAsync(b.data(), a.data(), 8, cudaMemcpyDeviceToDevice, stream));
  EXPECT_OK(cudaMemsetAsync(a.data(), 0, 4, stream));
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  EXPECT_OK(cudaStreamEndCapture(stream, &graph));
  EXPECT_OK(cudaGraphInstantiate(&exec, graph, 0));
  EXPECT_OK(cudaGraphDestroy(graph));
  EXPECT_EQ(a.get(), (std::vector<int>{1, 2, 3}));  // nothing ran
  EXPECT_OK(cudaGraphLaunch(exec, stream));
  EXPECT_OK(cudaStreamSynchronize(stream));
  EXPECT_EQ(a.get(), (std::vector<int>{0, 3, 4}));
  EXPECT_EQ(b.get(), (std::vector<int>{2, 3, 0}));
  a.set({10, 20, 30});
  EXPECT_OK(cudaGraphLaunch(exec, stream));
  EXPECT_OK(cudaStreamSynchronize(stream));
  EXPECT_EQ(a.get(), (std::vector<int>{0, 21, 31}));
  EXPECT_EQ(b.get(), (std::vector<int>{11, 21, 0}));
  EXPECT_OK(cudaGraphExecDestroy(exec));
}

TEST(EmulatedCapture, ArgumentsAreThoseOfTheCapture) {
  const Ints ints(2);
  const Stream stream;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  Fill fill{ints.data(), 2, 1, {}};
  EXPECT_OK(cudaStreamBeginCapture(stream, kThreadLocal));
  EXPECT_OK(launch_fill(fill, 7, 1, 32, stream));
  fill = {nullptr, 0, 0, {}};
  EXPECT_OK(cudaStreamEndCapture(stream, &graph));
  EXPECT_OK(cudaGraphInstantiate(&exec, graph, 0));
  EXPECT_OK(cudaGraphDestroy(graph));
  EXPECT_OK(cudaGraphLaunch(exec, stream));
  EXPECT_EQ(ints.get(), (std::vector<int>{7, 8}));
  EXPECT_OK(cudaGraphExecDestroy(exec));
}

/// Captures `violation` and expects that it is refused and the capture lost.
template <typename Violation>
void expect_refused(cudaStreamCaptureMode mode, Violation&& violation) {
  const Stream stream(cudaStreamNonBlocking);
  EXPECT_OK(cudaStreamBeginCapture(stream, mode));
  EXPECT_EQ(violation(stream), cudaErrorStreamCaptureUnsupported);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  EXPECT_OK(cudaStreamIsCapturing(stream, &status));
  EXPECT_EQ(status, cudaStreamCaptureStatusInvalidated);
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
  EXPECT_EQ(graph, nullptr);
  static_cast<void>(cudaGetLastError());
}

TEST(EmulatedCapture, WhatMayNotBeCapturedIsRefused) {
  Ints ints(1);
  void* memory = nullptr;
  int host = 0;
  const auto refused = [&](auto&& violation) { expect_refused(kThreadLocal, violation); };
  refused([&](cudaStream_t) { return cudaMalloc(&memory, 8); });
  refused([&](cudaStream_t) { return cudaMallocManaged(&memory, 8); });
  refused([&](cudaStream_t) { return cudaFree(ints.data()); });
  refused([&](cudaStream_t s) { return cudaStreamSynchronize(s); });
  refused([&](cudaStream_t) { return cudaDeviceSynchronize(); });
  refused([&](cudaStream_t) { return cudaMemset(ints.data(), 0, 4); });
  refused([&](cudaStream_t) { return cudaMemcpy(&host, ints.data(), 4, cudaMemcpyDeviceToHost); });
}

TEST(EmulatedCapture, OtherThreadsAreHeldToItsMode) {
  const auto allocate = [](cudaStream_t) {
    cudaError_t error = cudaSuccess;
    std::thread([&] {
      void* memory = nullptr;
      error = cudaMalloc(&memory, 8);
      if (error == cudaSuccess) error = cudaFree(memory);
    }).join();
    return error;
  };
  expect_refused(cudaStreamCaptureModeGlobal, allocate);
  const Stream stream;
  EXPECT_OK(cudaStreamBeginCapture(stream, kThreadLocal));
  EXPECT_OK(allocate(stream));
  cudaGraph_t graph = nullptr;
  std::thread([&] {
    EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureWrongThread);
  }).join();
  EXPECT_OK(cudaStreamEndCapture(stream, &graph));
  EXPECT_OK(cudaGraphDestroy(graph));
}

TEST(EmulatedCapture, TheLegacyStreamHasNoPartInIt) {
  const Ints ints(1);
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamBeginCapture(nullptr, kThreadLocal), cudaErrorStreamCaptureUnsupported);
  EXPECT_EQ(cudaStreamEndCapture(nullptr, &graph), cudaErrorIllegalState);
  const Stream blocking;
  EXPECT_OK(cudaStreamBeginCapture(blocking, kThreadLocal));
  EXPECT_EQ(cudaStreamBeginCapture(blocking, kThreadLocal), cudaErrorIllegalState);
  EXPECT_EQ(increment(ints, nullptr), cudaErrorStreamCaptureImplicit);
  EXPECT_EQ(cudaStreamEndCapture(blocking, &graph), cudaErrorStreamCaptureInvalidated);
  static_cast<void>(cudaGetLastError());
}

}  // namespace
}  // namespace quarry::emulator::test
