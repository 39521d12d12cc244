// SPDX-License-Identifier: Apache-2.0
//
// What an Indexer holds on the host, for the files that implement its calls.
#pragma once

#include <vector>

#include "backend.h"
#include "plan.h"
#include "quarry/indexer.h"
#include "validate.h"

namespace quarry {

struct Indexer::Impl {
  ~Impl() {
    if (owned != nullptr) stages->release(owned);
  }

  IndexerConfig config;
  Device device;
  const Stages* stages = nullptr;
  Launch launch;  // of a call: its stream is set
  Plan plan{};
  void* owned = nullptr;  // index memory, where the caller brought none
  std::vector<HostSlot> slots;
  std::uint64_t hashed_id = 0, hash = 0;  // checksum of the codebook with that id; 0: none yet

  Launch on(Stream stream) const noexcept {
    Launch l = launch;
    l.stream = stream;
    return l;
  }
};

inline Status not_created() {
  return Status(StatusCode::invalid_argument, "the Indexer is empty: create() it first");
}

/// A codebook id that no codebook of this process had.
std::uint64_t fresh_codebook_id() noexcept;

}  // namespace quarry
