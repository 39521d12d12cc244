// SPDX-License-Identifier: Apache-2.0
//
// The 64-bit checksum of saved sequences: of little-endian 8-byte words, the last one padded
// with zeros, and the length. Every step is a bijection of the state for a given word and of
// the word for a given state, so a change within one word always changes the sum.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace quarry {

static_assert(std::endian::native == std::endian::little, "quarry's files are little-endian");

class Checksum {
 public:
  void update(const void* data, std::size_t bytes) noexcept {
    const auto* p = static_cast<const unsigned char*>(data);
    length_ += bytes;
    while (bytes > 0 && held_ != 0) {
      take(*p++);
      --bytes;
    }
    for (; bytes >= 8; bytes -= 8, p += 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, p, 8);
      mix(word);
    }
    while (bytes-- > 0) take(*p++);
  }

  std::uint64_t value() const noexcept {
    Checksum end = *this;
    if (end.held_ > 0) end.mix(end.word_);
    end.mix(length_);
    return end.state_;
  }

 private:
  void take(unsigned char byte) noexcept {
    word_ |= static_cast<std::uint64_t>(byte) << (8 * held_);
    if (++held_ < 8) return;
    mix(word_);
    word_ = 0;
    held_ = 0;
  }
  void mix(std::uint64_t word) noexcept {
    // Odd factors and xor-shifts, as in SplitMix64's finalizer (Steele et al. 2014).
    state_ = (state_ ^ word) * 0xbf58476d1ce4e5b9u;
    state_ ^= state_ >> 31;
    state_ *= 0x94d049bb133111ebu;
    state_ ^= state_ >> 29;
  }

  std::uint64_t state_ = 0x9e3779b97f4a7c15u;
  std::uint64_t word_ = 0;
  std::uint64_t length_ = 0;
  int held_ = 0;
};

}  // namespace quarry
