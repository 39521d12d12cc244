// SPDX-License-Identifier: Apache-2.0
//
// Stage score: LUT, block bias, gather and reduce over the whole sequence.
#include "support/stages.h"

using namespace quarry::bench;

int main(int argc, char** argv) {
  for (const Workload& workload :
       {original(), codes_of(8, 4), codes_of(16, 4), gqa_128k(), recommended(1)}) {
    add_stage("score", workload, [](const StageBench& bench, const quarry::Launch& launch) {
      return bench.stages().score(bench.step().score, launch);
    });
  }
  return run_benchmarks(argc, argv);
}
