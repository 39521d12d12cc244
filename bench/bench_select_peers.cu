// SPDX-License-Identifier: Apache-2.0
//
// Stage select on CUDA over rows and lengths, beside what CUB offers for the same job, all as
// replays of a captured graph, inputs rotated past L2:
//   quarry   stage select: exact, ties by position, ascending positions
//   segsort  cub::DeviceSegmentedRadixSort of (score, position): exact, in another order
//   topk     cub::DeviceTopK (CCCL 3.2 and later), one call a row: ties and order undefined
// The toolkit's CCCL (3.0 with CUDA 13.0) has no DeviceTopK; PyPI's nvidia-cuda-cccl does:
//   cmake ... -DQUARRY_BENCH_CCCL=SITE_PACKAGES/nvidia/cu13/include/cccl
// CCCL's batched top-K (3.4) takes rows that one thread block's shared memory holds, with ties
// undefined, so it has no column. Each quarry result is compared with a sort on the host.
#include <cuda_runtime.h>

#include <cub/device/device_segmented_radix_sort.cuh>
#if __has_include(<cub/device/device_topk.cuh>)
#include <cub/device/device_topk.cuh>
#define QUARRY_BENCH_TOPK 1
#else
#define QUARRY_BENCH_TOPK 0
#endif

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "half.h"
#include "select/select.h"

namespace {

using quarry::RowKind;
using quarry::RowState;

void check(cudaError_t e, const char* what) {
  if (e == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(e));
  std::exit(1);
}

template <typename T>
T* device_array(std::size_t count) {
  void* p = nullptr;
  check(cudaMalloc(&p, std::max<std::size_t>(count, 1) * sizeof(T)), "cudaMalloc");
  check(cudaMemset(p, 0xa5, std::max<std::size_t>(count, 1) * sizeof(T)), "cudaMemset");
  return static_cast<T*>(p);
}

/// Median microseconds of a replay of `variants`, one unit of work each.
double time_us(cudaStream_t stream, const std::vector<std::function<void()>>& variants) {
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin capture");
  for (const auto& work : variants) work();
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream, &graph), "end capture");
  cudaGraphExec_t exec = nullptr;
  check(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  std::vector<double> us;
  for (int i = 0; i < 23; ++i) {
    check(cudaEventRecord(begin, stream), "record");
    check(cudaGraphLaunch(exec, stream), "launch");
    check(cudaEventRecord(end, stream), "record");
    check(cudaEventSynchronize(end), "synchronize");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "elapsed");
    if (i >= 3) us.push_back(1e3 * ms / static_cast<double>(variants.size()));
  }
  std::sort(us.begin(), us.end());
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  return us[us.size() / 2];
}

/// True where row's selection is what a stable sort gives.
bool right(const float* scores, int n, int k, const int* selected, int count) {
  std::vector<int> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return quarry::selection_key(scores[a]) > quarry::selection_key(scores[b]);
  });
  order.resize(static_cast<std::size_t>(std::min(k, n)));
  std::sort(order.begin(), order.end());
  return count == std::min(k, n) && std::equal(order.begin(), order.end(), selected);
}

bool bench(int rows, int n, int k, bool ties, const quarry::Launch& launch) {
  const std::size_t total = static_cast<std::size_t>(rows) * static_cast<std::size_t>(n);
  const int copies = static_cast<int>(std::clamp<std::size_t>((128u << 20) / (total * 4), 1, 16));
  std::mt19937 random(static_cast<unsigned>(rows + n + k));
  std::normal_distribution<float> normal;
  std::vector<float> host(total);
  for (float& x : host)
    x = ties ? static_cast<float>(static_cast<int>(4 * normal(random))) : normal(random);
  const std::vector<RowState> states(static_cast<std::size_t>(rows), {RowKind::sparse, n, 0, n});
  std::vector<int> positions(total);
  for (std::size_t i = 0; i < total; ++i)
    positions[i] = static_cast<int>(i % static_cast<std::size_t>(n));
  std::vector<int> offsets(static_cast<std::size_t>(rows) + 1);
  for (int r = 0; r <= rows; ++r)
    offsets[static_cast<std::size_t>(r)] = static_cast<int>(static_cast<long long>(r) * n);

  std::vector<float*> scores;
  for (int c = 0; c < copies; ++c) {
    scores.push_back(device_array<float>(total));
    check(cudaMemcpy(scores.back(), host.data(), total * 4, cudaMemcpyHostToDevice), "copy");
  }
  auto* rows_d = device_array<RowState>(states.size());
  check(cudaMemcpy(rows_d, states.data(), states.size() * sizeof(RowState), cudaMemcpyHostToDevice),
        "copy");
  auto* selected = device_array<int>(static_cast<std::size_t>(rows) * static_cast<std::size_t>(k));
  auto* counts = device_array<int>(static_cast<std::size_t>(rows));
  auto* scratch = device_array<char>(quarry::cuda::select_scratch_bytes(rows, k, n));

  std::vector<std::function<void()>> ours, sorts, topks;
  for (const float* s : scores) {
    quarry::SelectParams p{};
    p.num_rows = rows, p.k = k, p.rows = rows_d, p.scores = s, p.score_stride = n;
    p.max_candidates = n, p.selected = selected, p.selected_counts = counts;
    p.backend_scratch = scratch;
    ours.push_back([p, &launch] {
      if (quarry::Status status = quarry::cuda::select(p, launch); !status.ok()) {
        std::fprintf(stderr, "select: %s\n", status.detail());
        std::exit(1);
      }
    });
  }
  const double us = time_us(launch.stream, ours);
  std::vector<int> got(static_cast<std::size_t>(rows) * static_cast<std::size_t>(k)),
      got_counts(static_cast<std::size_t>(rows));
  check(cudaMemcpy(got.data(), selected, got.size() * 4, cudaMemcpyDeviceToHost), "copy");
  check(cudaMemcpy(got_counts.data(), counts, got_counts.size() * 4, cudaMemcpyDeviceToHost),
        "copy");
  bool ok = true;
  for (int r = 0; r < rows; r += std::max(rows / 8, 1)) {
    const auto row = static_cast<std::size_t>(r);
    ok = ok && right(host.data() + row * static_cast<std::size_t>(n), n, k,
                     got.data() + row * static_cast<std::size_t>(k), got_counts[row]);
  }

  auto* keys_out = device_array<float>(total);
  auto* positions_in = device_array<int>(total);
  auto* positions_out = device_array<int>(total);
  auto* offsets_d = device_array<int>(offsets.size());
  check(cudaMemcpy(positions_in, positions.data(), total * 4, cudaMemcpyHostToDevice), "copy");
  check(cudaMemcpy(offsets_d, offsets.data(), offsets.size() * 4, cudaMemcpyHostToDevice), "copy");
  std::size_t sort_bytes = 0;
  const auto sort = [&](void* temp, std::size_t& bytes, const float* s) {
    return cub::DeviceSegmentedRadixSort::SortPairsDescending(
        temp, bytes, s, keys_out, positions_in, positions_out, static_cast<int>(total), rows,
        offsets_d, offsets_d + 1, 0, 32, launch.stream);
  };
  check(sort(nullptr, sort_bytes, scores[0]), "segmented sort");
  auto* temp = device_array<char>(sort_bytes);
  for (const float* s : scores) {
    sorts.push_back([&, s] { check(sort(temp, sort_bytes, s), "segmented sort"); });
  }
  const double sort_us = time_us(launch.stream, sorts);

  double topk_us = -1;
#if QUARRY_BENCH_TOPK
  std::size_t topk_bytes = 0;
  const auto topk = [&](void* t, std::size_t& bytes, const float* s, int r) {
    const auto env = cuda::std::execution::env{
        cuda::stream_ref{launch.stream},
        cuda::execution::require(cuda::execution::determinism::not_guaranteed,
                                 cuda::execution::output_ordering::unsorted)};
    const std::size_t from = static_cast<std::size_t>(r) * static_cast<std::size_t>(n);
    return cub::DeviceTopK::MaxPairs(t, bytes, s + from, keys_out + from, positions_in + from,
                                     positions_out + from, n, k, env);
  };
  if (rows <= 64) {
    check(topk(nullptr, topk_bytes, scores[0], 0), "top-k");
    auto* topk_temp = device_array<char>(topk_bytes);
    for (const float* s : scores) {
      topks.push_back([&, s, topk_temp] {
        for (int r = 0; r < rows; ++r) check(topk(topk_temp, topk_bytes, s, r), "top-k");
      });
    }
    topk_us = time_us(launch.stream, topks);
    cudaFree(topk_temp);
  }
#endif
  std::printf("%6d %8d %6d %-5s %10.1f %10.1f %10.1f  %s\n", rows, n, k, ties ? "ties" : "-", us,
              sort_us, topk_us, ok ? "ok" : "WRONG");
  for (float* s : scores) cudaFree(s);
  for (void* p :
       {static_cast<void*>(rows_d), static_cast<void*>(selected), static_cast<void*>(counts),
        static_cast<void*>(scratch), static_cast<void*>(keys_out), static_cast<void*>(positions_in),
        static_cast<void*>(positions_out), static_cast<void*>(offsets_d),
        static_cast<void*>(temp)}) {
    cudaFree(p);
  }
  return ok;
}

}  // namespace

int main() {
  quarry::Launch launch{};
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  launch.num_multiprocessors = properties.multiProcessorCount;
  launch.compute_capability = 10 * properties.major + properties.minor;
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  launch.stream = stream;
  std::printf("%s\n%6s %8s %6s %-5s %10s %10s %10s  (us; -1: not measured)\n", properties.name,
              "rows", "n", "k", "", "quarry", "segsort", "topk");
  bool ok = true;
  const struct {
    int rows, n, k;
  } cases[] = {{32, 32000, 128},   {32, 32000, 512},   {1, 4096, 128},      {1, 131072, 1024},
               {1, 1048576, 1024}, {32, 131072, 1024}, {256, 131072, 1024}, {256, 8192, 256},
               {2048, 4096, 128},  {2048, 32768, 128}, {1, 4194304, 8192},  {8, 20000, 8192}};
  for (const auto& c : cases) {
    for (const bool ties : {false, true}) ok = bench(c.rows, c.n, c.k, ties, launch) && ok;
  }
  return ok ? 0 : 1;
}
