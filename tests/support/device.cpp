// SPDX-License-Identifier: Apache-2.0
#include "device.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "backend.h"
#include "sanitizers.h"

#if QUARRY_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

#if QUARRY_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#endif

namespace quarry::test {
namespace {

constexpr std::size_t kGuard = 512;
constexpr std::uint8_t kGuardByte = 0xd3;

#if QUARRY_HAS_CUDA
void expect_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) ADD_FAILURE() << what << ": " << cudaGetErrorString(error);
}
#else
[[noreturn]] void no_cuda() {
  std::fputs("this test binary holds no cuda backend\n", stderr);
  std::abort();
}
#endif

}  // namespace

std::vector<Backend> cpu_backend() { return {Backend::cpu}; }

std::vector<Backend> cuda_backend_if_present() {
#if QUARRY_HAS_CUDA
  if (backend_available(Backend::cuda)) return {Backend::cuda};
#endif
  return {};
}

std::string to_string(const Target& target) {
  return std::string(quarry::to_string(target.backend)) + "_" + quarry::to_string(target.algorithm);
}

bool has_scan(Backend backend) { return stages_of(backend)->scan != nullptr; }

std::vector<Target> targets(const std::vector<Backend>& backends) {
  std::vector<Target> all;
  for (const Backend backend : backends) {
    all.push_back({backend, Algorithm::staged});
    if (has_scan(backend)) all.push_back({backend, Algorithm::scan});
  }
  return all;
}

DeviceBytes::DeviceBytes(Backend backend, std::size_t bytes, std::size_t misalign)
    : backend_(backend), bytes_(bytes), front_(kGuard + misalign), total_(front_ + bytes + kGuard) {
  if (backend == Backend::cpu) {
    base_ = static_cast<std::uint8_t*>(std::aligned_alloc(256, (total_ + 255) / 256 * 256));
  } else {
#if QUARRY_HAS_CUDA
    void* memory = nullptr;
    expect_cuda(cudaMalloc(&memory, total_), "cudaMalloc");
    base_ = static_cast<std::uint8_t*>(memory);
#else
    no_cuda();
#endif
  }
  data_ = base_ + front_;
  const std::vector<std::uint8_t> guard(kGuard + misalign, kGuardByte);
  copy_in(base_, guard.data(), front_);
  copy_in(data_ + bytes_, guard.data(), kGuard);
  set_access(false);
}

DeviceBytes::~DeviceBytes() {
  const std::string damage = guard_damage();
  if (!damage.empty()) ADD_FAILURE() << damage;
  set_access(true);
  if (backend_ == Backend::cpu) {
    std::free(base_);
  } else {
#if QUARRY_HAS_CUDA
    expect_cuda(cudaFree(base_), "cudaFree");
#endif
  }
}

void DeviceBytes::set_access([[maybe_unused]] bool allowed) const {
#if QUARRY_ADDRESS_SANITIZER
  if (backend_ != Backend::cpu) return;
  if (allowed) {
    __asan_unpoison_memory_region(base_, total_);
  } else {
    __asan_poison_memory_region(base_, front_);
    __asan_poison_memory_region(data_ + bytes_, total_ - front_ - bytes_);
    __asan_unpoison_memory_region(data_, bytes_);
  }
#endif
}

void DeviceBytes::fill(std::uint8_t value) {
  if (bytes_ == 0) return;
  if (backend_ == Backend::cpu) {
    std::memset(data_, value, bytes_);
  } else {
#if QUARRY_HAS_CUDA
    expect_cuda(cudaMemset(data_, value, bytes_), "cudaMemset");
    expect_cuda(cudaDeviceSynchronize(), "cudaMemset");
#endif
  }
}

void DeviceBytes::copy_in(std::uint8_t* to, const void* from, std::size_t bytes) {
  if (bytes == 0) return;
  if (backend_ == Backend::cpu) {
    std::memcpy(to, from, bytes);
  } else {
#if QUARRY_HAS_CUDA
    expect_cuda(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "upload");
    // The copy returns once the host's memory is staged, and the tests' streams do not wait for
    // the stream that carries it.
    expect_cuda(cudaDeviceSynchronize(), "upload");
#endif
  }
}

void DeviceBytes::copy_out(void* to, const std::uint8_t* from, std::size_t bytes) const {
  if (bytes == 0) return;
  if (backend_ == Backend::cpu) {
    std::memcpy(to, from, bytes);
  } else {
#if QUARRY_HAS_CUDA
    expect_cuda(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "download");
#endif
  }
}

void DeviceBytes::upload(const void* from, std::size_t bytes) {
  if (bytes > bytes_) {
    ADD_FAILURE() << "upload of " << bytes << " bytes into " << bytes_;
    return;
  }
  copy_in(data_, from, bytes);
}

void DeviceBytes::download(void* to, std::size_t bytes) const { copy_out(to, data_, bytes); }

std::string DeviceBytes::guard_damage() const {
  std::vector<std::uint8_t> front(front_), back(kGuard);
  set_access(true);
  copy_out(front.data(), base_, front_);
  copy_out(back.data(), data_ + bytes_, kGuard);
  set_access(false);
  for (std::size_t i = 0; i < front_; ++i) {
    if (front[i] != kGuardByte) {
      return "write " + std::to_string(front_ - i) + " bytes before a buffer of " +
             std::to_string(bytes_);
    }
  }
  for (std::size_t i = 0; i < kGuard; ++i) {
    if (back[i] != kGuardByte) {
      return "write " + std::to_string(i) + " bytes past a buffer of " + std::to_string(bytes_);
    }
  }
  return {};
}

StreamHandle::StreamHandle(Backend backend) : backend_(backend) {
#if QUARRY_HAS_CUDA
  if (backend == Backend::cuda) {
    expect_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  }
#endif
}

StreamHandle::~StreamHandle() {
#if QUARRY_HAS_CUDA
  if (stream_ != nullptr) expect_cuda(cudaStreamDestroy(stream_), "cudaStreamDestroy");
#endif
}

void StreamHandle::synchronize() const {
#if QUARRY_HAS_CUDA
  if (backend_ == Backend::cuda) expect_cuda(cudaStreamSynchronize(stream_), "the stream");
#endif
}

Graph::~Graph() {
#if QUARRY_HAS_CUDA
  if (exec_ != nullptr) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(exec_));
#endif
}

#if QUARRY_HAS_CUDA
void Graph::begin(Stream stream) {
  expect_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin capture");
}

void Graph::end(Stream stream) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  expect_cuda(cudaStreamEndCapture(stream, &graph), "end capture");
  if (graph == nullptr) return;
  expect_cuda(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
  cudaGraphDestroy(graph);
  exec_ = exec;
}

void Graph::launch(Stream stream) const {
  if (exec_ == nullptr) {
    ADD_FAILURE() << "no graph was captured";
    return;
  }
  expect_cuda(cudaGraphLaunch(static_cast<cudaGraphExec_t>(exec_), stream), "cudaGraphLaunch");
}
#else
void Graph::begin(Stream) { no_cuda(); }
void Graph::end(Stream) { no_cuda(); }
void Graph::launch(Stream) const { no_cuda(); }
#endif

}  // namespace quarry::test
