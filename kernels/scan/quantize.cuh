// SPDX-License-Identifier: Apache-2.0
//
// The prefilter of algorithm scan: a score as a sum of small integers, one 16-bit field a query
// head, so that one lookup and one addition serve up to four heads, and a table of 64 entries
// takes one shared-memory row.
//
// A head's table entries become round((LUT[s][c] - low_s) * scale), its block biases likewise.
// With base = sum of the lows and range the sum of the spreads, scale = 32000 / range: the sum
// of a key's entries, A, is at most 32000 + (m + 1) / 2 < 2^15, and
//   |A - (score - base) * scale| <= (m + 1) / 2 + 1 + scale * (2 m + 4) 2^-24 * magnitude = off,
// where magnitude = sum of the largest |LUT[s][c]| and |bias|: half a unit for each rounded
// entry; for the float32 operations of the contract's sum and of `base`, 2^-24 of at most
// `magnitude` each; the roundings of the differences and of the products with scale stay below
// a unit. So where r * K candidates have sums of at least T, the best r * K scores all have sums
// of at least T - 2 off. Where an entry or the range is not finite there is no bound: the sums
// are 0 and everything passes on to the exact test.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "half.h"
#include "params.h"
#include "score/lut.cuh"

namespace quarry::cuda {

/// One 16-bit field a head; sums of fields below 2^16 carry into no other.
template <int kHeads>
struct Packed;
template <>
struct Packed<1> {
  using Entry = std::uint16_t;
  static constexpr int kWords = 1;
};
template <>
struct Packed<2> {
  using Entry = std::uint32_t;
  static constexpr int kWords = 1;
};
template <>
struct Packed<4> {
  using Entry = uint2;
  static constexpr int kWords = 2;
};

template <int kHeads>
__device__ __forceinline__ typename Packed<kHeads>::Entry packed(
    const std::uint32_t (&field)[kHeads]) {
  if constexpr (kHeads == 1) {
    return static_cast<std::uint16_t>(field[0]);
  } else if constexpr (kHeads == 2) {
    return field[0] | field[1] << 16;
  } else {
    return make_uint2(field[0] | field[1] << 16, field[2] | field[3] << 16);
  }
}

__device__ __forceinline__ void add(std::uint32_t (&acc)[1], std::uint16_t entry) {
  acc[0] += entry;
}
__device__ __forceinline__ void add(std::uint32_t (&acc)[1], std::uint32_t entry) {
  acc[0] += entry;
}
__device__ __forceinline__ void add(std::uint32_t (&acc)[2], const uint2& entry) {
  acc[0] += entry.x;
  acc[1] += entry.y;
}

/// The score a selection_key() came from; NaN for 0.
QUARRY_HD inline float score_of_key(std::uint32_t key) {
  if (key == 0) return bits_to_float(0x7fc00000u);
  return bits_to_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/// How a head's scores map to its integers; scale 0: they do not.
struct ScanScale {
  float base, scale, off;
};

/// Of what a head's tables span.
QUARRY_HD inline ScanScale scan_scale(float base, float range, float magnitude, int m) {
  constexpr float kUnit = 5.9604644775390625e-8f;  // 2^-24
  ScanScale s{base, 32000.0f / range, 0.0f};
  const bool finite = range > 0.0f && magnitude < 1e37f && s.scale < 1e30f;
  if (!finite) return {0.0f, 0.0f, 0.0f};
  const auto n = static_cast<float>(m);
  // Twice the bound's last term, for the roundings of the bound itself.
  s.off = 0.5f * (n + 1.0f) + 1.0f + s.scale * magnitude * (n + 2.0f) * 4.0f * kUnit;
  return s;
}

/// Least sum that one of the best can have, where as many as are wanted reach `sum`.
QUARRY_HD inline std::uint32_t scan_threshold(const ScanScale& s, std::uint32_t sum) {
  const float least = static_cast<float>(sum) - 2.0f * s.off - 1.0f;
  return s.scale > 0.0f && least > 0.0f ? static_cast<std::uint32_t>(least) : 0u;
}

QUARRY_HD inline std::uint32_t scan_field(float value, float low, float scale) {
  const float a = (value - low) * scale;
  // NaN (no scale, or a block without a mean) is 0; the clamp never acts where there is a scale.
  return a > 0.0f ? static_cast<std::uint32_t>(a < 32767.0f ? a + 0.5f : 32767.0f) : 0u;
}

/// A table's entry into what its table spans, as selection keys: lows[s * kHeads + h], from all
/// ones, and highs, from 0. All threads of a warp that have entries of subspace s call it at once.
template <int kHeads>
__device__ __forceinline__ void widen_range(const IndexView& ix, int s, int h, float entry,
                                            std::uint32_t* lows, std::uint32_t* highs) {
  const auto lane = static_cast<int>(threadIdx.x) % 32, lanes = min(ix.ksub, 32);
  const unsigned mask = lanes == 32 ? 0xffffffffu : ((1u << lanes) - 1u) << (lane & -lanes);
  const std::uint32_t key = selection_key(entry);
  const std::uint32_t low = __reduce_min_sync(mask, key), high = __reduce_max_sync(mask, key);
  if ((lane & (lanes - 1)) != 0) return;
  atomicMin(lows + s * kHeads + h, low);
  atomicMax(highs + s * kHeads + h, high);
}

/// low[h] and high[h] of the biases that are numbers, over the whole cluster, as selection keys:
/// `ranges` holds what each block sent, [block][2][kHeads].
template <int kHeads>
__device__ __forceinline__ void share_bias_ranges(const ClusterPlace& place, const float* bias,
                                                  std::int32_t blocks, std::uint32_t* ranges) {
  constexpr unsigned kAll = 0xffffffffu;
  const auto lane = static_cast<int>(threadIdx.x) % 32, h = static_cast<int>(threadIdx.x) / 32;
  if (h >= kHeads) return;
  std::uint32_t low = 0xffffffffu, high = 0;
  for (std::int32_t i = lane; i < blocks; i += 32) {
    const std::uint32_t key = selection_key(bias[i * kHeads + h]);
    low = min(low, key == 0 ? 0xffffffffu : key);
    high = max(high, key);
  }
  low = __reduce_min_sync(kAll, low);
  high = __reduce_max_sync(kAll, high);
  if (lane < place.blocks) {
    auto* const to = reinterpret_cast<float*>(ranges + place.rank * 2 * kHeads);
    store_to_block(place, to + h, lane, __uint_as_float(low));
    store_to_block(place, to + kHeads + h, lane, __uint_as_float(high));
  }
}

/// scales[h] from the ranges and from what the biases of each of the cluster's blocks span,
/// [cluster][2][kHeads] (low, high; high 0: none; cluster 0: no biases); bias_lows[h] too. Every
/// warp makes all of them for itself.
template <int kHeads>
__device__ __forceinline__ void make_scales(const IndexView& ix, const std::uint32_t* lows,
                                            const std::uint32_t* highs,
                                            const std::uint32_t* bias_ranges, int cluster,
                                            ScanScale (&scales)[kHeads],
                                            float (&bias_lows)[kHeads]) {
  constexpr unsigned kAll = 0xffffffffu;
  const auto lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    float bias_low = 0.0f, bias_high = 0.0f;
    if (cluster > 0) {
      const std::uint32_t* own = bias_ranges + lane * 2 * kHeads + h;
      const std::uint32_t low = __reduce_min_sync(kAll, lane < cluster ? own[0] : 0xffffffffu);
      const std::uint32_t high = __reduce_max_sync(kAll, lane < cluster ? own[kHeads] : 0u);
      if (high != 0) bias_low = score_of_key(low), bias_high = score_of_key(high);
    }
    float base = 0.0f, range = 0.0f, magnitude = 0.0f;
    for (int s = lane; s < ix.num_subspaces; s += 32) {
      const float a = score_of_key(lows[s * kHeads + h]), b = score_of_key(highs[s * kHeads + h]);
      base += a;
      range += b - a;
      magnitude += fmaxf(fabsf(a), fabsf(b));
      if (a != a) range = a;  // fmaxf passes NaN over
    }
    for (int apart = 16; apart > 0; apart /= 2) {
      if (apart >= ix.num_subspaces) continue;  // those lanes have nothing
      base += __shfl_xor_sync(kAll, base, apart);
      range += __shfl_xor_sync(kAll, range, apart);
      magnitude += __shfl_xor_sync(kAll, magnitude, apart);
    }
    // Lanes past the subspaces have sums of their own.
    base = __shfl_sync(kAll, base, 0);
    range = __shfl_sync(kAll, range, 0);
    magnitude = __shfl_sync(kAll, magnitude, 0);
    scales[h] = scan_scale(base + bias_low, range + (bias_high - bias_low),
                           magnitude + fmaxf(fabsf(bias_low), fabsf(bias_high)), ix.num_subspaces);
    bias_lows[h] = bias_low;
  }
}

/// Tables [m][kStride] and biases [blocks] of packed entries; kept[block]: all ones in the
/// fields of heads whose bias is a number, since a NaN bias makes no score that counts. By all
/// threads.
template <int kHeads, int kStride>
__device__ __forceinline__ void pack_tables(const IndexView& ix, const float* lut,
                                            const std::uint32_t* lows, const float* bias,
                                            int blocks, const ScanScale (&scales)[kHeads],
                                            const float (&bias_lows)[kHeads],
                                            typename Packed<kHeads>::Entry* tables,
                                            typename Packed<kHeads>::Entry* packed_bias,
                                            typename Packed<kHeads>::Entry* kept) {
  std::uint32_t field[kHeads];
  for (auto e = static_cast<int>(threadIdx.x); e < ix.num_subspaces << ix.bits;
       e += static_cast<int>(blockDim.x)) {
    const int s = e >> ix.bits, c = e & (ix.ksub - 1);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      field[h] = scan_field(lut[(s * kHeads + h) * kStride + c], score_of_key(lows[s * kHeads + h]),
                            scales[h].scale);
    }
    tables[s * kStride + c] = packed<kHeads>(field);
  }
  for (auto i = static_cast<int>(threadIdx.x); i < blocks; i += static_cast<int>(blockDim.x)) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      field[h] = scan_field(bias[i * kHeads + h], bias_lows[h], scales[h].scale);
    }
    packed_bias[i] = packed<kHeads>(field);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const float b = bias[i * kHeads + h];
      field[h] = b == b ? 0xffffu : 0u;
    }
    kept[i] = packed<kHeads>(field);
  }
}

}  // namespace quarry::cuda
