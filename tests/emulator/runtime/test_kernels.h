// SPDX-License-Identifier: Apache-2.0
//
// Kernels that nvcc compiles for the tests of the emulated runtime, and ways to launch them.
#pragma once

#include <cuda_runtime_api.h>

namespace quarry::emulator::test {

/// Passed by value: its size and its padding go through the argument copies.
struct Fill {
  int* out;
  int count;
  short step;
  unsigned char unused[33];
};

/// out[i] = first + i * step, by <<<>>>. Returns cudaGetLastError().
cudaError_t launch_fill(const Fill& fill, int first, unsigned blocks, unsigned threads,
                        cudaStream_t stream, unsigned shared = 0);

// The kernels' addresses, for cudaLaunchKernel() and cudaLaunchKernelExC().
const void* fill_kernel();       // (Fill, int)
const void* increment_kernel();  // (int* data, int count): ++data[i]
const void* trap_kernel();       // ()
const void* bounded_kernel();    // (int*), 64 threads at most
const void* shared_kernel();     // (int*), 40,000 bytes of static shared memory

}  // namespace quarry::emulator::test
