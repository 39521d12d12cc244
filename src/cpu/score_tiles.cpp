// SPDX-License-Identifier: Apache-2.0
#include "cpu/score_tiles.h"

// Lanes must be a compile-time number (no SVE); x86 without FMA takes Highway's fallback.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/score_tiles.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace quarry::cpu {
namespace HWY_NAMESPACE {

/// lut[id] a lane. kBits 4, 5 and 6 keep the table in registers where those are wide enough;
/// 0 is any other width.
template <std::int32_t kBits>
HWY_INLINE HWY_ATTR VF look_up(const float* lut, VI id) {
  const DF df;
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
  if constexpr (kBits == 4) {
    return VF{_mm512_permutexvar_ps(id.raw, _mm512_loadu_ps(lut))};
  }
  if constexpr (kBits == 5 || kBits == 6) {
    const __m512 low =
        _mm512_permutex2var_ps(_mm512_loadu_ps(lut), id.raw, _mm512_loadu_ps(lut + 16));
    if constexpr (kBits == 5) return VF{low};
    const __m512 high =
        _mm512_permutex2var_ps(_mm512_loadu_ps(lut + 32), id.raw, _mm512_loadu_ps(lut + 48));
    const __mmask16 upper = _mm512_test_epi32_mask(id.raw, _mm512_set1_epi32(32));
    return VF{_mm512_mask_blend_ps(upper, low, high)};
  }
#elif HWY_ARCH_X86 && HWY_TARGET == HWY_AVX2
  if constexpr (kBits == 4) {
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(lut), id.raw);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(lut + 8), id.raw);
    // Bit 3 of the id, moved to the sign, chooses the half.
    return VF{_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(id.raw, 28)))};
  }
#endif
  return hn::GatherIndex(df, lut, id);
}

template <std::int32_t kRows, std::int32_t kBits>
HWY_ATTR void score_rows(const TileRun& run, std::int32_t row) {
  const DF df;
  const DI di;
  const hn::Rebind<std::uint8_t, DI> d8;
  constexpr std::int32_t kVectors = 16 / kLanes;
  const std::int32_t ksub = 1 << run.bits;
  const bool packed = kBits == 4 || (kBits == 0 && run.bits <= 4);
  const VI nibble = hn::Set(di, 15);
  const float* luts = run.luts + row * run.lut_stride;
  const float* biases = run.block_size > 0 ? run.biases + row * run.bias_stride : nullptr;
  float* scores = run.scores + row * run.score_stride;
  const std::int32_t stride = run.codes.stride, groups = run.tiles * (run.codes.tile / 16);

  for (std::int32_t group = 0; group < groups; ++group) {
    const std::int32_t first = group * 16;
    const std::uint8_t* codes =
        run.codes.tile == 16 ? run.codes[group] : run.codes[group / 2] + group % 2 * 16;
    const std::int32_t position = run.position + first;
    for (std::int32_t v = 0; v < kVectors; ++v) {
      const std::int32_t at = position + v * kLanes;
      const std::int32_t block = run.block_size > 0 ? at / run.block_size : 0;
      const bool whole = run.block_size == 0 || (at + kLanes - 1) / run.block_size == block;
      VF acc[kRows];
      for (std::int32_t r = 0; r < kRows; ++r) {
        if (whole) {
          // -0 + x is x, bit for bit.
          acc[r] = hn::Set(df, run.block_size > 0 ? biases[r * run.bias_stride + block] : -0.0f);
        } else {
          float lanes[kLanes];
          for (std::int32_t l = 0; l < kLanes; ++l) {
            lanes[l] = biases[r * run.bias_stride + (at + l) / run.block_size];
          }
          acc[r] = hn::LoadU(df, lanes);
        }
      }
      for (std::int32_t s = 0; s < run.num_subspaces; ++s) {
        const std::int32_t byte = packed ? s / 2 : s;
        VI id = hn::PromoteTo(di, hn::LoadU(d8, codes + byte * stride + v * kLanes));
        if (packed) id = s % 2 == 0 ? hn::And(id, nibble) : hn::ShiftRight<4>(id);
        for (std::int32_t r = 0; r < kRows; ++r) {
          const VF part = look_up<kBits>(luts + r * run.lut_stride + s * ksub, id);
          acc[r] = hn::Add(acc[r], part);
        }
      }
      for (std::int32_t r = 0; r < kRows; ++r) {
        hn::StoreU(acc[r], df, scores + r * run.score_stride + first + v * kLanes);
      }
    }
  }
}

template <std::int32_t kBits>
HWY_ATTR void score_all_rows(const TileRun& run) {
  std::int32_t row = 0;
  for (; row + 4 <= run.rows; row += 4) score_rows<4, kBits>(run, row);
  for (; row < run.rows; ++row) score_rows<1, kBits>(run, row);
}

HWY_ATTR void ScoreTiles(const TileRun& run) {
  if (run.bits == 4) return score_all_rows<4>(run);
  if (run.bits == 5) return score_all_rows<5>(run);
  if (run.bits == 6) return score_all_rows<6>(run);
  score_all_rows<0>(run);
}

}  // namespace HWY_NAMESPACE
}  // namespace quarry::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quarry::cpu {

HWY_EXPORT(ScoreTiles);

void score_tiles(const TileRun& run) { HWY_DYNAMIC_DISPATCH(ScoreTiles)(run); }

}  // namespace quarry::cpu
#endif  // HWY_ONCE
