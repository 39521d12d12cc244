// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend.h"

namespace quarry::cuda {

/// Device memory a transfer is staged in.
constexpr std::size_t kTransferBytes = std::size_t{1} << 20;

/// Both may wait for the stream; `out` is written once synchronize() has returned, `in` is
/// read by the time import_section() returns.
Status export_section(const SectionParams&, void* out, const Launch&) noexcept;
Status import_section(const SectionParams&, const void* in, const Launch&) noexcept;
Status synchronize(const Launch&) noexcept;

}  // namespace quarry::cuda
