// SPDX-License-Identifier: Apache-2.0
#include "support/faiss_peer.h"

#if QUARRY_BENCH_FAISS
#include <faiss/IndexPQ.h>
#include <faiss/IndexPQFastScan.h>
#include <faiss/utils/utils.h>
#include <omp.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

// OpenBLAS, where that is the BLAS.
extern "C" void openblas_set_num_threads(int) __attribute__((weak));

namespace quarry::bench {
namespace {

using Indexes = std::vector<std::unique_ptr<faiss::Index>>;

template <class Index>
Indexes make(const Workload& w) {
  const IndexerConfig& c = w.config;
  const auto d = static_cast<std::size_t>(c.head_dim);
  const std::vector<float> keys = normal(static_cast<std::size_t>(w.length) * d, 1);
  Indexes indexes;
  const faiss::ProductQuantizer* trained = nullptr;
  for (std::int32_t head = 0; head < c.max_sequences * c.num_kv_heads; ++head) {
    auto index =
        std::make_unique<Index>(c.head_dim, c.num_subspaces, c.bits, faiss::METRIC_INNER_PRODUCT);
    if (trained == nullptr) {
      // On few keys and for the first head alone: a search costs the same whatever the codebook,
      // and k-means for each head takes minutes with b = 8 where BLAS is the reference one.
      index->train(64 << c.bits, keys.data());
    } else {
      index->pq = *trained;
      index->is_trained = true;
    }
    index->add(w.length - c.sink_size - c.window_size, keys.data());
    if (trained == nullptr) trained = &index->pq;
    indexes.push_back(std::move(index));
  }
  return indexes;
}

/// The indexes of the benchmark that runs, which Google Benchmark calls several times.
const Indexes& indexes_of(const std::string& name, const Workload& w, bool fast_scan) {
  static std::string held_name;
  static Indexes held;
  if (held_name != name) {
    held_name.clear();
    held.clear();
    held = fast_scan ? make<faiss::IndexPQFastScan>(w) : make<faiss::IndexPQ>(w);
    held_name = name;
  }
  return held;
}

void search(benchmark::State& state, const std::string& name, const Workload& w, bool fast_scan) {
  // The heads are dealt to the threads here; BLAS's own would get in their way.
  if (openblas_set_num_threads != nullptr) openblas_set_num_threads(1);
  // GENERIC says that this Faiss was built without SIMD (Debian's is): FastScan is then emulated,
  // several times slower than that of a build with AVX2.
  state.SetLabel("Faiss: " + faiss::get_compile_options());
  const Indexes& indexes = indexes_of(name, w, fast_scan);
  const auto d = static_cast<std::size_t>(w.config.head_dim);
  const std::vector<float> queries = normal(indexes.size() * d, 2);
  const auto k = static_cast<std::size_t>(w.config.heavy_size);
  std::vector<float> scores(indexes.size() * k);
  std::vector<std::int64_t> labels(scores.size());
  std::vector<double> times;
  for ([[maybe_unused]] auto _ : state) {
    const double begin = omp_get_wtime();
#pragma omp parallel for schedule(dynamic, 1)
    for (std::size_t head = 0; head < indexes.size(); ++head) {
      indexes[head]->search(1, queries.data() + head * d, static_cast<std::int64_t>(k),
                            scores.data() + head * k, labels.data() + head * k);
    }
    benchmark::DoNotOptimize(labels.data());
    const double seconds = omp_get_wtime() - begin;
    state.SetIterationTime(seconds);
    times.push_back(seconds * 1e6);
  }
  add_counters(state, std::move(times));
}

}  // namespace

void add_faiss(const std::string& prefix, const Workload& workload, bool fast_scan) {
  const std::string name =
      prefix + (fast_scan ? "/faiss_IndexPQFastScan/cpu" : "/faiss_IndexPQ/cpu");
  benchmark::RegisterBenchmark(name.c_str(),
                               [name, workload, fast_scan](benchmark::State& state) {
                                 search(state, name, workload, fast_scan);
                               })
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

}  // namespace quarry::bench
#else
namespace quarry::bench {
void add_faiss(const std::string&, const Workload&, bool) {}
}  // namespace quarry::bench
#endif
