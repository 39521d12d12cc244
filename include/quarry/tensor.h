// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace quarry {

/// Element types: keys and block means are any of them, queries one of the first three.
///
/// float8_e4m3 is the OCP 8-bit format E4M3 (Micikevicius et al., 2022): sign, 4 bits of exponent,
/// 3 of mantissa, no infinity. Finite numbers beyond +-448 become +-448, infinities NaN.
enum class DType : std::int32_t { float32 = 0, float16 = 1, bfloat16 = 2, float8_e4m3 = 3 };

/// Bytes of one element.
constexpr std::int64_t dtype_size(DType t) noexcept {
  return t == DType::float32 ? 4 : t == DType::float8_e4m3 ? 1 : 2;
}

const char* to_string(DType t) noexcept;

/// The engine's key cache of one layer, read and never written.
///
/// Element (position p, KV head h, dimension i) of a sequence lives at
///   data + page * page_stride + (p % page_size) * slot_stride + h * head_stride + i
/// where `page` is block_table[b * block_table_stride + p / page_size], or, without a
/// block table (a contiguous cache: one page a sequence), the sequence's slot.
/// Strides are in elements, may exceed the extents they step over, and are >= 0.
///
/// A float8_e4m3 cache may have scales: an element's value is then float32(element) * scale,
/// rounded once to float32, wherever a call reads keys, so that the cache gives what a float32
/// cache of these values would. Calls read the scales as they read the keys, in stream order: a
/// captured graph sees what the engine last wrote there. No scale is refused: with a NaN, an
/// infinity, zero or a negative number for one, keys are what the product is. Keys that are
/// encoded already keep the codes they got when their scale changes; truncate() has them read
/// again.
struct KeyView {
  const void* data = nullptr;  ///< device memory, aligned to the element
  DType dtype = DType::float32;
  std::int64_t page_stride = 0;
  std::int64_t slot_stride = 0;  ///< between consecutive positions of a page
  std::int64_t head_stride = 0;
  const std::int32_t* block_table = nullptr;  ///< device memory [B, block_table_stride], or null
  std::int64_t block_table_stride = 0;        ///< entries from one sequence's row to the next's
  /// With float8_e4m3 alone: device memory [num_scales], or null (a scale of 1, num_scales 0).
  const float* scales = nullptr;
  std::int32_t num_scales = 0;  ///< 1, of all keys, or num_kv_heads, one a KV head
};

/// Queries [B, T, Hq, d], contiguous in d; strides in elements.
struct QueryView {
  const void* data = nullptr;    ///< device memory, aligned to the element
  DType dtype = DType::float32;  ///< whatever the keys are; float8_e4m3 is refused
  std::int64_t batch_stride = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
};

}  // namespace quarry
