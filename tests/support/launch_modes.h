// SPDX-License-Identifier: Apache-2.0
//
// How a call reaches the device: on a stream, as a captured graph, or as a graph captured at
// the first call and replayed at all later ones, when the lengths in device memory differ.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "device.h"

namespace quarry::test {

enum class LaunchMode { stream, graph, replay };

inline const char* to_string(LaunchMode mode) {
  return mode == LaunchMode::stream ? "stream" : mode == LaunchMode::graph ? "graph" : "replay";
}

inline std::vector<LaunchMode> launch_modes(Backend backend) {
  if (backend == Backend::cpu) return {LaunchMode::stream};
  return {LaunchMode::stream, LaunchMode::graph, LaunchMode::replay};
}

class Launcher {
 public:
  Launcher(Backend backend, LaunchMode mode) : stream_(backend), mode_(mode) {}

  Stream stream() const { return stream_.get(); }
  void synchronize() const { stream_.synchronize(); }
  LaunchMode mode() const { return mode_; }

  /// Runs `call` and waits. In replay mode `shape` names everything a captured graph fixes:
  /// calls of the same shape must have the same pointers and host arguments.
  Status run(const std::string& shape, const std::function<Status(Stream)>& call) {
    Status status;
    if (mode_ == LaunchMode::stream) {
      status = call(stream());
    } else {
      std::unique_ptr<Graph>& graph = graphs_[shape];
      if (mode_ == LaunchMode::graph || graph == nullptr) {
        graph = std::make_unique<Graph>();
        graph->begin(stream());
        status = call(stream());
        graph->end(stream());
      }
      if (status.ok()) graph->launch(stream());
    }
    synchronize();
    return status;
  }

 private:
  StreamHandle stream_;
  LaunchMode mode_;
  std::map<std::string, std::unique_ptr<Graph>> graphs_;  // destroyed before the stream
};

}  // namespace quarry::test
