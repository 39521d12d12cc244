// SPDX-License-Identifier: Apache-2.0
//
// One stage of a decode step at a time, on the memory of a layer that has made the step once.
#pragma once

#include "step.h"
#include "support/layers.h"

namespace quarry::bench {

class StageBench {
 public:
  StageBench(const Workload& workload, Backend backend, tools::DeviceQueue& queue);

  const Status& status() const noexcept { return status_; }
  const StagedStep& step() const noexcept { return step_; }
  const Stages& stages() const noexcept { return *stages_; }
  const Plan& plan() const noexcept { return plan_; }
  Launch launch(tools::DeviceQueue& queue) const noexcept {
    Launch l = launch_;
    l.stream = queue.stream();
    return l;
  }
  Layer& layer() noexcept { return layer_; }

 private:
  KeyCache keys_;
  Layer layer_;
  const Stages* stages_;
  Launch launch_;
  Plan plan_{};
  StagedStep step_{};
  Status status_;
};

/// Registers `run` (one stage of `bench`) for every backend under stage/workload.
void add_stage(const char* stage, const Workload& workload,
               Status (*run)(const StageBench& bench, const Launch& launch));

/// Registers build() of a whole prefill for every backend.
void add_prefill(const char* name, const Workload& workload, bool retrain);

/// main() of a stage's benchmark.
int run_benchmarks(int argc, char** argv);

}  // namespace quarry::bench
