// SPDX-License-Identifier: Apache-2.0
// Bits: and, or, xor, not, shifts, lop3, prmt, bmsk, bfe, bfi, bfind, brev, clz, popc, dp4a, dp2a.
#include <algorithm>
#include <type_traits>

#include "alu.h"
#include "decode.h"

namespace quarry::emulator {
namespace {

template <class U>
Handler logic(std::string_view name) {
  if (name == "and") return binary<U, U, U>([](U a, U b) { return static_cast<U>(a & b); });
  if (name == "or") return binary<U, U, U>([](U a, U b) { return static_cast<U>(a | b); });
  if (name == "xor") return binary<U, U, U>([](U a, U b) { return static_cast<U>(a ^ b); });
  if (name == "not") return unary<U, U>([](U a) { return static_cast<U>(~a); });
  return nullptr;
}

// Amounts past the width shift everything out.
template <class T>
Handler shift(bool left) {
  using U = std::make_unsigned_t<T>;
  constexpr uint32_t bits = sizeof(U) * 8;
  if (left) {
    return binary<U, U, uint32_t>(
        [](U a, uint32_t n) { return n >= bits ? U{0} : static_cast<U>(a << n); });
  }
  return binary<U, U, uint32_t>([](U a, uint32_t n) {
    const uint32_t most = n < bits - 1 ? n : bits - 1;
    const U out = static_cast<U>(static_cast<T>(a) >> most);
    return std::is_unsigned_v<T> && n >= bits ? U{0} : out;
  });
}

template <class T>
Handler extract() {
  using U = std::make_unsigned_t<T>;
  constexpr int64_t bits = sizeof(U) * 8;
  return ternary<U, U, uint32_t, uint32_t>([](U a, uint32_t at, uint32_t length) {
    const int64_t begin = at & 0xFFu;
    const int64_t count = length & 0xFFu;
    if (count == 0) return U{0};
    const int64_t last = begin + count - 1;
    const int64_t top = last < bits ? last : bits - 1;
    const bool sign = std::is_signed_v<T> && ((a >> top) & 1u) != 0;
    U out = begin < bits ? static_cast<U>(a >> begin) : U{0};
    const int64_t room = begin < bits ? bits - begin : 0;
    const int64_t have = count < room ? count : room;
    if (have < bits) {
      const U keep = static_cast<U>((U{1} << have) - 1);
      out = static_cast<U>((out & keep) | (sign ? static_cast<U>(~keep) : U{0}));
    }
    return out;
  });
}

template <class U>
Handler insert() {
  constexpr uint32_t bits = sizeof(U) * 8;
  return quaternary<U, U, U, uint32_t, uint32_t>([](U a, U b, uint32_t at, uint32_t length) {
    const uint32_t begin = at & 0xFFu;
    const uint32_t wanted = length & 0xFFu;
    const uint32_t count = wanted < bits ? wanted : bits;
    if (begin >= bits || count == 0) return b;
    const U ones = count == bits ? static_cast<U>(~U{0}) : static_cast<U>((U{1} << count) - 1);
    const U keep = static_cast<U>(ones << begin);
    return static_cast<U>((b & ~keep) | ((a << begin) & keep));
  });
}

template <class T>
Handler find_top(bool distance) {
  using U = std::make_unsigned_t<T>;
  constexpr uint32_t bits = sizeof(U) * 8;
  const auto top = [](U a) {
    if (static_cast<T>(a) < 0) a = static_cast<U>(~a);
    return a == 0 ? ~uint32_t{0} : bits - 1 - static_cast<uint32_t>(std::countl_zero(a));
  };
  using F = decltype(top);
  if (!distance) return unary<uint32_t, U>([](U a) { return F{}(a); });
  return unary<uint32_t, U>([](U a) {
    const uint32_t t = F{}(a);
    return t == ~uint32_t{0} ? t : bits - 1 - t;
  });
}

uint32_t reverse(uint32_t a) {
  a = ((a >> 1) & 0x55555555u) | ((a & 0x55555555u) << 1);
  a = ((a >> 2) & 0x33333333u) | ((a & 0x33333333u) << 2);
  a = ((a >> 4) & 0x0F0F0F0Fu) | ((a & 0x0F0F0F0Fu) << 4);
  return __builtin_bswap32(a);
}

uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = (uint64_t{b} << 32) | a;
  uint32_t out = 0;
  for (unsigned k = 0; k < 4; ++k) {
    const uint32_t pick = selector >> (4 * k);
    uint32_t byte = static_cast<uint32_t>(bytes >> (8 * (pick & 7u))) & 0xFFu;
    if ((pick & 8u) != 0) byte = (byte & 0x80u) != 0 ? 0xFFu : 0;
    out |= byte << (8 * k);
  }
  return out;
}

void lop3(Warp& w, const Instruction& in, Mask lanes) {
  const auto* a = w.in<uint32_t>(in.from[0]);
  const auto* b = w.in<uint32_t>(in.from[1]);
  const auto* c = w.in<uint32_t>(in.from[2]);
  auto* d = w.out<uint32_t>(in.to[0]);
  const auto table = static_cast<unsigned>(in.offset);
  each_lane(lanes, [=](unsigned i) {
    uint32_t out = 0;
    for (unsigned k = 0; k < 8; ++k) {
      const uint32_t term = ((k & 4u) != 0 ? a[i] : ~a[i]) & ((k & 2u) != 0 ? b[i] : ~b[i]) &
                            ((k & 1u) != 0 ? c[i] : ~c[i]);
      if (((table >> k) & 1u) != 0) out |= term;
    }
    d[i] = out;
  });
}

// Bytes of a by bytes (or, dp2a, 16-bit halves of a by two bytes) of b, summed onto c.
template <bool SignedA, bool SignedB, int Bytes>  // 4: dp4a, 0 or 2: dp2a lo, hi
Handler dot() {
  return ternary<uint32_t, uint32_t, uint32_t, uint32_t>([](uint32_t a, uint32_t b, uint32_t c) {
    const auto byte = [](uint32_t v, bool sign) {
      return sign ? static_cast<int64_t>(static_cast<int8_t>(v)) : static_cast<int64_t>(v & 0xFFu);
    };
    int64_t sum = c;
    for (int k = 0; k < (Bytes == 4 ? 4 : 2); ++k) {
      const uint32_t half = a >> (16 * (k & 1));
      const int64_t x = Bytes == 4 ? byte(a >> (8 * k), SignedA)
                        : SignedA  ? static_cast<int64_t>(static_cast<int16_t>(half))
                                   : static_cast<int64_t>(half & 0xFFFFu);
      sum += x * byte(b >> (8 * (Bytes == 4 ? k : k + Bytes)), SignedB);
    }
    return static_cast<uint32_t>(sum);
  });
}

template <int Bytes>
Handler dot_of(Type a, Type b) {
  if (a.is_signed()) return b.is_signed() ? dot<true, true, Bytes>() : dot<true, false, Bytes>();
  return b.is_signed() ? dot<false, true, Bytes>() : dot<false, false, Bytes>();
}

template <bool Left, bool Wrap>
Handler funnel() {
  return ternary<uint32_t, uint32_t, uint32_t, uint32_t>([](uint32_t a, uint32_t b, uint32_t n) {
    const uint32_t by = Wrap ? n & 31u : std::min(n, 32u);
    const uint64_t both = (uint64_t{b} << 32) | a;
    return static_cast<uint32_t>(Left ? (both << by) >> 32 : both >> by);
  });
}

}  // namespace

bool decode_bits(Decoder& d, const Statement& s, Opcode& op, Instruction& in) {
  const Type u32{'u', 32, false};
  if (op.name == "dp4a" || op.name == "dp2a") {
    if (op.types.size() != 2) d.fail("types of " + std::string(op.name));
    const Type a = op.types[0];
    const Type b = op.types[1];
    if (op.name == "dp4a") {
      in.run = dot_of<4>(a, b);
    } else {
      in.run = op.take("hi") ? dot_of<2>(a, b) : op.take("lo") ? dot_of<0>(a, b) : nullptr;
      if (in.run == nullptr) d.fail("half of dp2a");
    }
    d.fill(in, s, u32, {u32, u32, u32});
    return true;
  }
  if (op.types.size() != 1) return false;
  const Type type = op.types[0];
  const bool narrow = type.bits == 32;
  if (op.name == "and" || op.name == "or" || op.name == "xor" || op.name == "not") {
    if (type.kind != 'b' || type.bits < 16) return false;  // predicates are elsewhere
    in.run = type.bits == 16   ? logic<uint16_t>(op.name)
             : type.bits == 32 ? logic<uint32_t>(op.name)
                               : logic<uint64_t>(op.name);
    if (op.name == "not") {
      d.fill(in, s, type, {type});
    } else {
      d.fill(in, s, type, {type, type});
    }
  } else if ((op.name == "shl" || op.name == "shr") && type.bits >= 16 && !type.is_float()) {
    const bool left = op.name == "shl";
    if (type.is_signed() && !left) {
      in.run = type.bits == 16   ? shift<int16_t>(false)
               : type.bits == 32 ? shift<int32_t>(false)
                                 : shift<int64_t>(false);
    } else {
      in.run = type.bits == 16   ? shift<uint16_t>(left)
               : type.bits == 32 ? shift<uint32_t>(left)
                                 : shift<uint64_t>(left);
    }
    d.fill(in, s, type, {type, u32});
  } else if (op.name == "shf") {
    const bool left = op.take("l");
    if (!left && !op.take("r")) d.fail("direction of shf");
    const bool wrap = op.take("wrap");
    if (!wrap && !op.take("clamp")) d.fail("mode of shf");
    in.run = left ? (wrap ? funnel<true, true>() : funnel<true, false>())
                  : (wrap ? funnel<false, true>() : funnel<false, false>());
    d.fill(in, s, type, {type, type, u32});
  } else if (op.name == "bfe") {
    in.run = narrow ? (type.is_signed() ? extract<int32_t>() : extract<uint32_t>())
                    : (type.is_signed() ? extract<int64_t>() : extract<uint64_t>());
    d.fill(in, s, type, {type, u32, u32});
  } else if (op.name == "bfi") {
    in.run = narrow ? insert<uint32_t>() : insert<uint64_t>();
    d.fill(in, s, type, {type, type, u32, u32});
  } else if (op.name == "bfind") {
    const bool distance = op.take("shiftamt");
    in.run = narrow
                 ? (type.is_signed() ? find_top<int32_t>(distance) : find_top<uint32_t>(distance))
                 : (type.is_signed() ? find_top<int64_t>(distance) : find_top<uint64_t>(distance));
    d.fill(in, s, u32, {type});
  } else if (op.name == "brev") {
    in.run = narrow ? unary<uint32_t, uint32_t>([](uint32_t a) { return reverse(a); })
                    : unary<uint64_t, uint64_t>([](uint64_t a) {
                        return (uint64_t{reverse(static_cast<uint32_t>(a))} << 32) |
                               reverse(static_cast<uint32_t>(a >> 32));
                      });
    d.fill(in, s, type, {type});
  } else if (op.name == "clz" || op.name == "popc") {
    const auto zeros = [](auto a) { return static_cast<uint32_t>(std::countl_zero(a)); };
    const auto ones = [](auto a) { return static_cast<uint32_t>(std::popcount(a)); };
    if (op.name == "clz") {
      in.run = narrow ? unary<uint32_t, uint32_t>(zeros) : unary<uint32_t, uint64_t>(zeros);
    } else {
      in.run = narrow ? unary<uint32_t, uint32_t>(ones) : unary<uint32_t, uint64_t>(ones);
    }
    d.fill(in, s, u32, {type});
  } else if (op.name == "bmsk") {
    if (!op.take("clamp")) d.fail("mode of bmsk");
    in.run = binary<uint32_t, uint32_t, uint32_t>([](uint32_t at, uint32_t length) {
      const uint64_t ones = (uint64_t{1} << (length < 32 ? length : 32)) - 1;
      return static_cast<uint32_t>(ones << (at < 32 ? at : 32));
    });
    d.fill(in, s, type, {u32, u32});
  } else if (op.name == "prmt") {
    in.run = ternary<uint32_t, uint32_t, uint32_t, uint32_t>(
        [](uint32_t a, uint32_t b, uint32_t c) { return permute(a, b, c); });
    d.fill(in, s, type, {type, type, type});
  } else if (op.name == "lop3") {
    d.expect(s, 5, 5);
    uint64_t table = 0;
    if (!literal(s.operands[4], u32, &table)) d.fail("table of lop3");
    Statement first = s;
    first.operands.pop_back();
    in.run = lop3;
    in.offset = static_cast<int64_t>(table);
    d.fill(in, first, type, {type, type, type});
  } else {
    return false;
  }
  return true;
}

}  // namespace quarry::emulator
