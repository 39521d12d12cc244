// SPDX-License-Identifier: Apache-2.0
//
// Launches: what a device would refuse is refused, arguments are copied, the kernel is submitted.
#include <cstddef>
#include <cstring>

#include "../ptx.h"
#include "memory.h"
#include "registry.h"
#include "stream.h"

namespace quarry::emulator::runtime {
namespace {

Dim3 of(dim3 d) { return {d.x, d.y, d.z}; }

std::string text(const Dim3& d) {
  return std::to_string(d.x) + "x" + std::to_string(d.y) + "x" + std::to_string(d.z);
}

/// A launch with a copy of its arguments, as cudaLaunchKernel() takes it.
class Bound {
 public:
  Bound(const CUkern_st& function, const Launch& launch, void** arguments)
      : kernel_(function.kernel), name_(function.name), launch_(launch) {
    // Every argument at a multiple of 16: the interpreter may read them as what they are.
    std::vector<std::size_t> offsets;
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < kernel_->parameters(); ++i) {
      offsets.push_back(bytes);
      bytes += (kernel_->parameter_bytes(i) + 15) / 16;
    }
    storage_.resize(offsets.empty() ? 0 : bytes);
    for (std::size_t i = 0; i < offsets.size(); ++i) {
      std::memcpy(&storage_[offsets[i]], arguments[i], kernel_->parameter_bytes(i));
      pointers_.push_back(&storage_[offsets[i]]);
    }
  }
  Bound(const Bound&) = delete;
  Bound& operator=(const Bound&) = delete;

  cudaError_t run() const {
    const Access access;
    Launch launch = launch_;
    launch.arguments = pointers_.data();
    try {
      quarry::emulator::run(*kernel_, launch);
      return cudaSuccess;
    } catch (const std::exception& e) {
      say("kernel " + name_ + ", grid " + text(launch.grid) + ", block " + text(launch.block) +
          ": " + e.what());
      set_sticky_error(cudaErrorLaunchFailure);
      return cudaErrorLaunchFailure;
    }
  }

 private:
  struct alignas(16) Unit {
    unsigned char bytes[16];
  };
  const Kernel* kernel_;
  std::string name_;
  Launch launch_;
  std::vector<Unit> storage_;
  std::vector<const void*> pointers_;
};

[[noreturn]] void refuse(cudaError_t code, const CUkern_st& f, const std::string& why) {
  throw CallError(code, "the launch of " + f.name + " is refused: " + why);
}

void check_shape(const CUkern_st& f, const Launch& l) {
  const auto& [grid, block, cluster, shared, arguments] = l;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || block.x == 0 || block.y == 0 || block.z == 0) {
    refuse(cudaErrorInvalidConfiguration, f,
           "grid " + text(grid) + " of blocks " + text(block) + " is empty");
  }
  if (grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) {
    refuse(cudaErrorInvalidConfiguration, f, "grid " + text(grid) + " is too large");
  }
  if (block.x > kMaxThreads || block.y > kMaxThreads || block.z > 64 ||
      block.x * block.y * block.z > kMaxThreads) {
    refuse(cudaErrorInvalidConfiguration, f, "block " + text(block) + " has too many threads");
  }
  if (block.x * block.y * block.z > f.kernel->max_threads()) {
    refuse(cudaErrorLaunchOutOfResources, f,
           "block " + text(block) + ", compiled for " + std::to_string(f.kernel->max_threads()));
  }
}

void check_shared(const CUkern_st& f, const Launch& l) {
  if (l.dynamic_shared <= f.dynamic_shared_allowed) return;
  refuse(cudaErrorInvalidValue, f,
         std::to_string(l.dynamic_shared) + " bytes of dynamic shared memory, at most " +
             std::to_string(f.dynamic_shared_allowed) + " are allowed");
}

void check_cluster(const CUkern_st& f, const Launch& l) {
  const auto& c = l.cluster;
  const unsigned most = f.large_clusters_allowed ? 16 : 8;
  if (c.x == 0 || c.y == 0 || c.z == 0 || c.x > most || c.y > most || c.z > most ||
      c.x * c.y * c.z > most || l.grid.x % c.x != 0 || l.grid.y % c.y != 0 || l.grid.z % c.z != 0) {
    refuse(cudaErrorInvalidClusterSize, f,
           "cluster " + text(c) + " of grid " + text(l.grid) + ", at most " + std::to_string(most));
  }
}

void apply(const cudaLaunchAttribute& a, const CUkern_st& f, Launch& launch) {
  const bool hopper = device_limits().compute_capability >= 90;
  if (a.id == cudaLaunchAttributeIgnore) return;
  if (a.id == cudaLaunchAttributeClusterDimension && hopper) {
    launch.cluster = {a.val.clusterDim.x, a.val.clusterDim.y, a.val.clusterDim.z};
    return;
  }
  // Early starts are allowed, not promised: here every kernel waits for its predecessor's end.
  if (a.id == cudaLaunchAttributeProgrammaticStreamSerialization && hopper) return;
  refuse(cudaErrorNotSupported, f,
         "launch attribute " + std::to_string(static_cast<int>(a.id)) + " is not supported at " +
             "this compute capability, or not emulated");
}

cudaError_t launch(const void* function, dim3 grid, dim3 block, void** arguments,
                   std::size_t shared, cudaStream_t stream, const cudaLaunchAttribute* attributes,
                   unsigned count) {
  const CUkern_st& f = find_kernel(function);
  Launch l{of(grid), of(block), {}, shared, nullptr};
  for (unsigned i = 0; i < count; ++i) apply(attributes[i], f, l);
  check_shape(f, l);
  check_shared(f, l);
  check_cluster(f, l);
  const auto bound = std::make_shared<const Bound>(f, l, arguments);
  return submit(stream, [bound] { return bound->run(); });
}

}  // namespace
}  // namespace quarry::emulator::runtime

namespace emu = quarry::emulator::runtime;

extern "C" {

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments,
                             std::size_t shared, cudaStream_t stream) {
  return emu::call(
      [&] { return emu::launch(function, grid, block, arguments, shared, stream, nullptr, 0); });
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function,
                                void** arguments) {
  return emu::call([&] {
    return emu::launch(function, config->gridDim, config->blockDim, arguments,
                       config->dynamicSmemBytes, config->stream, config->attrs, config->numAttrs);
  });
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* out, const void* function) {
  return emu::call([&] {
    const CUkern_st& f = emu::find_kernel(function);
    *out = {};
    out->sharedSizeBytes = f.kernel->static_shared();
    out->maxThreadsPerBlock = static_cast<int>(f.kernel->max_threads());
    out->maxDynamicSharedSizeBytes = static_cast<int>(f.dynamic_shared_allowed);
    out->ptxVersion = out->binaryVersion = emu::device_limits().compute_capability;
    return cudaSuccess;
  });
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  return emu::call([&] {
    CUkern_st& f = emu::find_kernel(function);
    switch (attribute) {
      case cudaFuncAttributeMaxDynamicSharedMemorySize:
        if (value < 0 || static_cast<std::size_t>(value) + f.kernel->static_shared() >
                             emu::device_limits().shared_optin) {
          return cudaErrorInvalidValue;
        }
        f.dynamic_shared_allowed = static_cast<std::size_t>(value);
        return cudaSuccess;
      case cudaFuncAttributeNonPortableClusterSizeAllowed:
        f.large_clusters_allowed = value != 0;
        return cudaSuccess;
      case cudaFuncAttributePreferredSharedMemoryCarveout:
        return cudaSuccess;  // a hint
      default:
        throw emu::CallError(cudaErrorNotSupported,
                             "function attribute " + std::to_string(static_cast<int>(attribute)) +
                                 " is not emulated");
    }
  });
}

}  // extern "C"
