// SPDX-License-Identifier: Apache-2.0
#include "progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <utility>

namespace quarry::tools {

ProgressBar::ProgressBar(std::string what)
    : what_(std::move(what)), on_terminal_(isatty(STDERR_FILENO) != 0) {}

ProgressBar::~ProgressBar() {
  if (drawn_at_ == 0) return;
  std::fputs("\r\x1b[K", stderr);
  std::fflush(stderr);
}

void ProgressBar::update(std::int64_t done, std::int64_t total) {
  constexpr int kCells = 40;
  constexpr double kInterval = 0.05;
  if (!on_terminal_ || total <= 0) return;
  const double now =
      std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  if (now - drawn_at_ < kInterval && done < total) return;
  drawn_at_ = now;
  const auto full = static_cast<int>(done * kCells / total);
  std::string bar;
  for (int i = 0; i < kCells; ++i) bar += i < full ? "█" : "░";
  const std::string line =
      fmt::format("\r{:<9} {} {:3d} %  {} / {}\x1b[K", what_, bar, done * 100 / total, done, total);
  std::fputs(line.c_str(), stderr);
  std::fflush(stderr);
}

}  // namespace quarry::tools
