// SPDX-License-Identifier: Apache-2.0
#include "support/stages.h"

#include <string>

namespace quarry::bench {

StageBench::StageBench(const Workload& workload, Backend backend, tools::DeviceQueue& queue)
    : keys_(workload, queue),
      layer_(with(Algorithm::staged, workload), backend, keys_, queue, 1),
      stages_(stages_of(backend)) {
  if (status_ = layer_.status(); !status_.ok()) return;
  if (status_ = stages_->open(0, 0, &launch_); !status_.ok()) return;
  if (status_ = layer_.next(queue); !status_.ok()) return;
  queue.synchronize();
  if (status_ = make_plan(layer_.indexer().config(), *stages_, &plan_); !status_.ok()) return;
  Arena index(layer_.index_memory());
  carve_index(index, &plan_);
  const NextArgs& args = layer_.args();
  Arena scratch(args.workspace.data);
  const NextBuffers buffers =
      carve_next(scratch, plan_, *stages_, args.batch.batch_size, args.batch.query_tokens);
  step_ = make_staged(plan_, args, buffers);
}

void add_stage(const char* stage, const Workload& workload,
               Status (*run)(const StageBench& bench, const Launch& launch)) {
  for_each_backend(std::string(stage) + "/" + workload.name,
                   [workload, run](benchmark::State& state, Backend backend) {
                     tools::DeviceQueue queue({backend, 0});
                     StageBench bench(workload, backend, queue);
                     if (!bench.status().ok()) {
                       state.SkipWithError(bench.status().detail());
                       return;
                     }
                     Replay replay(queue, {[&bench, run](tools::DeviceQueue& q) {
                                     return run(bench, bench.launch(q));
                                   }});
                     loop(state, replay);
                   });
}

void add_prefill(const char* name, const Workload& workload, bool retrain) {
  for_each_backend(std::string(name) + "/" + workload.name,
                   [workload, retrain](benchmark::State& state, Backend backend) {
                     tools::DeviceQueue queue({backend, 0});
                     const KeyCache keys(workload, queue);
                     Layer layer(workload, backend, keys, queue, 1);
                     if (!layer.status().ok()) {
                       state.SkipWithError(layer.status().detail());
                       return;
                     }
                     Replay replay(queue, {[&layer, retrain](tools::DeviceQueue& q) {
                                     return layer.build(q, retrain);
                                   }});
                     loop(state, replay);
                   });
}

int run_benchmarks(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace quarry::bench
