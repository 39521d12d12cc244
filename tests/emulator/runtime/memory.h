// SPDX-License-Identifier: Apache-2.0
//
// Device memory: pages of the host that host code cannot touch.
#pragma once

#include <cstddef>

namespace quarry::emulator::runtime {

struct Allocation {
  unsigned char* data;
  std::size_t bytes;   // as asked for
  std::size_t mapped;  // whole pages, from data on
  bool managed;        // host code may touch it
};

/// The live allocation that [memory, memory + bytes) lies in, or nullptr.
const Allocation* find_allocation(const void* memory, std::size_t bytes);

/// While one lives, device memory can be read and written. Without one the pages are closed, so
/// that host code that follows a device pointer crashes here as it would beside a real device.
class Access {
 public:
  Access();
  ~Access();
  Access(const Access&) = delete;
  Access& operator=(const Access&) = delete;
};

}  // namespace quarry::emulator::runtime
