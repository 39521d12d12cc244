// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <vector>

namespace quarry::emulator::test {

#define EXPECT_OK(call) EXPECT_EQ(call, cudaSuccess)

/// Device memory of `count` ints.
class Ints {
 public:
  explicit Ints(int count) : count_(count) {
    void* memory = nullptr;
    EXPECT_OK(cudaMalloc(&memory, bytes()));
    data_ = static_cast<int*>(memory);
  }
  ~Ints() { EXPECT_OK(cudaFree(data_)); }
  Ints(const Ints&) = delete;
  Ints& operator=(const Ints&) = delete;

  int* data() const { return data_; }
  int count() const { return count_; }
  std::size_t bytes() const { return static_cast<std::size_t>(count_) * sizeof(int); }
  void set(const std::vector<int>& values) {
    EXPECT_OK(cudaMemcpy(data_, values.data(), bytes(), cudaMemcpyHostToDevice));
  }
  std::vector<int> get() const {
    std::vector<int> values(static_cast<std::size_t>(count_));
    EXPECT_OK(cudaMemcpy(values.data(), data_, bytes(), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  int* data_ = nullptr;
  int count_;
};

/// A blocking stream, so that a synchronous copy waits for it.
class Stream {
 public:
  explicit Stream(unsigned flags = cudaStreamDefault) {
    EXPECT_OK(cudaStreamCreateWithFlags(&stream_, flags));
  }
  ~Stream() { EXPECT_OK(cudaStreamDestroy(stream_)); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }  // NOLINT: a handle's owner

 private:
  cudaStream_t stream_ = nullptr;
};

/// increment_kernel() over all of `ints`.
cudaError_t increment(const Ints& ints, cudaStream_t stream);

}  // namespace quarry::emulator::test
