// SPDX-License-Identifier: Apache-2.0
//
// The engine's side of a step on the CPU: a reference, nothing more.
#include <algorithm>
#include <cmath>
#include <vector>

#include "step.h"

void append_token(const LayerStep& step) {
  const std::int64_t to = step.offset((*step.length)++, 0);
  std::copy_n(step.k, step.kv_heads * step.d, step.keys + to);
  std::copy_n(step.v, step.kv_heads * step.d, step.values + to);
}

void sparse_attention(const LayerStep& step) {
  const float scale = 1 / std::sqrt(static_cast<float>(step.d));
  for (std::int32_t h = 0; h < step.query_heads; ++h) {
    const std::int32_t kv_head = h / (step.query_heads / step.kv_heads);
    const std::int32_t* list = step.lists + std::int64_t{h} * step.list_stride;
    const auto length = static_cast<std::size_t>(step.list_lengths[h]);
    std::vector<float> weights(length);
    float largest = -INFINITY, sum = 0;
    for (std::size_t e = 0; e < length; ++e) {
      const float* key = step.keys + step.offset(list[e], kv_head);
      for (std::int32_t i = 0; i < step.d; ++i) weights[e] += step.q[h * step.d + i] * key[i];
      weights[e] *= scale;
      largest = std::max(largest, weights[e]);
    }
    for (float& w : weights) sum += w = std::exp(w - largest);
    float* out = step.out + h * step.d;
    std::fill_n(out, step.d, 0.0f);
    for (std::size_t e = 0; e < length; ++e) {
      const float* value = step.values + step.offset(list[e], kv_head);
      for (std::int32_t i = 0; i < step.d; ++i) out[i] += weights[e] / sum * value[i];
    }
  }
}
