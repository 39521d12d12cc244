// SPDX-License-Identifier: Apache-2.0
//
// Tensor-core products of bfloat16 with float32 sums. A lane's g = lane / 4, t = lane % 4.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace quarry::cuda {

/// Two bfloat16, the first in the low half.
__device__ __forceinline__ std::uint32_t pack(__nv_bfloat16 a, __nv_bfloat16 b) {
  return static_cast<std::uint32_t>(__bfloat16_as_ushort(a)) |
         static_cast<std::uint32_t>(__bfloat16_as_ushort(b)) << 16;
}

/// v = high + low + at most 2^-17 of |v|.
__device__ __forceinline__ void split(float v, __nv_bfloat16* high, __nv_bfloat16* low) {
  *high = __float2bfloat16_rn(v);
  *low = __float2bfloat16_rn(v - __bfloat162float(*high));
}

/// The same of two, packed: two conversions instead of four, and no shuffling of bytes.
__device__ __forceinline__ void split2(float a, float b, std::uint32_t* high, std::uint32_t* low) {
  std::uint32_t h;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(h) : "f"(b), "f"(a));
  const float rest_a = a - __uint_as_float(h << 16);
  const float rest_b = b - __uint_as_float(h & 0xffff0000u);
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(*low) : "f"(rest_b), "f"(rest_a));
  *high = h;
}

/// d[16 x 8] += a[16 x 16] . b[16 x 8]. Lane: d rows g, g, g+8, g+8, columns 2t, 2t+1, ...;
/// a (g; 2t, 2t+1), (g+8; 2t, 2t+1), (g; 2t+8, +9), (g+8; 2t+8, +9); b (2t, 2t+1; g),
/// (2t+8, 2t+9; g).
__device__ __forceinline__ void multiply_add(float (&d)[4], const std::uint32_t (&a)[4],
                                             std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// The same from another sum: d = a . b + c.
__device__ __forceinline__ void multiply_add(float (&d)[4], const std::uint32_t (&a)[4],
                                             std::uint32_t b0, std::uint32_t b1,
                                             const float (&c)[4]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]),
        "f"(c[2]), "f"(c[3]));
}

/// d[16 x 8] += a[16 x 8] . b[8 x 8]: the first halves of a and b above.
__device__ __forceinline__ void multiply_add(float (&d)[4], const std::uint32_t (&a)[2],
                                             std::uint32_t b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}

/// Four 8 x 8 matrices of 16-bit elements; lane l points at row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[4], const void* row) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/// The same by an address in shared memory.
__device__ __forceinline__ void load_matrices_at(std::uint32_t (&r)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/// Over the four lanes of one g.
__device__ __forceinline__ float sum_of_four(float v) {
  v += __shfl_xor_sync(0xffffffffu, v, 1);
  return v + __shfl_xor_sync(0xffffffffu, v, 2);
}

}  // namespace quarry::cuda
