// SPDX-License-Identifier: Apache-2.0
// ld, st, cp.async (done at once), prefetch, fences.
#include "memory.h"

#include <algorithm>
#include <cstdio>
#include <type_traits>

#include "alu.h"
#include "decode.h"

namespace quarry::emulator {

void bad_address(const Warp& w, const Instruction& in, unsigned lane, uint64_t at, size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(at));
  fault(w, in.line, lane,
        at < 65536
            ? std::string("access through a null pointer, address ") + text
            : "address " + std::string(text) + " is not a multiple of " + std::to_string(bytes));
}

namespace {

std::byte* in_block(Warp& w, const Instruction& in, unsigned lane, uint64_t at, unsigned rank,
                    uint64_t offset, size_t bytes) {
  const Cluster& cluster = *w.block->cluster;
  const size_t size = cluster.grid->shared_bytes;
  if (rank >= cluster.blocks.size()) {
    fault(w, in.line, lane, "shared memory of a rank outside the cluster");
  }
  const Block& block = *cluster.blocks[rank];
  if (block.alive == 0) fault(w, in.line, lane, "shared memory of a block that has ended");
  if (offset > size || size - offset < bytes) {
    fault(w, in.line, lane,
          "shared memory access of " + std::to_string(bytes) + " bytes at byte " +
              std::to_string(offset) + " of " + std::to_string(size));
  }
  if (offset % bytes != 0) bad_address(w, in, lane, at, bytes);
  return block.shared + offset;
}

}  // namespace

std::byte* shared_address(Warp& w, const Instruction& in, unsigned lane, uint64_t at,
                          size_t bytes) {
  const uint64_t window = at >> kWindowBits;
  if (window == 0) bad_address(w, in, lane, at & 0xFFFF, bytes);
  const unsigned rank = window == 1 ? w.block->rank : static_cast<unsigned>(window - 2);
  return in_block(w, in, lane, at, rank, at & (kOwnWindow - 1), bytes);
}

std::byte* generic_shared_address(Warp& w, const Instruction& in, unsigned lane, uint64_t at,
                                  size_t bytes) {
  const Cluster& cluster = *w.block->cluster;
  const uint64_t offset = at - reinterpret_cast<uint64_t>(cluster.begin);
  return in_block(w, in, lane, at, static_cast<unsigned>(offset / cluster.stride),
                  offset % cluster.stride, bytes);
}

namespace {

template <class M, class R, Space S>
void load(Warp& w, const Instruction& in, Mask lanes) {
  if (w.watch != 0) watch_access(w, in, lanes);
  const Places<S> place(w, in, 0, sizeof(M) * in.count);
  if (in.count == 1) {
    R* d = w.out<R>(in.to[0]);
    each_lane(lanes, [=](unsigned i) {
      M value;
      std::memcpy(&value, place(i), sizeof(M));
      d[i] = static_cast<R>(value);
    });
    return;
  }
  for (Mask rest = lanes; rest != 0; rest &= rest - 1) {
    const auto i = static_cast<unsigned>(std::countr_zero(rest));
    const std::byte* p = place(i);
    for (unsigned k = 0; k < in.count; ++k) {
      M value;
      std::memcpy(&value, p + k * sizeof(M), sizeof(M));
      w.out<R>(in.to[k])[i] = static_cast<R>(value);
    }
  }
}

// from[0] is the address, from[1...] the values. In lane order: the last one stays.
template <class M, class R, Space S>
void store(Warp& w, const Instruction& in, Mask lanes) {
  if (w.watch != 0) watch_access(w, in, lanes);
  const Places<S> place(w, in, 0, sizeof(M) * in.count);
  for (Mask rest = lanes; rest != 0; rest &= rest - 1) {
    const auto i = static_cast<unsigned>(std::countr_zero(rest));
    std::byte* p = place(i);
    for (unsigned k = 0; k < in.count; ++k) {
      const auto value = static_cast<M>(w.in<R>(in.from[1 + k])[i]);
      std::memcpy(p + k * sizeof(M), &value, sizeof(M));
    }
  }
}

template <class M, class R>
Handler by_space(Space space, bool write) {
  switch (space) {
    case Space::shared:
      return write ? store<M, R, Space::shared> : load<M, R, Space::shared>;
    case Space::global:
      return write ? store<M, R, Space::global> : load<M, R, Space::global>;
    case Space::host:
      return write ? store<M, R, Space::host> : load<M, R, Space::host>;
    case Space::generic:
      break;
  }
  return write ? store<M, R, Space::generic> : load<M, R, Space::generic>;
}

template <class M>
Handler by_register(unsigned bits, Space space, bool write) {
  if (bits < sizeof(M) * 8) return nullptr;
  if constexpr (sizeof(M) <= 2) {
    if (bits == 16) return by_space<M, uint16_t>(space, write);
  }
  if constexpr (sizeof(M) <= 4) {
    if (bits == 32) return by_space<M, uint32_t>(space, write);
  }
  return bits == 64 ? by_space<M, uint64_t>(space, write) : nullptr;
}

Handler by_memory(Type type, unsigned bits, Space space, bool write) {
  const bool sign = type.is_signed() && !write && bits > type.bits;
  switch (type.bits) {
    case 8:
      return sign ? by_register<int8_t>(bits, space, write)
                  : by_register<uint8_t>(bits, space, write);
    case 16:
      return sign ? by_register<int16_t>(bits, space, write)
                  : by_register<uint16_t>(bits, space, write);
    case 32:
      return sign ? by_register<int32_t>(bits, space, write)
                  : by_register<uint32_t>(bits, space, write);
    default:
      return by_register<uint64_t>(bits, space, write);
  }
}

// from[0]: the shared address, from[1]: the global one, from[2]: bytes to read, the rest zero.
void copy_async(Warp& w, const Instruction& in, Mask lanes) {
  if (w.watch != 0) watch_access(w, in, lanes);
  for (Mask rest = lanes; rest != 0; rest &= rest - 1) {
    const auto i = static_cast<unsigned>(std::countr_zero(rest));
    std::byte* to = address<Space::shared>(w, in, i, 0, in.bytes);
    const uint32_t length = std::min<uint32_t>(w.in<uint32_t>(in.from[2])[i], in.bytes);
    if (length == 0) {  // reads nothing, so the address may be anything
      std::memset(to, 0, in.bytes);
      continue;
    }
    const uint64_t from = w.in<uint64_t>(in.from[1])[i] + in.target;
    if (from < 65536 || from % in.bytes != 0) bad_address(w, in, i, from, in.bytes);
    std::byte copy[16] = {};
    std::memcpy(copy, reinterpret_cast<const std::byte*>(from), length);
    std::memcpy(to, copy, in.bytes);
  }
}

void nothing(Warp& /*w*/, const Instruction& /*in*/, Mask /*lanes*/) {}

void take_hints(Opcode& op) {
  for (const char* hint : {"volatile",
                           "weak",
                           "relaxed",
                           "acquire",
                           "release",
                           "cta",
                           "cluster",
                           "gpu",
                           "sys",
                           "nc",
                           "ca",
                           "cg",
                           "cs",
                           "cv",
                           "lu",
                           "wb",
                           "wt",
                           "L1::no_allocate",
                           "L1::evict_last",
                           "L1::evict_first",
                           "L1::evict_normal",
                           "L1::evict_unchanged",
                           "L2::64B",
                           "L2::128B",
                           "L2::256B",
                           "L2::evict_first",
                           "L2::evict_last",
                           "L2::evict_normal"}) {
    op.take(hint);
  }
}

bool decode_copy(Decoder& d, const Statement& s, Opcode& op, Instruction& in) {
  op.take("async");
  if (op.take("wait_all") || op.take("wait_group") || op.take("commit_group")) {
    in.run = nothing;
    return true;
  }
  if (!op.take("shared") && !op.take("shared::cta")) return false;
  if (!op.take("global")) return false;
  take_hints(op);
  d.expect(s, 3, 4);
  uint64_t bytes = 0;
  const Type u32{'u', 32, false};
  if (!literal(s.operands[2], u32, &bytes) || (bytes != 4 && bytes != 8 && bytes != 16)) {
    d.fail("size of cp.async");
  }
  in.bytes = static_cast<uint8_t>(bytes);
  Instruction other;
  d.address(s.operands[1], other, 0);
  if (!other.wide_address || other.offset < 0 || other.offset > INT32_MAX) d.fail("source");
  d.address(s.operands[0], in, 0);
  in.from[1] = other.from[0];
  in.target = static_cast<uint32_t>(other.offset);
  in.from[2] = s.operands.size() == 4 ? d.source(s.operands[3], u32) : d.constant(32, bytes);
  in.space = Space::shared;
  in.access = Access::copy;
  in.run = copy_async;
  return true;
}

}  // namespace

Space take_space(Opcode& op) {
  if (op.take("shared") || op.take("shared::cta") || op.take("shared::cluster")) {
    return Space::shared;
  }
  if (op.take("global")) return Space::global;
  if (op.take("local") || op.take("param") || op.take("const")) return Space::host;
  return Space::generic;
}

bool decode_memory(Decoder& d, const Statement& s, Opcode& op, Instruction& in) {
  if (op.name == "cp")
    return op.modifiers.empty() || op.modifiers[0] != "async" ? false : decode_copy(d, s, op, in);
  if (op.name == "prefetch" || op.name == "prefetchu" || op.name == "fence" ||
      op.name == "membar" || op.name == "griddepcontrol" || op.name == "discard" ||
      op.name == "applypriority" || op.name == "createpolicy") {
    if (op.name == "discard" || op.name == "createpolicy") return false;
    op.modifiers.clear();  // speed and order alone, and here all is in order
    in.run = nothing;
    return true;
  }
  if ((op.name != "ld" && op.name != "st") || op.types.size() != 1) return false;
  const bool write = op.name == "st";
  const Type type = op.types[0];
  in.space = take_space(op);
  take_hints(op);
  in.count = op.take("v2") ? 2 : op.take("v4") ? 4 : 1;
  d.expect(s, 2, 2);
  d.address(s.operands[write ? 0 : 1], in, 0);
  const std::vector<std::string_view> parts = Decoder::parts(s.operands[write ? 1 : 0]);
  if (parts.size() != in.count) d.fail("elements of a vector access");
  unsigned bits = 0;
  for (size_t k = 0; k < parts.size(); ++k) {
    unsigned its = 0;
    uint64_t value = 0;
    if (!write) {
      in.to[k] = d.destination_of_any_width(parts[k], &its);
    } else if (literal(parts[k], type, &value)) {
      its = bits != 0 ? bits : std::max(type.bits, 16u);
      in.from[1 + k] = d.constant(its, value);
    } else {
      in.from[1 + k] = d.source_of_any_width(parts[k], &its);
    }
    if (bits != 0 && its != bits) d.fail("registers of different widths in a vector");
    bits = its;
  }
  in.bytes = static_cast<uint8_t>(type.bits / 8);
  in.register_bits = static_cast<uint8_t>(bits);
  in.access = write ? Access::write : Access::read;
  in.run = by_memory(type, bits, in.space, write);
  if (in.run == nullptr) d.fail("register narrower than what it loads or stores");
  return true;
}

}  // namespace quarry::emulator
