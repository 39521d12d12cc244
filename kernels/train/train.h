// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend.h"

namespace quarry::cuda {

Status train(const TrainParams&, const Launch&) noexcept;
std::size_t train_scratch_bytes(const IndexView&, std::int32_t max_samples) noexcept;

}  // namespace quarry::cuda
