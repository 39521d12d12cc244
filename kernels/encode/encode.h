// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend.h"

namespace quarry::cuda {

Status encode(const EncodeParams&, const Launch&) noexcept;

}  // namespace quarry::cuda
