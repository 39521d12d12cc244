// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend.h"

namespace quarry::cuda {

Status select(const SelectParams&, const Launch&) noexcept;
std::size_t select_scratch_bytes(std::int32_t rows, std::int32_t k,
                                 std::int32_t max_candidates) noexcept;

}  // namespace quarry::cuda
