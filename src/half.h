// SPDX-License-Identifier: Apache-2.0
//
// IEEE binary16, bfloat16 and E4M3 as bit patterns, on host and device alike: widening is exact,
// narrowing rounds to nearest even, NaN stays NaN.
#pragma once

#include <bit>
#include <cstdint>

#include "params.h"

namespace quarry {

QUARRY_HD inline float bits_to_float(std::uint32_t u) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(u);
#else
  return std::bit_cast<float>(u);
#endif
}

QUARRY_HD inline std::uint32_t float_to_bits(float f) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(f);
#else
  return std::bit_cast<std::uint32_t>(f);
#endif
}

QUARRY_HD inline float half_to_float(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
  const std::uint32_t rest = h & 0x7fffu;
  if (rest >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  if (rest >= 0x0400u) return bits_to_float(sign | ((rest << 13) + 0x38000000u));
  // Subnormal: an integer times 2^-24, exact.
  const float magnitude = static_cast<float>(rest) * 5.9604644775390625e-8f;
  return bits_to_float(sign | float_to_bits(magnitude));
}

QUARRY_HD inline std::uint16_t float_to_half(float f) {
  const std::uint32_t u = float_to_bits(f);
  const std::uint32_t sign = u >> 16 & 0x8000u;
  const std::uint32_t rest = u & 0x7fffffffu;
  if (rest > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (rest >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65520 and up
  if (rest < 0x38800000u) {
    // Below 2^-14: adding 0.5 lets the float adder round at 2^-24, the subnormals' unit.
    const float shifted = bits_to_float(rest) + 0.5f;
    return static_cast<std::uint16_t>(sign | (float_to_bits(shifted) - 0x3f000000u));
  }
  const std::uint32_t odd = rest >> 13 & 1u;
  return static_cast<std::uint16_t>(sign | ((rest - 0x38000000u + 0xfffu + odd) >> 13));
}

QUARRY_HD inline float bfloat16_to_float(std::uint16_t h) {
  return bits_to_float(static_cast<std::uint32_t>(h) << 16);
}

QUARRY_HD inline std::uint16_t float_to_bfloat16(float f) {
  const std::uint32_t u = float_to_bits(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(u >> 16 | 0x40u);
  return static_cast<std::uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

QUARRY_HD inline float float8_to_float(std::uint8_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x80u) << 24;
  const std::uint32_t rest = h & 0x7fu;
  if (rest == 0x7fu) return bits_to_float(sign | 0x7fc00000u);
  if (rest >= 0x08u) return bits_to_float(sign | ((rest << 20) + 0x3c000000u));
  // Subnormal: an integer times 2^-9, exact.
  const float magnitude = static_cast<float>(rest) * 0.001953125f;
  return bits_to_float(sign | float_to_bits(magnitude));
}

/// The same by one multiplication, for where subnormal float32 are not flushed: E4M3's bits in
/// float32's place are 2^-120 of the value, subnormals included.
QUARRY_HD inline float float8_to_float_by_product(std::uint8_t h) {
  const std::uint32_t rest = h & 0x7fu;
  const std::uint32_t small = static_cast<std::uint32_t>(h & 0x80u) << 24 | rest << 20;
  const float value = bits_to_float(small) * 0x1p120f;
  return rest == 0x7fu ? bits_to_float(0x7fc00000u) : value;
}

/// Saturates at +-448; infinities become NaN, for E4M3 has none.
QUARRY_HD inline std::uint8_t float_to_float8(float f) {
  const std::uint32_t u = float_to_bits(f);
  const std::uint32_t sign = u >> 24 & 0x80u;
  const std::uint32_t rest = u & 0x7fffffffu;
  if (rest >= 0x7f800000u) return static_cast<std::uint8_t>(sign | 0x7fu);
  if (rest >= 0x43e00000u) return static_cast<std::uint8_t>(sign | 0x7eu);  // 448 and up
  if (rest < 0x3c800000u) {
    // Below 2^-6: adding 2^14 lets the float adder round at 2^-9, the subnormals' unit.
    const float shifted = bits_to_float(rest) + 16384.0f;
    return static_cast<std::uint8_t>(sign | (float_to_bits(shifted) - 0x46800000u));
  }
  const std::uint32_t odd = rest >> 20 & 1u;
  return static_cast<std::uint8_t>(sign | ((rest - 0x3c000000u + 0x7ffffu + odd) >> 20));
}

/// Element i of a typed array, widened.
QUARRY_HD inline float load_element(const void* data, DType dtype, std::int64_t i) {
  if (dtype == DType::float32) return static_cast<const float*>(data)[i];
  if (dtype == DType::float8_e4m3)
    return float8_to_float(static_cast<const std::uint8_t*>(data)[i]);
  const std::uint16_t bits = static_cast<const std::uint16_t*>(data)[i];
  return dtype == DType::float16 ? half_to_float(bits) : bfloat16_to_float(bits);
}

/// The same of a key cache or what may hold one: float8_e4m3 times `scale`, rounded once.
QUARRY_HD inline float scaled_element(const void* data, DType dtype, float scale, std::int64_t i) {
  const float value = load_element(data, dtype, i);
  return dtype == DType::float8_e4m3 ? value * scale : value;
}

/// Narrows and stores; what a reader of element i then sees is load_element().
QUARRY_HD inline void store_element(void* data, DType dtype, std::int64_t i, float value) {
  if (dtype == DType::float32) {
    static_cast<float*>(data)[i] = value;
  } else if (dtype == DType::float8_e4m3) {
    static_cast<std::uint8_t*>(data)[i] = float_to_float8(value);
  } else {
    static_cast<std::uint16_t*>(data)[i] =
        dtype == DType::float16 ? float_to_half(value) : float_to_bfloat16(value);
  }
}

/// Order of selection as an unsigned integer: larger is better, -0 == +0, NaN lowest.
QUARRY_HD inline std::uint32_t selection_key(float score) {
  if (score != score) return 0;
  const std::uint32_t u = float_to_bits(score + 0.0f);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}

/// The number whose selection_key() this is; not for NaN's.
QUARRY_HD inline float selected_score(std::uint32_t key) {
  return bits_to_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

/// Order of encode's distances as an unsigned integer: smaller is nearer, NaN last.
QUARRY_HD inline std::uint32_t distance_key(float distance) {
  return distance == distance ? float_to_bits(distance) : 0x7fffffffu;
}

}  // namespace quarry
