// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend.h"

namespace quarry::cuda {

Status sample(const SampleParams&, const Launch&) noexcept;
Status exact(const ExactParams&, const Launch&) noexcept;
Status recall(const RecallParams&, const Launch&) noexcept;
Status drift(const DriftParams&, const Launch&) noexcept;

}  // namespace quarry::cuda
