// SPDX-License-Identifier: Apache-2.0
//
// The vector arithmetic several stages share, dispatched at run time to the best target of
// this CPU. Each function fixes the order of its float32 operations, so that its bytes do
// not depend on the target.
#pragma once

#include <cstdint>

#include "quarry/tensor.h"

namespace quarry::cpu {

// An element x of typed data is float32(x), or float32(x) * scale where it is float8_e4m3; of
// the other types, and where there is none, the scale is 1.

/// out[i] = data[offset + i] - (mean ? mean[i] : nothing), i < d.
void widen(const void* data, DType dtype, float scale, std::int64_t offset, std::int32_t d,
           const float* mean, float* out);

/// sum[i] += data[offset + i], i < d.
void accumulate(const void* data, DType dtype, float scale, std::int64_t offset, std::int32_t d,
                float* sum);

/// out[k] = q . data[offsets[k] .. + d), k < count: 16 lane-strided partial sums by FMA, added
/// by halves (l += l + 8, + 4, + 2, + 1).
void dots(const float* q, const void* data, DType dtype, float scale, const std::int64_t* offsets,
          std::int32_t count, std::int32_t d, float* out);

/// out[k][c] = sum over ascending j < rows of x[k][j] * matrix[j][c], an FMA chain from 0;
/// k < count, c < cols. Rows of x and out are x_stride and out_stride floats apart.
void product(const float* x, std::int32_t count, std::int64_t x_stride, const float* matrix,
             std::int32_t rows, std::int32_t cols, float* out, std::int64_t out_stride);

/// out[k] = |x[k]|^2, an FMA chain over ascending j < dsub.
void norms(const float* x, std::int32_t count, std::int64_t x_stride, std::int32_t dsub,
           float* out);

}  // namespace quarry::cpu
