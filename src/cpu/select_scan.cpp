// SPDX-License-Identifier: Apache-2.0
#include "cpu/select_scan.h"

#include "half.h"

// Lanes must be a compile-time number (no SVE); x86 without FMA takes Highway's fallback.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/select_scan.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace quarry::cpu {
namespace HWY_NAMESPACE {

/// selection_key() less 2^31, as signed integers, which every target compares.
HWY_INLINE HWY_ATTR VI signed_keys(VF score) {
  const DF df;
  const DI di;
  const VI bits = hn::BitCast(di, hn::Add(score, hn::Zero(df)));
  const VI magnitude = hn::Set(di, 0x7fffffff);
  const VI key = hn::Xor(bits, hn::And(hn::ShiftRight<31>(bits), magnitude));
  const auto nan = hn::RebindMask(di, hn::IsNaN(score));
  return hn::IfThenElse(nan, hn::Not(magnitude), key);
}

HWY_ATTR std::int32_t ScanAbove(const float* scores, std::int32_t i, std::int32_t count,
                                std::uint32_t threshold, std::int32_t room, std::uint32_t* keys,
                                std::int32_t* positions, std::int32_t* found) {
  const DF df;
  const DI di;
  constexpr std::int32_t kStep = 4 * kLanes;  // at most 64
  const VI sign = hn::Set(di, static_cast<std::int32_t>(0x80000000u));
  const VI limit = hn::Set(di, static_cast<std::int32_t>(threshold ^ 0x80000000u));
  const VI iota = hn::Iota(di, 0);
  std::int32_t n = 0;
  for (; i + kStep <= count; i += kStep) {
    VI key[4];
    for (std::int32_t v = 0; v < 4; ++v) {
      key[v] = signed_keys(hn::LoadU(df, scores + i + v * kLanes));
    }
    const VI most = hn::Max(hn::Max(key[0], key[1]), hn::Max(key[2], key[3]));
    if (hn::AllFalse(di, hn::Gt(most, limit))) continue;
    if (room - n < kStep) {
      *found = n;
      return i;
    }
    for (std::int32_t v = 0; v < 4; ++v) {
      const auto above = hn::Gt(key[v], limit);
      if (hn::AllFalse(di, above)) continue;
      // Whole vectors are stored: what is past the last hit is overwritten by the next.
      hn::StoreU(hn::Compress(hn::Xor(key[v], sign), above), di,
                 reinterpret_cast<std::int32_t*>(keys + n));
      const VI at = hn::Add(hn::Set(di, i + v * kLanes), iota);
      hn::StoreU(hn::Compress(at, above), di, positions + n);
      n += static_cast<std::int32_t>(hn::CountTrue(di, above));
    }
  }
  for (; i < count && n < room; ++i) {
    const std::uint32_t key = selection_key(scores[i]);
    keys[n] = key;
    positions[n] = i;
    n += key > threshold ? 1 : 0;
  }
  *found = n;
  return i;
}

}  // namespace HWY_NAMESPACE
}  // namespace quarry::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quarry::cpu {

HWY_EXPORT(ScanAbove);

std::int32_t scan_above(const float* scores, std::int32_t i, std::int32_t count,
                        std::uint32_t threshold, std::int32_t room, std::uint32_t* keys,
                        std::int32_t* positions, std::int32_t* found) {
  return HWY_DYNAMIC_DISPATCH(ScanAbove)(scores, i, count, threshold, room, keys, positions, found);
}

}  // namespace quarry::cpu
#endif  // HWY_ONCE
