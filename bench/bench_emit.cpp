// SPDX-License-Identifier: Apache-2.0
//
// Stage emit: the sparse lists.
#include "support/stages.h"

using namespace quarry::bench;

int main(int argc, char** argv) {
  for (const Workload& workload : {original(), gqa_128k(), recommended(1)}) {
    add_stage("emit", workload, [](const StageBench& bench, const quarry::Launch& launch) {
      return bench.stages().emit(bench.step().emit, launch);
    });
  }
  return run_benchmarks(argc, argv);
}
