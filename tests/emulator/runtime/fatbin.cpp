// SPDX-License-Identifier: Apache-2.0
//
// The container's layout is not documented. What is read here was seen in the output of nvcc 12.8
// and 13.0, and every field that is known is checked, so that another layout is an error, not a
// kernel that is quietly missing.
#include "fatbin.h"

#include <cstdint>
#include <cstring>
#include <stdexcept>

namespace quarry::emulator::runtime {
namespace {

struct Wrapper {
  std::uint32_t magic, version;
  const unsigned char* data;
  const void* unused;
};

struct Header {
  std::uint32_t magic;
  std::uint16_t version, header_bytes;
  std::uint64_t bytes;  // of the entries, without this header
};

struct Entry {
  std::uint16_t kind, version;
  std::uint32_t header_bytes;
  std::uint64_t bytes;  // of the payload, padding included
  std::uint32_t compressed_bytes, options_offset;
  std::uint16_t minor, major;  // of the PTX language
  std::uint32_t architecture;  // 90 for compute_90
};

constexpr std::uint32_t kWrapperMagic = 0x466243b1, kHeaderMagic = 0xba55ed50;
constexpr std::uint16_t kPtx = 1;

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error("the fat binary that nvcc embedded: " + what);
}

std::string hex(std::uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

template <typename T>
T read(const unsigned char* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

}  // namespace

std::string find_ptx(const void* wrapper, int compute_capability) {
  const auto outer = read<Wrapper>(static_cast<const unsigned char*>(wrapper));
  if (outer.magic != kWrapperMagic) fail("its wrapper begins with " + hex(outer.magic));
  if (outer.version != 1) fail("its wrapper's version is " + std::to_string(outer.version));
  const auto header = read<Header>(outer.data);
  if (header.magic != kHeaderMagic) fail("it begins with " + hex(header.magic));
  if (header.version != 1) fail("its version is " + std::to_string(header.version));
  if (header.header_bytes < sizeof(Header)) fail("its header is too short");

  const unsigned char* at = outer.data + header.header_bytes;
  const unsigned char* const end = at + header.bytes;
  std::string found;  // for the error's text
  std::uint32_t best = 0;
  const unsigned char* text = nullptr;
  std::uint64_t text_bytes = 0;
  while (at < end) {
    const auto left = static_cast<std::uint64_t>(end - at);
    if (left < sizeof(Entry)) fail("an entry is cut off");
    const auto entry = read<Entry>(at);
    if (entry.header_bytes < sizeof(Entry) || entry.header_bytes > left ||
        entry.bytes > left - entry.header_bytes) {
      fail("an entry of " + hex(entry.header_bytes) + " + " + hex(entry.bytes) +
           " bytes does not fit");
    }
    const bool fits = static_cast<int>(entry.architecture) <= compute_capability;
    found += (entry.kind == kPtx ? " compute_" : " sm_") + std::to_string(entry.architecture);
    if (entry.kind == kPtx && fits && entry.architecture > best) {
      if (entry.compressed_bytes != 0) {
        fail("its PTX is compressed; compile with --compress-mode=none");
      }
      best = entry.architecture;
      text = at + entry.header_bytes;
      text_bytes = entry.bytes;
    }
    at += entry.header_bytes + entry.bytes;
  }
  if (text == nullptr) {
    fail("no PTX for compute capability " + std::to_string(compute_capability) + " among:" + found);
  }
  std::string ptx(reinterpret_cast<const char*>(text), text_bytes);
  ptx.resize(std::strlen(ptx.c_str()));  // padded with NUL
  if (ptx.find(".version") == std::string::npos) fail("its PTX has no .version directive");
  return ptx;
}

}  // namespace quarry::emulator::runtime
