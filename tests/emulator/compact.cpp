// SPDX-License-Identifier: Apache-2.0
#include "decode.h"
namespace quarry::emulator {
void compact_registers(Program& /*program*/) {}
}  // namespace quarry::emulator
