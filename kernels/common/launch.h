// SPDX-License-Identifier: Apache-2.0
//
// How every kernel is launched. For .cu files.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "backend.h"
#include "common/error.h"

namespace quarry::cuda {

/// Every kernel calls this first, in every thread block, before it touches global memory:
/// kernels are launched with programmatic stream serialization (compute capability 9.0 on),
/// so a block may be resident while the work before it in the stream still runs. A kernel
/// that skipped it could finish before its predecessor and break the order of its successor.
__device__ __forceinline__ void wait_for_predecessor() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the next kernel's blocks become resident, to hide its launch behind this one.
/// What this kernel writes is visible to them after their wait_for_predecessor() alone,
/// wherever this is called.
__device__ __forceinline__ void let_successor_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// More than 48 KB of shared memory, static and dynamic together, must be asked for once a
/// kernel and device; asking on every launch would cost host time in next().
template <auto kKernel>
cudaError_t allow_shared_memory(int device, std::size_t bytes) noexcept {
  constexpr std::size_t kAlways = 24 * 1024;  // leaves 24 KB for static memory
  constexpr int kDevices = 64;
  static std::atomic<std::size_t> allowed[kDevices];
  if (bytes <= kAlways) return cudaSuccess;
  const bool known = device >= 0 && device < kDevices;
  if (known && allowed[device].load(std::memory_order_relaxed) >= bytes) return cudaSuccess;
  // The most the device offers, so that two threads asking for different sizes cannot
  // overwrite each other's.
  int most = 0;
  if (cudaError_t e =
          cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
      e != cudaSuccess) {
    return e;
  }
  cudaFuncAttributes attributes;
  if (cudaError_t e = cudaFuncGetAttributes(&attributes, kKernel); e != cudaSuccess) return e;
  const std::size_t dynamic = static_cast<std::size_t>(most) - attributes.sharedSizeBytes;
  if (cudaError_t e = cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(dynamic));
      e != cudaSuccess) {
    return e;
  }
  if (known) allowed[device].store(dynamic, std::memory_order_relaxed);
  return cudaSuccess;
}

/// Launches kKernel on launch.stream, on launch.device whatever device is current, `cluster`
/// consecutive blocks of grid.x (a multiple of it, at most 8) as a cluster where the device
/// has clusters; the kernel must ask how many it got. `name` is for the error's text. An empty
/// grid is no launch.
template <auto kKernel, typename... Args>
Status launch_clusters(const char* name, const Launch& launch, dim3 grid, unsigned cluster,
                       int threads, std::size_t shared_bytes, Args&&... args) noexcept {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return {};
  const OwnErrors own;
  const DeviceGuard guard(launch.device);
  if (Status s = guard.status(); !s.ok()) return s;
  if (cudaError_t e = allow_shared_memory<kKernel>(launch.device, shared_bytes); e != cudaSuccess) {
    return to_status(e, name);
  }
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = cluster;
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = launch.stream;
  config.attrs = attributes;
  config.numAttrs = launch.compute_capability < 90 ? 0 : cluster > 1 ? 2 : 1;
  return to_status(cudaLaunchKernelEx(&config, kKernel, std::forward<Args>(args)...), name);
}

/// The same without clusters.
template <auto kKernel, typename... Args>
Status launch_kernel(const char* name, const Launch& launch, dim3 grid, int threads,
                     std::size_t shared_bytes, Args&&... args) noexcept {
  return launch_clusters<kKernel>(name, launch, grid, 1, threads, shared_bytes,
                                  std::forward<Args>(args)...);
}

/// Thread blocks for `items` of `per_block`, at most `most` (kernels loop over the rest).
inline unsigned blocks_for(std::int64_t items, std::int64_t per_block,
                           std::int64_t most = 0x7fffffff) noexcept {
  const std::int64_t blocks = (items + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < most ? blocks : most);
}

}  // namespace quarry::cuda
