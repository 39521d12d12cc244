// SPDX-License-Identifier: Apache-2.0
#include "cpu/scan_filter.h"

// Byte permutes across a register (VBMI) are worth a target of their own.
#ifndef HWY_WANT_AVX3_DL
#define HWY_WANT_AVX3_DL 1
#endif
// Lanes must be a compile-time number (no SVE); x86 without FMA takes Highway's fallback.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/scan_filter.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <cstring>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace quarry::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET == HWY_SCALAR

HWY_ATTR std::int32_t FilterTiles(const FilterRun& run) {
  const std::int32_t entries = filter_entries(run.bits);
  std::int32_t total = 0;
  for (std::int32_t tile = 0; tile < run.tiles; ++tile) {
    const std::uint8_t* code = run.codes + std::int64_t{tile} * 32 * run.code_bytes;
    std::uint32_t bits = 0;
    for (std::int32_t k = 0; k < 32 && run.limits[tile] != 0; ++k, ++code) {
      std::int32_t sum = 0;
      for (std::int32_t s = 0; s < run.num_subspaces; ++s) {
        const std::int32_t id = entries == 16 ? code[s / 2 * 32] >> s % 2 * 4 & 15 : code[s * 32];
        sum += run.tables[s * entries + id];
      }
      if (sum < run.limits[tile]) bits |= std::uint32_t{1} << k;
    }
    run.hits[tile] = bits;
    total += static_cast<std::int32_t>(hwy::PopCount(bits));
  }
  return total;
}

#else

using D8 = hn::CappedTag<std::uint8_t, 64>;
using D16 = hn::RepartitionToWide<D8>;
using V8 = hn::Vec<D8>;
using V16 = hn::Vec<D16>;
constexpr std::int32_t kKeys = static_cast<std::int32_t>(hn::MaxLanes(D8()));  // 16, 32 or 64

/// table[id] a lane, ids below kEntries.
template <std::int32_t kEntries>
HWY_INLINE HWY_ATTR V8 look_up(const std::uint8_t* table, V8 id) {
  const D8 d8;
  if constexpr (kEntries == 16) {
    return hn::TableLookupBytes(hn::LoadDup128(d8, table), id);
  } else {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
    const __m512i t0 = _mm512_loadu_si512(table);
    if constexpr (kEntries == 64) return V8{_mm512_permutexvar_epi8(id.raw, t0)};
    const __m512i t1 = _mm512_loadu_si512(table + 64);
    const __m512i low = _mm512_permutex2var_epi8(t0, id.raw, t1);
    if constexpr (kEntries == 128) return V8{low};
    const __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(table + 128), id.raw,
                                                  _mm512_loadu_si512(table + 192));
    return V8{_mm512_mask_blend_epi8(_mm512_movepi8_mask(id.raw), low, high)};
#else
    // Sixteen entries at a time: an index outside them gets its highest bit, which looks up 0.
    V8 out = hn::Zero(d8);
    for (std::int32_t first = 0; first < kEntries; first += 16) {
      const V8 own = hn::Xor(id, hn::Set(d8, static_cast<std::uint8_t>(first)));
      const V8 index = hn::SaturatedAdd(own, hn::Set(d8, 0x70));
      out = hn::Or(out, hn::TableLookupBytesOr0(hn::LoadDup128(d8, table + first), index));
    }
    return out;
#endif
  }
}

/// Byte `byte` of kKeys keys: of two tiles, one, or a half.
HWY_INLINE HWY_ATTR V8 load_codes(const std::uint8_t* a, const std::uint8_t* b, std::int32_t byte) {
  const D8 d8;
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
  const __m512i low =
      _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + byte * 32)));
  return V8{_mm512_inserti64x4(
      low, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + byte * 32)), 1)};
#else
  (void)b;
  return hn::LoadU(d8, a + byte * 32);
#endif
}

/// Calls `use` with every subspace's table entries of the keys, in turn.
template <std::int32_t kEntries, class Use>
HWY_INLINE HWY_ATTR void each_subspace(const FilterRun& run, const std::uint8_t* a,
                                       const std::uint8_t* b, Use&& use) {
  const D8 d8;
  const std::uint8_t* table = run.tables;
  if constexpr (kEntries == 16) {
    const V8 nibble = hn::Set(d8, 15);
    const std::int32_t pairs = run.num_subspaces / 2;
    for (std::int32_t byte = 0; byte < pairs; ++byte, table += 32) {
      const V8 code = load_codes(a, b, byte);
      use(look_up<16>(table, hn::And(code, nibble)));
      const V8 high = hn::BitCast(d8, hn::ShiftRight<4>(hn::BitCast(D16(), code)));
      use(look_up<16>(table + 16, hn::And(high, nibble)));
    }
    if (run.num_subspaces % 2 != 0) {
      use(look_up<16>(table, hn::And(load_codes(a, b, pairs), nibble)));
    }
  } else {
    for (std::int32_t s = 0; s < run.num_subspaces; ++s, table += kEntries) {
      use(look_up<kEntries>(table, load_codes(a, b, s)));
    }
  }
}

/// The keys whose sum is below their tile's limit.
template <std::int32_t kEntries>
HWY_INLINE HWY_ATTR std::uint64_t passing(const FilterRun& run, const std::uint8_t* a,
                                          const std::uint8_t* b, std::uint32_t limit_a,
                                          std::uint32_t limit_b) {
  const D8 d8;
  const D16 d16;
  const auto bits_of = [](hn::Mask<D8> mask) HWY_ATTR {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
    return static_cast<std::uint64_t>(mask.raw);
#else
    std::uint8_t bytes[8] = {};
    hn::StoreMaskBits(D8(), mask, bytes);
    std::uint64_t bits = 0;
    std::memcpy(&bits, bytes, sizeof(bits));
    return bits;
#endif
  };
  const auto halves = [&](std::uint8_t x, std::uint8_t y) HWY_ATTR {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
    return hn::ConcatLowerLower(d8, hn::Set(d8, y), hn::Set(d8, x));
#else
    (void)y;
    return hn::Set(d8, x);
#endif
  };
  if (!run.wide) {
    V8 sum = hn::Zero(d8);
    each_subspace<kEntries>(run, a, b,
                            [&](V8 part) HWY_ATTR { sum = hn::SaturatedAdd(sum, part); });
    const V8 limit = halves(static_cast<std::uint8_t>(limit_a), static_cast<std::uint8_t>(limit_b));
    return bits_of(hn::Lt(sum, limit));
  }
  // Even and odd keys in 16-bit sums of their own.
  V16 even = hn::Zero(d16), odd = hn::Zero(d16);
  const V16 low = hn::Set(d16, 0xff);
  each_subspace<kEntries>(run, a, b, [&](V8 part) HWY_ATTR {
    const V16 pair = hn::BitCast(d16, part);
    even = hn::Add(even, hn::And(pair, low));  // at most 64 * 255
    odd = hn::Add(odd, hn::ShiftRight<8>(pair));
  });
  V16 limit = hn::Set(d16, static_cast<std::uint16_t>(limit_a));
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
  limit = hn::ConcatLowerLower(d16, hn::Set(d16, static_cast<std::uint16_t>(limit_b)), limit);
#endif
  const V16 even_in = hn::VecFromMask(d16, hn::Lt(even, limit));
  const V16 odd_in = hn::VecFromMask(d16, hn::Lt(odd, limit));
  const V8 in = hn::BitCast(d8, hn::Or(hn::And(even_in, low), hn::AndNot(low, odd_in)));
  return bits_of(hn::Ne(in, hn::Zero(d8)));
}

template <std::int32_t kEntries>
HWY_ATTR std::int32_t filter_all(const FilterRun& run) {
  const std::int64_t tile_bytes = std::int64_t{run.code_bytes} * 32;
  std::int32_t total = 0;
  constexpr std::int32_t kTiles = kKeys == 64 ? 2 : 1;
  for (std::int32_t tile = 0; tile < run.tiles; tile += kTiles) {
    const bool second = kTiles == 2 && tile + 1 < run.tiles;
    const std::uint32_t limit_a = run.limits[tile], limit_b = second ? run.limits[tile + 1] : 0;
    std::uint64_t bits = 0;
    if ((limit_a | limit_b) != 0) {
      const std::uint8_t* a = run.codes + tile * tile_bytes;
      const std::uint8_t* b = second ? a + tile_bytes : a;
      bits = passing<kEntries>(run, a, b, limit_a, limit_b);
      if constexpr (kKeys == 16) {
        bits |= passing<kEntries>(run, a + 16, b, limit_a, limit_b) << 16;
      }
      total += static_cast<std::int32_t>(hwy::PopCount(bits));
    }
    run.hits[tile] = static_cast<std::uint32_t>(bits);
    if (second) run.hits[tile + 1] = static_cast<std::uint32_t>(bits >> 32);
  }
  return total;
}

HWY_ATTR std::int32_t FilterTiles(const FilterRun& run) {
  switch (filter_entries(run.bits)) {
    case 16:
      return filter_all<16>(run);
    case 64:
      return filter_all<64>(run);
    case 128:
      return filter_all<128>(run);
    default:
      return filter_all<256>(run);
  }
}

#endif  // HWY_TARGET

}  // namespace HWY_NAMESPACE
}  // namespace quarry::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>
#include <cmath>
#include <limits>

namespace quarry::cpu {

HWY_EXPORT(FilterTiles);

std::int32_t filter_tiles(const FilterRun& run) { return HWY_DYNAMIC_DISPATCH(FilterTiles)(run); }

namespace {

// What double arithmetic below may be off by, relatively, with room to spare.
constexpr double kDown = 1.0 - 0x1p-40;

}  // namespace

double filter_magnitude(const float* lut, std::int32_t num_subspaces, std::int32_t ksub,
                        float least_bias, float largest_bias) {
  double sum = std::max(std::abs(double{least_bias}), std::abs(double{largest_bias}));
  for (std::int32_t s = 0; s < num_subspaces; ++s, lut += ksub) {
    float largest = 0, odd = 0;
    for (std::int32_t c = 0; c < ksub; ++c) {
      largest = std::max(largest, std::abs(lut[c]));
      odd += lut[c] - lut[c];  // NaN where the entry is not finite
    }
    sum += double{largest} + double{odd};
  }
  return sum;
}

double softmax_reach(float threshold, const HeadSoftmax& head, float scale, std::int32_t group) {
  // The sum is a chain of G fused steps of terms w_h inv_h >= 0, off by a factor of at most
  // (1 + u)^G, u = 2^-24 (below the threshold's 2^-100 nothing is lost to subnormals): where it
  // reaches T, some term reaches T / G / (1 + u)^G. w = exp_of(x) is at most 1 (x <= 0) and within
  // 2 u of exp(x); x is within 2 u + u^2 of scale (s - M), or 2^-149 where that is subnormal.
  constexpr double kInfinite = std::numeric_limits<double>::infinity();
  if (!(head.inverse > 0) || !std::isfinite(head.largest)) return kInfinite;
  const double share = double{threshold} / group / double{head.inverse};
  const double x = std::log(share) - (group + 4.0) * 0x1p-24;
  if (x > 0) return kInfinite;
  const double below = (-x * (1 + 0x1p-21) + 0x1p-148) / double{scale};
  return double{head.largest} - below - (std::abs(double{head.largest}) + below) * 0x1p-40;
}

bool Filter::open(const float* lut, float least_bias, float largest_bias) {
  return open_sum(lut, largest_bias, 1,
                  filter_magnitude(lut, m_, 1 << bits_, least_bias, largest_bias));
}

bool Filter::open_sum(const float* lut, float largest_bias, std::int32_t heads, double magnitude) {
  const std::int32_t ksub = 1 << bits_;
  top_ = spread_ = 0;
  largest_bias_ = largest_bias;
  magnitude_ = magnitude;
  const double roundings = (m_ + 2.0 * heads) * 0x1p-24;
  if (!(roundings < 0.5 && magnitude < double{std::numeric_limits<float>::max()} / 2)) return false;
  rounding_ = roundings / (1 - roundings);
  for (std::int32_t s = 0; s < m_; ++s, lut += ksub) {
    float low = lut[0], high = lut[0];
    for (std::int32_t c = 1; c < ksub; ++c) {
      low = std::min(low, lut[c]);
      high = std::max(high, lut[c]);
    }
    top_ += high;
    spread_ += double{high} - double{low};
  }
  return true;
}

void Filter::aim(const float* lut, double threshold) {
  const std::int32_t ksub = 1 << bits_, entries = filter_entries(bits_);
  // One unit more than the scores' own roundings covers, many times over, the doubles here.
  const double error = (rounding_ + 0x1p-24) * (magnitude_ + std::abs(threshold));
  reach_ = top_ - threshold + error;
  const double most = reach_ + largest_bias_;
  // The largest limit is 250 of 255, or for 16-bit sums a step that resolves a usual table.
  double step = most / 250;
  if (wide_) step = std::max(most / 16000, spread_ / m_ / 100);
  if (!(step > 0)) step = 1;  // nothing can pass, or all entries are alike
  per_step_ = 1 / step;
  const double scale = per_step_ * kDown;
  for (std::int32_t s = 0; s < m_; ++s, lut += ksub) {
    const double high = *std::max_element(lut, lut + ksub);
    std::uint8_t* table = tables_ + s * entries;
    for (std::int32_t c = 0; c < ksub; ++c) {
      table[c] = static_cast<std::uint8_t>(std::min((high - double{lut[c]}) * scale, 255.0));
    }
    std::fill(table + ksub, table + entries, std::uint8_t{0});
  }
}

}  // namespace quarry::cpu
#endif  // HWY_ONCE
