// SPDX-License-Identifier: Apache-2.0
//
// Indexer::stats(): what it is given, checked, and its stages in stream order.
#pragma once

#include "plan.h"
#include "validate.h"

namespace quarry {

/// Keys of a KV head that build() measures a codebook's baseline on: enough for two digits,
/// few enough to cost little beside the training.
constexpr std::int32_t kBaselineKeys = 1024;

Status check_stats(const Plan& plan, const IndexerConfig& config, const StatsArgs& args,
                   HostSlot* slots) noexcept;

/// `args` checked.
Status run_stats(const Plan& plan, const StatsArgs& args, const StatsBuffers& buffers,
                 const Stages& stages, const Launch& launch) noexcept;

}  // namespace quarry
