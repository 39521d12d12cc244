// SPDX-License-Identifier: Apache-2.0
//
// Names and descriptions of the errors that the emulated runtime returns.
#include <cuda_runtime_api.h>

namespace {

struct Description {
  cudaError_t error;
  const char* name;
  const char* text;
};

#define QUARRY_ERROR(error, text) \
  { error, #error, text }
constexpr Description kDescriptions[] = {
    QUARRY_ERROR(cudaSuccess, "no error"),
    QUARRY_ERROR(cudaErrorInvalidValue, "invalid argument"),
    QUARRY_ERROR(cudaErrorMemoryAllocation, "out of memory"),
    QUARRY_ERROR(cudaErrorInvalidConfiguration, "invalid configuration of a launch"),
    QUARRY_ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    QUARRY_ERROR(cudaErrorInvalidDeviceFunction, "not a kernel of this program"),
    QUARRY_ERROR(cudaErrorInvalidKernelImage, "unreadable device code"),
    QUARRY_ERROR(cudaErrorInvalidPtx, "PTX that the emulator does not understand"),
    QUARRY_ERROR(cudaErrorInvalidResourceHandle, "not a live stream, event or graph"),
    QUARRY_ERROR(cudaErrorIllegalState, "not possible in the present state"),
    QUARRY_ERROR(cudaErrorNotReady, "not finished yet"),
    QUARRY_ERROR(cudaErrorIllegalAddress, "illegal memory access"),
    QUARRY_ERROR(cudaErrorLaunchOutOfResources, "more threads than the kernel was compiled for"),
    QUARRY_ERROR(cudaErrorLaunchFailure, "a kernel failed"),
    QUARRY_ERROR(cudaErrorNotSupported, "not supported by this device"),
    QUARRY_ERROR(cudaErrorStreamCaptureUnsupported, "not permitted while a stream is captured"),
    QUARRY_ERROR(cudaErrorStreamCaptureInvalidated, "an earlier error made the capture invalid"),
    QUARRY_ERROR(cudaErrorStreamCaptureImplicit,
                 "would make a captured stream depend on the legacy default stream"),
    QUARRY_ERROR(cudaErrorStreamCaptureWrongThread, "the capture began in another thread"),
    QUARRY_ERROR(cudaErrorInvalidClusterSize, "invalid cluster size"),
    QUARRY_ERROR(cudaErrorUnknown, "unknown error"),
};
#undef QUARRY_ERROR

const Description* find(cudaError_t error) {
  for (const Description& d : kDescriptions) {
    if (d.error == error) return &d;
  }
  return nullptr;
}

}  // namespace

extern "C" {

const char* cudaGetErrorName(cudaError_t error) {
  const Description* d = find(error);
  return d != nullptr ? d->name : "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  const Description* d = find(error);
  return d != nullptr ? d->text : "unrecognized error code";
}

}  // extern "C"
