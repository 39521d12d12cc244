// SPDX-License-Identifier: Apache-2.0
//
// next() whole, the newest key's encode included, over the workloads that README and docs
// quote. Beside it, where Faiss is found, its exact ADC search and its 4-bit FastScan (8-bit
// tables: approximate) over codes of the same shape; they encode nothing and write no list.
#include <benchmark/benchmark.h>
#include <unistd.h>

#include "support/faiss_peer.h"
#include "support/layers.h"

namespace {

using quarry::Backend;
using quarry::bench::Workload;

void next(benchmark::State& state, const Workload& workload, Backend backend) {
  quarry::tools::DeviceQueue queue({backend, 0});
  quarry::bench::Model model(workload, backend, queue);
  if (const quarry::Status s = model.status(); !s.ok()) {
    state.SkipWithError(s.detail());
    return;
  }
  quarry::bench::Replay replay(queue, model.steps());
  quarry::bench::loop(state, replay);
}

std::string name_of(const Workload& workload) { return std::string("next/") + workload.name; }

void add_faiss(const Workload& workload, bool fast_scan) {
  quarry::bench::add_faiss(name_of(workload), workload, fast_scan);
}

/// Whether the host has twice the memory that `workload` takes on the CPU.
bool has_memory(const Workload& workload) {
  std::size_t bytes = 0;
  if (!quarry::bench::model_bytes(workload, Backend::cpu, &bytes).ok()) return false;
  const auto pages = static_cast<double>(sysconf(_SC_PHYS_PAGES));
  return 2 * static_cast<double>(bytes) <= pages * static_cast<double>(sysconf(_SC_PAGESIZE));
}

void add(const Workload& workload) {
  using quarry::Algorithm;
  for (const Algorithm algorithm : {Algorithm::staged, Algorithm::scan}) {
    const Workload chosen = quarry::bench::with(algorithm, workload);
    quarry::bench::for_each_backend(
        name_of(workload) + "/" + quarry::to_string(algorithm),
        [chosen](benchmark::State& state, Backend backend) { next(state, chosen, backend); },
        [chosen](Backend backend) {
          quarry::IndexerConfig resolved;
          if (backend == Backend::cpu && !has_memory(chosen)) return false;
          return quarry::resolve(chosen.config, backend, &resolved).ok();
        });
  }
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  const Workload exact = quarry::bench::original();
  add(exact);
  add_faiss(exact, /*fast_scan=*/false);
  for (const int m : {8, 16}) {
    const Workload workload = quarry::bench::codes_of(m, 4);
    add(workload);
    add_faiss(workload, /*fast_scan=*/false);
    add_faiss(workload, /*fast_scan=*/true);
  }
  using quarry::GqaReduction;
  for (const GqaReduction reduction :
       {GqaReduction::per_head, GqaReduction::sum, GqaReduction::softmax_sum, GqaReduction::max}) {
    for (const int m : {8, 16}) add(quarry::bench::reduced(reduction, m));
  }
  // The same keys in pages, whose order is random.
  add(quarry::bench::paged(exact, 16, "original_paged16"));
  add(quarry::bench::paged(exact, 64, "original_paged64"));
  add(quarry::bench::original_rotated());
  add(quarry::bench::original_refined());
  add(quarry::bench::gqa_128k());
  add(quarry::bench::recommended(1));
  add(quarry::bench::within_block(quarry::bench::recommended(1), "recommended_b1_within_block"));
  if (quarry::backend_available(Backend::cuda)) add(quarry::bench::recommended(8));
  // 8.6 GB of keys, of which one layer is held at a time.
  const Workload rows = quarry::bench::rows_256();
  add(rows);
  add(quarry::bench::paged(rows, 16, "rows_256_128k_paged16"));
  add(quarry::bench::paged(rows, 64, "rows_256_128k_paged64"));
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
