// SPDX-License-Identifier: Apache-2.0
#include "call.h"

#include "log.h"
#if QUARRY_HAS_NVTX
#include "common/range.h"
#endif

namespace quarry {
namespace {

thread_local const char* current = nullptr;

}  // namespace

Call::Call(const char* name) noexcept
    : outermost_(current == nullptr && log_enabled(LogLevel::error)) {
  if (outermost_) current = name;
#if QUARRY_HAS_NVTX
  cuda::push_range(name);
#endif
}

Call::~Call() {
#if QUARRY_HAS_NVTX
  cuda::pop_range();
#endif
  if (outermost_) current = nullptr;
}

void log_refusal(StatusCode code, const char* detail) noexcept {
  if (current == nullptr) return;
  const bool broken = code == StatusCode::device_error || code == StatusCode::out_of_memory;
  log_message(broken ? LogLevel::error : LogLevel::debug, "%s: %s: %s", current, to_string(code),
              detail);
}

}  // namespace quarry
