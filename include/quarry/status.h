// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace quarry {

/// What went wrong, as a class of errors an engine can branch on.
enum class StatusCode : std::int32_t {
  ok = 0,
  invalid_argument = 1,     ///< a pointer, shape, stride, dtype or value is not acceptable
  out_of_range = 2,         ///< a length, slot, batch or query count beyond what create() was given
  unsupported = 3,          ///< a valid request this build or backend does not serve
  workspace_too_small = 4,  ///< the caller's scratch is smaller than memory_requirements() says
  out_of_memory = 5,        ///< the index memory could not be allocated
  not_built = 6,            ///< a sequence beyond the dense range has no codebook
  too_few_keys = 7,         ///< training needs at least ksub finite keys of every KV head
  device_error = 8,         ///< the CUDA runtime reported an error, named in the detail
};

/// The code's name, e.g. "invalid_argument". Never null.
const char* to_string(StatusCode code) noexcept;

/// Result of every call: a code and one readable line naming the argument, its
/// value and the bound. Holds its text in place: making one never allocates.
class [[nodiscard]] Status {
 public:
  Status() noexcept { detail_[0] = 0; }
  /// `format` and what follows as for printf; cut at capacity() - 1 characters.
  [[gnu::format(printf, 3, 4)]] Status(StatusCode code, const char* format, ...) noexcept;

  bool ok() const noexcept { return code_ == StatusCode::ok; }
  StatusCode code() const noexcept { return code_; }
  /// Empty when ok().
  const char* detail() const noexcept { return detail_; }

  static constexpr int capacity() noexcept { return kCapacity; }

 private:
  static constexpr int kCapacity = 244;
  StatusCode code_ = StatusCode::ok;
  char detail_[kCapacity];
};

}  // namespace quarry
