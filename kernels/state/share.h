// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "backend.h"

namespace quarry::cuda {

Status attach(const AttachParams&, const Launch&) noexcept;
Status copy_pages(const CopyPagesParams&, const Launch&) noexcept;
Status fork(const ForkParams&, const Launch&) noexcept;

}  // namespace quarry::cuda
