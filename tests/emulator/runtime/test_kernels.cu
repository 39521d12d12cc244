// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include "test_kernels.h"

namespace quarry::emulator::test {
namespace {

template <int kUnused>
__global__ void fill_with(const Fill fill, int first) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < fill.count) fill.out[i] = first + i * fill.step;
}

__global__ void increment(int* data, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) ++data[i];
}

__global__ void trap_always() { __trap(); }

__global__ void __launch_bounds__(64) bounded(int* out) {
  out[threadIdx.x] = static_cast<int>(blockDim.x);
}

__global__ void reverse_in_shared(int* data) {
  __shared__ int values[10000];
  values[threadIdx.x] = data[threadIdx.x];
  __syncthreads();
  data[threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}

template <typename Kernel>
const void* address(Kernel* kernel) {
  return reinterpret_cast<const void*>(kernel);
}

}  // namespace

cudaError_t launch_fill(const Fill& fill, int first, unsigned blocks, unsigned threads,
                        cudaStream_t stream, unsigned shared) {
  fill_with<1><<<blocks, threads, shared, stream>>>(fill, first);
  return cudaGetLastError();
}

const void* fill_kernel() { return address(fill_with<1>); }
const void* increment_kernel() { return address(increment); }
const void* trap_kernel() { return address(trap_always); }
const void* bounded_kernel() { return address(bounded); }
const void* shared_kernel() { return address(reverse_in_shared); }

}  // namespace quarry::emulator::test
