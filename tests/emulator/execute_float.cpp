// SPDX-License-Identifier: Apache-2.0
// float32 and float64 arithmetic, rounding to nearest as the GPU does; a float32 NaN result is the
// GPU's (0x7FFFFFFF). The .approx functions are the host's exact ones: closer than a GPU's.
#include <cmath>
#include <type_traits>

#include "alu.h"
#include "decode.h"

namespace quarry::emulator {
namespace {

template <bool Ftz, class U, class F>
F take(U bits) {
  if constexpr (Ftz && sizeof(U) == 4) {
    if ((bits & 0x7F800000u) == 0) bits &= 0x80000000u;
  }
  return std::bit_cast<F>(bits);
}

template <bool Ftz, bool Sat, class U, class F>
U give(F value) {
  if constexpr (Sat) value = value > F{0} ? (value < F{1} ? value : F{1}) : F{0};  // NaN: 0
  U bits = std::bit_cast<U>(value);
  if constexpr (sizeof(U) == 4) {
    bits = value != value ? 0x7FFFFFFFu : bits;
    if constexpr (Ftz) {
      if ((bits & 0x7F800000u) == 0) bits &= 0x80000000u;
    }
  }
  return bits;
}

template <class T, bool Ftz, bool Sat>
struct Make {
  using U = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  template <class F>
  static Handler one(F) {
    return unary<U, U>([](U a) { return give<Ftz, Sat, U, T>(F{}(take<Ftz, U, T>(a))); });
  }
  template <class F>
  static Handler two(F) {
    return binary<U, U, U>(
        [](U a, U b) { return give<Ftz, Sat, U, T>(F{}(take<Ftz, U, T>(a), take<Ftz, U, T>(b))); });
  }
  template <class F>
  static Handler three(F) {
    return ternary<U, U, U, U>([](U a, U b, U c) {
      return give<Ftz, Sat, U, T>(F{}(take<Ftz, U, T>(a), take<Ftz, U, T>(b), take<Ftz, U, T>(c)));
    });
  }

  static Handler named(std::string_view name) {
    if (name == "add") return two([](T a, T b) { return a + b; });
    if (name == "sub") return two([](T a, T b) { return a - b; });
    if (name == "mul") return two([](T a, T b) { return a * b; });
    if (name == "div") return two([](T a, T b) { return a / b; });
    if (name == "fma") return three([](T a, T b, T c) { return std::fma(a, b, c); });
    // A NaN gives way to a number; -0 is below +0.
    if (name == "min") {
      return two([](T a, T b) {
        if (a != a) return b;
        if (b != b) return a;
        return a == b ? (std::signbit(a) ? a : b) : (a < b ? a : b);
      });
    }
    if (name == "max") {
      return two([](T a, T b) {
        if (a != a) return b;
        if (b != b) return a;
        return a == b ? (std::signbit(a) ? b : a) : (a < b ? b : a);
      });
    }
    if (name == "rcp") return one([](T a) { return T{1} / a; });
    if (name == "sqrt") return one([](T a) { return std::sqrt(a); });
    if (name == "rsqrt") return one([](T a) { return T{1} / std::sqrt(a); });
    if (name == "ex2") return one([](T a) { return std::exp2(a); });
    if (name == "lg2") return one([](T a) { return std::log2(a); });
    if (name == "sin") return one([](T a) { return std::sin(a); });
    if (name == "cos") return one([](T a) { return std::cos(a); });
    if (name == "tanh") return one([](T a) { return std::tanh(a); });
    return nullptr;
  }
  static Handler nan_wins(bool least) {
    if (least) return two([](T a, T b) { return a != a ? a : b != b ? b : std::fmin(a, b); });
    return two([](T a, T b) { return a != a ? a : b != b ? b : std::fmax(a, b); });
  }
  static Handler sign(bool negate) {
    constexpr U top = U{1} << (sizeof(U) * 8 - 1);
    const auto flush = [](U a) { return std::bit_cast<U>(take<Ftz, U, T>(a)); };
    using F = decltype(flush);
    if (negate) return unary<U, U>([](U a) { return static_cast<U>(F{}(a) ^ top); });
    return unary<U, U>([](U a) { return static_cast<U>(F{}(a) & ~top); });
  }
};

#if defined(__x86_64__)
// As std::fma, many times as fast where the processor has it.
__attribute__((target("avx2,fma"))) void fma_lanes(Warp& w, const Instruction& in, Mask lanes) {
  const auto* a = w.in<uint32_t>(in.from[0]);
  const auto* b = w.in<uint32_t>(in.from[1]);
  const auto* c = w.in<uint32_t>(in.from[2]);
  auto* d = w.out<uint32_t>(in.to[0]);
  if (lanes == kFull) {
    QUARRY_LANES
    for (unsigned i = 0; i < kLanes; ++i) {
      const float r = __builtin_fmaf(std::bit_cast<float>(a[i]), std::bit_cast<float>(b[i]),
                                     std::bit_cast<float>(c[i]));
      d[i] = r != r ? 0x7FFFFFFFu : std::bit_cast<uint32_t>(r);
    }
    return;
  }
  for (; lanes != 0; lanes &= lanes - 1) {
    const int i = std::countr_zero(lanes);
    const float r = __builtin_fmaf(std::bit_cast<float>(a[i]), std::bit_cast<float>(b[i]),
                                   std::bit_cast<float>(c[i]));
    d[i] = r != r ? 0x7FFFFFFFu : std::bit_cast<uint32_t>(r);
  }
}
bool has_fma() {
  static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return has;
}
#endif

template <class T>
Handler choose(std::string_view name, bool ftz, bool sat) {
  if (ftz) return sat ? Make<T, true, true>::named(name) : Make<T, true, false>::named(name);
  return sat ? Make<T, false, true>::named(name) : Make<T, false, false>::named(name);
}

}  // namespace

bool decode_float(Decoder& d, const Statement& s, Opcode& op, Instruction& in) {
  if (op.types.size() != 1 || !op.types[0].is_float()) return false;
  const Type type = op.types[0];
  const bool single = type.bits == 32;
  const std::string_view name = op.name == "mad" ? "fma" : op.name;
  if (single ? choose<float>(name, false, false) == nullptr
             : choose<double>(name, false, false) == nullptr) {
    if (name != "abs" && name != "neg" && name != "copysign") return false;
  }
  const bool ftz = op.take("ftz");
  if (name == "copysign") {
    in.run = single ? binary<uint32_t, uint32_t, uint32_t>([](uint32_t a, uint32_t b) {
      return (a & 0x80000000u) | (b & 0x7FFFFFFFu);
    })
                    : binary<uint64_t, uint64_t, uint64_t>([](uint64_t a, uint64_t b) {
                        return (a & (uint64_t{1} << 63)) | (b & ~(uint64_t{1} << 63));
                      });
    d.fill(in, s, type, {type, type});
    return true;
  }
  if (name == "abs" || name == "neg") {
    const bool negate = name == "neg";
    in.run = !single ? Make<double, false, false>::sign(negate)
             : ftz   ? Make<float, true, false>::sign(negate)
                     : Make<float, false, false>::sign(negate);
    d.fill(in, s, type, {type});
    return true;
  }
  if (!op.take("rn") && !op.take("approx") && !op.take("full")) {
    const bool exact =
        name == "add" || name == "sub" || name == "mul" || name == "min" || name == "max";
    if (!exact) d.fail("rounding of " + std::string(op.name));
  }
  const bool sat = op.take("sat");
  if ((name == "min" || name == "max") && op.take("NaN")) {
    in.run = !single ? Make<double, false, false>::nan_wins(name == "min")
             : ftz   ? Make<float, true, false>::nan_wins(name == "min")
                     : Make<float, false, false>::nan_wins(name == "min");
  } else {
    in.run = single ? choose<float>(name, ftz, sat) : choose<double>(name, ftz, sat);
  }
#if defined(__x86_64__)
  if (name == "fma" && single && !ftz && !sat && has_fma()) in.run = fma_lanes;
#endif
  if (name == "fma") {
    d.fill(in, s, type, {type, type, type});
  } else if (name == "add" || name == "sub" || name == "mul" || name == "div" || name == "min" ||
             name == "max") {
    d.fill(in, s, type, {type, type});
  } else {
    d.fill(in, s, type, {type});
  }
  return true;
}

}  // namespace quarry::emulator
