// SPDX-License-Identifier: Apache-2.0
//
// What each dispatched file of this directory begins with: the vector type and a fused
// multiply-add on every target. Included once a target, hence the guard of Highway's kind.
#if defined(QUARRY_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef QUARRY_CPU_SIMD_INL_H_
#undef QUARRY_CPU_SIMD_INL_H_
#else
#define QUARRY_CPU_SIMD_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace quarry::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, 16>;
using DI = hn::RebindToSigned<DF>;
using DU = hn::RebindToUnsigned<DF>;
using VF = hn::Vec<DF>;
using VI = hn::Vec<DI>;
constexpr std::int32_t kLanes = static_cast<std::int32_t>(hn::MaxLanes(DF()));

/// a * b + c, rounded once. Highway's MulAdd rounds twice where the target has no FMA, which
/// would let codes depend on the CPU.
HWY_INLINE HWY_ATTR VF fma(VF a, VF b, VF c) {
#if HWY_NATIVE_FMA
  return hn::MulAdd(a, b, c);
#else
  const DF df;
  float x[kLanes], y[kLanes], z[kLanes];
  hn::StoreU(a, df, x);
  hn::StoreU(b, df, y);
  hn::StoreU(c, df, z);
  for (std::int32_t l = 0; l < kLanes; ++l) z[l] = __builtin_fmaf(x[l], y[l], z[l]);
  return hn::LoadU(df, z);
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace quarry::cpu
HWY_AFTER_NAMESPACE();

#endif
