// SPDX-License-Identifier: Apache-2.0
// Predicates: setp, set, selp, slct and the logic of predicates.
#include <algorithm>
#include <type_traits>

#include "alu.h"
#include "decode.h"
#include "half.h"

namespace quarry::emulator {
namespace {

using Compare = Mask (*)(const Warp&, const Instruction&, Mask);

template <class U, class F>
Compare integers(F) {
  return [](const Warp& w, const Instruction& in, Mask lanes) {
    return compare_lanes(w.in<U>(in.from[0]), w.in<U>(in.from[1]), lanes, F{});
  };
}

template <class T>
Compare integer_compare(std::string_view name) {
  using U = std::make_unsigned_t<T>;
  if (name == "eq") return integers<U>([](U a, U b) { return a == b; });
  if (name == "ne") return integers<U>([](U a, U b) { return a != b; });
  if (name == "lt")
    return integers<U>([](U a, U b) { return static_cast<T>(a) < static_cast<T>(b); });
  if (name == "le")
    return integers<U>([](U a, U b) { return static_cast<T>(a) <= static_cast<T>(b); });
  if (name == "gt")
    return integers<U>([](U a, U b) { return static_cast<T>(a) > static_cast<T>(b); });
  if (name == "ge")
    return integers<U>([](U a, U b) { return static_cast<T>(a) >= static_cast<T>(b); });
  if (std::is_unsigned_v<T>) {
    if (name == "lo") return integer_compare<T>("lt");
    if (name == "ls") return integer_compare<T>("le");
    if (name == "hi") return integer_compare<T>("gt");
    if (name == "hs") return integer_compare<T>("ge");
  }
  return nullptr;
}

template <class U, class T, bool Ftz, class F>
Compare floats(F) {
  return integers<U>([](U a, U b) {
    if constexpr (Ftz) {
      if ((a & 0x7F800000u) == 0) a = 0;
      if ((b & 0x7F800000u) == 0) b = 0;
    }
    return F{}(std::bit_cast<T>(a), std::bit_cast<T>(b));
  });
}

template <class U, class T, bool Ftz>
Compare float_compare(std::string_view name) {
  if (name == "eq") return floats<U, T, Ftz>([](T a, T b) { return a == b; });
  if (name == "ne") return floats<U, T, Ftz>([](T a, T b) { return a < b || a > b; });
  if (name == "lt") return floats<U, T, Ftz>([](T a, T b) { return a < b; });
  if (name == "le") return floats<U, T, Ftz>([](T a, T b) { return a <= b; });
  if (name == "gt") return floats<U, T, Ftz>([](T a, T b) { return a > b; });
  if (name == "ge") return floats<U, T, Ftz>([](T a, T b) { return a >= b; });
  if (name == "equ") return floats<U, T, Ftz>([](T a, T b) { return !(a < b || a > b); });
  if (name == "neu") return floats<U, T, Ftz>([](T a, T b) { return a != b; });
  if (name == "ltu") return floats<U, T, Ftz>([](T a, T b) { return !(a >= b); });
  if (name == "leu") return floats<U, T, Ftz>([](T a, T b) { return !(a > b); });
  if (name == "gtu") return floats<U, T, Ftz>([](T a, T b) { return !(a <= b); });
  if (name == "geu") return floats<U, T, Ftz>([](T a, T b) { return !(a < b); });
  if (name == "num") return floats<U, T, Ftz>([](T a, T b) { return a == a && b == b; });
  if (name == "nan") return floats<U, T, Ftz>([](T a, T b) { return a != a || b != b; });
  return nullptr;
}

constexpr std::string_view kFloatCompares[] = {"eq",  "ne",  "lt",  "le",  "gt",  "ge",  "equ",
                                               "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};

Compare compare(std::string_view name, Type type, bool ftz) {
  if (type.is_float()) {
    if (type.bits == 64) return float_compare<uint64_t, double, false>(name);
    return ftz ? float_compare<uint32_t, float, true>(name)
               : float_compare<uint32_t, float, false>(name);
  }
  if (type.kind == 'b' && name != "eq" && name != "ne") return nullptr;
  if (type.bits == 16) {
    return type.is_signed() ? integer_compare<int16_t>(name) : integer_compare<uint16_t>(name);
  }
  if (type.bits == 32) {
    return type.is_signed() ? integer_compare<int32_t>(name) : integer_compare<uint32_t>(name);
  }
  return type.is_signed() ? integer_compare<int64_t>(name) : integer_compare<uint64_t>(name);
}

// The handlers below find their comparison in offset.
Mask compared(const Warp& w, const Instruction& in, Mask lanes) {
  return reinterpret_cast<Compare>(in.offset)(w, in, lanes);
}

enum Join : uint8_t { kNone, kAnd, kOr, kXor };

Mask joined(const Instruction& in, Mask value, Mask other) {
  return in.mode == kAnd ? value & other : in.mode == kOr ? value | other : value ^ other;
}

void set_predicate(Warp& w, const Instruction& in, Mask lanes) {
  w.set_predicate(in.to[0], lanes, compared(w, in, lanes));
}

void set_predicates(Warp& w, const Instruction& in, Mask lanes) {
  Mask yes = compared(w, in, lanes);
  Mask no = ~yes;
  if (in.mode != kNone) {
    const Mask other = w.predicate(in.from[2]) ^ in.flip;
    yes = joined(in, yes, other);
    no = joined(in, no, other);
  }
  w.set_predicate(in.to[0], lanes, yes);
  if (in.count == 2) w.set_predicate(in.to[1], lanes, no);
}

void set_word(Warp& w, const Instruction& in, Mask lanes) {  // mode: 1.0f, else all ones
  const Mask yes = compared(w, in, lanes);
  auto* d = w.out<uint32_t>(in.to[0]);
  const uint32_t one = in.mode != 0 ? 0x3F800000u : ~uint32_t{0};
  each_lane(lanes, [=](unsigned i) { d[i] = ((yes >> i) & 1u) != 0 ? one : 0; });
}

// set.cmp.f16x2.f16x2 and the like: 1.0 or 0 in each half.
template <class F>
void set_pair(Warp& w, const Instruction& in, Mask lanes) {
  const auto* a = w.in<uint32_t>(in.from[0]);
  const auto* b = w.in<uint32_t>(in.from[1]);
  auto* d = w.out<uint32_t>(in.to[0]);
  const uint32_t one = narrow<F>(1.0);
  for (; lanes != 0; lanes &= lanes - 1) {
    const int i = std::countr_zero(lanes);
    uint32_t out = 0;
    for (unsigned shift = 0; shift < 32; shift += 16) {
      const float x = widen_fast(static_cast<uint16_t>(a[i] >> shift), F{});
      const float y = widen_fast(static_cast<uint16_t>(b[i] >> shift), F{});
      const bool less = x < y;
      const bool more = x > y;
      const bool same = x == y;
      const bool unordered = !less && !more && !same;
      const bool holds[] = {
          same,  less || more,    less,  less || same,    more,  more || same, same || unordered,
          !same, !(more || same), !more, !(less || same), !less, !unordered,   unordered};
      if (holds[in.mode]) out |= one << shift;
    }
    d[i] = out;
  }
}

template <class U>
void select(Warp& w, const Instruction& in, Mask lanes) {
  const Mask p = w.predicate(in.from[2]) ^ in.flip;
  const U* a = w.in<U>(in.from[0]);
  const U* b = w.in<U>(in.from[1]);
  U* d = w.out<U>(in.to[0]);
  each_lane(lanes, [=](unsigned i) { d[i] = ((p >> i) & 1u) != 0 ? a[i] : b[i]; });
}

void predicate_logic(Warp& w, const Instruction& in, Mask lanes) {
  const Mask a = w.predicate(in.from[0]) ^ in.flip;
  const Mask b = w.predicate(in.from[1]) ^ static_cast<Mask>(in.offset);
  w.set_predicate(in.to[0], lanes, in.mode == kNone ? a : joined(in, a, b));
}

bool decode_predicate_logic(Decoder& d, const Statement& s, Opcode& op, Instruction& in) {
  const Type pred{'p', 1, false};
  const bool one = op.name == "not" || op.name == "mov";
  if (!one && op.name != "and" && op.name != "or" && op.name != "xor") return false;
  d.expect(s, one ? 2 : 3, one ? 2 : 3);
  in.mode = one ? kNone : op.name == "and" ? kAnd : op.name == "or" ? kOr : kXor;
  in.to[0] = d.destination(s.operands[0], pred.bits);
  in.from[0] = d.predicate(s.operands[1], &in.flip);
  if (op.name == "not") in.flip = ~in.flip;
  if (!one) {
    Mask flip = 0;
    in.from[1] = d.predicate(s.operands[2], &flip);
    in.offset = flip;
  }
  in.run = predicate_logic;
  return true;
}

}  // namespace

bool decode_compare(Decoder& d, const Statement& s, Opcode& op, Instruction& in) {
  if (op.types.size() == 1 && op.types[0].kind == 'p') return decode_predicate_logic(d, s, op, in);
  if (op.name == "selp") {
    if (op.types.size() != 1 || op.types[0].bits < 16) return false;
    const Type type = op.types[0];
    d.expect(s, 4, 4);
    in.to[0] = d.destination(s.operands[0], type.bits);
    in.from[0] = d.source(s.operands[1], type);
    in.from[1] = d.source(s.operands[2], type);
    in.from[2] = d.predicate(s.operands[3], &in.flip);
    in.run = type.bits == 16   ? select<uint16_t>
             : type.bits == 32 ? select<uint32_t>
                               : select<uint64_t>;
    return true;
  }
  if (op.name != "setp" && op.name != "set") return false;
  if (op.modifiers.empty() || op.types.empty()) return false;
  const std::string_view name = op.modifiers[0];
  op.modifiers.erase(op.modifiers.begin());
  const Type type = op.types.back();
  if (op.name == "set" && op.types.size() == 2 && type.pair && type.kind != 'u') {
    const Type to = op.types[0];
    const auto* const it = std::find(std::begin(kFloatCompares), std::end(kFloatCompares), name);
    if (!to.pair || to.kind != type.kind || it == std::end(kFloatCompares)) return false;
    in.mode = static_cast<uint8_t>(it - kFloatCompares);
    in.run = type.kind == 'h' ? set_pair<Float16> : set_pair<BFloat16>;
    d.fill(in, s, to, {type, type});
    return true;
  }
  const Compare f = type.kind == 'h' || type.kind == 'g' || type.bits < 16
                        ? nullptr
                        : compare(name, type, op.take("ftz"));
  if (f == nullptr) d.fail("comparison '" + std::string(name) + "'");
  in.offset = reinterpret_cast<int64_t>(f);
  if (op.name == "set") {
    if (op.types.size() != 2 || op.types[0].bits != 32) return false;
    in.mode = op.types[0].is_float() ? 1 : 0;
    in.run = set_word;
    d.fill(in, s, op.types[0], {type, type});
    return true;
  }
  in.mode = op.take("and") ? kAnd : op.take("or") ? kOr : op.take("xor") ? kXor : kNone;
  const size_t sources = in.mode == kNone ? 2 : 3;
  d.expect(s, 1 + sources, 1 + sources);
  const size_t bar = s.operands[0].find('|');
  in.to[0] = d.destination(trim(s.operands[0].substr(0, bar)), 1);
  if (bar != std::string_view::npos) {
    in.count = 2;
    in.to[1] = d.destination(trim(s.operands[0].substr(bar + 1)), 1);
  }
  in.from[0] = d.source(s.operands[1], type);
  in.from[1] = d.source(s.operands[2], type);
  if (in.mode != kNone) in.from[2] = d.predicate(s.operands[3], &in.flip);
  in.run = in.mode == kNone && in.count == 1 ? set_predicate : set_predicates;
  return true;
}

}  // namespace quarry::emulator
