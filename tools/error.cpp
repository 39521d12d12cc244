// SPDX-License-Identifier: Apache-2.0
#include "error.h"

namespace quarry::tools {

std::string printable(std::string_view text) {
  constexpr std::size_t kLongest = 80;
  std::string out;
  for (const char c : text.substr(0, kLongest)) {
    out.push_back(c >= 0x20 && c < 0x7f ? c : '?');
  }
  if (text.size() > kLongest) out += "...";
  return out;
}

void check(const Status& status, std::string_view what) {
  if (status.ok()) return;
  int exit_code = kExitInternal;
  std::string line;
  switch (status.code()) {
    case StatusCode::unsupported:
      line = "not built: ";
      exit_code = kExitBadInput;
      break;
    case StatusCode::invalid_argument:
    case StatusCode::out_of_range:
    case StatusCode::not_built:
    case StatusCode::too_few_keys:
      exit_code = kExitBadInput;
      break;
    default:
      break;
  }
  line.append(what).append(": ").append(to_string(status.code())).append(": ");
  throw Error(exit_code, line.append(status.detail()));
}

}  // namespace quarry::tools
