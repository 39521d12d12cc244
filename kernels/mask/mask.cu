// SPDX-License-Identifier: Apache-2.0
//
// Stage mask: the candidates of every row.
#include "mask/mask.h"

#include "common/launch.h"

namespace quarry::cuda {
namespace {

constexpr int kThreads = 128;

/// One thread a row.
__global__ void __launch_bounds__(kThreads)
    mask_kernel(const __grid_constant__ MaskParams p, std::int64_t rows) {
  wait_for_predecessor();
  let_successor_start();
  const std::int64_t row = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= rows) return;
  const auto h = static_cast<std::int32_t>(row % p.list_heads);
  const std::int64_t query = row / p.list_heads;
  const auto t = static_cast<std::int32_t>(query % p.step.query_tokens);
  const auto b = static_cast<std::int32_t>(query / p.step.query_tokens);
  std::uint32_t bits = 0;
  p.rows[row] = row_state(p.index, p.step, p.step.states[b], b, t, &bits);
  // The heads of a token agree; the tokens of a sequence may differ, and the caller may have
  // bits of its own there.
  if (h == 0 && bits != 0 && p.step.device_status != nullptr) {
    atomicOr(p.step.device_status + b, bits);
  }
}

}  // namespace

Status mask(const MaskParams& p, const Launch& launch) noexcept {
  const std::int64_t rows = std::int64_t{p.step.batch_size} * p.step.query_tokens * p.list_heads;
  return launch_kernel<mask_kernel>("mask", launch, dim3(blocks_for(rows, kThreads)), kThreads, 0,
                                    p, rows);
}

}  // namespace quarry::cuda
