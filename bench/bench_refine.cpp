// SPDX-License-Identifier: Apache-2.0
//
// Stage refine: exact products of the shortlist.
#include "support/stages.h"

using namespace quarry::bench;

int main(int argc, char** argv) {
  for (const Workload& workload : {recommended(1)}) {
    add_stage("refine", workload, [](const StageBench& bench, const quarry::Launch& launch) {
      return bench.stages().refine(bench.step().refine, launch);
    });
  }
  return run_benchmarks(argc, argv);
}
