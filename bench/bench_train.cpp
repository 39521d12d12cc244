// SPDX-License-Identifier: Apache-2.0
//
// build(): k-means of 10 iterations and the encode of all keys (32 heads x 32768, m=2 b=6).
#include "support/stages.h"

using namespace quarry::bench;

int main(int argc, char** argv) {
  add_prefill("build", prefill(original()), /*retrain=*/true);
  return run_benchmarks(argc, argv);
}
