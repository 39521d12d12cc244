// SPDX-License-Identifier: Apache-2.0
//
// Wide loads of keys and queries into float registers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "half.h"
#include "params.h"

namespace quarry::cuda {

/// Storage types of the element types; converting constructors of cuda_fp16.h are not
/// wanted here, bit patterns are.
struct Float32 {
  using Bits = float;
  static __device__ __forceinline__ float widen(Bits v) { return v; }
};
struct Float16 {
  using Bits = std::uint16_t;
  static __device__ __forceinline__ float widen(Bits v) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v));
    return f;
  }
};
struct BFloat16 {
  using Bits = std::uint16_t;
  static __device__ __forceinline__ float widen(Bits v) {
    return __uint_as_float(static_cast<std::uint32_t>(v) << 16);
  }
};

/// Widened without its scale: scaled() has it.
struct Float8 {
  using Bits = std::uint8_t;
  static __device__ __forceinline__ float widen(Bits v) { return float8_to_float_by_product(v); }
};

/// A widened element's value: float8_e4m3's is a product, the others' what they hold.
template <typename E>
__device__ __forceinline__ float scaled(float v, float scale) {
  if constexpr (std::is_same_v<E, Float8>) {
    return v * scale;
  } else {
    return v;
  }
}

/// Calls f(Float32{}), f(Float16{}), f(BFloat16{}) or f(Float8{}).
template <typename F>
auto with_dtype(DType dtype, F&& f) {
  if (dtype == DType::float32) return f(Float32{});
  if (dtype == DType::float16) return f(Float16{});
  if (dtype == DType::float8_e4m3) return f(Float8{});
  return f(BFloat16{});
}

/// The same on the device.
template <typename F>
__device__ __forceinline__ void for_dtype(DType dtype, F&& f) {
  if (dtype == DType::float32) return f(Float32{});
  if (dtype == DType::float16) return f(Float16{});
  if (dtype == DType::float8_e4m3) return f(Float8{});
  return f(BFloat16{});
}

/// True where base and every stride (in elements) are multiples of 16 bytes, so that rows
/// may be read 16 bytes at a time; of float8_e4m3, whose rows may be 8 bytes long, of 8.
inline bool is_wide(const void* base, DType dtype, std::initializer_list<std::int64_t> strides) {
  std::uint64_t all = reinterpret_cast<std::uintptr_t>(base);
  for (const std::int64_t s : strides) all |= static_cast<std::uint64_t>(s * dtype_size(dtype));
  return all % (dtype == DType::float8_e4m3 ? 8 : 16) == 0;
}

/// Eight consecutive elements of float8_e4m3 in two words, widened.
__device__ __forceinline__ void widen8(std::uint32_t low, std::uint32_t high, float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    v[i] = Float8::widen(static_cast<std::uint8_t>((i < 4 ? low : high) >> i % 4 * 8));
  }
}

/// Eight consecutive elements, widened. `wide`: is_wide() of where they lie.
template <typename E>
__device__ __forceinline__ void load8(const typename E::Bits* __restrict__ p, bool wide,
                                      float (&v)[8]) {
  if constexpr (sizeof(typename E::Bits) == 4) {
    if (wide) {
      const float4 a = __ldg(reinterpret_cast<const float4*>(p));
      const float4 b = __ldg(reinterpret_cast<const float4*>(p) + 1);
      v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
      v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] = __ldg(p + i);
    }
  } else if constexpr (sizeof(typename E::Bits) == 1) {
    if (wide) {
      const uint2 a = __ldg(reinterpret_cast<const uint2*>(p));
      widen8(a.x, a.y, v);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] = E::widen(__ldg(p + i));
    }
  } else {
    if (wide) {
      const uint4 a = __ldg(reinterpret_cast<const uint4*>(p));
      const std::uint32_t words[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        v[2 * i] = E::widen(static_cast<std::uint16_t>(words[i]));
        v[2 * i + 1] = E::widen(static_cast<std::uint16_t>(words[i] >> 16));
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] = E::widen(__ldg(p + i));
    }
  }
}

}  // namespace quarry::cuda
