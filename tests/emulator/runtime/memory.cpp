// SPDX-License-Identifier: Apache-2.0
#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>

#include "../ptx.h"
#include "state.h"
#include "stream.h"

namespace quarry::emulator::runtime {
namespace {

constexpr std::size_t kGuardBytes = 1 << 20;  // never accessible, on either side
constexpr int kPoison = 0xa5;                 // nobody may count on zeros

struct Heap {
  std::map<std::uintptr_t, Allocation> live;  // by address
  std::size_t used = 0;
  std::size_t limit = std::size_t{8} << 30;
};

Heap& heap() {
  static Heap& one = *new Heap;  // never destroyed, as the lock
  return one;
}

std::size_t round_to_pages(std::size_t bytes) {
  static const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

void protect(const Allocation& a, int protection) {
  if (!a.managed && mprotect(a.data, a.mapped, protection) != 0) {
    say("mprotect failed: too many allocations?");
    std::abort();
  }
}

/// Every allocation has addresses of its own for good: memory that was freed stays mapped without
/// access, so that a stale pointer never points at something newer.
void* allocate(std::size_t bytes, bool managed) {
  if (bytes == 0) return nullptr;
  Heap& h = heap();
  if (bytes > h.limit || round_to_pages(bytes) > h.limit - h.used) return nullptr;
  const std::size_t mapped = round_to_pages(bytes);
  void* range = mmap(nullptr, mapped + 2 * kGuardBytes, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) return nullptr;
  const Allocation a{static_cast<unsigned char*>(range) + kGuardBytes, bytes, mapped, managed};
  if (mprotect(a.data, mapped, PROT_READ | PROT_WRITE) != 0) {
    munmap(range, mapped + 2 * kGuardBytes);
    return nullptr;
  }
  std::memset(a.data, kPoison, mapped);
  protect(a, PROT_NONE);
  h.live.emplace(reinterpret_cast<std::uintptr_t>(a.data), a);
  h.used += mapped;
  // What the host writes to managed memory is not seen: all of it counts as written.
  register_memory(a.data, bytes, managed);
  return a.data;
}

/// The bytes between the allocation's end and its last page's are the guard that a write
/// by the runtime itself would hit; kernels are checked against the exact size.
void release(const Allocation& a) {
  {
    const Access access({a.data});
    for (std::size_t i = a.bytes; i < a.mapped; ++i) {
      if (a.data[i] == kPoison) continue;
      set_sticky_error(cudaErrorIllegalAddress);
      say("a write " + std::to_string(i - a.bytes) + " bytes past an allocation of " +
          std::to_string(a.bytes) + " bytes");
      break;
    }
  }
  forget_memory(a.data);
  if (mmap(a.data, a.mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
           0) == MAP_FAILED) {
    say("mmap failed: too many allocations?");
    std::abort();
  }
  heap().used -= a.mapped;
  heap().live.erase(reinterpret_cast<std::uintptr_t>(a.data));
}

cudaError_t allocate_for(void** out, std::size_t bytes, bool managed) {
  if (out == nullptr) return cudaErrorInvalidValue;
  refuse_during_capture(managed ? "cudaMallocManaged" : "cudaMalloc");
  *out = allocate(bytes, managed);
  return *out == nullptr && bytes != 0 ? cudaErrorMemoryAllocation : cudaSuccess;
}

}  // namespace

const Allocation* find_allocation(const void* memory, std::size_t bytes) {
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  auto next = heap().live.upper_bound(address);
  if (next == heap().live.begin()) return nullptr;
  const Allocation& a = std::prev(next)->second;
  const std::size_t offset = address - reinterpret_cast<std::uintptr_t>(a.data);
  return offset < a.bytes && bytes <= a.bytes - offset ? &a : nullptr;
}

Access::Access() {
  for (const auto& [address, a] : heap().live) open_.push_back(a);
  for (const Allocation& a : open_) protect(a, PROT_READ | PROT_WRITE);
}

Access::Access(std::initializer_list<const void*> addresses) {
  for (const void* address : addresses) {
    if (const Allocation* a = find_allocation(address, 1)) open_.push_back(*a);
  }
  for (const Allocation& a : open_) protect(a, PROT_READ | PROT_WRITE);
}

Access::~Access() {
  for (const Allocation& a : open_) protect(a, PROT_NONE);
}

}  // namespace quarry::emulator::runtime

namespace emu = quarry::emulator::runtime;

extern "C" {

cudaError_t cudaMalloc(void** out, std::size_t bytes) {
  return emu::call([&] { return emu::allocate_for(out, bytes, false); });
}

cudaError_t cudaMallocManaged(void** out, std::size_t bytes, unsigned /*flags*/) {
  return emu::call([&] { return emu::allocate_for(out, bytes, true); });
}

cudaError_t cudaFree(void* memory) {
  return emu::call([&] {
    if (memory == nullptr) return cudaSuccess;
    emu::refuse_during_capture("cudaFree");
    const emu::Allocation* a = emu::find_allocation(memory, 1);
    if (a == nullptr || a->data != memory) return cudaErrorInvalidValue;
    emu::finish_everything();  // it waits for the device
    if (emu::sticky_error() != cudaSuccess) return emu::sticky_error();
    emu::release(emu::Allocation(*a));
    return emu::sticky_error();
  });
}

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  return emu::call([&] {
    *free = emu::heap().limit - emu::heap().used;
    *total = emu::heap().limit;
    return cudaSuccess;
  });
}

}  // extern "C"
