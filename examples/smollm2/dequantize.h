// SPDX-License-Identifier: Apache-2.0
//
// GGUF's quantized elements as float32.
#pragma once

#include <vector>

#include "gguf.h"

namespace quarry::smollm2 {

/// All elements of a checked tensor, in the file's order (fastest extent first).
std::vector<float> dequantize(const GgufTensor& tensor);

}  // namespace quarry::smollm2
