// SPDX-License-Identifier: Apache-2.0
//
// What the CUDA timings of this run are to be read against: an empty graph, what a further
// kernel in it costs, the device's copy bandwidth, and for each workload a plain kernel that
// reads just what the call must (codes, block means, codebooks; for refine the raw keys).
#include <benchmark/benchmark.h>

#include "support/floor.h"
#include "support/floor_steps.h"
#include "support/stages.h"

namespace {

using namespace quarry::bench;
using quarry::Backend;
using quarry::tools::DeviceMemory;
using quarry::tools::DeviceQueue;

void kernels(benchmark::State& state, int count) {
  DeviceQueue queue({Backend::cuda, 0});
  Replay replay(queue, {empty_kernels(count)});
  loop(state, replay);
}

void copy(benchmark::State& state) {
  constexpr std::size_t kBytes = std::size_t{1} << 30;
  DeviceQueue queue({Backend::cuda, 0});
  DeviceMemory source(queue, kBytes), target(queue, kBytes);
  Replay replay(queue, {[&](DeviceQueue& q) {
                  return launch_copy(target.as<void>(), source.as<void>(), kBytes, q.stream());
                }});
  loop(state, replay);
  state.counters["bytes_moved_per_s"] = benchmark::Counter(
      2.0 * kBytes * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}

void floor(benchmark::State& state, const Workload& workload) {
  DeviceQueue queue({Backend::cuda, 0});
  Model model(workload, Backend::cuda, queue);
  if (!model.status().ok()) {
    state.SkipWithError(model.status().detail());
    return;
  }
  DeviceMemory sink(queue, 4);
  Replay replay(queue, floor_steps(model, sink));
  loop(state, replay);
}

void add(const char* name, const std::function<void(benchmark::State&)>& run) {
  benchmark::RegisterBenchmark(name, run)->UseManualTime()->Unit(benchmark::kMicrosecond);
}

}  // namespace

int main(int argc, char** argv) {
  if (!quarry::backend_available(Backend::cuda)) {
    std::puts("bench_floor: no CUDA device, nothing to measure");
    return 0;
  }
  add("empty_graph/cuda", [](benchmark::State& s) { kernels(s, 1); });
  add("empty_kernels_7/cuda", [](benchmark::State& s) { kernels(s, 7); });
  add("copy_1GiB/cuda", copy);
  for (const Workload& w : {original(), codes_of(8, 4), codes_of(16, 4), gqa_128k(), rows_256(),
                            recommended(1), recommended(8)}) {
    add((std::string("floor/") + w.name + "/cuda").c_str(),
        [w](benchmark::State& s) { floor(s, w); });
  }
  return run_benchmarks(argc, argv);
}
