// SPDX-License-Identifier: Apache-2.0
//
// The kernels that the program's object files registered before main().
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "../ptx.h"

namespace quarry::emulator::runtime {

/// What one object file embeds. Its PTX is read when one of its kernels is first asked for.
struct Image {
  const void* wrapper = nullptr;
  std::unique_ptr<Module> module;
};

}  // namespace quarry::emulator::runtime

/// A cudaKernel_t.
struct CUkern_st {
  quarry::emulator::runtime::Image* image;
  std::string name;  // in the PTX
  const quarry::emulator::Kernel* kernel = nullptr;
  std::size_t dynamic_shared_allowed = 0;  // bytes; known once `kernel` is
  bool large_clusters_allowed = false;
};

namespace quarry::emulator::runtime {

/// The kernel of a host function's address or of a cudaKernel_t, its PTX parsed. Throws CallError
/// where there is none or its PTX cannot be read.
CUkern_st& find_kernel(const void* function);

}  // namespace quarry::emulator::runtime
