// SPDX-License-Identifier: Apache-2.0
//
// next() whole, the newest key's encode included, over the workloads that README and docs
// quote. Beside it, where Faiss is found, its exact ADC search and its 4-bit FastScan (8-bit
// tables: approximate) over codes of the same shape; they encode nothing and write no list.
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <map>

#include "support/faiss_peer.h"
#include "support/held.h"

namespace {

using quarry::Backend;
using quarry::bench::Workload;

class Next {
 public:
  void run(benchmark::State& state, const std::string& name, const Workload& workload,
           Backend backend) {
    quarry::bench::Held& held = held_.try_emplace(backend, backend).first->second;
    if (const quarry::Status s = held.prepare(name, workload); !s.ok()) {
      state.SkipWithError(s.detail());
      return;
    }
    quarry::bench::loop(state, held.replay());
  }

 private:
  std::map<Backend, quarry::bench::Held> held_;
};

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

void add(Next& next, const Workload& workload) {
  using quarry::Algorithm;
  for (const Algorithm algorithm : {Algorithm::staged, Algorithm::scan}) {
    const Workload chosen = quarry::bench::with(algorithm, workload);
    const std::string name = name_of(workload) + "/" + quarry::to_string(algorithm);
    quarry::bench::for_each_backend(
        name,
        [&next, name, chosen](benchmark::State& state, Backend backend) {
          next.run(state, name, chosen, backend);
        },
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
  Next next;
  const Workload exact = quarry::bench::original();
  add(next, exact);
  add_faiss(exact, /*fast_scan=*/false);
  for (const int m : {8, 16}) {
    const Workload workload = quarry::bench::codes_of(m, 4);
    add(next, workload);
    add_faiss(workload, /*fast_scan=*/false);
    add_faiss(workload, /*fast_scan=*/true);
  }
  using quarry::GqaReduction;
  for (const GqaReduction reduction :
       {GqaReduction::per_head, GqaReduction::sum, GqaReduction::softmax_sum, GqaReduction::max}) {
    for (const int m : {8, 16}) add(next, quarry::bench::reduced(reduction, m));
  }
  // The same keys in pages, whose order is random.
  add(next, quarry::bench::paged(exact, 16, "original_paged16"));
  add(next, quarry::bench::paged(exact, 64, "original_paged64"));
  add(next, quarry::bench::original_rotated());
  add(next, quarry::bench::original_refined());
  add(next, quarry::bench::gqa_128k());
  add(next, quarry::bench::recommended(1));
  add(next,
      quarry::bench::within_block(quarry::bench::recommended(1), "recommended_b1_within_block"));
  if (quarry::backend_available(Backend::cuda)) add(next, quarry::bench::recommended(8));
  // 8.6 GB of keys, of which one layer is held at a time.
  const Workload rows = quarry::bench::rows_256();
  add(next, rows);
  add(next, quarry::bench::paged(rows, 16, "rows_256_128k_paged16"));
  add(next, quarry::bench::paged(rows, 64, "rows_256_128k_paged64"));
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
