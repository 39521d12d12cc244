// SPDX-License-Identifier: Apache-2.0
#include "cpu/reduce_rows.h"

#include <algorithm>

#include "reduction.h"

// Lanes must be a compile-time number (no SVE); x86 without FMA takes Highway's fallback.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/reduce_rows.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace quarry::cpu {
namespace HWY_NAMESPACE {

/// larger_of() a lane.
HWY_INLINE HWY_ATTR VF larger(VF a, VF b) {
  return hn::IfThenElse(hn::Or(hn::IsNaN(a), hn::Gt(b, a)), b, a);
}

/// exp_of() a lane.
HWY_INLINE HWY_ATTR VF exp_lanes(VF x) {
  using C = ExpConstants;
  const DF df;
  const DU du;
  const VF round = hn::Set(df, C::kRound);
  const VF shifted = fma(x, hn::Set(df, C::kLog2E), round);
  const VF i = hn::Neg(hn::Sub(shifted, round));
  const VF r = fma(i, hn::Set(df, C::kLn2Low), fma(i, hn::Set(df, C::kLn2High), x));
  VF p = fma(hn::Set(df, C::kC6), r, hn::Set(df, C::kC5));
  p = fma(p, r, hn::Set(df, C::kC4));
  p = fma(p, r, hn::Set(df, C::kC3));
  p = fma(p, r, hn::Set(df, C::kC2));
  p = fma(p, r, hn::Set(df, 1.0f));
  p = fma(p, r, hn::Set(df, 1.0f));
  const auto scale = hn::Add(hn::ShiftLeft<23>(hn::BitCast(du, shifted)), hn::Set(du, 0x3f800000u));
  p = hn::Mul(p, hn::BitCast(df, scale));
  p = hn::IfThenElse(hn::Lt(x, hn::Set(df, kExpLeast)), hn::Zero(df), p);
  return hn::IfThenElse(hn::Gt(x, hn::Set(df, kExpMost)), hn::Inf(df), p);
}

/// softmax_weight() a lane.
HWY_INLINE HWY_ATTR VF weight_lanes(VF score, VF largest, VF scale) {
  const VF x = hn::Mul(scale, hn::Sub(score, largest));
  return exp_lanes(hn::IfThenElse(hn::Eq(score, largest), hn::Zero(DF()), x));
}

HWY_ATTR float LargestOf(const float* scores, std::int32_t count) {
  const DF df;
  float result = hn::GetLane(hn::NaN(df));
  std::int32_t i = 0;
  if (count >= kLanes) {
    VF all = hn::LoadU(df, scores);
    for (i = kLanes; i + kLanes <= count; i += kLanes) all = larger(all, hn::LoadU(df, scores + i));
    float lanes[kLanes];
    hn::StoreU(all, df, lanes);
    for (const float lane : lanes) result = larger_of(result, lane);
  }
  for (; i < count; ++i) result = larger_of(result, scores[i]);
  return result;
}

/// kShares: weights are also added up in shares[], as softmaxes are.
template <bool kShares>
HWY_ATTR std::uint64_t weigh_lanes(const float* scores, std::int32_t count, float largest,
                                   float scale, float inverse, float* shares) {
  const DF df;
  const DI di;
  const VF most = hn::Set(df, largest), factor = hn::Set(df, scale);
  const VF integer = hn::Set(df, 0x1p+23f), unit = hn::Set(df, 0x1p+32f);
  const VF half = hn::Set(df, 0x1p+16f), per_half = hn::Set(df, 0x1p-16f);
  std::uint64_t sum = 0;
  std::int32_t i = 0;
  // A weight's upper bits, at most 2^16, and its lower 16 are added apart, in int32 lanes: 2^14
  // of them before they are moved.
  constexpr std::int32_t kStretch = kLanes << 14;
  while (i + kLanes <= count) {
    const std::int32_t stop = count - i > kStretch ? i + kStretch : count;
    VI upper = hn::Zero(di), lower = hn::Zero(di);
    for (; i + kLanes <= stop; i += kLanes) {
      const VF weight = weight_lanes(hn::LoadU(df, scores + i), most, factor);
      if constexpr (kShares) {
        const VF share = fma(weight, hn::Set(df, inverse), hn::LoadU(df, shares + i));
        hn::StoreU(share, df, shares + i);
      }
      const VF units = hn::IfThenZeroElse(hn::IsNaN(weight), hn::Mul(weight, unit));
      const VF rounded = hn::Sub(hn::Add(units, integer), integer);
      const VF whole = hn::IfThenElse(hn::Lt(units, integer), rounded, units);
      const VI high = hn::ConvertTo(di, hn::Mul(whole, per_half));
      const VF rest = hn::Sub(whole, hn::Mul(hn::ConvertTo(df, high), half));
      upper = hn::Add(upper, high);
      lower = hn::Add(lower, hn::ConvertTo(di, rest));
    }
    std::int32_t uppers[kLanes], lowers[kLanes];
    hn::StoreU(upper, di, uppers);
    hn::StoreU(lower, di, lowers);
    for (std::int32_t l = 0; l < kLanes; ++l) {
      sum += static_cast<std::uint64_t>(uppers[l]) << 16;
      sum += static_cast<std::uint64_t>(lowers[l]);
    }
  }
  for (; i < count; ++i) {
    const float weight = softmax_weight(scores[i], largest, scale);
    if constexpr (kShares) shares[i] = fmaf(weight, inverse, shares[i]);
    sum += fixed_weight(weight);
  }
  return sum;
}

HWY_ATTR std::uint64_t WeightOf(const float* scores, std::int32_t count, float largest,
                                float scale) {
  return weigh_lanes<false>(scores, count, largest, scale, 0, nullptr);
}

HWY_ATTR std::uint64_t Weigh(const float* scores, std::int32_t count, float largest, float scale,
                             float inverse, float* shares) {
  return weigh_lanes<true>(scores, count, largest, scale, inverse, shares);
}

template <GqaReduction kReduction>
HWY_ATTR void reduce_lanes(float* scores, std::int64_t stride, std::int32_t group,
                           std::int32_t count, float scale, const HeadSoftmax* softmax) {
  const DF df;
  const VF factor = hn::Set(df, scale);
  std::int32_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    VF result;
    if constexpr (kReduction == GqaReduction::softmax_sum) {
      result = hn::Zero(df);
      for (std::int32_t g = 0; g < group; ++g) {
        const VF weight = weight_lanes(hn::LoadU(df, scores + g * stride + i),
                                       hn::Set(df, softmax[g].largest), factor);
        result = fma(weight, hn::Set(df, softmax[g].inverse), result);
      }
    } else {
      result = hn::LoadU(df, scores + i);
      for (std::int32_t g = 1; g < group; ++g) {
        const VF score = hn::LoadU(df, scores + g * stride + i);
        result = kReduction == GqaReduction::sum ? hn::Add(result, score) : larger(result, score);
      }
    }
    hn::StoreU(result, df, scores + i);
  }
  for (; i < count; ++i) {
    scores[i] = reduce_position(kReduction, scores + i, stride, group, scale, softmax);
  }
}

HWY_ATTR void ReducePositions(GqaReduction reduction, float* scores, std::int64_t stride,
                              std::int32_t group, std::int32_t count, float scale,
                              const HeadSoftmax* softmax) {
  switch (reduction) {
    case GqaReduction::per_head:
      return;
    case GqaReduction::sum:
      return reduce_lanes<GqaReduction::sum>(scores, stride, group, count, scale, softmax);
    case GqaReduction::softmax_sum:
      return reduce_lanes<GqaReduction::softmax_sum>(scores, stride, group, count, scale, softmax);
    case GqaReduction::max:
      return reduce_lanes<GqaReduction::max>(scores, stride, group, count, scale, softmax);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace quarry::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quarry::cpu {

HWY_EXPORT(LargestOf);
HWY_EXPORT(WeightOf);
HWY_EXPORT(Weigh);
HWY_EXPORT(ReducePositions);

float largest_of(const float* scores, std::int32_t count) {
  return HWY_DYNAMIC_DISPATCH(LargestOf)(scores, count);
}

std::uint64_t weight_of(const float* scores, std::int32_t count, float largest, float scale) {
  return HWY_DYNAMIC_DISPATCH(WeightOf)(scores, count, largest, scale);
}

std::uint64_t weigh(const float* scores, std::int32_t count, float largest, float scale,
                    float inverse, float* shares) {
  return HWY_DYNAMIC_DISPATCH(Weigh)(scores, count, largest, scale, inverse, shares);
}

void reduce_positions(GqaReduction reduction, float* scores, std::int64_t stride,
                      std::int32_t group, std::int32_t count, float scale,
                      const HeadSoftmax* softmax) {
  HWY_DYNAMIC_DISPATCH(ReducePositions)
  (reduction, scores, stride, group, count, scale, softmax);
}

}  // namespace quarry::cpu
#endif  // HWY_ONCE
