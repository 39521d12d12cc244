// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "quarry/status.h"

namespace quarry::cuda {

/// device_error with the error's name. `what` names the call that returned it. Only codes
/// that our own calls return are turned into a Status: asking cudaGetLastError() instead would
/// swallow an error of the engine's earlier work, or blame us for it.
inline Status to_status(cudaError_t error, const char* what) noexcept {
  if (error == cudaSuccess) return {};
  return Status(StatusCode::device_error, "%s: %s (%s)", what, cudaGetErrorName(error),
                cudaGetErrorString(error));
}

/// A failed runtime call of ours stays in the thread's last error, where the engine would
/// take it for its own; a Status tells of it. Forgets it at the end of a scope, unless an
/// error of somebody else's was there before.
class OwnErrors {
 public:
  OwnErrors() noexcept : clean_(cudaPeekAtLastError() == cudaSuccess) {}
  ~OwnErrors() {
    if (clean_) static_cast<void>(cudaGetLastError());
  }
  OwnErrors(const OwnErrors&) = delete;
  OwnErrors& operator=(const OwnErrors&) = delete;

 private:
  bool clean_;
};

/// Makes `device` current for a scope, and does nothing where it is.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) noexcept {
    error_ = cudaGetDevice(&before_);
    if (error_ == cudaSuccess && before_ != device) {
      error_ = cudaSetDevice(device);
      changed_ = error_ == cudaSuccess;
    }
  }
  ~DeviceGuard() {
    if (changed_) static_cast<void>(cudaSetDevice(before_));
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

  Status status() const noexcept { return to_status(error_, "cudaSetDevice"); }

 private:
  cudaError_t error_ = cudaSuccess;
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace quarry::cuda
