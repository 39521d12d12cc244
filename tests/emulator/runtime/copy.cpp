// SPDX-License-Identifier: Apache-2.0
//
// Copies and fills. A device's side of each must lie within one live allocation: the check that
// a real device makes only in part.
#include <cstring>
#include <vector>

#include "../ptx.h"
#include "memory.h"
#include "stream.h"

namespace quarry::emulator::runtime {
namespace {

/// Throws CallError where the range is not the device's, or not the host's.
void require_side(const void* memory, std::size_t bytes, bool device, const char* what) {
  const Allocation* whole = find_allocation(memory, bytes);
  if (device && whole == nullptr) {
    throw CallError(cudaErrorInvalidValue, std::string(what) + " of " + std::to_string(bytes) +
                                               " bytes is not within device memory");
  }
  if (!device && find_allocation(memory, 1) != nullptr && !find_allocation(memory, 1)->managed) {
    throw CallError(cudaErrorInvalidValue, std::string(what) + " is device memory, not the host's");
  }
}

struct Sides {
  bool to_device, from_device;
};

Sides sides(void* to, const void* from, cudaMemcpyKind kind) {
  switch (kind) {
    case cudaMemcpyHostToHost:
      return {false, false};
    case cudaMemcpyHostToDevice:
      return {true, false};
    case cudaMemcpyDeviceToHost:
      return {false, true};
    case cudaMemcpyDeviceToDevice:
      return {true, true};
    case cudaMemcpyDefault:
      return {find_allocation(to, 1) != nullptr, find_allocation(from, 1) != nullptr};
  }
  throw CallError(cudaErrorInvalidValue, "a copy of an unknown kind");
}

/// What a copy or fill does when its turn comes; the range may have been freed since.
cudaError_t at_its_turn(std::initializer_list<const void*> touched,
                        const std::function<void()>& check, const std::function<void()>& act) {
  try {
    check();
  } catch (const CallError& e) {
    say(e.what());
    set_sticky_error(cudaErrorIllegalAddress);
    return cudaErrorIllegalAddress;
  }
  const Access access(touched);
  act();
  return cudaSuccess;
}

Work copy_work(void* to, const void* from, std::size_t bytes, Sides s) {
  return [=] {
    return at_its_turn(
        {to, from},
        [&] {
          require_side(to, bytes, s.to_device, "the target of a copy");
          require_side(from, bytes, s.from_device, "the source of a copy");
        },
        [&] {
          std::memmove(to, from, bytes);
          if (s.to_device) mark_written(to, bytes);
        });
  };
}

cudaError_t copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                 cudaStream_t stream, bool wait) {
  if (bytes == 0) return cudaSuccess;
  if (to == nullptr || from == nullptr) return cudaErrorInvalidValue;
  const Sides s = sides(to, from, kind);
  require_side(to, bytes, s.to_device, "the target of a copy");
  require_side(from, bytes, s.from_device, "the source of a copy");
  CUstream_st* const resolved = resolve(stream);
  const bool captured = resolved != nullptr && resolved->capture != nullptr;
  if (!captured && s.to_device && !s.from_device && !wait && is_lazy()) {
    // The host's memory is free for reuse when the call returns: it is staged.
    const auto* begin = static_cast<const unsigned char*>(from);
    auto staged = std::make_shared<std::vector<unsigned char>>(begin, begin + bytes);
    return submit(stream, [=] { return copy_work(to, staged->data(), bytes, s)(); });
  }
  const cudaError_t e = submit(stream, copy_work(to, from, bytes, s));
  // A copy to pageable memory of the host is complete when the call returns.
  if (e == cudaSuccess && !captured && (wait || !s.to_device)) finish(stream);
  return e != cudaSuccess ? e : sticky_error();
}

cudaError_t fill(void* memory, int value, std::size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  const auto check = [=] { require_side(memory, bytes, true, "the target of a fill"); };
  check();
  return submit(stream, [=] {
    return at_its_turn({memory}, check, [=] {
      std::memset(memory, value, bytes);
      mark_written(memory, bytes);
    });
  });
}

}  // namespace
}  // namespace quarry::emulator::runtime

namespace emu = quarry::emulator::runtime;

extern "C" {

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  return emu::call([&] {
    emu::refuse_during_capture("cudaMemcpy");
    return emu::copy(to, from, bytes, kind, nullptr, true);
  });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return emu::call([&] { return emu::copy(to, from, bytes, kind, stream, false); });
}

cudaError_t cudaMemset(void* memory, int value, std::size_t bytes) {
  return emu::call([&] {
    emu::refuse_during_capture("cudaMemset");
    return emu::fill(memory, value, bytes, nullptr);
  });
}

cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream) {
  return emu::call([&] { return emu::fill(memory, value, bytes, stream); });
}

}  // extern "C"
