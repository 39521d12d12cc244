// SPDX-License-Identifier: Apache-2.0
#include "dequantize.h"

#include <cstring>

#include "half.h"

namespace quarry::smollm2 {
namespace {

/// A float16 at any address.
float half_at(const std::byte* from) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, from, sizeof bits);
  return half_to_float(bits);
}

void block_f32(const std::byte* from, float* to) { std::memcpy(to, from, sizeof *to); }

void block_f16(const std::byte* from, float* to) { *to = half_at(from); }

/// Scale and offset, then 16 bytes: byte i holds element i low and element 16 + i high.
void block_q4_1(const std::byte* from, float* to) {
  const float scale = half_at(from), offset = half_at(from + 2);
  for (int i = 0; i < 16; ++i) {
    const auto pair = std::to_integer<unsigned>(from[4 + i]);
    to[i] = static_cast<float>(pair & 15u) * scale + offset;
    to[16 + i] = static_cast<float>(pair >> 4) * scale + offset;
  }
}

void block_q8_0(const std::byte* from, float* to) {
  const float scale = half_at(from);
  for (int i = 0; i < 32; ++i) {
    to[i] = static_cast<float>(std::to_integer<std::int8_t>(from[2 + i])) * scale;
  }
}

}  // namespace

std::vector<float> dequantize(const GgufTensor& tensor) {
  const BlockLayout layout = block_layout(tensor.type);
  const std::size_t blocks = tensor.bytes.size() / layout.bytes;
  std::vector<float> out(blocks * layout.elements);
  const auto each = [&](auto&& block) {
    for (std::size_t i = 0; i < blocks; ++i) {
      block(tensor.bytes.data() + i * layout.bytes, out.data() + i * layout.elements);
    }
  };
  switch (tensor.type) {
    case TensorType::f32:
      each(block_f32);
      break;
    case TensorType::f16:
      each(block_f16);
      break;
    case TensorType::q4_1:
      each(block_q4_1);
      break;
    case TensorType::q8_0:
      each(block_q8_0);
      break;
  }
  return out;
}

}  // namespace quarry::smollm2
