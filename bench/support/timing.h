// SPDX-License-Identifier: Apache-2.0
//
// One way to time work on either backend: on the CPU a plain call, on CUDA the replay of a
// captured graph between two events, so that launch cost is what an engine would pay.
#pragma once

#include <benchmark/benchmark.h>

#include <functional>
#include <memory>
#include <vector>

#include "device_memory.h"

namespace quarry::bench {

/// Enqueues one unit of work on `queue.stream()`; aborts the benchmark through Status.
using Work = std::function<Status(tools::DeviceQueue& queue)>;

/// Work to be timed: variants of the same call on different memory (the layers of a model),
/// run in turn, so that no call finds the caches as its predecessor left them.
class Replay {
 public:
  Replay(tools::DeviceQueue& queue, std::vector<Work> variants);
  ~Replay();
  Replay(const Replay&) = delete;
  Replay& operator=(const Replay&) = delete;

  /// Not ok where capture or a call failed.
  const Status& status() const noexcept { return status_; }
  /// Runs every variant once; returns seconds a variant.
  double run();

 private:
  struct Graph;
  tools::DeviceQueue& queue_;
  std::vector<Work> variants_;
  std::unique_ptr<Graph> graph_;
  Status status_;
};

/// Counters median_us and least_us of the runs' `times`, in microseconds; none where there are
/// none.
void add_counters(benchmark::State& state, std::vector<double> times);

/// Drives a google-benchmark loop with manual time over `replay`.
void loop(benchmark::State& state, Replay& replay);

/// L2 bytes of the device, 0 on the CPU.
std::size_t cache_bytes(Backend backend);

}  // namespace quarry::bench
