// SPDX-License-Identifier: Apache-2.0
//
// What the library tells the log callback.
#pragma once

#include "plan.h"
#include "quarry/log.h"

namespace quarry {

/// As set_log_callback(), for whichever of the two is not null; `in_c` takes the level as C has it.
using LogCallbackInC = void (*)(std::int32_t level, const char* message, void* user);
void set_log_callbacks(LogCallback callback, LogCallbackInC in_c, void* user,
                       std::int32_t most) noexcept;

/// Whether anybody listens to `level`: one relaxed load, so that silence costs nothing.
bool log_enabled(LogLevel level) noexcept;

/// `format` and what follows as for printf, cut at 511 characters.
[[gnu::format(printf, 2, 3)]] void log_message(LogLevel level, const char* format, ...) noexcept;

/// create() succeeded.
void log_created(const IndexerConfig& resolved, const Device& device,
                 const MemoryRequirements& memory) noexcept;

/// build() was accepted and its work is on the stream.
void log_built(const BuildArgs& args, bool trained) noexcept;

}  // namespace quarry
