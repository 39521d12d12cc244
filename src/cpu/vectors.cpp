// SPDX-License-Identifier: Apache-2.0
#include "cpu/vectors.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/simd.h"

namespace quarry::cpu {
namespace {

std::int64_t offset_of(const KeySource& s, std::int32_t position) {
  const std::int64_t page = page_of(s.index, s.table, s.slot, position);
  return key_offset(s.index, s.keys, page, s.head, position);
}

}  // namespace

void block_mean(const KeySource& source, std::int32_t block, float* mean) {
  const IndexView& ix = source.index;
  const std::int32_t end = (block + 1) * ix.block_size;
  const std::int32_t first = std::max(block * ix.block_size, ix.encode_from);
  const float scale = key_scale(source.keys, source.head);
  std::memset(mean, 0, sizeof(float) * static_cast<std::size_t>(ix.head_dim));
  for (std::int32_t p = first; p < end; ++p) {
    accumulate(source.keys.data, source.keys.dtype, scale, offset_of(source, p), ix.head_dim, mean);
  }
  const float count = static_cast<float>(end - first);
  for (std::int32_t i = 0; i < ix.head_dim; ++i) mean[i] /= count;
}

void load_vectors(const KeySource& source, std::int32_t first, std::int32_t count,
                  const float* mean, float* out) {
  const std::int32_t d = source.index.head_dim;
  const float scale = key_scale(source.keys, source.head);
  alignas(64) float plain[kGroupFloats];
  float* x = source.rotation == nullptr ? out : plain;
  for (std::int32_t i = 0; i < count; ++i) {
    widen(source.keys.data, source.keys.dtype, scale, offset_of(source, first + i), d, mean,
          x + i * d);
  }
  if (source.rotation != nullptr) product(x, count, d, source.rotation, d, d, out, d);
}

const float* subvectors(const IndexView& index, const float* vectors, std::int32_t count,
                        std::int32_t s, float phi, float* out, std::int64_t* stride) {
  const std::int32_t d = index.head_dim, dsub = index.dsub;
  const float* x = vectors + s * dsub;
  if (index.dcent == dsub) {
    *stride = d;
    return x;
  }
  float squares[kGroup];
  norms(x, count, d, dsub, squares);
  for (std::int32_t i = 0; i < count; ++i) {
    float* row = out + i * index.dcent;
    std::memcpy(row, x + i * d, sizeof(float) * static_cast<std::size_t>(dsub));
    const float rest = phi - squares[i];
    row[dsub] = rest < 0.0f ? 0.0f : std::sqrt(rest);  // NaN stays
  }
  *stride = index.dcent;
  return out;
}

}  // namespace quarry::cpu
