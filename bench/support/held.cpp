// SPDX-License-Identifier: Apache-2.0
#include "support/held.h"

namespace quarry::bench {

Status Held::prepare(const std::string& name, const Workload& workload,
                     const std::function<std::vector<Work>(Model&)>& steps) {
  if (!name_.empty() && name_ == name) return {};
  name_.clear();
  replay_.reset();
  model_.reset();
  if (keys_ == nullptr || !keys_->fits(workload)) {
    keys_.reset();  // before the next ones are made
    keys_ = std::make_shared<KeyCache>(workload, queue_);
  }
  model_ = std::make_unique<Model>(workload, backend_, queue_, keys_);
  if (Status s = model_->status(); !s.ok()) return s;
  replay_ = std::make_unique<Replay>(queue_, steps(*model_));
  if (Status s = replay_->status(); !s.ok()) return s;
  name_ = name;
  return {};
}

}  // namespace quarry::bench
