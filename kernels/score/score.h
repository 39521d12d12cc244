// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend.h"

namespace quarry::cuda {

Status score(const ScoreParams&, const Launch&) noexcept;

}  // namespace quarry::cuda
