// SPDX-License-Identifier: Apache-2.0
#include "state.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace quarry::emulator::runtime {
namespace {

cudaError_t sticky = cudaSuccess;
thread_local cudaError_t last = cudaSuccess;

DeviceLimits limits_from_environment() {
  constexpr DeviceLimits kH100{90, 132, 227 * 1024, 228 * 1024, 50 << 20};
  constexpr DeviceLimits kA100{80, 108, 163 * 1024, 164 * 1024, 40 << 20};
  const char* asked = std::getenv("QUARRY_EMULATED_CC");
  const bool a100 = asked != nullptr && std::strcmp(asked, "80") == 0;
  if (asked != nullptr && !a100 && std::strcmp(asked, "90") != 0) {
    std::fprintf(stderr, "QUARRY_EMULATED_CC is '%s', must be 80 or 90\n", asked);
    std::exit(2);
  }
  DeviceLimits limits = a100 ? kA100 : kH100;
  if (const char* count = std::getenv("QUARRY_EMULATED_MULTIPROCESSORS"); count != nullptr) {
    char* end = nullptr;
    const long wanted = std::strtol(count, &end, 10);
    if (end == count || *end != '\0' || wanted < 1 || wanted > limits.multiprocessors) {
      std::fprintf(stderr, "QUARRY_EMULATED_MULTIPROCESSORS is '%s', must be 1 .. %d\n", count,
                   limits.multiprocessors);
      std::exit(2);
    }
    limits.multiprocessors = static_cast<int>(wanted);
  }
  return limits;
}

}  // namespace

const DeviceLimits& device_limits() {
  static const DeviceLimits limits = limits_from_environment();
  return limits;
}

std::recursive_mutex& lock() {
  // Never destroyed: objects with static lifetime may free their memory after main().
  static std::recursive_mutex& mutex = *new std::recursive_mutex;
  return mutex;
}

void say(const std::string& text) {
  std::fprintf(stderr, "quarry PTX emulator: %s\n", text.c_str());
}

void announce() {
  static bool said = false;
  if (said) return;
  said = true;
  std::fprintf(
      stderr,
      "\n*** EMULATED DEVICE: quarry PTX emulator, compute capability %d.%d. No GPU is used; "
      "times mean nothing. ***\n\n",
      device_limits().compute_capability / 10, device_limits().compute_capability % 10);
}

cudaError_t sticky_error() { return sticky; }
void set_sticky_error(cudaError_t error) { sticky = error; }

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last = error;
  return error;
}

}  // namespace quarry::emulator::runtime

using quarry::emulator::runtime::lock;
using quarry::emulator::runtime::sticky_error;

extern "C" {

cudaError_t cudaPeekAtLastError() {
  const std::lock_guard<std::recursive_mutex> guard(lock());
  return sticky_error() != cudaSuccess ? sticky_error() : quarry::emulator::runtime::last;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = cudaPeekAtLastError();
  quarry::emulator::runtime::last = cudaSuccess;
  return error;
}

}  // extern "C"
