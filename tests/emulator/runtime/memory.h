// SPDX-License-Identifier: Apache-2.0
//
// Device memory: pages of the host that host code cannot touch.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <vector>

namespace quarry::emulator::runtime {

struct Allocation {
  unsigned char* data;
  std::size_t bytes;   // as asked for
  std::size_t mapped;  // whole pages, from data on
  bool managed;        // host code may touch it
};

/// The live allocation that [memory, memory + bytes) lies in, or nullptr.
const Allocation* find_allocation(const void* memory, std::size_t bytes);

/// While one lives, device memory can be read and written: all of it, or the allocations that the
/// given addresses lie in. Without one the pages are closed, so that host code that follows a
/// device pointer crashes here as it would beside a real device. One at a time, under the lock.
class Access {
 public:
  Access();
  explicit Access(std::initializer_list<const void*> addresses);
  ~Access();
  Access(const Access&) = delete;
  Access& operator=(const Access&) = delete;

 private:
  std::vector<Allocation> open_;
};

}  // namespace quarry::emulator::runtime
