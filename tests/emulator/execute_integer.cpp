// SPDX-License-Identifier: Apache-2.0
// Integer arithmetic: add, sub, mul, mad, div, rem, min, max, abs, neg, sad.
#include <limits>
#include <type_traits>

#include "alu.h"
#include "decode.h"

namespace quarry::emulator {
namespace {

__extension__ typedef __int128 Int128;  // NOLINT(modernize-use-using): `using` takes no marker
__extension__ typedef unsigned __int128 UInt128;  // NOLINT(modernize-use-using)

template <class U>
struct WideOf;
template <>
struct WideOf<uint16_t> {
  using type = uint32_t;
};
template <>
struct WideOf<uint32_t> {
  using type = uint64_t;
};
template <>
struct WideOf<uint64_t> {
  using type = UInt128;
};
template <>
struct WideOf<int16_t> {
  using type = int32_t;
};
template <>
struct WideOf<int32_t> {
  using type = int64_t;
};
template <>
struct WideOf<int64_t> {
  using type = Int128;
};

// T carries the sign; registers are unsigned.
template <class T>
Handler arithmetic(std::string_view name) {
  using U = std::make_unsigned_t<T>;
  if (name == "add") return binary<U, U, U>([](U a, U b) { return static_cast<U>(a + b); });
  if (name == "sub") return binary<U, U, U>([](U a, U b) { return static_cast<U>(a - b); });
  if (name == "min") {
    return binary<U, U, U>([](U a, U b) { return static_cast<T>(a) < static_cast<T>(b) ? a : b; });
  }
  if (name == "max") {
    return binary<U, U, U>([](U a, U b) { return static_cast<T>(a) < static_cast<T>(b) ? b : a; });
  }
  // By zero: all bits set, and the dividend, as the GPU has it.
  if (name == "div") {
    return binary<U, U, U>([](U a, U b) -> U {
      if (b == 0) return static_cast<U>(~U{0});
      if (std::is_signed_v<T> && b == static_cast<U>(~U{0})) return static_cast<U>(U{0} - a);
      return static_cast<U>(static_cast<T>(a) / static_cast<T>(b));
    });
  }
  if (name == "rem") {
    return binary<U, U, U>([](U a, U b) -> U {
      if (b == 0) return a;
      if (std::is_signed_v<T> && b == static_cast<U>(~U{0})) return 0;
      return static_cast<U>(static_cast<T>(a) % static_cast<T>(b));
    });
  }
  if (name == "abs") {
    return unary<U, U>([](U a) { return static_cast<T>(a) < 0 ? static_cast<U>(U{0} - a) : a; });
  }
  if (name == "neg") return unary<U, U>([](U a) { return static_cast<U>(U{0} - a); });
  return nullptr;
}

template <class T>
Handler product(std::string_view part, bool add) {
  using U = std::make_unsigned_t<T>;
  using W = typename WideOf<T>::type;
  using UW = typename WideOf<U>::type;
  constexpr unsigned bits = sizeof(T) * 8;
  if (part == "lo") {
    if (!add) return binary<U, U, U>([](U a, U b) { return static_cast<U>(UW{a} * b); });
    return ternary<U, U, U, U>([](U a, U b, U c) { return static_cast<U>(UW{a} * b + c); });
  }
  if (part == "hi") {
    if (!add) {
      return binary<U, U, U>([](U a, U b) {
        return static_cast<U>((W{static_cast<T>(a)} * static_cast<T>(b)) >> bits);
      });
    }
    return ternary<U, U, U, U>([](U a, U b, U c) {
      return static_cast<U>(static_cast<U>((W{static_cast<T>(a)} * static_cast<T>(b)) >> bits) + c);
    });
  }
  if constexpr (sizeof(T) < 8) {  // wide
    if (!add) {
      return binary<UW, U, U>(
          [](U a, U b) { return static_cast<UW>(W{static_cast<T>(a)} * static_cast<T>(b)); });
    }
    return ternary<UW, U, U, UW>([](U a, U b, UW c) {
      return static_cast<UW>(static_cast<UW>(W{static_cast<T>(a)} * static_cast<T>(b)) + c);
    });
  }
  return nullptr;
}

template <class F>
Handler by_type(Type type, F f) {
  const bool s = type.is_signed();
  if (type.bits == 16) return s ? f(int16_t{}) : f(uint16_t{});
  if (type.bits == 32) return s ? f(int32_t{}) : f(uint32_t{});
  return s ? f(int64_t{}) : f(uint64_t{});
}

// u16x2, s16x2
template <class T>
Handler pair(std::string_view name) {
  if (name == "add") {
    return binary<uint32_t, uint32_t, uint32_t>([](uint32_t a, uint32_t b) {
      return ((a + b) & 0xFFFFu) | (((a >> 16) + (b >> 16)) << 16);
    });
  }
  if (name == "max") {
    return binary<uint32_t, uint32_t, uint32_t>([](uint32_t a, uint32_t b) {
      const uint32_t low = static_cast<T>(a) < static_cast<T>(b) ? b : a;
      const uint32_t high = static_cast<T>(a >> 16) < static_cast<T>(b >> 16) ? b : a;
      return (low & 0xFFFFu) | (high & 0xFFFF0000u);
    });
  }
  if (name == "min") {
    return binary<uint32_t, uint32_t, uint32_t>([](uint32_t a, uint32_t b) {
      const uint32_t low = static_cast<T>(a) < static_cast<T>(b) ? a : b;
      const uint32_t high = static_cast<T>(a >> 16) < static_cast<T>(b >> 16) ? a : b;
      return (low & 0xFFFFu) | (high & 0xFFFF0000u);
    });
  }
  return nullptr;
}

}  // namespace

bool decode_integer(Decoder& d, const Statement& s, Opcode& op, Instruction& in) {
  if (op.types.size() != 1) return false;
  const Type type = op.types[0];
  if ((type.kind != 'u' && type.kind != 's') || type.bits < 16) return false;
  if (type.pair) {
    in.run = type.is_signed() ? pair<int16_t>(op.name) : pair<uint16_t>(op.name);
    if (in.run == nullptr) return false;
    d.fill(in, s, type, {type, type});
    return true;
  }
  if (op.name == "mul" || op.name == "mad") {
    const bool add = op.name == "mad";
    const std::string_view part = op.take("lo") ? "lo" : op.take("hi") ? "hi" : "wide";
    const bool wide = part == "wide" && op.take("wide");
    if (part == "wide" && (!wide || type.bits == 64)) d.fail("part of a product");
    in.run = by_type(type, [&](auto t) { return product<decltype(t)>(part, add); });
    Type to = type;
    if (wide) to.bits *= 2;
    if (add) {
      d.fill(in, s, to, {type, type, to});
    } else {
      d.fill(in, s, to, {type, type});
    }
    return true;
  }
  in.run = by_type(type, [&](auto t) { return arithmetic<decltype(t)>(op.name); });
  if (in.run == nullptr) return false;
  if (op.name == "abs" || op.name == "neg") {
    d.fill(in, s, type, {type});
  } else {
    d.fill(in, s, type, {type, type});
  }
  return true;
}

}  // namespace quarry::emulator
