// SPDX-License-Identifier: Apache-2.0
//
// The calls that nvcc puts into every object file of device code: they register kernels before
// main(), and take a launch from <<<>>> to the stub that passes the arguments.
#include "registry.h"

#include <map>
#include <set>
#include <vector>

#include "fatbin.h"
#include "state.h"

namespace quarry::emulator::runtime {
namespace {

struct Registry {
  std::map<const void*, std::unique_ptr<CUkern_st>> kernels;  // by the host function's address
  std::set<const void*> handles;                              // the CUkern_st of `kernels`
};

Registry& registry() {
  static Registry& all = *new Registry;  // objects register before, and leave after, main()
  return all;
}

struct Configuration {
  dim3 grid, block;
  std::size_t shared;
  cudaStream_t stream;
};
thread_local std::vector<Configuration> configurations;

CUkern_st* registered(const void* function) {
  if (registry().handles.count(function) != 0) {
    return static_cast<CUkern_st*>(const_cast<void*>(function));
  }
  const auto found = registry().kernels.find(function);
  return found != registry().kernels.end() ? found->second.get() : nullptr;
}

}  // namespace

CUkern_st& find_kernel(const void* function) {
  CUkern_st* const k = registered(function);
  if (k == nullptr) throw CallError(cudaErrorInvalidDeviceFunction, "not a registered kernel");
  if (k->kernel != nullptr) return *k;
  if (k->image->module == nullptr) {
    std::string text;
    try {
      text = find_ptx(k->image->wrapper, device_limits().compute_capability);
    } catch (const std::runtime_error& e) {
      throw CallError(cudaErrorInvalidKernelImage, k->name + ": " + e.what());
    }
    try {
      k->image->module = Module::load(std::move(text));
    } catch (const std::runtime_error& e) {
      throw CallError(cudaErrorInvalidPtx, "the module of " + k->name + ": " + e.what());
    }
  }
  try {
    k->kernel = k->image->module->kernel(k->name);
  } catch (const std::runtime_error& e) {
    throw CallError(cudaErrorInvalidPtx, k->name + ": " + e.what());
  }
  if (k->kernel == nullptr) {
    throw CallError(cudaErrorInvalidDeviceFunction, k->name + " is not in its module's PTX");
  }
  const std::size_t fixed = k->kernel->static_shared();
  k->dynamic_shared_allowed = fixed < kSharedAlways ? kSharedAlways - fixed : 0;
  return *k;
}

}  // namespace quarry::emulator::runtime

namespace emu = quarry::emulator::runtime;

extern "C" {

void** __cudaRegisterFatBinary(void* wrapper) {
  auto* image = new emu::Image;
  image->wrapper = wrapper;
  return reinterpret_cast<void**>(image);
}

void __cudaRegisterFatBinaryEnd(void** /*image*/) {}

/// At exit. Objects with static lifetime may still launch: nothing is taken away.
void __cudaUnregisterFatBinary(void** /*image*/) {}

char __cudaInitModule(void** /*image*/) { return 1; }

/// The same template instance may come from several object files: the first one's is as good.
void __cudaRegisterFunction(void** image, const char* function, char* /*device_function*/,
                            const char* name, int /*thread_limit*/, uint3* /*tid*/, uint3* /*bid*/,
                            dim3* /*block*/, dim3* /*grid*/, int* /*warp_size*/) {
  const std::lock_guard<std::recursive_mutex> guard(emu::lock());
  auto k = std::make_unique<CUkern_st>();
  k->image = reinterpret_cast<emu::Image*>(image);
  k->name = name;
  CUkern_st* const handle = k.get();
  if (emu::registry().kernels.emplace(function, std::move(k)).second) {
    emu::registry().handles.insert(handle);
  }
}

/// Kernels find their module's variables by themselves. The calls with which host code would
/// reach one (cudaMemcpyToSymbol() and the like) are not emulated: such a program does not link.
void __cudaRegisterVar(void** /*image*/, char* /*variable*/, char* /*address*/,
                       const char* /*name*/, int /*external*/, std::size_t /*bytes*/,
                       int /*constant*/, int /*global*/) {}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, std::size_t shared,
                                     cudaStream_t stream) {
  emu::configurations.push_back({grid, block, shared, stream});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, std::size_t* shared, void* stream) {
  if (emu::configurations.empty()) return cudaErrorInvalidConfiguration;
  const emu::Configuration c = emu::configurations.back();
  emu::configurations.pop_back();
  *grid = c.grid;
  *block = c.block;
  *shared = c.shared;
  *static_cast<cudaStream_t*>(stream) = c.stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* out, const void* function) {
  const std::lock_guard<std::recursive_mutex> guard(emu::lock());
  *out = emu::registered(function);
  return *out != nullptr ? cudaSuccess : cudaErrorInvalidDeviceFunction;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               std::size_t shared, cudaStream_t stream) {
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, arguments, shared,
                          stream);
}

}  // extern "C"
