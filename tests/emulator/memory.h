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

// Where the lanes of one access lie: what does not change from lane to lane is fetched once.
// `bytes` is a power of two.
template <Space S>
class Places {
 public:
  Places(Warp& w, const Instruction& in, unsigned operand, size_t bytes)
      : w_(w),
        in_(in),
        bytes_(bytes),
        narrow_(in.wide_address ? nullptr : w.in<uint32_t>(in.from[operand])),
        wide_(in.wide_address ? w.in<uint64_t>(in.from[operand]) : nullptr),
        offset_(static_cast<uint64_t>(in.offset)),
        shared_(w.block->shared),
        begin_(reinterpret_cast<uint64_t>(w.block->cluster->begin)),
        extent_(w.block->cluster->stride * w.block->cluster->blocks.size()) {
    const size_t size = w.block->cluster->grid->shared_bytes;
    fits_ = size >= bytes;
    last_ = size - bytes;
  }

  std::byte* operator()(unsigned lane) const {
    const uint64_t at =
        narrow_ != nullptr ? static_cast<uint32_t>(narrow_[lane] + offset_) : wide_[lane] + offset_;
    if constexpr (S == Space::shared) {
      const uint64_t offset = at - kOwnWindow;
      if (fits_ && offset <= last_ && (offset & (bytes_ - 1)) == 0) return shared_ + offset;
      return shared_address(w_, in_, lane, at, bytes_);
    }
    if constexpr (S == Space::generic) {
      if (at - begin_ < extent_) return generic_shared_address(w_, in_, lane, at, bytes_);
    }
    if (at < 65536 || (at & (bytes_ - 1)) != 0) bad_address(w_, in_, lane, at, bytes_);
    return reinterpret_cast<std::byte*>(at);
  }

 private:
  Warp& w_;
  const Instruction& in_;
  size_t bytes_;
  const uint32_t* narrow_;
  const uint64_t* wide_;
  uint64_t offset_;
  std::byte* shared_;
  uint64_t begin_, extent_;
  size_t last_ = 0;
  bool fits_ = false;
};

template <Space S>
std::byte* address(Warp& w, const Instruction& in, unsigned lane, unsigned operand, size_t bytes) {
  return Places<S>(w, in, operand, bytes)(lane);
}

}  // namespace quarry::emulator
