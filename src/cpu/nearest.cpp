// SPDX-License-Identifier: Apache-2.0
#include "cpu/nearest.h"

#include "half.h"

// Lanes must be a compile-time number (no SVE); x86 without FMA takes Highway's fallback.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/nearest.cpp"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace quarry::cpu {
namespace HWY_NAMESPACE {

/// Lanes are centroids: no sum crosses lanes, so any width gives the same distances.
template <std::int32_t kKeys, std::int32_t kVectors>
HWY_ATTR void nearest_keys(const float* x, std::int64_t x_stride, const float* centroids,
                           std::int32_t dcent, std::int32_t ksub, std::uint8_t* codes,
                           std::int64_t code_stride, float* distances) {
  const DF df;
  const DI di;
  const VI nan_key = hn::Set(di, 0x7fffffff);
  VI best[kKeys], best_vector[kKeys];  // the first id of the vector it was in
  for (std::int32_t k = 0; k < kKeys; ++k) {
    best[k] = nan_key;
    best_vector[k] = hn::Zero(di);
  }
  for (std::int32_t c = 0; c < ksub; c += kVectors * kLanes) {
    VF acc[kKeys][kVectors];
    for (auto& row : acc) {
      for (auto& v : row) v = hn::Zero(df);
    }
    for (std::int32_t j = 0; j < dcent; ++j) {
      VF centroid[kVectors];
      for (std::int32_t v = 0; v < kVectors; ++v) {
        centroid[v] = hn::LoadU(df, centroids + std::int64_t{j} * ksub + c + v * kLanes);
      }
      for (std::int32_t k = 0; k < kKeys; ++k) {
        const VF xj = hn::Set(df, x[k * x_stride + j]);
        for (std::int32_t v = 0; v < kVectors; ++v) {
          const VF diff = hn::Sub(xj, centroid[v]);
          acc[k][v] = fma(diff, diff, acc[k][v]);
        }
      }
    }
    for (std::int32_t k = 0; k < kKeys; ++k) {
      for (std::int32_t v = 0; v < kVectors; ++v) {
        // Distances are >= +0 or NaN: as integers they keep their order.
        const auto nan = hn::RebindMask(di, hn::IsNaN(acc[k][v]));
        const VI key = hn::IfThenElse(nan, nan_key, hn::BitCast(di, acc[k][v]));
        const auto less = hn::Lt(key, best[k]);
        best[k] = hn::IfThenElse(less, key, best[k]);
        best_vector[k] = hn::IfThenElse(less, hn::Set(di, c + v * kLanes), best_vector[k]);
      }
    }
  }
  for (std::int32_t k = 0; k < kKeys; ++k) {
    const VI least = hn::MinOfLanes(di, best[k]);
    const std::int32_t distance = hn::GetLane(least);
    const VI id =
        hn::IfThenElse(hn::Eq(best[k], least), hn::Add(best_vector[k], hn::Iota(di, 0)), nan_key);
    codes[k * code_stride] = distance == 0x7fffffff
                                 ? std::uint8_t{0}
                                 : static_cast<std::uint8_t>(hn::GetLane(hn::MinOfLanes(di, id)));
    if (distances != nullptr) {
      distances[k] = bits_to_float(static_cast<std::uint32_t>(distance));
    }
  }
}

/// Fewer centroids than lanes.
HWY_ATTR void nearest_scalar(const float* x, const float* centroids, std::int32_t dcent,
                             std::int32_t ksub, std::uint8_t* code, float* distance) {
  float acc[16] = {};
  for (std::int32_t j = 0; j < dcent; ++j) {
    for (std::int32_t c = 0; c < ksub; ++c) {
      const float diff = x[j] - centroids[std::int64_t{j} * ksub + c];
      acc[c] = __builtin_fmaf(diff, diff, acc[c]);
    }
  }
  std::uint32_t best = 0x7fffffffu;
  *code = 0;
  for (std::int32_t c = 0; c < ksub; ++c) {
    const std::uint32_t key = distance_key(acc[c]);
    if (key < best) {
      best = key;
      *code = static_cast<std::uint8_t>(c);
    }
  }
  if (distance != nullptr) *distance = bits_to_float(best);
}

template <std::int32_t kKeys, std::int32_t kVectors>
HWY_ATTR void nearest_all(const float* x, std::int32_t count, std::int64_t x_stride,
                          const float* centroids, std::int32_t dcent, std::int32_t ksub,
                          std::uint8_t* codes, std::int64_t code_stride, float* distances) {
  std::int32_t k = 0;
  for (; k + kKeys <= count; k += kKeys) {
    nearest_keys<kKeys, kVectors>(x + k * x_stride, x_stride, centroids, dcent, ksub,
                                  codes + k * code_stride, code_stride,
                                  distances == nullptr ? nullptr : distances + k);
  }
  for (; k < count; ++k) {
    nearest_keys<1, kVectors>(x + k * x_stride, x_stride, centroids, dcent, ksub,
                              codes + k * code_stride, code_stride,
                              distances == nullptr ? nullptr : distances + k);
  }
}

HWY_ATTR void Nearest(const float* x, std::int32_t count, std::int64_t x_stride,
                      const float* centroids, std::int32_t dcent, std::int32_t ksub,
                      std::uint8_t* codes, std::int64_t code_stride, float* distances) {
  const std::int32_t vectors = ksub / kLanes;
  if (vectors >= 4) {
    constexpr std::int32_t kKeys = kLanes == 16 ? 6 : 2;  // what the registers hold
    nearest_all<kKeys, 4>(x, count, x_stride, centroids, dcent, ksub, codes, code_stride,
                          distances);
  } else if (vectors >= 2) {
    nearest_all<4, 2>(x, count, x_stride, centroids, dcent, ksub, codes, code_stride, distances);
  } else if (vectors == 1) {
    nearest_all<8, 1>(x, count, x_stride, centroids, dcent, ksub, codes, code_stride, distances);
  } else {
    for (std::int32_t k = 0; k < count; ++k) {
      nearest_scalar(x + k * x_stride, centroids, dcent, ksub, codes + k * code_stride,
                     distances == nullptr ? nullptr : distances + k);
    }
  }
}

HWY_ATTR void SumClusters(const float* x, std::int64_t count, std::int32_t dcent,
                          const std::uint8_t* codes, double* sums, std::int32_t* counts) {
  for (std::int64_t i = 0; i < count; ++i, x += dcent) {
    double* sum = sums + std::int64_t{codes[i]} * dcent;
    for (std::int32_t j = 0; j < dcent; ++j) sum[j] += static_cast<double>(x[j]);
    ++counts[codes[i]];
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace quarry::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quarry::cpu {

HWY_EXPORT(Nearest);
HWY_EXPORT(SumClusters);

void nearest(const float* x, std::int32_t count, std::int64_t x_stride, const float* centroids,
             std::int32_t dcent, std::int32_t ksub, std::uint8_t* codes, std::int64_t code_stride,
             float* distances) {
  HWY_DYNAMIC_DISPATCH(Nearest)
  (x, count, x_stride, centroids, dcent, ksub, codes, code_stride, distances);
}

void sum_clusters(const float* x, std::int64_t count, std::int32_t dcent, const std::uint8_t* codes,
                  double* sums, std::int32_t* counts) {
  HWY_DYNAMIC_DISPATCH(SumClusters)(x, count, dcent, codes, sums, counts);
}

}  // namespace quarry::cpu
#endif  // HWY_ONCE
