// SPDX-License-Identifier: Apache-2.0
//
// A file that lives in memory, for readers that take a path.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

namespace quarry::fuzz {

/// Ends the run where a promise is broken; libFuzzer then keeps the input.
inline void require(bool holds) {
  if (!holds) std::abort();
}

class MemoryFile {
 public:
  MemoryFile() : descriptor_(memfd_create("fuzz", MFD_CLOEXEC)) { require(descriptor_ >= 0); }
  MemoryFile(const std::uint8_t* data, std::size_t size) : MemoryFile() {
    for (std::size_t at = 0; at < size;) {
      const ssize_t wrote = write(descriptor_, data + at, size - at);
      require(wrote > 0);
      at += static_cast<std::size_t>(wrote);
    }
  }
  ~MemoryFile() { close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  int descriptor_;
};

}  // namespace quarry::fuzz
