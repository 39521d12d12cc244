// SPDX-License-Identifier: Apache-2.0
//
// next() whole over a grid: a star around one workload, each axis varied alone, and the corners
// of the rows x n plane, as grid/AXIS/VALUE/algorithm/backend. Beside it, on CUDA, the plain
// kernel that reads just what the call must (`floor`) and an empty graph; on the CPU, where Faiss
// is found, its two PQ searches. plot_grid draws the JSON of it.
//
// A point that would take more memory than --cpu_gb or --cuda_gb (10^9 bytes) is not run: its
// result is an error that says what it needs.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "support/faiss_peer.h"
#include "support/held.h"
#include "support/layers.h"
#if QUARRY_HAS_CUDA
#include "support/floor_steps.h"
#endif

namespace {

using quarry::Algorithm;
using quarry::Backend;
using quarry::Status;
using quarry::tools::DeviceQueue;
using namespace quarry::bench;

Workload base() {
  Workload w = codes_of(8, 4);
  w.length = w.config.max_seq_len;
  return w;
}

std::string describe(const Workload& w) {
  const quarry::IndexerConfig& c = w.config;
  const auto field = [](const char* name, std::int64_t value) {
    return name + std::to_string(value);
  };
  return field("Hq ", c.num_query_heads) + field(", Hkv ", c.num_kv_heads) +
         field(", n ", w.length) + field(", d ", c.head_dim) + field(", m ", c.num_subspaces) +
         field(", b ", c.bits) + field(", block ", c.block_size) + field(", K ", c.heavy_size) +
         field(", refine ", c.refine_factor) + ", " + quarry::to_string(w.dtype) + " keys";
}

/// Rows are heads first, then sequences of 32 heads.
void set_rows(Workload& w, std::int32_t rows) {
  w.config.num_query_heads = w.config.num_kv_heads = std::min(rows, 32);
  w.config.max_sequences = rows / w.config.num_query_heads;
}

void set_n(Workload& w, std::int32_t n) { w.length = w.config.max_seq_len = n; }

struct Point {
  std::string name;
  Workload workload;
};

/// Neighbours share their keys where they can: making them is most of a point's preparation.
std::vector<Point> points() {
  std::vector<Point> out;
  const auto add = [&](const std::string& name, const auto& change) {
    out.push_back({"grid/" + name, base()});
    change(out.back().workload);
  };
  for (const auto& [m, b] : {std::pair{2, 6}, {2, 8}, {8, 4}, {8, 8}, {16, 4}, {32, 4}}) {
    add("codes/m" + std::to_string(m) + "_b" + std::to_string(b), [m = m, b = b](Workload& w) {
      w.config.num_subspaces = m;
      w.config.bits = b;
    });
  }
  // The last position completes a block: the step that encodes 64 keys, one in 64 steps.
  for (const int block : {0, 64}) {
    add("block/" + std::to_string(block), [=](Workload& w) { w.config.block_size = block; });
  }
  for (const int refine : {1, 4}) {
    add("refine/" + std::to_string(refine), [=](Workload& w) { w.config.refine_factor = refine; });
  }
  for (const int group : {1, 4, 8}) {
    add("G/" + std::to_string(group), [=](Workload& w) { w.config.num_kv_heads = 32 / group; });
  }
  for (const int n : {4096, 8192, 16384, 32768, 131072, 524288, 1048576}) {
    add("n/" + std::to_string(n), [=](Workload& w) { set_n(w, n); });
  }
  for (const int rows : {1, 4, 32, 128, 256, 1024, 4096}) {
    add("rows/" + std::to_string(rows), [=](Workload& w) { set_rows(w, rows); });
  }
  for (const auto& [rows, n] : {std::pair{1, 4096}, {1, 1048576}, {4096, 4096}, {4096, 1048576}}) {
    for (const bool blocks : {false, true}) {
      const std::string where = "rows" + std::to_string(rows) + "_n" + std::to_string(n);
      add("corner/" + where + (blocks ? "_block64_refine4" : ""),
          [rows = rows, n = n, blocks](Workload& w) {
            set_rows(w, rows);
            set_n(w, n);
            w.config.block_size = blocks ? 64 : 0;
            w.config.refine_factor = blocks ? 4 : 1;
          });
    }
  }
  return out;
}

class Grid {
 public:
  double limit_gb[2] = {8, 60};  ///< by backend

  /// Runs next() of `workload`, or the kernel that reads what it must; `name` tells benchmarks
  /// apart.
  void run(benchmark::State& state, const std::string& name, const Workload& workload,
           Backend backend, bool floor) {
    // What throws is the device's memory, and one point that fails leaves the others.
    try {
      if (const Status s = prepare(name, workload, backend, floor); !s.ok()) {
        state.SkipWithError(s.detail());
        return;
      }
      loop(state, held_.at(backend).replay());
    } catch (const std::exception& e) {
      held_.erase(backend);
      state.SkipWithError(e.what());
    }
  }

 private:
  Status prepare(const std::string& name, const Workload& workload, Backend backend,
                 [[maybe_unused]] bool floor) {
    std::size_t bytes = 0;
    if (Status s = model_bytes(workload, backend, &bytes); !s.ok()) return s;
    const double gb = static_cast<double>(bytes) * 1e-9;
    const double limit = limit_gb[static_cast<int>(backend)];
    if (gb > limit) {
      return Status(quarry::StatusCode::out_of_memory,
                    "skipped: keys and index take %.1f GB, above the bound of %g GB", gb, limit);
    }
    Held& held = held_.try_emplace(backend, backend).first->second;
    return held.prepare(name, workload, [&held, floor](Model& model) {
#if QUARRY_HAS_CUDA
      if (floor) return floor_steps(model, held.sink());
#endif
      return model.steps();
    });
  }

  std::map<Backend, Held> held_;
};

void add(Grid& grid, const Point& point) {
  for (const Algorithm algorithm : {Algorithm::staged, Algorithm::scan}) {
    const std::string name = point.name + "/" + quarry::to_string(algorithm);
    for_each_backend(name, [&grid, name, workload = with(algorithm, point.workload)](
                               benchmark::State& state, Backend backend) {
      grid.run(state, name, workload, backend, /*floor=*/false);
    });
  }
  // Faiss takes minutes to fill with more keys than this.
  const quarry::IndexerConfig& c = point.workload.config;
  const bool pure =
      c.block_size == 0 && c.refine_factor == 1 && c.num_query_heads == c.num_kv_heads;
  if (pure && std::int64_t{c.max_sequences} * c.num_kv_heads * c.max_seq_len <= 1 << 22) {
    add_faiss(point.name, point.workload, /*fast_scan=*/false);
    if (c.bits == 4) add_faiss(point.name, point.workload, /*fast_scan=*/true);
  }
}

#if QUARRY_HAS_CUDA
void add_cuda(const std::string& name, const std::function<void(benchmark::State&)>& run) {
  benchmark::RegisterBenchmark(name.c_str(), run)->UseManualTime()->Unit(benchmark::kMicrosecond);
}

void add_floor(Grid& grid, const Point& point) {
  const std::string name = point.name + "/floor";
  add_cuda(name + "/cuda", [&grid, name, workload = point.workload](benchmark::State& state) {
    grid.run(state, name, workload, Backend::cuda, /*floor=*/true);
  });
}

void run_empty(benchmark::State& state) {
  DeviceQueue queue({Backend::cuda, 0});
  Replay replay(queue, {empty_kernels(1)});
  loop(state, replay);
}
#endif

/// Takes `--NAME=NUMBER` out of the arguments; false where a number is none or not positive.
bool take_option(int* argc, char** argv, const std::string& name, double* value) {
  const std::string prefix = "--" + name + "=";
  for (int i = 1; i < *argc; ++i) {
    if (std::strncmp(argv[i], prefix.c_str(), prefix.size()) != 0) continue;
    const char* text = argv[i] + prefix.size();
    const char* end = text + std::strlen(text);
    const auto [stop, error] = std::from_chars(text, end, *value);
    if (error != std::errc() || stop != end || !(*value > 0)) {
      std::fprintf(stderr, "bench_grid: %s is not a positive number of GB\n", argv[i]);
      return false;
    }
    std::copy(argv + i + 1, argv + *argc + 1, argv + i);  // the null at the end too
    --*argc;
    --i;
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  Grid grid;
  benchmark::Initialize(&argc, argv);
  if (!take_option(&argc, argv, "cpu_gb", &grid.limit_gb[0]) ||
      !take_option(&argc, argv, "cuda_gb", &grid.limit_gb[1]) ||
      benchmark::ReportUnrecognizedArguments(argc, argv)) {
    return 2;
  }
  benchmark::AddCustomContext("grid_base", describe(base()));
  for (const Point& point : points()) {
    add(grid, point);
#if QUARRY_HAS_CUDA
    if (quarry::backend_available(Backend::cuda)) add_floor(grid, point);
#endif
  }
#if QUARRY_HAS_CUDA
  if (quarry::backend_available(Backend::cuda)) add_cuda("empty_graph/cuda", run_empty);
#endif
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
