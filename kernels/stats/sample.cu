// SPDX-License-Identifier: Apache-2.0
//
// Stage sample, in two kernels: a thread block a sequence finds its state, then one thread
// block takes the rows, because the counter is read before it is moved.
#include "common/launch.h"
#include "stats/stats.h"
#include "stats_math.h"

namespace quarry::cuda {
namespace {

constexpr int kStateThreads = 128;
constexpr int kRowThreads = 256;

// Grid (B).
__global__ void __launch_bounds__(kStateThreads)
    state_kernel(const __grid_constant__ SampleParams p) {
  wait_for_predecessor();
  let_successor_start();
  const IndexView& ix = p.index;
  const auto b = static_cast<std::int32_t>(blockIdx.x);
  // All threads compute the same: nothing changes what they read.
  SequenceState st = sequence_state(ix, p.step, b);
  std::int32_t most = st.n;
  for (std::int32_t t = 0; st.slot >= 0 && t < st.count; ++t) {
    std::uint32_t bits = 0;
    const std::int32_t n = row_state(ix, p.step, st, b, t, &bits).n;
    most = n > most ? n : most;
    st.bits |= bits;
  }
  bool bad = false;
  const std::int32_t* table = block_table_row(p.step, b);
  if (st.slot >= 0 && table != nullptr) {
    const std::int32_t pages = most / ix.page_size + (most % ix.page_size != 0 ? 1 : 0);
    for (auto i = static_cast<std::int32_t>(threadIdx.x); i < pages; i += kStateThreads) {
      bad |= table[i] < 0 || table[i] >= ix.num_pages;
    }
  }
  bad = __syncthreads_or(bad) != 0;
  if (threadIdx.x != 0) return;
  if (bad) {
    st.bits = kPageOutOfRange;
    st.slot = -1;
  }
  p.step.states[b] = st;
  if (st.bits != 0 && p.step.device_status != nullptr) {
    atomicOr(p.step.device_status + b, st.bits);
  }
}

// Grid (1).
__global__ void __launch_bounds__(kRowThreads) row_kernel(const __grid_constant__ SampleParams p) {
  wait_for_predecessor();
  let_successor_start();
  const std::int32_t phase =
      sample_phase(p.every, p.offset, p.counter == nullptr ? 0u : *p.counter);
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < p.num_samples; i += kRowThreads) {
    const std::int32_t row = sample_at(p, i, phase);
    RowState state{RowKind::empty, 0, 0, 0};
    if (row >= 0) {
      const SampledRow at = sampled_row(row, p.step.query_tokens, p.index.num_query_heads);
      std::uint32_t ignored = 0;
      state = row_state(p.index, p.step, p.step.states[at.b], at.b, at.t, &ignored);
    }
    p.sampled[i] = row;
    p.rows[i] = state;
  }
  __syncthreads();  // everybody has read the counter
  if (threadIdx.x == 0 && p.counter != nullptr) ++*p.counter;
}

}  // namespace

Status sample(const SampleParams& p, const Launch& launch) noexcept {
  const dim3 sequences(static_cast<unsigned>(p.step.batch_size));
  if (Status s =
          launch_kernel<state_kernel>("sample: states", launch, sequences, kStateThreads, 0, p);
      !s.ok() || p.num_samples == 0) {
    return s;
  }
  return launch_kernel<row_kernel>("sample: rows", launch, dim3(1), kRowThreads, 0, p);
}

}  // namespace quarry::cuda
