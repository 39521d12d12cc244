// SPDX-License-Identifier: Apache-2.0
#pragma once

// From a lane's address operand to a host address, with the checks that are always made.

#include <cstring>

#include "machine.h"

namespace quarry::emulator {

// Any shared address, or the reason why it is none.
std::byte* shared_address(Warp& warp, const Instruction& in, unsigned lane, uint64_t at,
                          size_t bytes);
// A generic address inside the cluster's shared memory, checked likewise.
std::byte* generic_shared_address(Warp& warp, const Instruction& in, unsigned lane, uint64_t at,
                                  size_t bytes);
[[noreturn]] void bad_address(const Warp& warp, const Instruction& in, unsigned lane, uint64_t at,
                              size_t bytes);

inline uint64_t address_value(const Warp& w, const Instruction& in, unsigned lane,
                              unsigned operand) {
  const auto offset = static_cast<uint64_t>(in.offset);
  if (in.wide_address) return w.in<uint64_t>(in.from[operand])[lane] + offset;
  return static_cast<uint32_t>(w.in<uint32_t>(in.from[operand])[lane] + offset);
}

template <Space S>
inline std::byte* address(Warp& w, const Instruction& in, unsigned lane, unsigned operand,
                          size_t bytes) {
  const uint64_t at = address_value(w, in, lane, operand);
  if constexpr (S == Space::shared) {
    const Cluster& cluster = *w.block->cluster;
    const uint64_t offset = at - kOwnWindow;
    const size_t size = cluster.grid->shared_bytes;
    if (offset < size && size - offset >= bytes && at % bytes == 0) {
      return w.block->shared + offset;
    }
    return shared_address(w, in, lane, at, bytes);
  }
  if constexpr (S == Space::generic) {
    const Cluster& cluster = *w.block->cluster;
    const uint64_t offset = at - reinterpret_cast<uint64_t>(cluster.begin);
    if (offset < cluster.stride * cluster.blocks.size()) {
      return generic_shared_address(w, in, lane, at, bytes);
    }
  }
  if (at < 65536 || at % bytes != 0) bad_address(w, in, lane, at, bytes);
  return reinterpret_cast<std::byte*>(at);
}

}  // namespace quarry::emulator
