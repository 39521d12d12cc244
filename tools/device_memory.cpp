// SPDX-License-Identifier: Apache-2.0
#include "device_memory.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#include "error.h"

#if QUARRY_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

namespace quarry::tools {
namespace {

constexpr std::size_t kAlignment = 256;

#if QUARRY_HAS_CUDA
void require(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  throw Error(kExitInternal, std::string(what) + ": " + cudaGetErrorString(result));
}
#endif

}  // namespace

DeviceQueue::DeviceQueue(const Device& device) : backend_(device.backend) {
#if QUARRY_HAS_CUDA
  if (backend_ == Backend::cuda) {
    require(cudaSetDevice(device.ordinal), "cudaSetDevice");
    require(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  }
#endif
}

DeviceQueue::~DeviceQueue() {
#if QUARRY_HAS_CUDA
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
#endif
}

void DeviceQueue::synchronize() {
#if QUARRY_HAS_CUDA
  if (backend_ == Backend::cuda) require(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
#endif
}

DeviceMemory::DeviceMemory(DeviceQueue& queue, std::size_t bytes) : queue_(&queue), bytes_(bytes) {
  const std::size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (rounded == 0) return;
#if QUARRY_HAS_CUDA
  if (queue.backend() == Backend::cuda) {
    require(cudaMalloc(&data_, rounded), "cudaMalloc");
    require(cudaMemsetAsync(data_, 0xff, rounded, queue.stream()), "cudaMemset");
    queue.synchronize();
    return;
  }
#endif
  data_ = std::aligned_alloc(kAlignment, rounded);
  if (data_ == nullptr) throw std::bad_alloc();
  std::memset(data_, 0xff, rounded);
}

DeviceMemory::~DeviceMemory() {
  if (data_ == nullptr) return;
#if QUARRY_HAS_CUDA
  if (queue_->backend() == Backend::cuda) {
    cudaFree(data_);
    return;
  }
#endif
  std::free(data_);
}

void DeviceMemory::upload(const void* source, std::size_t bytes, std::size_t offset) {
  if (bytes == 0) return;
#if QUARRY_HAS_CUDA
  if (queue_->backend() == Backend::cuda) {
    require(cudaMemcpyAsync(as<std::byte>() + offset, source, bytes, cudaMemcpyHostToDevice,
                            queue_->stream()),
            "cudaMemcpy to the device");
    queue_->synchronize();
    return;
  }
#endif
  std::memcpy(as<std::byte>() + offset, source, bytes);
}

void DeviceMemory::download(void* target, std::size_t bytes, std::size_t offset) const {
  if (bytes == 0) return;
#if QUARRY_HAS_CUDA
  if (queue_->backend() == Backend::cuda) {
    require(cudaMemcpyAsync(target, as<std::byte>() + offset, bytes, cudaMemcpyDeviceToHost,
                            queue_->stream()),
            "cudaMemcpy from the device");
    queue_->synchronize();
    return;
  }
#endif
  std::memcpy(target, as<std::byte>() + offset, bytes);
}

}  // namespace quarry::tools
