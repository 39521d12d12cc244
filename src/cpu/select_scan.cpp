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

HWY_ATTR std::int32_t ScanAbove(const float* scores, std::int32_t base, std::int32_t i,
                                std::int32_t count, std::uint32_t threshold, std::int32_t room,
                                std::uint32_t* keys, std::int32_t* positions, std::int32_t* found) {
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
      const VI at = hn::Add(hn::Set(di, base + i + v * kLanes), iota);
      hn::StoreU(hn::Compress(at, above), di, positions + n);
      n += static_cast<std::int32_t>(hn::CountTrue(di, above));
    }
  }
  for (; i < count && n < room; ++i) {
    const std::uint32_t key = selection_key(scores[i]);
    keys[n] = key;
    positions[n] = base + i;
    n += key > threshold ? 1 : 0;
  }
  *found = n;
  return i;
}

HWY_ATTR void SelectionKeys(const float* scores, std::int32_t count, std::uint32_t* keys) {
  const DF df;
  const DI di;
  const VI sign = hn::Set(di, static_cast<std::int32_t>(0x80000000u));
  std::int32_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const VI key = hn::Xor(signed_keys(hn::LoadU(df, scores + i)), sign);
    hn::StoreU(key, di, reinterpret_cast<std::int32_t*>(keys + i));
  }
  for (; i < count; ++i) keys[i] = selection_key(scores[i]);
}

/// How many keys are at least `least`.
HWY_INLINE HWY_ATTR std::int32_t count_from(const std::uint32_t* keys, std::int32_t count,
                                            std::uint32_t least) {
  const DI di;
  const VI sign = hn::Set(di, static_cast<std::int32_t>(0x80000000u));
  const VI limit = hn::Set(di, static_cast<std::int32_t>(least ^ 0x80000000u));
  VI below[2] = {hn::Zero(di), hn::Zero(di)};  // minus how many are
  std::int32_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    for (std::int32_t v = 0; v < 2; ++v) {
      const auto* at = reinterpret_cast<const std::int32_t*>(keys + i + v * kLanes);
      const VI key = hn::Xor(hn::LoadU(di, at), sign);
      below[v] = hn::Add(below[v], hn::VecFromMask(di, hn::Lt(key, limit)));
    }
  }
  std::int32_t found = i + hn::GetLane(hn::SumOfLanes(di, hn::Add(below[0], below[1])));
  for (; i < count; ++i) found += keys[i] >= least ? 1 : 0;
  return found;
}

/// The least of the keys that are at least `least`; the largest key where none is.
HWY_INLINE HWY_ATTR std::uint32_t least_from(const std::uint32_t* keys, std::int32_t count,
                                             std::uint32_t least, std::uint32_t largest) {
  const DI di;
  const VI sign = hn::Set(di, static_cast<std::int32_t>(0x80000000u));
  const VI limit = hn::Set(di, static_cast<std::int32_t>(least ^ 0x80000000u));
  const VI high = hn::Set(di, static_cast<std::int32_t>(largest ^ 0x80000000u));
  VI best = high;
  std::int32_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const VI key = hn::Xor(hn::LoadU(di, reinterpret_cast<const std::int32_t*>(keys + i)), sign);
    best = hn::Min(best, hn::IfThenElse(hn::Lt(key, limit), high, key));
  }
  std::uint32_t found =
      static_cast<std::uint32_t>(hn::GetLane(hn::MinOfLanes(di, best))) ^ 0x80000000u;
  for (; i < count; ++i) found = keys[i] >= least && keys[i] < found ? keys[i] : found;
  return found;
}

HWY_INLINE HWY_ATTR std::uint32_t largest_of(const std::uint32_t* keys, std::int32_t count) {
  const DI di;
  const VI sign = hn::Set(di, static_cast<std::int32_t>(0x80000000u));
  VI best = sign;  // 0 as an unsigned key
  std::int32_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const VI key = hn::Xor(hn::LoadU(di, reinterpret_cast<const std::int32_t*>(keys + i)), sign);
    best = hn::Max(best, key);
  }
  std::uint32_t found =
      static_cast<std::uint32_t>(hn::GetLane(hn::MaxOfLanes(di, best))) ^ 0x80000000u;
  for (; i < count; ++i) found = keys[i] > found ? keys[i] : found;
  return found;
}

HWY_ATTR std::uint32_t KthKey(const std::uint32_t* keys, std::int32_t count, std::int32_t k,
                              std::int32_t most) {
  // The largest value that k keys reach, by bisection; a few passes in the first-level cache
  // are quicker than the branches of a partition.
  const std::uint32_t largest = largest_of(keys, count);
  std::uint32_t low = least_from(keys, count, 0, largest), high = largest;
  while (low < high) {
    const std::uint32_t middle = low + (high - low) / 2 + 1;
    const std::int32_t found = count_from(keys, count, middle);
    if (found >= k && found <= most) return least_from(keys, count, middle, largest);
    if (found > k) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

HWY_ATTR std::int32_t KeepFrom(std::uint32_t least, std::int32_t count, std::uint32_t* keys,
                               std::int32_t* positions) {
  const DI di;
  const VI sign = hn::Set(di, static_cast<std::int32_t>(0x80000000u));
  const VI limit = hn::Set(di, static_cast<std::int32_t>(least ^ 0x80000000u));
  std::int32_t n = 0, i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    auto* from = reinterpret_cast<std::int32_t*>(keys + i);
    const VI key = hn::LoadU(di, from), position = hn::LoadU(di, positions + i);
    const auto in = hn::Not(hn::Lt(hn::Xor(key, sign), limit));
    // Whole vectors are stored, never past what has been read.
    hn::StoreU(hn::Compress(key, in), di, reinterpret_cast<std::int32_t*>(keys + n));
    hn::StoreU(hn::Compress(position, in), di, positions + n);
    n += static_cast<std::int32_t>(hn::CountTrue(di, in));
  }
  for (; i < count; ++i) {
    const std::uint32_t key = keys[i];
    keys[n] = key;
    positions[n] = positions[i];
    n += key >= least ? 1 : 0;
  }
  return n;
}

}  // namespace HWY_NAMESPACE
}  // namespace quarry::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quarry::cpu {

HWY_EXPORT(ScanAbove);
HWY_EXPORT(SelectionKeys);
HWY_EXPORT(KthKey);
HWY_EXPORT(KeepFrom);

std::int32_t scan_above(const float* scores, std::int32_t base, std::int32_t i, std::int32_t count,
                        std::uint32_t threshold, std::int32_t room, std::uint32_t* keys,
                        std::int32_t* positions, std::int32_t* found) {
  return HWY_DYNAMIC_DISPATCH(ScanAbove)(scores, base, i, count, threshold, room, keys, positions,
                                         found);
}

void selection_keys(const float* scores, std::int32_t count, std::uint32_t* keys) {
  HWY_DYNAMIC_DISPATCH(SelectionKeys)(scores, count, keys);
}

std::uint32_t kth_key(const std::uint32_t* keys, std::int32_t count, std::int32_t k,
                      std::int32_t most) {
  return HWY_DYNAMIC_DISPATCH(KthKey)(keys, count, k, most);
}

std::int32_t keep_from(std::uint32_t least, std::int32_t count, std::uint32_t* keys,
                       std::int32_t* positions) {
  return HWY_DYNAMIC_DISPATCH(KeepFrom)(least, count, keys, positions);
}

}  // namespace quarry::cpu
#endif  // HWY_ONCE
