// SPDX-License-Identifier: Apache-2.0
//
// Stage reduce's loops over scores, dispatched at run time to the best target of this CPU;
// results are those of reduction.h, bit for bit.
#pragma once

#include <cstdint>

#include "params.h"

namespace quarry::cpu {

/// The largest of scores[0 .. count), NaN aside; NaN where there is nothing else.
float largest_of(const float* scores, std::int32_t count);

/// Sum of fixed_weight(softmax_weight(scores[i], largest, scale)), i < count.
std::uint64_t weight_of(const float* scores, std::int32_t count, float largest, float scale);

/// The same sum; and adds each weight times `inverse` to shares[i], in one rounding.
std::uint64_t weigh(const float* scores, std::int32_t count, float largest, float scale,
                    float inverse, float* shares);

/// scores[i] = reduce_position() of scores[i], scores[i + stride], .., i < count.
void reduce_positions(GqaReduction reduction, float* scores, std::int64_t stride,
                      std::int32_t group, std::int32_t count, float scale,
                      const HeadSoftmax* softmax);

}  // namespace quarry::cpu
