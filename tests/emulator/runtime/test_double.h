// SPDX-License-Identifier: Apache-2.0
//
// A double of the PTX interpreter: kernels are recognised by name and done in C++, and what the
// runtime hands over is recorded.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "../ptx.h"

namespace quarry::emulator::test {

struct Seen {
  std::string kernel;
  Launch launch;  // its arguments dangle
};

struct Memory {
  const void* begin;
  std::size_t bytes;
  bool initialised;
};

/// What has been seen since the process began.
struct Recording {
  std::vector<std::string> modules;  // PTX
  std::vector<Seen> launches;
  std::vector<Memory> live;     // registered and not forgotten
  std::vector<Memory> written;  // by mark_written
};
Recording& recording();

}  // namespace quarry::emulator::test
