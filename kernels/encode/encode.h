// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend.h"

namespace quarry::cuda {

Status encode(const EncodeParams&, const Launch&) noexcept;

/// A decode step's encoding as one kernel, for a successor in the stream that reads none of
/// what it writes until it has waited for it (wait_for_predecessor()): that one starts as soon
/// as every block of this kernel has. Writes states[b]; `seen` is for a later kernel to move.
Status encode_beside(const EncodeParams&, const Launch&) noexcept;

}  // namespace quarry::cuda
