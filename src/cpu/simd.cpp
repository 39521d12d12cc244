// SPDX-License-Identifier: Apache-2.0
#include "cpu/simd.h"

#include <algorithm>
#include <cstring>

#include "half.h"
#include "hwy/cache_control.h"

// Lanes must be a compile-time number (no SVE); x86 without FMA takes Highway's fallback.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/simd.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace quarry::cpu {
namespace HWY_NAMESPACE {

/// kLanes elements from i on, widened; float8_e4m3 times `scale`.
template <DType kType>
HWY_INLINE VF load(const void* data, float scale, std::int64_t i) {
  const DF df;
  if constexpr (kType == DType::float32) {
    return hn::LoadU(df, static_cast<const float*>(data) + i);
  } else if constexpr (kType == DType::float8_e4m3) {
    // float8_to_float(), a lane each.
    const DU du;
    const hn::Rebind<std::uint8_t, DF> d8;
    const auto bits = hn::PromoteTo(du, hn::LoadU(d8, static_cast<const std::uint8_t*>(data) + i));
    const auto sign = hn::ShiftLeft<24>(hn::And(bits, hn::Set(du, 0x80u)));
    const auto rest = hn::And(bits, hn::Set(du, 0x7fu));
    const auto normal = hn::Add(hn::ShiftLeft<20>(rest), hn::Set(du, 0x3c000000u));
    const hn::RebindToSigned<DU> di;
    const VF small = hn::Mul(hn::ConvertTo(df, hn::BitCast(di, rest)), hn::Set(df, 0.001953125f));
    auto wide = hn::IfThenElse(hn::Lt(rest, hn::Set(du, 8u)), hn::BitCast(du, small), normal);
    wide = hn::IfThenElse(hn::Eq(rest, hn::Set(du, 0x7fu)), hn::Set(du, 0x7fc00000u), wide);
    return hn::Mul(hn::BitCast(df, hn::Or(sign, wide)), hn::Set(df, scale));
  } else {
    const auto* bits = static_cast<const std::uint16_t*>(data) + i;
    const hn::Rebind<std::uint16_t, DF> d16;
    if constexpr (kType == DType::bfloat16) {
      const auto wide = hn::PromoteTo(DU(), hn::LoadU(d16, bits));
      return hn::BitCast(df, hn::ShiftLeft<16>(wide));
    } else {
#if HWY_NATIVE_FMA  // these targets also widen binary16 in hardware, infinities included
      const hn::Rebind<hwy::float16_t, DF> dh;
      return hn::PromoteTo(df, hn::BitCast(dh, hn::LoadU(d16, bits)));
#else
      float out[kLanes];
      for (std::int32_t l = 0; l < kLanes; ++l) out[l] = half_to_float(bits[l]);
      return hn::LoadU(df, out);
#endif
    }
  }
}

template <DType kType>
HWY_ATTR void widen_typed(const void* data, float scale, std::int64_t offset, std::int32_t d,
                          const float* mean, float* out) {
  const DF df;
  std::int32_t i = 0;
  for (; i + kLanes <= d; i += kLanes) {
    VF v = load<kType>(data, scale, offset + i);
    if (mean != nullptr) v = hn::Sub(v, hn::LoadU(df, mean + i));
    hn::StoreU(v, df, out + i);
  }
  for (; i < d; ++i) {
    const float v = scaled_element(data, kType, scale, offset + i);
    out[i] = mean != nullptr ? v - mean[i] : v;
  }
}

template <DType kType>
HWY_ATTR void accumulate_typed(const void* data, float scale, std::int64_t offset, std::int32_t d,
                               float* sum) {
  const DF df;
  std::int32_t i = 0;
  for (; i + kLanes <= d; i += kLanes) {
    hn::StoreU(hn::Add(hn::LoadU(df, sum + i), load<kType>(data, scale, offset + i)), df, sum + i);
  }
  for (; i < d; ++i) sum[i] += scaled_element(data, kType, scale, offset + i);
}

template <DType kType>
HWY_ATTR float dot_typed(const float* q, const void* data, float scale, std::int64_t offset,
                         std::int32_t d) {
  const DF df;
  constexpr std::int32_t kVectors = 16 / kLanes;
  float partial[16];
  VF acc[kVectors];
  for (auto& v : acc) v = hn::Zero(df);
  std::int32_t i = 0;
  for (; i + 16 <= d; i += 16) {
    for (std::int32_t v = 0; v < kVectors; ++v) {
      acc[v] = fma(hn::LoadU(df, q + i + v * kLanes),
                   load<kType>(data, scale, offset + i + v * kLanes), acc[v]);
    }
  }
  for (std::int32_t v = 0; v < kVectors; ++v) hn::StoreU(acc[v], df, partial + v * kLanes);
  for (std::int32_t l = 0; i + l < d; ++l) {  // d is a multiple of 8
    partial[l] =
        __builtin_fmaf(q[i + l], scaled_element(data, kType, scale, offset + i + l), partial[l]);
  }
  for (std::int32_t half = 8; half > 0; half /= 2) {
    for (std::int32_t l = 0; l < half; ++l) partial[l] += partial[l + half];
  }
  return partial[0];
}

HWY_ATTR void Widen(const void* data, DType dtype, float scale, std::int64_t offset, std::int32_t d,
                    const float* mean, float* out) {
  if (dtype == DType::float32)
    return widen_typed<DType::float32>(data, scale, offset, d, mean, out);
  if (dtype == DType::float16)
    return widen_typed<DType::float16>(data, scale, offset, d, mean, out);
  if (dtype == DType::bfloat16)
    return widen_typed<DType::bfloat16>(data, scale, offset, d, mean, out);
  widen_typed<DType::float8_e4m3>(data, scale, offset, d, mean, out);
}

HWY_ATTR void Accumulate(const void* data, DType dtype, float scale, std::int64_t offset,
                         std::int32_t d, float* sum) {
  if (dtype == DType::float32) return accumulate_typed<DType::float32>(data, scale, offset, d, sum);
  if (dtype == DType::float16) return accumulate_typed<DType::float16>(data, scale, offset, d, sum);
  if (dtype == DType::bfloat16)
    return accumulate_typed<DType::bfloat16>(data, scale, offset, d, sum);
  accumulate_typed<DType::float8_e4m3>(data, scale, offset, d, sum);
}

HWY_ATTR void Dots(const float* q, const void* data, DType dtype, float scale,
                   const std::int64_t* offsets, std::int32_t count, std::int32_t d, float* out) {
  constexpr std::int32_t kAhead = 8;  // rows lie apart: no hardware prefetch helps
  const std::int64_t size = dtype_size(dtype);
  for (std::int32_t k = 0; k < count; ++k) {
    if (k + kAhead < count) {
      const char* next = static_cast<const char*>(data) + offsets[k + kAhead] * size;
      for (std::int64_t byte = 0; byte < d * size; byte += 64) hwy::Prefetch(next + byte);
    }
    out[k] = dtype == DType::float32   ? dot_typed<DType::float32>(q, data, scale, offsets[k], d)
             : dtype == DType::float16 ? dot_typed<DType::float16>(q, data, scale, offsets[k], d)
             : dtype == DType::bfloat16
                 ? dot_typed<DType::bfloat16>(q, data, scale, offsets[k], d)
                 : dot_typed<DType::float8_e4m3>(q, data, scale, offsets[k], d);
  }
}

/// kRows x (kVectors * kLanes) outputs held in registers.
template <std::int32_t kRows, std::int32_t kVectors>
HWY_ATTR void product_panel(const float* x, std::int64_t x_stride, const float* matrix,
                            std::int32_t rows, std::int32_t cols, float* out,
                            std::int64_t out_stride) {
  const DF df;
  VF acc[kRows][kVectors];
  for (auto& row : acc) {
    for (auto& v : row) v = hn::Zero(df);
  }
  for (std::int32_t j = 0; j < rows; ++j) {
    VF m[kVectors];
    for (std::int32_t v = 0; v < kVectors; ++v) {
      m[v] = hn::LoadU(df, matrix + std::int64_t{j} * cols + v * kLanes);
    }
    for (std::int32_t k = 0; k < kRows; ++k) {
      const VF xj = hn::Set(df, x[k * x_stride + j]);
      for (std::int32_t v = 0; v < kVectors; ++v) acc[k][v] = fma(xj, m[v], acc[k][v]);
    }
  }
  for (std::int32_t k = 0; k < kRows; ++k) {
    for (std::int32_t v = 0; v < kVectors; ++v) {
      hn::StoreU(acc[k][v], df, out + k * out_stride + v * kLanes);
    }
  }
}

template <std::int32_t kRows>
HWY_ATTR void product_rows(const float* x, std::int64_t x_stride, const float* matrix,
                           std::int32_t rows, std::int32_t cols, float* out,
                           std::int64_t out_stride) {
  constexpr std::int32_t kWide = kRows == 1 ? 8 : kLanes == 16 ? 4 : 2;
  std::int32_t c = 0;
  for (; c + kWide * kLanes <= cols; c += kWide * kLanes) {
    product_panel<kRows, kWide>(x, x_stride, matrix + c, rows, cols, out + c, out_stride);
  }
  for (; c + kLanes <= cols; c += kLanes) {
    product_panel<kRows, 1>(x, x_stride, matrix + c, rows, cols, out + c, out_stride);
  }
  for (; c < cols; ++c) {
    for (std::int32_t k = 0; k < kRows; ++k) {
      float acc = 0.0f;
      for (std::int32_t j = 0; j < rows; ++j) {
        acc = __builtin_fmaf(x[k * x_stride + j], matrix[std::int64_t{j} * cols + c], acc);
      }
      out[k * out_stride + c] = acc;
    }
  }
}

HWY_ATTR void Product(const float* x, std::int32_t count, std::int64_t x_stride,
                      const float* matrix, std::int32_t rows, std::int32_t cols, float* out,
                      std::int64_t out_stride) {
  std::int32_t k = 0;
  for (; k + 4 <= count; k += 4) {
    product_rows<4>(x + k * x_stride, x_stride, matrix, rows, cols, out + k * out_stride,
                    out_stride);
  }
  for (; k < count; ++k) {
    product_rows<1>(x + k * x_stride, x_stride, matrix, rows, cols, out + k * out_stride,
                    out_stride);
  }
}

HWY_ATTR void Norms(const float* x, std::int32_t count, std::int64_t x_stride, std::int32_t dsub,
                    float* out) {
  for (std::int32_t k = 0; k < count; ++k) out[k] = 0.0f;
  for (std::int32_t j = 0; j < dsub; ++j) {  // keys inside: independent chains overlap
    for (std::int32_t k = 0; k < count; ++k) {
      const float v = x[k * x_stride + j];
      out[k] = __builtin_fmaf(v, v, out[k]);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace quarry::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quarry::cpu {

HWY_EXPORT(Widen);
HWY_EXPORT(Accumulate);
HWY_EXPORT(Dots);
HWY_EXPORT(Product);
HWY_EXPORT(Norms);

void widen(const void* data, DType dtype, float scale, std::int64_t offset, std::int32_t d,
           const float* mean, float* out) {
  HWY_DYNAMIC_DISPATCH(Widen)(data, dtype, scale, offset, d, mean, out);
}

void accumulate(const void* data, DType dtype, float scale, std::int64_t offset, std::int32_t d,
                float* sum) {
  HWY_DYNAMIC_DISPATCH(Accumulate)(data, dtype, scale, offset, d, sum);
}

void dots(const float* q, const void* data, DType dtype, float scale, const std::int64_t* offsets,
          std::int32_t count, std::int32_t d, float* out) {
  HWY_DYNAMIC_DISPATCH(Dots)(q, data, dtype, scale, offsets, count, d, out);
}

void product(const float* x, std::int32_t count, std::int64_t x_stride, const float* matrix,
             std::int32_t rows, std::int32_t cols, float* out, std::int64_t out_stride) {
  HWY_DYNAMIC_DISPATCH(Product)(x, count, x_stride, matrix, rows, cols, out, out_stride);
}

void norms(const float* x, std::int32_t count, std::int64_t x_stride, std::int32_t dsub,
           float* out) {
  HWY_DYNAMIC_DISPATCH(Norms)(x, count, x_stride, dsub, out);
}

}  // namespace quarry::cpu
#endif  // HWY_ONCE
