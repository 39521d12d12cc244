// SPDX-License-Identifier: Apache-2.0
// float16 and bfloat16 arithmetic, alone and in pairs, each operation rounded once.
#include <algorithm>
#include <cmath>

#include "alu.h"
#include "decode.h"
#include "half.h"

namespace quarry::emulator {
namespace {

template <class F>
uint16_t least(uint16_t a, uint16_t b, bool most, bool nan_wins) {
  const double x = widen<F>(a);
  const double y = widen<F>(b);
  if (x != x || y != y) {
    if (nan_wins || (x != x && y != y)) return kHalfNaN;
    return x != x ? b : a;
  }
  if (x == y) return (((a & 0x8000u) != 0) != most) ? a : b;
  return (x < y) != most ? a : b;
}

// One operation on one element; `mode` says which.
enum Mode : uint8_t { kAdd, kSub, kMul, kFma, kMin, kMax, kMinNaN, kMaxNaN, kNeg, kAbs };

template <class F>
uint16_t element(uint8_t mode, uint16_t a, uint16_t b, uint16_t c) {
  switch (mode) {
    case kAdd:
      return narrow<F>(add_to_odd(widen<F>(a), widen<F>(b)));
    case kSub:
      return narrow<F>(add_to_odd(widen<F>(a), -widen<F>(b)));
    case kMul:
      return narrow<F>(widen<F>(a) * widen<F>(b));
    case kFma:
      return narrow<F>(add_to_odd(widen<F>(a) * widen<F>(b), widen<F>(c)));
    case kNeg:
      return a ^ 0x8000u;
    case kAbs:
      return a & 0x7FFFu;
    default:
      return least<F>(a, b, mode == kMax || mode == kMaxNaN, mode >= kMinNaN);
  }
}

template <class F, class U>
void run(Warp& w, const Instruction& in, Mask lanes) {
  const U* a = w.in<U>(in.from[0]);
  const U* b = w.in<U>(in.from[1]);
  const U* c = w.in<U>(in.from[2]);
  U* d = w.out<U>(in.to[0]);
  for (; lanes != 0; lanes &= lanes - 1) {
    const int i = std::countr_zero(lanes);
    U out = 0;
    for (unsigned shift = 0; shift < sizeof(U) * 8; shift += 16) {
      const uint16_t r =
          element<F>(in.mode, static_cast<uint16_t>(a[i] >> shift),
                     static_cast<uint16_t>(b[i] >> shift), static_cast<uint16_t>(c[i] >> shift));
      out = static_cast<U>(out | (static_cast<U>(r) << shift));
    }
    d[i] = out;
  }
}

}  // namespace

bool decode_half(Decoder& d, const Statement& s, Opcode& op, Instruction& in) {
  if (op.types.size() != 1) return false;
  const Type type = op.types[0];
  if (type.kind != 'h' && type.kind != 'g') return false;
  constexpr std::string_view names[] = {"add", "sub", "mul", "fma", "min",
                                        "max", "",    "",    "neg", "abs"};
  const auto* const it = std::find(std::begin(names), std::end(names), op.name);
  if (it == std::end(names)) return false;
  in.mode = static_cast<uint8_t>(it - names);
  op.take("rn");
  if ((in.mode == kMin || in.mode == kMax) && op.take("NaN")) {
    in.mode = in.mode == kMin ? kMinNaN : kMaxNaN;
  }
  if (type.kind == 'h') {
    in.run = type.pair ? run<Float16, uint32_t> : run<Float16, uint16_t>;
  } else {
    in.run = type.pair ? run<BFloat16, uint32_t> : run<BFloat16, uint16_t>;
  }
  if (in.mode == kFma) {
    d.fill(in, s, type, {type, type, type});
  } else if (in.mode == kNeg || in.mode == kAbs) {
    d.fill(in, s, type, {type});
  } else {
    d.fill(in, s, type, {type, type});
  }
  return true;
}

}  // namespace quarry::emulator
