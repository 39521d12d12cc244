// SPDX-License-Identifier: Apache-2.0
//
// What a call is to be read against, as work to replay. CUDA alone.
#pragma once

#include "support/layers.h"

namespace quarry::bench {

/// `count` kernels that do nothing.
Work empty_kernels(int count);

/// For every layer of `model` the kernel that reads just what the layer's next() must. `sink`
/// holds at least 4 bytes; it and the model must outlive the work.
std::vector<Work> floor_steps(Model& model, tools::DeviceMemory& sink);

}  // namespace quarry::bench
