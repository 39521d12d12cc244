// SPDX-License-Identifier: Apache-2.0
//
// Nearest centroids, and the sums a k-means step makes of them: dispatched at run time, the
// same bytes on every target. Centroids are [dcent][ksub].
#pragma once

#include <cstdint>

namespace quarry::cpu {

/// codes[k * code_stride] = the centroid of [dcent][ksub] nearest x[k] in squared Euclidean
/// distance, an FMA chain over ascending j: the lowest id on a tie, NaN last, 0 where all are
/// NaN. The distance goes to distances[k] unless that is null.
void nearest(const float* x, std::int32_t count, std::int64_t x_stride, const float* centroids,
             std::int32_t dcent, std::int32_t ksub, std::uint8_t* codes, std::int64_t code_stride,
             float* distances);

/// sums[codes[i]][j] += x[i][j] and ++counts[codes[i]] for i < count in ascending order.
/// x is [count][dcent], sums [ksub][dcent] in float64.
void sum_clusters(const float* x, std::int64_t count, std::int32_t dcent, const std::uint8_t* codes,
                  double* sums, std::int32_t* counts);

}  // namespace quarry::cpu
