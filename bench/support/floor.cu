// SPDX-License-Identifier: Apache-2.0
#include "support/floor.h"

namespace quarry::bench {
namespace {

constexpr int kThreads = 512;

__global__ void empty_kernel() {}

__device__ std::uint32_t fold(uint4 v) { return v.x ^ v.y ^ v.z ^ v.w; }

// Four independent 16-byte loads a thread and turn: enough in flight to fill the memory system.
__global__ void __launch_bounds__(kThreads) floor_kernel(FloorParams p) {
  const std::int64_t threads = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  const std::int64_t me = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  std::uint32_t acc = 0;
  for (int a = 0; a < 3; ++a) {
    const auto* data = static_cast<const uint4*>(p.streamed[a]);
    const std::int64_t count = p.streamed_bytes[a] / 16;
    for (std::int64_t i = me; i < count; i += 4 * threads) {
      uint4 v[4] = {};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (i + j * threads < count) v[j] = __ldg(data + i + j * threads);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) acc ^= fold(v[j]);
    }
  }
  if (p.keys != nullptr) {
    const std::int64_t words = p.key_bytes / 16;
    for (std::int64_t i = me; i < p.gathered * words; i += threads) {
      const std::uint64_t key = static_cast<std::uint64_t>(i / words) * 0x9e3779b97f4a7c15ull;
      const std::int64_t row = static_cast<std::int64_t>((key >> 20) % p.num_keys);
      acc ^= fold(__ldg(static_cast<const uint4*>(p.keys) + row * words + i % words));
    }
  }
  if (acc == 0x12345678u) *p.sink = acc;  // keeps the loads; next to never taken
}

Status launched(cudaError_t result) {
  if (result == cudaSuccess) return {};
  return Status(StatusCode::device_error, "launch: %s", cudaGetErrorString(result));
}

}  // namespace

Status launch_empty(Stream stream) {
  empty_kernel<<<1, 32, 0, stream>>>();
  return launched(cudaPeekAtLastError());
}

Status launch_copy(void* target, const void* source, std::size_t bytes, Stream stream) {
  return launched(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToDevice, stream));
}

Status launch_floor(const FloorParams& params, Stream stream) {
  int multiprocessors = 0;
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0);
  floor_kernel<<<multiprocessors * 4, kThreads, 0, stream>>>(params);
  return launched(cudaPeekAtLastError());
}

}  // namespace quarry::bench
