// SPDX-License-Identifier: Apache-2.0
#include "quarry/status.h"

#include <cstdarg>
#include <cstdio>

#include "call.h"

namespace quarry {

const char* to_string(StatusCode code) noexcept {
  switch (code) {
    case StatusCode::ok:
      return "ok";
    case StatusCode::invalid_argument:
      return "invalid_argument";
    case StatusCode::out_of_range:
      return "out_of_range";
    case StatusCode::unsupported:
      return "unsupported";
    case StatusCode::workspace_too_small:
      return "workspace_too_small";
    case StatusCode::out_of_memory:
      return "out_of_memory";
    case StatusCode::not_built:
      return "not_built";
    case StatusCode::too_few_keys:
      return "too_few_keys";
    case StatusCode::device_error:
      return "device_error";
  }
  return "unknown";
}

Status::Status(StatusCode code, const char* format, ...) noexcept : code_(code) {
  detail_[0] = 0;
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(detail_, sizeof detail_, format, arguments);
  va_end(arguments);
  if (code != StatusCode::ok) log_refusal(code, detail_);
}

}  // namespace quarry
