// SPDX-License-Identifier: Apache-2.0
#include "support/timing.h"

#include <algorithm>
#include <chrono>
#include <utility>

#if QUARRY_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

namespace quarry::bench {

#if QUARRY_HAS_CUDA
struct Replay::Graph {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;

  ~Graph() {
    if (exec != nullptr) cudaGraphExecDestroy(exec);
    if (graph != nullptr) cudaGraphDestroy(graph);
    if (begin != nullptr) cudaEventDestroy(begin);
    if (end != nullptr) cudaEventDestroy(end);
  }
};

namespace {
Status cuda_status(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return {};
  return Status(StatusCode::device_error, "%s: %s", what, cudaGetErrorString(result));
}
}  // namespace
#else
struct Replay::Graph {};
#endif

Replay::~Replay() = default;

Replay::Replay(tools::DeviceQueue& queue, std::vector<Work> variants)
    : queue_(queue), variants_(std::move(variants)) {
  // Once outside the graph: what a first call loads or finds wrong shows here.
  for (Work& work : variants_) {
    if (status_ = work(queue_); !status_.ok()) return;
  }
  queue_.synchronize();
#if QUARRY_HAS_CUDA
  if (queue_.backend() != Backend::cuda) return;
  graph_ = std::make_unique<Graph>();
  cudaEventCreate(&graph_->begin);
  cudaEventCreate(&graph_->end);
  status_ = cuda_status(cudaStreamBeginCapture(queue_.stream(), cudaStreamCaptureModeThreadLocal),
                        "cudaStreamBeginCapture");
  for (Work& work : variants_) {
    if (status_.ok()) status_ = work(queue_);
  }
  const cudaError_t ended = cudaStreamEndCapture(queue_.stream(), &graph_->graph);
  if (status_.ok()) status_ = cuda_status(ended, "cudaStreamEndCapture");
  if (status_.ok()) {
    status_ =
        cuda_status(cudaGraphInstantiate(&graph_->exec, graph_->graph, 0), "cudaGraphInstantiate");
  }
#endif
}

double Replay::run() {
  const double count = static_cast<double>(variants_.size());
#if QUARRY_HAS_CUDA
  if (graph_ != nullptr) {
    // Several replays between the events: the gap between two graphs is paid as in decoding.
    constexpr int kReplays = 4;
    cudaEventRecord(graph_->begin, queue_.stream());
    for (int i = 0; i < kReplays; ++i) cudaGraphLaunch(graph_->exec, queue_.stream());
    cudaEventRecord(graph_->end, queue_.stream());
    status_ = cuda_status(cudaEventSynchronize(graph_->end), "graph replay");
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, graph_->begin, graph_->end);
    return milliseconds * 1e-3 / kReplays / count;
  }
#endif
  const auto begin = std::chrono::steady_clock::now();
  for (Work& work : variants_) {
    if (Status s = work(queue_); !s.ok()) status_ = s;
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  return seconds.count() / count;
}

void loop(benchmark::State& state, Replay& replay) {
  std::vector<double> times;
  for ([[maybe_unused]] auto _ : state) {
    const double seconds = replay.status().ok() ? replay.run() : 0;
    if (!replay.status().ok()) {
      state.SkipWithError(replay.status().detail());
      return;
    }
    state.SetIterationTime(seconds);
    times.push_back(seconds * 1e6);
  }
  add_counters(state, std::move(times));
}

void add_counters(benchmark::State& state, std::vector<double> times) {
  if (times.empty()) return;
  std::sort(times.begin(), times.end());
  state.counters["median_us"] = times[times.size() / 2];
  state.counters["least_us"] = times.front();
}

std::size_t cache_bytes([[maybe_unused]] Backend backend) {
#if QUARRY_HAS_CUDA
  if (backend == Backend::cuda) {
    int bytes = 0;
    cudaDeviceGetAttribute(&bytes, cudaDevAttrL2CacheSize, 0);
    return static_cast<std::size_t>(bytes);
  }
#endif
  return 0;
}

}  // namespace quarry::bench
