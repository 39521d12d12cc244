// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "support/layers.h"

namespace quarry::bench {

/// What the last benchmark of a backend ran on. Google Benchmark calls one several times to find
/// how often it must run, and neighbours can share keys: making either is most of a benchmark's
/// time.
class Held {
 public:
  explicit Held(Backend backend) : backend_(backend), queue_({backend, 0}), sink_(queue_, 4) {}

  /// Makes what `name` runs on, unless it is what is held: a model of `workload`, over the keys
  /// that are there where they fit, and a replay of `steps(model)`. Throws where the device's
  /// memory does not do; then nothing but ~Held() may be called.
  Status prepare(const std::string& name, const Workload& workload,
                 const std::function<std::vector<Work>(Model&)>& steps = &Model::steps);

  /// 4 bytes for kernels that would otherwise have nothing to show for what they read.
  tools::DeviceMemory& sink() { return sink_; }
  /// After a prepare() that went well.
  Replay& replay() { return *replay_; }

 private:
  Backend backend_;
  tools::DeviceQueue queue_;
  tools::DeviceMemory sink_;
  std::shared_ptr<const KeyCache> keys_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Replay> replay_;
  std::string name_;
};

}  // namespace quarry::bench
