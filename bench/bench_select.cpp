// SPDX-License-Identifier: Apache-2.0
//
// Stage select: the top K of ready scores.
#include "support/stages.h"

using namespace quarry::bench;

int main(int argc, char** argv) {
  for (const Workload& workload : {original(), gqa_128k(), recommended(1)}) {
    add_stage("select", workload, [](const StageBench& bench, const quarry::Launch& launch) {
      return bench.stages().select(bench.step().select, launch);
    });
  }
  return run_benchmarks(argc, argv);
}
