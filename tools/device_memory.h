// SPDX-License-Identifier: Apache-2.0
//
// Memory and a queue of the device an Indexer runs on, as an engine would hold them. The
// one place of the tools that knows CUDA.
#pragma once

#include <cstddef>
#include <utility>

#include "quarry/config.h"
#include "quarry/indexer.h"

namespace quarry::tools {

/// A stream of the device, null on the CPU. Throws Error (internal) on device errors.
class DeviceQueue {
 public:
  explicit DeviceQueue(const Device& device);
  ~DeviceQueue();
  DeviceQueue(const DeviceQueue&) = delete;
  DeviceQueue& operator=(const DeviceQueue&) = delete;

  Backend backend() const noexcept { return backend_; }
  Stream stream() const noexcept { return stream_; }
  /// Waits for everything on the stream; nothing to do on the CPU.
  void synchronize();

 private:
  Backend backend_;
  Stream stream_ = nullptr;
};

/// Bytes of device memory, aligned to 256. Copies are complete on return.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  /// Every byte is 0xff: NaN as a float of any width, -1 as an integer, so that what is
  /// read before it is written shows.
  DeviceMemory(DeviceQueue& queue, std::size_t bytes);
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept { swap(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    swap(other);
    return *this;
  }

  std::size_t size() const noexcept { return bytes_; }
  template <typename T>
  T* as() const noexcept {
    return static_cast<T*>(data_);
  }
  void upload(const void* source, std::size_t bytes, std::size_t offset = 0);
  void download(void* target, std::size_t bytes, std::size_t offset = 0) const;

 private:
  void swap(DeviceMemory& other) noexcept {
    std::swap(queue_, other.queue_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  DeviceQueue* queue_ = nullptr;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace quarry::tools
