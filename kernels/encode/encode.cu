// SPDX-License-Identifier: Apache-2.0
//
// Stage encode, in two kernels. `plan_kernel` finds each sequence's state and marks its
// positions as seen; `encode_step_kernel` reads that state alone, so no thread block can meet a
// `seen` that another has already moved.
#include "encode/encode.h"

#include "common/launch.h"
#include "encode/bulk.h"
#include "encode/step.cuh"

namespace quarry::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPlanThreads = 128;

// Grid (B).
__global__ void __launch_bounds__(kPlanThreads)
    plan_kernel(const __grid_constant__ EncodeParams p) {
  wait_for_predecessor();
  let_successor_start();
  const auto b = static_cast<std::int32_t>(blockIdx.x);
  const SequenceState st = plan_sequence(p, b);
  if (threadIdx.x != 0) return;
  p.step.states[b] = st;
  if (st.bits != 0 && p.step.device_status != nullptr) {
    atomicOr(p.step.device_status + b, st.bits);
  }
  if (st.slot >= 0 && st.built != 0) p.index.seen[st.slot] = st.n;
}

// Grid (B * Hkv * shape.shares), shares innermost.
__global__ void __launch_bounds__(kThreads, 2)
    encode_step_kernel(const __grid_constant__ EncodeParams p,
                       const __grid_constant__ StepShape shape) {
  extern __shared__ __align__(16) unsigned char memory[];
  const auto id = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t share = id % shape.shares, of = id / shape.shares;
  const std::int32_t head = of % p.index.num_kv_heads, b = of / p.index.num_kv_heads;
  fetch_share_ahead(p, shape, head, share);
  wait_for_predecessor();
  let_successor_start();
  const SequenceState st = p.step.states[b];
  encode_share<2>(p, shape, st, b, head, share, shape.shares, 0, INT32_MAX, memory);
}

dim3 step_grid(const EncodeParams& p, const StepShape& shape) {
  return dim3(static_cast<unsigned>(shape.shares) * static_cast<unsigned>(p.index.num_kv_heads) *
              static_cast<unsigned>(p.step.batch_size));
}

}  // namespace

Status encode(const EncodeParams& p, const Launch& launch) noexcept {
  const dim3 sequences(static_cast<unsigned>(p.step.batch_size));
  if (Status s = launch_kernel<plan_kernel>("encode: plan", launch, sequences, kPlanThreads, 0, p);
      !s.ok()) {
    return s;
  }
  const StepShape shape = step_shape(p);
  if (p.step.lengths == nullptr) return encode_bulk(p, shape.wide, launch);
  return launch_kernel<encode_step_kernel>("encode", launch, step_grid(p, shape), kThreads,
                                           shape.shared_bytes, p, shape);
}

}  // namespace quarry::cuda
