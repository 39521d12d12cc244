// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend.h"

namespace quarry::cuda {

/// A prefill: positions encode_from .. fixed_length - 1, of sequences whose states are known.
/// wide: keys may be read 16 bytes at a time.
Status encode_bulk(const EncodeParams&, bool wide, const Launch&) noexcept;

}  // namespace quarry::cuda
