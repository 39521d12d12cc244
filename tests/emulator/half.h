// SPDX-License-Identifier: Apache-2.0
#pragma once

// The 16-bit float formats: exact widening, rounding once from double.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace quarry::emulator {

struct Float16 {
  static constexpr int kDigits = 11, kLowest = -14, kHighest = 15, kBits = 10;
};
struct BFloat16 {
  static constexpr int kDigits = 8, kLowest = -126, kHighest = 127, kBits = 7;
};
constexpr uint16_t kHalfNaN = 0x7FFF;

template <class F>
double widen(uint16_t h) {
  constexpr int exponent_bits = 15 - F::kBits;
  const int exponent = (h >> F::kBits) & ((1 << exponent_bits) - 1);
  const int fraction = h & ((1 << F::kBits) - 1);
  double value;
  if (exponent == (1 << exponent_bits) - 1) {
    value = fraction != 0 ? std::nan("") : HUGE_VAL;
  } else if (exponent == 0) {
    value = std::ldexp(fraction, F::kLowest - F::kBits);
  } else {
    value = std::ldexp(fraction + (1 << F::kBits), exponent + F::kLowest - 1 - F::kBits);
  }
  return (h & 0x8000u) != 0 ? -value : value;
}

// To nearest even, or toward zero.
template <class F>
uint16_t narrow(double value, bool to_zero = false) {
  if (value != value) return kHalfNaN;
  const uint16_t sign = std::signbit(value) ? 0x8000u : 0u;
  constexpr uint16_t infinity = static_cast<uint16_t>(((1 << (15 - F::kBits)) - 1) << F::kBits);
  if (std::isinf(value)) return sign | infinity;
  if (value == 0) return sign;
  const int exponent = std::ilogb(value);
  const int unit = std::max(exponent, F::kLowest) - F::kBits;  // 2^unit: the last place
  const double scaled = std::ldexp(std::fabs(value), -unit);
  // nearbyint: to nearest even, the mode programs run in. A carry into the next exponent comes
  // out right because the encodings follow each other.
  const double rounded = to_zero ? std::trunc(scaled) : std::nearbyint(scaled);
  const int base = std::max(exponent, F::kLowest) - F::kLowest;
  const auto bits = static_cast<uint32_t>(base << F::kBits) + static_cast<uint32_t>(rounded);
  if (bits >= infinity) return sign | (to_zero ? infinity - 1u : infinity);
  return static_cast<uint16_t>(sign | bits);
}

// a + b so that narrowing rounds as the exact sum would: to odd where it is inexact.
inline double add_to_odd(double a, double b) {
  const double sum = a + b;
  if (!std::isfinite(sum)) return sum;
  const double b_part = sum - a;
  const double error = (a - (sum - b_part)) + (b - b_part);
  const auto bits = std::bit_cast<uint64_t>(sum);
  if (error == 0 || (bits & 1u) != 0) return sum;
  const bool away = (error > 0) == (sum > 0);
  return std::bit_cast<double>(away ? bits + 1 : bits - 1);
}

inline float widen_fast(uint16_t h, Float16 /*format*/) {
  // Scale the shifted bits: exact, subnormals included; infinities and NaN apart.
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t rest = h & 0x7FFFu;
  uint32_t bits = std::bit_cast<uint32_t>(std::bit_cast<float>(rest << 13) * 0x1p112f);
  if (rest >= 0x7C00u) bits = rest > 0x7C00u ? 0x7FFFFFFFu : 0x7F800000u;
  return std::bit_cast<float>(rest > 0x7C00u ? bits : (bits | sign));
}
inline float widen_fast(uint16_t h, BFloat16 /*format*/) {
  return std::bit_cast<float>(static_cast<uint32_t>(h) << 16);
}

}  // namespace quarry::emulator
