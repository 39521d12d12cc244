// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

namespace quarry::tools {

/// One line on stderr that is redrawn a few times a second and gone at the end. Silent
/// where stderr is not a terminal.
class ProgressBar {
 public:
  explicit ProgressBar(std::string what);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void update(std::int64_t done, std::int64_t total);

 private:
  std::string what_;
  bool on_terminal_;
  double drawn_at_ = 0;  // seconds of the steady clock
};

}  // namespace quarry::tools
