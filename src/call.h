// SPDX-License-Identifier: Apache-2.0
//
// The scope of one public call, for those who watch: a profiler's range, and the name under
// which a refusal is logged.
#pragma once

#include "quarry/status.h"

namespace quarry {

/// First statement of a public call. Costs an atomic load and, with NVTX, two calls that
/// return at once where no profiler is attached; allowed while a stream is captured.
class Call {
 public:
  /// `name`: a literal, as "next".
  explicit Call(const char* name) noexcept;
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

 private:
  bool outermost_;  ///< and watched: the name is this thread's
};

/// From Status's constructor: the library makes no Status that its caller does not get, so one
/// made within a Call is why it was refused. Outside of Calls nothing is said.
void log_refusal(StatusCode code, const char* detail) noexcept;

}  // namespace quarry
