// SPDX-License-Identifier: Apache-2.0
//
// How a tool fails: one line on stderr and an exit code. Thrown inside the tools alone and
// caught in main(); the library itself never throws.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

#include "quarry/status.h"

namespace quarry::tools {

inline constexpr int kExitInternal = 1;  ///< the device, the disk or the library failed
inline constexpr int kExitBadInput = 2;  ///< arguments or files that cannot be used

/// What main() prints and returns.
class Error : public std::runtime_error {
 public:
  Error(int exit_code, const std::string& line) : std::runtime_error(line), exit_code_(exit_code) {}
  int exit_code() const noexcept { return exit_code_; }

 private:
  int exit_code_;
};

/// Arguments or a file that cannot be used.
class BadInput : public Error {
 public:
  explicit BadInput(const std::string& line) : Error(kExitBadInput, line) {}
};

/// Text from a file made fit for one line of a terminal: control characters and bytes past
/// ASCII become '?', and it is cut at 80 characters.
std::string printable(std::string_view text);

/// Throws what `status` says, `what` in front; nothing where it is ok. Requests that this
/// build does not serve start with "not built".
void check(const Status& status, std::string_view what);

}  // namespace quarry::tools
