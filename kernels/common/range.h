// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace quarry::cuda {

/// Ranges of this thread in NVTX's domain "quarry". Without a profiler attached, each is a
/// load and a branch.
void push_range(const char* name) noexcept;
void pop_range() noexcept;

}  // namespace quarry::cuda
