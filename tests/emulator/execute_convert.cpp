// SPDX-License-Identifier: Apache-2.0
// cvt. Sources and destinations may have wider registers than their types.
#include <algorithm>
#include <cmath>
#include <limits>

#include "alu.h"
#include "decode.h"
#include "half.h"

namespace quarry::emulator {
namespace {

// Integers: offset holds the source's bits, mode the destination's; sign as each type has it.
template <class D, class S, bool SignS, bool SignD>
void integers(Warp& w, const Instruction& in, Mask lanes) {
  D* d = w.out<D>(in.to[0]);
  const S* a = w.in<S>(in.from[0]);
  const auto up = static_cast<unsigned>(64 - in.offset);
  const unsigned down = 64u - in.mode;
  each_lane(lanes, [=](unsigned i) {
    uint64_t v = uint64_t{a[i]} << up;
    v = SignS ? static_cast<uint64_t>(static_cast<int64_t>(v) >> up) : v >> up;
    v <<= down;
    v = SignD ? static_cast<uint64_t>(static_cast<int64_t>(v) >> down) : v >> down;
    d[i] = static_cast<D>(v);
  });
}

template <class D, class S>
Handler integer_handler(bool from_signed, bool to_signed) {
  if (from_signed) return to_signed ? integers<D, S, true, true> : integers<D, S, true, false>;
  return to_signed ? integers<D, S, false, true> : integers<D, S, false, false>;
}

template <class F>
Handler by_width(unsigned bits, F f) {
  return bits == 16 ? f(uint16_t{}) : bits == 32 ? f(uint32_t{}) : f(uint64_t{});
}

enum Rounding : uint8_t { kNearest, kZero, kDown, kUp };

double to_integral(double x, uint8_t rounding) {
  switch (rounding) {
    case kNearest:
      return std::nearbyint(x);
    case kZero:
      return std::trunc(x);
    case kDown:
      return std::floor(x);
    default:
      return std::ceil(x);
  }
}

double flushed(float x) {
  return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0, double{x}) : x;
}

// A float source, whatever its format, as double.
double float_source(const Warp& w, const Instruction& in, int lane, Type type, bool ftz) {
  if (type.kind == 'h') return widen_fast(w.in<uint16_t>(in.from[0])[lane], Float16{});
  if (type.kind == 'g') return widen_fast(w.in<uint16_t>(in.from[0])[lane], BFloat16{});
  if (type.bits == 64) return std::bit_cast<double>(w.in<uint64_t>(in.from[0])[lane]);
  const auto x = std::bit_cast<float>(w.in<uint32_t>(in.from[0])[lane]);
  return ftz ? flushed(x) : double{x};
}

// The conversions that do not need speed share one handler, with what they do packed in `offset`.
struct Plan {
  uint8_t from_kind, from_bits, to_kind, to_bits, ftz, sat, integral, register_bits;
};

uint64_t saturated(double x, char kind, unsigned bits, bool nan_is_top) {
  if (x != x) return nan_is_top ? uint64_t{1} << (bits - 1) : 0;
  if (kind == 's') {
    const double bound = std::ldexp(1.0, static_cast<int>(bits) - 1);
    if (x >= bound) return (uint64_t{1} << (bits - 1)) - 1;
    if (x < -bound) return ~((uint64_t{1} << (bits - 1)) - 1);
    return static_cast<uint64_t>(static_cast<int64_t>(x));
  }
  if (x >= std::ldexp(1.0, static_cast<int>(bits))) return ~uint64_t{0} >> (64 - bits);
  return x <= 0 ? 0 : static_cast<uint64_t>(x);
}

uint64_t integer_source(const Warp& w, const Instruction& in, int lane, const Plan& p) {
  const uint64_t v = p.register_bits == 16   ? w.in<uint16_t>(in.from[0])[lane]
                     : p.register_bits == 32 ? w.in<uint32_t>(in.from[0])[lane]
                                             : w.in<uint64_t>(in.from[0])[lane];
  const unsigned up = 64u - p.from_bits;
  return p.from_kind == 's' ? static_cast<uint64_t>(static_cast<int64_t>(v << up) >> up)
                            : v << up >> up;
}

void store_low(Warp& w, const Instruction& in, int lane, uint64_t v) {
  if (in.register_bits == 16) {
    w.out<uint16_t>(in.to[0])[lane] = static_cast<uint16_t>(v);
  } else if (in.register_bits == 32) {
    w.out<uint32_t>(in.to[0])[lane] = static_cast<uint32_t>(v);
  } else {
    w.out<uint64_t>(in.to[0])[lane] = v;
  }
}

uint64_t float_bits(double x, const Plan& p, uint8_t rounding) {
  if (p.sat != 0) x = x > 0 ? std::min(x, 1.0) : 0;
  if (p.to_kind == 'h') return narrow<Float16>(x, rounding == kZero);
  if (p.to_kind == 'g') return narrow<BFloat16>(x, rounding == kZero);
  if (p.to_bits == 64) return std::bit_cast<uint64_t>(x);
  if (x != x) return 0x7FFFFFFFu;
  auto y = static_cast<float>(x);
  if (rounding == kZero && std::fabs(double{y}) > std::fabs(x)) y = std::nextafterf(y, 0.0F);
  return std::bit_cast<uint32_t>(p.ftz != 0 ? static_cast<float>(flushed(y)) : y);
}

void with_floats(Warp& w, const Instruction& in, Mask lanes) {
  const auto p = std::bit_cast<Plan>(in.offset);
  const Type from{static_cast<char>(p.from_kind), p.from_bits, false};
  for (; lanes != 0; lanes &= lanes - 1) {
    const int i = std::countr_zero(lanes);
    if (from.kind == 'u' || from.kind == 's') {
      const uint64_t v = integer_source(w, in, i, p);
      const bool sign = from.is_signed();
      if (p.to_kind == 'f' && p.to_bits == 32) {  // rounded once from all 64 bits
        const float y = sign ? static_cast<float>(static_cast<int64_t>(v)) : static_cast<float>(v);
        store_low(w, in, i, float_bits(y, p, kNearest));
      } else {
        const double y =
            sign ? static_cast<double>(static_cast<int64_t>(v)) : static_cast<double>(v);
        store_low(w, in, i, float_bits(y, p, kNearest));
      }
      continue;
    }
    double x = float_source(w, in, i, from, p.ftz != 0);
    if (p.integral != 0) x = to_integral(x, in.mode);
    if (p.to_kind == 'u' || p.to_kind == 's') {
      const bool wide = p.to_bits == 64 || p.from_bits == 64;
      store_low(w, in, i, saturated(x, static_cast<char>(p.to_kind), p.to_bits, wide));
    } else {
      store_low(w, in, i, float_bits(x, p, in.mode));
    }
  }
}

template <class F>
void widen_lanes(Warp& w, const Instruction& in, Mask lanes) {
  const auto* a = w.in<uint16_t>(in.from[0]);
  auto* d = w.out<uint32_t>(in.to[0]);
  each_lane(lanes, [=](unsigned i) { d[i] = std::bit_cast<uint32_t>(widen_fast(a[i], F{})); });
}

// To nearest even without a trip through double: the common narrowing.
inline uint16_t narrow_fast(float x, BFloat16 /*format*/) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if (x != x) return kHalfNaN;
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}
inline uint16_t narrow_fast(float x, Float16 /*format*/) { return narrow<Float16>(x); }

template <class F, bool Relu>
void narrow_pair(Warp& w, const Instruction& in, Mask lanes) {  // the first source on top
  const auto* a = w.in<uint32_t>(in.from[0]);
  const auto* b = w.in<uint32_t>(in.from[1]);
  auto* d = w.out<uint32_t>(in.to[0]);
  const auto one = [](uint32_t bits) -> uint32_t {
    auto x = std::bit_cast<float>(bits);
    if (Relu && x < 0) x = 0;
    return narrow_fast(x, F{});
  };
  each_lane(lanes, [=](unsigned i) { d[i] = (one(a[i]) << 16) | one(b[i]); });
}

template <class F>
void narrow_lanes(Warp& w, const Instruction& in, Mask lanes) {
  const auto* a = w.in<uint32_t>(in.from[0]);
  auto* d = w.out<uint16_t>(in.to[0]);
  each_lane(lanes, [=](unsigned i) { d[i] = narrow_fast(std::bit_cast<float>(a[i]), F{}); });
}

bool is_integer(Type t) { return t.kind == 'u' || t.kind == 's'; }

void decode_integers(Decoder& d, const Statement& s, Type to, Type from, Instruction& in) {
  unsigned to_bits = 0;
  unsigned from_bits = from.bits;
  d.expect(s, 2, 2);
  in.to[0] = d.destination_of_any_width(s.operands[0], &to_bits);
  uint64_t value = 0;
  if (literal(s.operands[1], from, &value)) {
    from_bits = std::max(from.bits, 16u);
    in.from[0] = d.constant(from_bits, value);
  } else {
    in.from[0] = d.source_of_any_width(s.operands[1], &from_bits);
  }
  if (to_bits < to.bits || from_bits < from.bits) d.fail("register narrower than its type");
  in.offset = from.bits;
  in.mode = static_cast<uint8_t>(to.bits);
  in.run = by_width(to_bits, [&](auto to_word) {
    return by_width(from_bits, [&](auto from_word) {
      return integer_handler<decltype(to_word), decltype(from_word)>(from.is_signed(),
                                                                     to.is_signed());
    });
  });
}

}  // namespace

bool decode_convert(Decoder& d, const Statement& s, Opcode& op, Instruction& in) {
  if (op.name != "cvt" || op.types.size() != 2) return false;
  const Type to = op.types[0];
  const Type from = op.types[1];
  if (is_integer(to) && is_integer(from)) {
    decode_integers(d, s, to, from, in);
    return true;
  }
  if (to.pair) {
    const bool half = to.kind == 'h';
    if (from.kind != 'f' || from.bits != 32 || !op.take("rn")) d.fail("conversion to a pair");
    const bool relu = op.take("relu");
    in.run = half ? (relu ? narrow_pair<Float16, true> : narrow_pair<Float16, false>)
                  : (relu ? narrow_pair<BFloat16, true> : narrow_pair<BFloat16, false>);
    d.fill(in, s, to, {from, from});
    return true;
  }
  const bool integral = op.take("rni") || op.take("rzi") || op.take("rmi") || op.take("rpi");
  const bool zero = !integral && op.take("rz");
  if (!integral && !zero) op.take("rn");
  const auto has = [&](std::string_view word) {
    return std::find(s.opcode.begin(), s.opcode.end(), word) != s.opcode.end();
  };
  if (is_integer(to) && !integral) d.fail("cvt to an integer without rounding");
  in.mode = has("rzi") || zero ? kZero : has("rmi") ? kDown : has("rpi") ? kUp : kNearest;
  if (is_integer(from) && in.mode != kNearest) d.fail("rounding of an integer");
  const bool ftz = op.take("ftz");
  const bool sat = op.take("sat");
  if (from.bits == 64 && from.kind != 'f' && to.bits == 16) d.fail("64-bit integer to a half");
  if (!ftz && !sat && from.kind == 'f' && from.bits == 32 && in.mode == kNearest && to.bits == 16 &&
      !is_integer(to)) {
    in.run = to.kind == 'h' ? narrow_lanes<Float16> : narrow_lanes<BFloat16>;
    d.fill(in, s, to, {from});
    return true;
  }
  if (!ftz && !sat && to.kind == 'f' && to.bits == 32 && from.bits == 16 && !is_integer(from)) {
    in.run = from.kind == 'h' ? widen_lanes<Float16> : widen_lanes<BFloat16>;
    d.fill(in, s, to, {from});
    return true;
  }
  d.expect(s, 2, 2);
  unsigned to_bits = 0;
  unsigned from_bits = from.bits;
  in.to[0] = d.destination_of_any_width(s.operands[0], &to_bits);
  if (is_integer(from)) {
    in.from[0] = d.source_of_any_width(s.operands[1], &from_bits);
  } else {
    in.from[0] = d.source(s.operands[1], from);
  }
  if (to_bits < to.bits || from_bits < from.bits) d.fail("register narrower than its type");
  if (!is_integer(to) && to_bits != to.bits) d.fail("register wider than its float type");
  in.register_bits = static_cast<uint8_t>(to_bits);
  const auto byte = [](auto v) { return static_cast<uint8_t>(v); };
  const Plan plan{byte(from.kind), byte(from.bits), byte(to.kind),  byte(to.bits),
                  byte(ftz),       byte(sat),       byte(integral), byte(from_bits)};
  in.offset = std::bit_cast<int64_t>(plan);
  in.run = with_floats;
  return true;
}

}  // namespace quarry::emulator
