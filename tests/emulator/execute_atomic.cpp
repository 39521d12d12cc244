// SPDX-License-Identifier: Apache-2.0
// atom and red: one lane after another, each atomic for other host threads too.
#include <atomic>

#include "decode.h"
#include "memory.h"

namespace quarry::emulator {

namespace {

enum Mode : uint8_t { kAdd, kMin, kMax, kAnd, kOr, kXor, kExchange, kIncrement, kDecrement, kCas };

template <class T, class U>
U combine(uint8_t mode, U old, U b, U c) {
  const T x = std::bit_cast<T>(old);
  const T y = std::bit_cast<T>(b);
  switch (mode) {
    case kAdd:
      if constexpr (std::is_floating_point_v<T>) {
        return std::bit_cast<U>(x + y);
      } else {
        return old + b;
      }
    case kMin:
      return y < x ? b : old;
    case kMax:
      return y > x ? b : old;
    case kAnd:
      return old & b;
    case kOr:
      return old | b;
    case kXor:
      return old ^ b;
    case kExchange:
      return b;
    case kIncrement:
      return old >= b ? U{0} : old + 1;
    case kDecrement:
      return old == 0 || old > b ? b : old - 1;
    default:
      return old == b ? c : old;
  }
}

// from: address, operand, new value of a cas. flip: the old value is wanted.
template <class T, class U, Space S>
void atomic(Warp& w, const Instruction& in, Mask lanes) {
  if (w.watch != 0) watch_access(w, in, lanes);
  for (Mask rest = lanes; rest != 0; rest &= rest - 1) {
    const auto i = static_cast<unsigned>(std::countr_zero(rest));
    U* p = reinterpret_cast<U*>(address<S>(w, in, i, 0, sizeof(U)));
    const U b = w.in<U>(in.from[1])[i];
    const U c = w.in<U>(in.from[2])[i];
    const std::atomic_ref<U> cell(*p);
    U old = cell.load();
    while (!cell.compare_exchange_weak(old, combine<T, U>(in.mode, old, b, c))) {
    }
    if (in.flip != 0) w.out<U>(in.to[0])[i] = old;
  }
}

template <class T, class U>
Handler by_space(Space space) {
  switch (space) {
    case Space::shared:
      return atomic<T, U, Space::shared>;
    case Space::global:
      return atomic<T, U, Space::global>;
    default:
      return atomic<T, U, Space::generic>;
  }
}

uint8_t take_mode(Decoder& d, Opcode& op) {
  constexpr std::string_view names[] = {"add", "min",  "max", "and", "or",
                                        "xor", "exch", "inc", "dec", "cas"};
  for (uint8_t mode = 0; mode < std::size(names); ++mode) {
    if (op.take(names[mode])) return mode;
  }
  d.fail("operation of an atomic");
}

}  // namespace

bool decode_atomic(Decoder& d, const Statement& s, Opcode& op, Instruction& in) {
  if ((op.name != "atom" && op.name != "red") || op.types.size() != 1) return false;
  const Type type = op.types[0];
  if (type.bits < 32 || type.pair) return false;
  const bool result = op.name == "atom";
  in.mode = take_mode(d, op);
  in.space = take_space(op);
  for (const char* hint :
       {"relaxed", "acquire", "release", "acq_rel", "cta", "cluster", "gpu", "sys"}) {
    op.take(hint);
  }
  if (in.space == Space::host) d.fail("space of an atomic");
  const bool is_float = type.is_float();
  if (is_float && in.mode != kAdd && in.mode != kExchange) d.fail("operation of a float atomic");
  if (type.bits == 32) {
    in.run = is_float           ? by_space<float, uint32_t>(in.space)
             : type.is_signed() ? by_space<int32_t, uint32_t>(in.space)
                                : by_space<uint32_t, uint32_t>(in.space);
  } else {
    in.run = is_float           ? by_space<double, uint64_t>(in.space)
             : type.is_signed() ? by_space<int64_t, uint64_t>(in.space)
                                : by_space<uint64_t, uint64_t>(in.space);
  }
  const size_t first = result ? 1 : 0;
  const size_t sources = in.mode == kCas ? 3 : 2;
  d.expect(s, first + sources, first + sources);
  if (result && s.operands[0] != "_") {
    in.to[0] = d.destination(s.operands[0], type.bits);
    in.flip = kFull;
  }
  d.address(s.operands[first], in, 0);
  in.from[1] = d.source(s.operands[first + 1], type);
  in.from[2] = in.mode == kCas ? d.source(s.operands[first + 2], type) : in.from[1];
  in.bytes = static_cast<uint8_t>(type.bits / 8);
  in.register_bits = static_cast<uint8_t>(type.bits);
  in.access = Access::atomic;
  return true;
}

}  // namespace quarry::emulator
