// SPDX-License-Identifier: Apache-2.0
//
// Stage encode: of a decode step (the newest key), and of a whole prefill with a codebook
// from elsewhere (32 heads x 32768 keys).
#include "support/stages.h"

using namespace quarry::bench;

int main(int argc, char** argv) {
  for (const Workload& workload : {original(), gqa_128k(), recommended(1)}) {
    add_stage("encode", workload, [](const StageBench& bench, const quarry::Launch& launch) {
      return bench.stages().encode(bench.step().encode, launch);
    });
  }
  for (const Workload& workload : {prefill(original()), prefill(calibrated_32k())}) {
    add_prefill("prefill_encode", workload, /*retrain=*/false);
  }
  return run_benchmarks(argc, argv);
}
