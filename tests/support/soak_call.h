// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "allocations.h"
#include "soak.h"

namespace quarry::test {

/// Runs one call of the Indexer and counts what it allocates. `shape` names a call that a
/// graph may be captured of once and replayed (launch_modes.h); empty: on the stream.
template <typename F>
bool Soak::call(const char* what, const std::string& shape, F&& f) {
  const long before = AllocationWatch::count();
  const auto watched = [&](Stream stream) {
    const AllocationWatch watch;
    return f(stream);
  };
  Status status;
  if (shape.empty()) {
    status = watched(launcher_.stream());
    launcher_.synchronize();
  } else {
    status = launcher_.run(shape, watched);
  }
  allocations_ += AllocationWatch::count() - before;
  if (!status.ok()) fail(std::string(what) + ": " + status.detail());
  return status.ok();
}

}  // namespace quarry::test
