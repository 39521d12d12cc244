// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend.h"

namespace quarry::cuda {

Status scan(const ScanParams&, const Launch&) noexcept;
std::size_t scan_scratch_bytes(const IndexView&, std::int32_t batch_size,
                               std::int32_t query_tokens) noexcept;
bool scan_serves(const IndexView&) noexcept;

}  // namespace quarry::cuda
