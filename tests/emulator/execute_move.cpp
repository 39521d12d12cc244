// SPDX-License-Identifier: Apache-2.0
// mov (registers, special registers, addresses, packing and unpacking) and cvta, mapa, isspacep.
#include "alu.h"
#include "decode.h"

namespace quarry::emulator {
namespace {

template <class U>
void move(Warp& w, const Instruction& in, Mask lanes) {
  const U* a = w.in<U>(in.from[0]);
  U* d = w.out<U>(in.to[0]);
  each_lane(lanes, [=](unsigned i) { d[i] = a[i]; });
}

Handler move_of(unsigned bits) {
  return bits == 16 ? move<uint16_t> : bits == 32 ? move<uint32_t> : move<uint64_t>;
}

// The address of a parameter or of local memory: a lane's base plus offset.
void move_based(Warp& w, const Instruction& in, Mask lanes) {
  const auto* a = w.in<uint64_t>(in.from[0]);
  auto* d = w.out<uint64_t>(in.to[0]);
  const auto offset = static_cast<uint64_t>(in.offset);
  each_lane(lanes, [=](unsigned i) { d[i] = a[i] + offset; });
}

// Of an array in dynamic shared memory, whose place is one with each launch.
template <class D>
void move_shared(Warp& w, const Instruction& in, Mask lanes) {
  const auto* a = w.in<uint32_t>(in.from[0]);
  D* d = w.out<D>(in.to[0]);
  const auto offset = static_cast<uint32_t>(in.offset);
  each_lane(lanes, [=](unsigned i) { d[i] = a[i] + offset; });
}

template <class Whole, class Part>
void pack(Warp& w, const Instruction& in, Mask lanes) {
  Whole* d = w.out<Whole>(in.to[0]);
  constexpr unsigned bits = sizeof(Part) * 8;
  for (; lanes != 0; lanes &= lanes - 1) {
    const int i = std::countr_zero(lanes);
    Whole v = 0;
    for (unsigned k = 0; k < sizeof(Whole) / sizeof(Part); ++k) {
      v |= static_cast<Whole>(w.in<Part>(in.from[k])[i]) << (k * bits);
    }
    d[i] = v;
  }
}

template <class Whole, class Part>
void unpack(Warp& w, const Instruction& in, Mask lanes) {
  const Whole* a = w.in<Whole>(in.from[0]);
  constexpr unsigned bits = sizeof(Part) * 8;
  for (; lanes != 0; lanes &= lanes - 1) {
    const int i = std::countr_zero(lanes);
    const Whole v = a[i];
    for (unsigned k = 0; k < sizeof(Whole) / sizeof(Part); ++k) {
      if (((in.mode >> k) & 1u) == 0) w.out<Part>(in.to[k])[i] = static_cast<Part>(v >> (k * bits));
    }
  }
}

template <template <class, class> class Choice>
Handler by_parts(Decoder& d, unsigned bits, size_t parts) {
  if (bits == 32 && parts == 2) return Choice<uint32_t, uint16_t>::handler;
  if (bits == 64 && parts == 2) return Choice<uint64_t, uint32_t>::handler;
  if (bits == 64 && parts == 4) return Choice<uint64_t, uint16_t>::handler;
  d.fail("parts of a register");
}
template <class W, class P>
struct Packing {
  static constexpr Handler handler = pack<W, P>;
};
template <class W, class P>
struct Unpacking {
  static constexpr Handler handler = unpack<W, P>;
};

void shared_to_generic(Warp& w, const Instruction& in, Mask lanes) {
  const auto* a = w.in<uint64_t>(in.from[0]);
  auto* d = w.out<uint64_t>(in.to[0]);
  const Cluster& cluster = *w.block->cluster;
  for (; lanes != 0; lanes &= lanes - 1) {
    const int i = std::countr_zero(lanes);
    const auto at = static_cast<uint32_t>(a[i]);
    const uint32_t window = at >> kWindowBits;
    const uint32_t offset = at & (kOwnWindow - 1);
    const bool other = window >= 2 && window - 2 < cluster.blocks.size();
    if (window == 0) {  // a null pointer stays one that is caught
      d[i] = offset;
      continue;
    }
    const std::byte* base = other ? cluster.blocks[window - 2]->shared : w.block->shared;
    d[i] = reinterpret_cast<uint64_t>(base) + offset;
  }
}

uint32_t to_shared(Warp& w, uint64_t generic) {
  const Cluster& cluster = *w.block->cluster;
  const uint64_t begin = reinterpret_cast<uint64_t>(cluster.begin);
  const uint64_t at = generic - begin;
  if (generic < begin || at >= cluster.stride * cluster.blocks.size()) return 0;
  const auto rank = static_cast<unsigned>(at / cluster.stride);
  const auto offset = static_cast<uint32_t>(at % cluster.stride);
  return (rank == w.block->rank ? kOwnWindow : window_of(rank)) + offset;
}

void generic_to_shared(Warp& w, const Instruction& in, Mask lanes) {
  const auto* a = w.in<uint64_t>(in.from[0]);
  auto* d = w.out<uint64_t>(in.to[0]);
  for (; lanes != 0; lanes &= lanes - 1) {
    const int i = std::countr_zero(lanes);
    d[i] = to_shared(w, a[i]);
  }
}

// The same place in the shared memory of the cluster's block of that rank.
template <class U, bool Generic>
void map_address(Warp& w, const Instruction& in, Mask lanes) {
  const U* a = w.in<U>(in.from[0]);
  const auto* rank = w.in<uint32_t>(in.from[1]);
  U* d = w.out<U>(in.to[0]);
  const Cluster& cluster = *w.block->cluster;
  for (; lanes != 0; lanes &= lanes - 1) {
    const int i = std::countr_zero(lanes);
    const uint32_t at = Generic ? to_shared(w, a[i]) : static_cast<uint32_t>(a[i]);
    const auto lane = static_cast<unsigned>(i);
    if (at == 0) fault(w, in.line, lane, "mapa of an address that is not in shared memory");
    if (rank[i] >= cluster.blocks.size()) {
      fault(w, in.line, lane,
            "mapa to rank " + std::to_string(rank[i]) + " of a cluster of " +
                std::to_string(cluster.blocks.size()));
    }
    const uint32_t offset = at & (kOwnWindow - 1);
    d[i] =
        Generic
            ? static_cast<U>(reinterpret_cast<uint64_t>(cluster.blocks[rank[i]]->shared) + offset)
            : static_cast<U>(window_of(rank[i]) + offset);
  }
}

// mode 0: shared memory of the cluster, 1: of the own block, 2: global
void is_space(Warp& w, const Instruction& in, Mask lanes) {
  const auto* a = w.in<uint64_t>(in.from[0]);
  Mask yes = 0;
  for (Mask rest = lanes; rest != 0; rest &= rest - 1) {
    const int i = std::countr_zero(rest);
    const uint32_t at = to_shared(w, a[i]);
    const bool in_shared = in.mode == 1 ? at >> kWindowBits == 1 : at != 0;
    yes |= Mask{in.mode == 2 ? !in_shared : in_shared} << i;
  }
  w.set_predicate(in.to[0], lanes, yes);
}

bool decode_mov(Decoder& d, const Statement& s, Opcode& op, Instruction& in) {
  if (op.types.size() != 1 || op.types[0].bits < 16) return false;
  const Type type = op.types[0];
  d.expect(s, 2, 2);
  const auto to = Decoder::parts(s.operands[0]);
  const auto from = Decoder::parts(s.operands[1]);
  if (to.size() > 1) {
    const auto part = static_cast<unsigned>(type.bits / to.size());
    in.from[0] = d.source(s.operands[1], type);
    for (size_t k = 0; k < to.size() && k < 4; ++k) {
      if (to[k] == "_") {
        in.mode |= static_cast<uint8_t>(1u << k);
      } else {
        in.to[k] = d.destination(to[k], part);
      }
    }
    in.run = by_parts<Unpacking>(d, type.bits, to.size());
    return true;
  }
  in.to[0] = d.destination(s.operands[0], type.bits);
  if (from.size() > 1) {
    const Type part{'b', static_cast<unsigned>(type.bits / from.size()), false};
    for (size_t k = 0; k < from.size() && k < 4; ++k) in.from[k] = d.source(from[k], part);
    in.run = by_parts<Packing>(d, type.bits, from.size());
    return true;
  }
  const std::string_view text = s.operands[1];
  const Symbol symbol = d.find(text.substr(0, text.find('+')));
  if (symbol.kind == Symbol::Kind::none || symbol.kind == Symbol::Kind::reg) {
    in.from[0] = d.source(text, type);
    in.run = move_of(type.bits);
    return true;
  }
  d.address("[" + std::string(text) + "]", in, 0);
  if (symbol.kind == Symbol::Kind::shared) {
    in.run = type.bits == 32 ? move_shared<uint32_t> : move_shared<uint64_t>;
  } else {
    if (type.bits != 64) d.fail("width of an address");
    in.run = move_based;
  }
  return true;
}

}  // namespace

bool decode_move(Decoder& d, const Statement& s, Opcode& op, Instruction& in) {
  const Type u64{'u', 64, false};
  const Type u32{'u', 32, false};
  if (op.name == "mov") return decode_mov(d, s, op, in);
  if (op.name == "cvta") {
    if (op.types.size() != 1 || op.types[0].bits != 64) d.fail("type of cvta");
    const bool to = op.take("to");
    const bool shared = op.take("shared") || op.take("shared::cta") || op.take("shared::cluster");
    if (!shared && !op.take("global") && !op.take("local") && !op.take("param") &&
        !op.take("const")) {
      d.fail("space of cvta");
    }
    in.run = !shared ? move<uint64_t> : to ? generic_to_shared : shared_to_generic;
    if (!to && d.find(s.operands.at(1)).kind != Symbol::Kind::reg) d.fail("cvta of a symbol");
    d.fill(in, s, u64, {u64});
    return true;
  }
  if (op.name == "mapa") {
    const bool shared = op.take("shared::cluster");
    if (op.types.size() != 1) d.fail("type of mapa");
    const bool wide = op.types[0].bits == 64;
    in.run = shared ? (wide ? map_address<uint64_t, false> : map_address<uint32_t, false>)
                    : map_address<uint64_t, true>;
    if (!shared && !wide) d.fail("mapa of a 32-bit generic address");
    d.fill(in, s, wide ? u64 : u32, {wide ? u64 : u32, u32});
    return true;
  }
  if (op.name == "getctarank") return false;
  if (op.name == "isspacep") {
    in.mode = op.take("shared::cluster")                    ? 0
              : op.take("shared") || op.take("shared::cta") ? 1
              : op.take("global")                           ? 2
                                                            : 3;
    if (in.mode == 3) d.fail("space of isspacep");
    d.fill(in, s, Type{'p', 1, false}, {u64});
    in.run = is_space;
    return true;
  }
  return false;
}

}  // namespace quarry::emulator
