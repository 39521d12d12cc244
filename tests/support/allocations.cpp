// SPDX-License-Identifier: Apache-2.0
#include "allocations.h"

#include <atomic>
#include <cstdlib>
#include <new>

#include "sanitizers.h"

// These sanitizers bring operators new and delete of their own.
#define QUARRY_SANITIZER_ALLOCATES (QUARRY_ADDRESS_SANITIZER || QUARRY_THREAD_SANITIZER)

namespace quarry::test {
namespace {

std::atomic<int> watches{0};
std::atomic<long> allocations{0};

}  // namespace

AllocationWatch::AllocationWatch() { ++watches; }
AllocationWatch::~AllocationWatch() { --watches; }
long AllocationWatch::count() { return allocations; }

#if QUARRY_SANITIZER_ALLOCATES
bool AllocationWatch::works() { return false; }
#else
bool AllocationWatch::works() { return true; }

void* allocate(std::size_t bytes, std::size_t alignment) {
  if (watches.load(std::memory_order_relaxed) > 0) ++allocations;
  bytes = (bytes + alignment - 1) / alignment * alignment;
  return std::aligned_alloc(alignment, bytes == 0 ? alignment : bytes);
}

void* allocate_or_throw(std::size_t bytes, std::size_t alignment) {
  if (void* p = allocate(bytes, alignment)) return p;
  throw std::bad_alloc();
}
#endif

}  // namespace quarry::test

#if !QUARRY_SANITIZER_ALLOCATES
namespace t = quarry::test;
constexpr std::size_t kDefault = __STDCPP_DEFAULT_NEW_ALIGNMENT__;

void* operator new(std::size_t n) { return t::allocate_or_throw(n, kDefault); }
void* operator new[](std::size_t n) { return t::allocate_or_throw(n, kDefault); }
void* operator new(std::size_t n, std::align_val_t a) {
  return t::allocate_or_throw(n, static_cast<std::size_t>(a));
}
void* operator new[](std::size_t n, std::align_val_t a) {
  return t::allocate_or_throw(n, static_cast<std::size_t>(a));
}
void* operator new(std::size_t n, const std::nothrow_t&) noexcept {
  return t::allocate(n, kDefault);
}
void* operator new[](std::size_t n, const std::nothrow_t&) noexcept {
  return t::allocate(n, kDefault);
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
#endif
