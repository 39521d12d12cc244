// SPDX-License-Identifier: Apache-2.0
//
// The one device.
#include "state.h"

namespace quarry::emulator::runtime {
namespace {

int attribute(cudaDeviceAttr which) {
  const DeviceLimits& d = device_limits();
  switch (which) {
    case cudaDevAttrComputeCapabilityMajor:
      return d.compute_capability / 10;
    case cudaDevAttrComputeCapabilityMinor:
      return d.compute_capability % 10;
    case cudaDevAttrMultiProcessorCount:
      return d.multiprocessors;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return static_cast<int>(kSharedAlways);
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return static_cast<int>(d.shared_optin);
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return static_cast<int>(d.shared_per_multiprocessor);
    case cudaDevAttrReservedSharedMemoryPerBlock:
      return 1024;
    case cudaDevAttrL2CacheSize:
      return d.l2_bytes;
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
      return static_cast<int>(kMaxThreads);
    case cudaDevAttrMaxBlockDimZ:
      return 64;
    case cudaDevAttrMaxGridDimX:
      return 0x7fffffff;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      return 65535;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return 2048;
    case cudaDevAttrWarpSize:
      return 32;
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrManagedMemory:
      return 1;
    case cudaDevAttrClusterLaunch:
      return d.compute_capability >= 90 ? 1 : 0;
    case cudaDevAttrCooperativeLaunch:  // blocks run one after another
    case cudaDevAttrMemoryPoolsSupported:
    case cudaDevAttrPageableMemoryAccess:
      return 0;
    default:
      throw CallError(
          cudaErrorNotSupported,
          "device attribute " + std::to_string(static_cast<int>(which)) + " is not emulated");
  }
}

}  // namespace
}  // namespace quarry::emulator::runtime

namespace emu = quarry::emulator::runtime;

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  return emu::call([&] {
    *count = 1;
    return cudaSuccess;
  });
}

cudaError_t cudaGetDevice(int* device) {
  return emu::call([&] {
    *device = 0;
    return cudaSuccess;
  });
}

cudaError_t cudaSetDevice(int device) {
  return emu::call([&] { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device) {
  return emu::call([&] {
    if (device != 0) return cudaErrorInvalidDevice;
    *value = emu::attribute(which);
    return cudaSuccess;
  });
}

}  // extern "C"
