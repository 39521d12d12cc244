// SPDX-License-Identifier: Apache-2.0
#pragma once

// Known memory: what the checks of global accesses go by.

#include <cstddef>
#include <cstdint>

namespace quarry::emulator {

// A module's own variables: known, but not what switches the check on.
void register_variable(void* begin, size_t bytes);
void forget_variable(void* begin);

enum class Known { yes, no, unwritten };
// Whether [begin, begin + bytes) lies in one piece of known memory and what is read was written.
// A write marks its bytes. *at: the first byte that is not.
// `read`: the bytes that matter, a bit each (the 64th: all further ones).
Known consult(const std::byte* begin, size_t bytes, uint64_t read, bool write, size_t* at);

}  // namespace quarry::emulator
