// SPDX-License-Identifier: Apache-2.0
//
// Indexer::stats() as a replay calls it, with the memory it needs.
#pragma once

#include <cstdint>
#include <vector>

#include "device_memory.h"
#include "quarry/quarry.h"

namespace quarry::tools {

/// Of one sequence and one query token a step. Throws Error.
class LiveStats {
 public:
  /// `indexer` and `queue` must outlive it.
  LiveStats(Indexer& indexer, DeviceQueue& queue, std::int32_t sample_every);

  /// What a next() of `step` listed beside the exact top-K: every sample_every-th row, others
  /// each time.
  std::vector<RecallStats> sample(const NextArgs& step);

  /// How well the codebooks fit the last kRecentKeys keys, by KV head.
  std::vector<DriftStats> drift(const Batch& batch, const KeyView& keys);

 private:
  static constexpr std::int32_t kRecentKeys = 1024;

  void run(StatsArgs& args);

  Indexer& indexer_;
  DeviceQueue& queue_;
  std::int32_t sample_every_;
  DeviceMemory workspace_, recall_, drift_, counter_;
};

}  // namespace quarry::tools
