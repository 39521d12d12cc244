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
  const std::int32_t keys = run.codes.tile;
  for (std::int32_t tile = 0; tile < run.tiles; ++tile) {
    std::uint32_t bits = 0;
    for (std::int32_t k = 0; k < 32 && run.limits[tile] != 0; ++k) {
      const std::uint8_t* code =
          keys == 16 ? run.codes[2 * tile + k / 16] + k % 16 : run.codes[tile] + k;
      std::int32_t sum = 0;
      for (std::int32_t s = 0; s < run.num_subspaces; ++s) {
        const std::int32_t id =
            entries == 16 ? code[s / 2 * keys] >> s % 2 * 4 & 15 : code[s * keys];
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

/// Where the codes of kKeys keys are: kTile, 16 or 32, at each pointer, or the half of 32.
template <std::int32_t kTile>
struct Keys {
  const std::uint8_t* at[kKeys > kTile ? kKeys / kTile : 1];
};

/// Byte `byte` of kKeys keys.
template <std::int32_t kTile>
HWY_INLINE HWY_ATTR V8 load_codes(const Keys<kTile>& keys, std::int32_t byte) {
  const D8 d8;
  const std::int32_t skip = byte * kTile;
  if constexpr (kKeys <= kTile) {
    return hn::LoadU(d8, keys.at[0] + skip);
  } else {
    const hn::Half<D8> half;
    if constexpr (kKeys == 2 * kTile) {
      return hn::Combine(d8, hn::LoadU(half, keys.at[1] + skip),
                         hn::LoadU(half, keys.at[0] + skip));
    } else {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
      // Inserted from memory, which takes no shuffle.
      const auto quarter = [&](std::int32_t i) HWY_ATTR {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(keys.at[i] + skip));
      };
      __m512i all = _mm512_castsi128_si512(quarter(0));
      all = _mm512_inserti32x4(all, quarter(1), 1);
      all = _mm512_inserti32x4(all, quarter(2), 2);
      return V8{_mm512_inserti32x4(all, quarter(3), 3)};
#endif
    }
  }
}

/// Calls `use` with every subspace's table entries of the keys, in turn.
template <std::int32_t kEntries, std::int32_t kTile, class Use>
HWY_INLINE HWY_ATTR void each_subspace(const FilterRun& run, const Keys<kTile>& keys, Use&& use) {
  const D8 d8;
  const std::uint8_t* table = run.tables;
  if constexpr (kEntries == 16) {
    const V8 nibble = hn::Set(d8, 15);
    const std::int32_t pairs = run.num_subspaces / 2;
    for (std::int32_t byte = 0; byte < pairs; ++byte, table += 32) {
      const V8 code = load_codes(keys, byte);
      use(look_up<16>(table, hn::And(code, nibble)));
      const V8 high = hn::BitCast(d8, hn::ShiftRight<4>(hn::BitCast(D16(), code)));
      use(look_up<16>(table + 16, hn::And(high, nibble)));
    }
    if (run.num_subspaces % 2 != 0) {
      use(look_up<16>(table, hn::And(load_codes(keys, pairs), nibble)));
    }
  } else {
    for (std::int32_t s = 0; s < run.num_subspaces; ++s, table += kEntries) {
      use(look_up<kEntries>(table, load_codes(keys, s)));
    }
  }
}

/// The keys whose sum is below their tile's limit.
template <std::int32_t kEntries, std::int32_t kTile>
HWY_INLINE HWY_ATTR std::uint64_t passing(const FilterRun& run, const Keys<kTile>& keys,
                                          std::uint32_t limit_a, std::uint32_t limit_b) {
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
    each_subspace<kEntries>(run, keys,
                            [&](V8 part) HWY_ATTR { sum = hn::SaturatedAdd(sum, part); });
    const V8 limit = halves(static_cast<std::uint8_t>(limit_a), static_cast<std::uint8_t>(limit_b));
    return bits_of(hn::Lt(sum, limit));
  }
  // Even and odd keys in 16-bit sums of their own.
  V16 even = hn::Zero(d16), odd = hn::Zero(d16);
  const V16 low = hn::Set(d16, 0xff);
  each_subspace<kEntries>(run, keys, [&](V8 part) HWY_ATTR {
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

/// Keys of the 32-key tile `tile`, and where they are 64 of tile `next`.
template <std::int32_t kTile>
HWY_INLINE HWY_ATTR Keys<kTile> keys_of(const CodeTiles& codes, std::int32_t tile,
                                        std::int32_t next) {
  Keys<kTile> keys;
  if constexpr (kTile == 32) {
    keys.at[0] = codes[tile];
    if constexpr (kKeys == 64) keys.at[1] = codes[next];
  } else {
    keys.at[0] = codes[2 * tile];
    if constexpr (kKeys >= 32) keys.at[1] = codes[2 * tile + 1];
    if constexpr (kKeys == 64) {
      keys.at[2] = codes[2 * next];
      keys.at[3] = codes[2 * next + 1];
    }
  }
  return keys;
}

/// Which keys pass of tile `tile` and, where keys are filtered 64 at a time, of `next`.
template <std::int32_t kEntries, std::int32_t kTile>
HWY_INLINE HWY_ATTR std::uint64_t filter_some(const FilterRun& run, std::int32_t tile,
                                              std::int32_t next) {
  const std::uint32_t limit_a = run.limits[tile], limit_b = kKeys == 64 ? run.limits[next] : 0;
  if ((limit_a | limit_b) == 0) return 0;
  Keys<kTile> keys = keys_of<kTile>(run.codes, tile, next);
  std::uint64_t bits = passing<kEntries>(run, keys, limit_a, limit_b);
  if constexpr (kKeys == 16) {
    keys.at[0] = kTile == 16 ? run.codes[2 * tile + 1] : keys.at[0] + 16;
    bits |= passing<kEntries>(run, keys, limit_a, limit_b) << 16;
  }
  return bits;
}

template <std::int32_t kEntries, std::int32_t kTile>
HWY_ATTR std::int32_t filter_all(const FilterRun& given) {
  const FilterRun run = given;  // a copy, which no store to hits can change
  std::uint64_t total = 0;
  std::int32_t tile = 0;
  if constexpr (kKeys == 64) {
    for (; tile + 1 < run.tiles; tile += 2) {
      const std::uint64_t bits = filter_some<kEntries, kTile>(run, tile, tile + 1);
      total += hwy::PopCount(bits);
      run.hits[tile] = static_cast<std::uint32_t>(bits);
      run.hits[tile + 1] = static_cast<std::uint32_t>(bits >> 32);
    }
  }
  for (; tile < run.tiles; ++tile) {
    const auto bits = static_cast<std::uint32_t>(filter_some<kEntries, kTile>(run, tile, tile));
    total += hwy::PopCount(bits);
    run.hits[tile] = bits;
  }
  return static_cast<std::int32_t>(total);
}

template <std::int32_t kTile>
HWY_ATTR std::int32_t filter_tiles_of(const FilterRun& run) {
  switch (filter_entries(run.bits)) {
    case 16:
      return filter_all<16, kTile>(run);
    case 64:
      return filter_all<64, kTile>(run);
    case 128:
      return filter_all<128, kTile>(run);
    default:
      return filter_all<256, kTile>(run);
  }
}

HWY_ATTR std::int32_t FilterTiles(const FilterRun& run) {
  return run.codes.tile == 16 ? filter_tiles_of<16>(run) : filter_tiles_of<32>(run);
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
