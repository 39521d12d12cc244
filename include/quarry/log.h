// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace quarry {

/// How much a message matters; a lower value matters more.
enum class LogLevel : std::int32_t {
  error = 0,    ///< a call failed for want of memory or by the device's fault
  warning = 1,  ///< reserved: nothing is said at this level yet
  info = 2,     ///< create(): what was resolved and what it takes; a build() that trains
  debug = 3,    ///< a build() that does not; every call that was refused, and why
};

const char* to_string(LogLevel level) noexcept;

/// Gets one readable line without a line break, valid during the call alone, and the `user`
/// pointer that was given with it. An exception it throws is dropped.
using LogCallback = void (*)(LogLevel level, const char* message, void* user);

/// Sends the process's messages of level `most` and below to `callback`; null, the state at
/// start, is silence. A successful next() or append() says nothing at any level.
///
/// Any thread may call this at any time. Messages come one at a time, whatever the threads
/// they come from, so the callback needs no lock of its own; once this returns, the callback
/// that was set before is not running and will not be called again (called from within a
/// callback: it ends first). What a callback's own quarry calls would say is dropped.
void set_log_callback(LogCallback callback, void* user, LogLevel most = LogLevel::info) noexcept;

}  // namespace quarry
