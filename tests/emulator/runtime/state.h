// SPDX-License-Identifier: Apache-2.0
//
// What the calls of the emulated CUDA runtime share. One lock for everything: every call is
// short beside the interpretation of a kernel.
#pragma once

#include <cuda_runtime_api.h>

#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#if defined(__CUDACC__)
#error "host code alone"
#endif

namespace quarry::emulator::runtime {

/// The one device: an H100's limits, or with QUARRY_EMULATED_CC=80 an A100's.
struct DeviceLimits {
  int compute_capability;
  int multiprocessors;
  std::size_t shared_optin;               // bytes of shared memory a block can ask for
  std::size_t shared_per_multiprocessor;  // bytes
  int l2_bytes;
};
const DeviceLimits& device_limits();

constexpr std::size_t kSharedAlways = 48 * 1024;
constexpr unsigned kMaxThreads = 1024;

/// An error that a call returns, with a sentence for stderr: what CUDA's error code leaves out.
class CallError : public std::runtime_error {
 public:
  CallError(cudaError_t error, const std::string& text) : std::runtime_error(text), code(error) {}
  cudaError_t code;
};

std::recursive_mutex& lock();
/// Writes a sentence to stderr under the emulator's name.
void say(const std::string& text);
/// Says, once in a process, that the device is not a real one.
void announce();

/// What a kernel that failed leaves behind: every later call returns it, as on a device whose
/// context is lost. cudaSuccess before.
cudaError_t sticky_error();
void set_sticky_error(cudaError_t error);
/// Sets the calling thread's last error where `error` is one; returns it.
cudaError_t remember(cudaError_t error);

/// The body of every call that can fail: takes the lock, returns the sticky error without calling
/// `body` where there is one, turns exceptions into error codes, remembers the error.
template <typename Body>
cudaError_t call(Body&& body) noexcept {
  const std::lock_guard<std::recursive_mutex> guard(lock());
  if (sticky_error() != cudaSuccess) return remember(sticky_error());
  try {
    announce();
    return remember(std::forward<Body>(body)());
  } catch (const CallError& e) {
    say(e.what());
    return remember(e.code);
  } catch (const std::bad_alloc&) {
    return remember(cudaErrorMemoryAllocation);
  } catch (const std::exception& e) {
    say(e.what());
    return remember(cudaErrorUnknown);
  }
}

}  // namespace quarry::emulator::runtime
