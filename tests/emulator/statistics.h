// SPDX-License-Identifier: Apache-2.0
#pragma once

// What QUARRY_EMULATOR_STATISTICS counts.

#include <cstddef>

#include "machine.h"

namespace quarry::emulator {

bool statistics_wanted();
// Bank conflicts as 32 banks of 4 bytes have them: wider accesses go in halves or quarters.
void count_shared(Counters& c, const std::byte* const* places, Mask lanes, size_t bytes);
// Sectors of 32 bytes.
void count_global(Counters& c, const std::byte* const* places, Mask lanes, size_t bytes,
                  bool write);

}  // namespace quarry::emulator
