// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend.h"

namespace quarry::cuda {

Status set_codebook(const SetCodebookParams&, const Launch&) noexcept;
Status truncate(const TruncateParams&, const Launch&) noexcept;
Status reset(const ResetParams&, const Launch&) noexcept;
Status codes(const CodesParams&, const Launch&) noexcept;
Status codebook(const CodebookParams&, const Launch&) noexcept;

}  // namespace quarry::cuda
