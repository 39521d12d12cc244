// SPDX-License-Identifier: Apache-2.0
//
// Asynchronous copies to shared memory (compute capability 8.0), and hints to caches.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace quarry::cuda {

/// 16, or 8, bytes to shared memory, asynchronously; both aligned to as much.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address), "l"(from), "n"(kBytes)
               : "memory");
}

/// 16 bytes past the first level cache, or 16 zeros; `from` is read only where there.
__device__ __forceinline__ void copy_async_or_zero(void* to, const void* from, bool there) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}

/// This thread's copies are done; a barrier must follow for the others'.
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

/// Towards the second level cache: reads nothing, needs not wait for who writes there.
__device__ __forceinline__ void prefetch(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

}  // namespace quarry::cuda
