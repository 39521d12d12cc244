// SPDX-License-Identifier: Apache-2.0
//
// The vectors that are quantized: a key, or its residual from its block's mean, rotated.
// Stages encode and train share them.
#pragma once

#include <cstdint>

#include "params.h"

namespace quarry::cpu {

constexpr std::int32_t kMaxHeadDim = 512;
constexpr std::int32_t kGroup = 32;  ///< keys worked on together, at most
/// Floats of a group's vectors; they live on the stack, which worker threads have little of.
constexpr std::int32_t kGroupFloats = 16 * kMaxHeadDim;

inline std::int32_t keys_per_group(const IndexView& index) {
  return index.head_dim * kGroup > kGroupFloats ? kGroupFloats / index.head_dim : kGroup;
}

/// One KV head of one sequence's keys.
struct KeySource {
  const IndexView& index;
  const KeyView& keys;
  const std::int32_t* table;  ///< the sequence's block table row, or null
  std::int32_t slot, head;
  const float* rotation;  ///< [d][d] of this head, or null
};

/// The float32 mean of block `block`, before it is rounded to mean_dtype.
void block_mean(const KeySource& source, std::int32_t block, float* mean);

/// out[i][d] for positions first .. first+count-1, count <= keys_per_group(); `mean` null where
/// block_size is 0. Every page must be in range.
void load_vectors(const KeySource& source, std::int32_t first, std::int32_t count,
                  const float* mean, float* out);

/// The subvectors [count][dcent] of subspace s with their extra coordinate (inner_product),
/// in `out`; or, where a centroid is dsub wide, a pointer into `vectors` itself.
/// Row stride is returned in *stride.
const float* subvectors(const IndexView& index, const float* vectors, std::int32_t count,
                        std::int32_t s, float phi, float* out, std::int64_t* stride);

}  // namespace quarry::cpu
