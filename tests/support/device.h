// SPDX-License-Identifier: Apache-2.0
//
// A backend as a test parameter: memory the backend's device reads and writes, with guard
// zones around it, and a stream.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "quarry/quarry.h"

namespace quarry::test {

/// For INSTANTIATE_TEST_SUITE_P(Cpu, ...) and (Cuda, ...). The second is empty where no
/// device is; the `gpu` entries of ctest say so (see main.cpp).
std::vector<Backend> cpu_backend();
std::vector<Backend> cuda_backend_if_present();

/// What makes a list.
struct Target {
  Backend backend = Backend::cpu;
  Algorithm algorithm = Algorithm::staged;
};
std::string to_string(const Target& target);

/// False where the backend has `staged` alone.
bool has_scan(Backend backend);
/// Each backend with each algorithm that it has.
std::vector<Target> targets(const std::vector<Backend>& backends);

/// Bytes of device memory between two guard zones. The destructor fails the running test
/// if a guard was written to; under ASan the guards of host memory cannot be read either.
class DeviceBytes {
 public:
  /// `misalign` moves the first byte off the 256-byte boundary.
  DeviceBytes(Backend backend, std::size_t bytes, std::size_t misalign = 0);
  ~DeviceBytes();
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  void fill(std::uint8_t value);
  void upload(const void* from, std::size_t bytes);
  void download(void* to, std::size_t bytes) const;
  /// Empty while both guards hold what they were filled with.
  std::string guard_damage() const;

 private:
  void set_access(bool allowed) const;
  void copy_in(std::uint8_t* to, const void* from, std::size_t bytes);
  void copy_out(void* to, const std::uint8_t* from, std::size_t bytes) const;

  Backend backend_;
  std::size_t bytes_, front_, total_;
  std::uint8_t* base_ = nullptr;
  std::uint8_t* data_ = nullptr;
};

template <class T>
class DeviceBuffer {
 public:
  DeviceBuffer(Backend backend, std::size_t count, std::size_t misalign_elements = 0)
      : memory_(backend, count * sizeof(T), misalign_elements * sizeof(T)), count_(count) {}
  DeviceBuffer(Backend backend, const std::vector<T>& values)
      : DeviceBuffer(backend, values.size()) {
    upload(values);
  }

  T* data() const { return static_cast<T*>(memory_.data()); }
  std::size_t size() const { return count_; }
  void fill(std::uint8_t byte) { memory_.fill(byte); }
  void upload(const std::vector<T>& values) {
    memory_.upload(values.data(), values.size() * sizeof(T));
  }
  std::vector<T> download() const {
    std::vector<T> values(count_);
    memory_.download(values.data(), count_ * sizeof(T));
    return values;
  }
  std::string guard_damage() const { return memory_.guard_damage(); }

 private:
  DeviceBytes memory_;
  std::size_t count_;
};

/// A stream of its own; null on the CPU.
class StreamHandle {
 public:
  explicit StreamHandle(Backend backend);
  ~StreamHandle();
  StreamHandle(const StreamHandle&) = delete;
  StreamHandle& operator=(const StreamHandle&) = delete;

  Stream get() const { return stream_; }
  /// Fails the running test if the device reports an error.
  void synchronize() const;

 private:
  [[maybe_unused]] Backend backend_;  // read where the build holds the cuda backend
  Stream stream_ = nullptr;
};

/// A captured CUDA graph; on the CPU there are none.
class Graph {
 public:
  Graph() = default;
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void begin(Stream stream);
  void end(Stream stream);
  void launch(Stream stream) const;

 private:
  [[maybe_unused]] void* exec_ = nullptr;
};

}  // namespace quarry::test
