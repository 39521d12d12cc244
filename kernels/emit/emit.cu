// SPDX-License-Identifier: Apache-2.0
//
// Stage emit: the sparse lists and, where asked for, their weights and the dense weights.
#include "emit/emit.h"

#include <algorithm>

#include "common/launch.h"
#include "emit/list.cuh"

namespace quarry::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int32_t kListPart = 4 * kThreads;    // list entries a thread block writes
constexpr std::int32_t kDensePart = 16 * kThreads;  // positions a thread block clears

/// Thread blocks of a row: `list_parts` for the list, then `dense_parts` for the dense weights.
__global__ void __launch_bounds__(kThreads)
    emit_kernel(const __grid_constant__ EmitParams p, std::int32_t list_parts,
                std::int32_t dense_parts, std::int32_t dense_part) {
  wait_for_predecessor();
  let_successor_start();
  const std::int32_t parts = list_parts + dense_parts;
  const std::int64_t row = blockIdx.x / parts;
  const std::int32_t part = static_cast<std::int32_t>(blockIdx.x) % parts;
  const RowState state = p.rows[row];
  const List list =
      list_of(p.index, state, state.kind == RowKind::sparse ? p.heavy_counts[row] : 0);
  const std::int32_t* heavy = p.heavy + row * p.index.heavy_size;
  if (part < list_parts) {
    const std::int32_t start = part * kListPart;
    emit_list(p, list, heavy, row, start, min(start + kListPart, p.max_list));
  } else {
    const std::int64_t start = static_cast<std::int64_t>(part - list_parts) * dense_part;
    const std::int64_t end =
        min(start + dense_part, static_cast<std::int64_t>(p.index.max_seq_len));
    emit_dense(p, list, heavy, row, static_cast<std::int32_t>(start),
               static_cast<std::int32_t>(end));
  }
}

}  // namespace

Status emit(const EmitParams& p, const Launch& launch) noexcept {
  const std::int64_t list_parts = (p.max_list + kListPart - 1) / kListPart;
  std::int64_t dense_parts = 0;
  std::int32_t dense_part = p.index.max_seq_len;
  if (p.dense_weights != nullptr) {
    // Clearing a known list touches few positions: one thread block a row.
    const bool all = p.previous_indices == nullptr || p.previous_lengths == nullptr;
    if (all) dense_part = std::min(kDensePart, p.index.max_seq_len);
    dense_parts = (p.index.max_seq_len + dense_part - 1) / dense_part;
  }
  const std::int64_t grid = p.num_rows * (list_parts + dense_parts);
  if (grid > 0x7fffffff) {
    return Status(StatusCode::unsupported, "emit: %lld thread blocks, must be at most 2^31 - 1",
                  static_cast<long long>(grid));
  }
  return launch_kernel<emit_kernel>("emit", launch, dim3(static_cast<unsigned>(grid)), kThreads, 0,
                                    p, static_cast<std::int32_t>(list_parts),
                                    static_cast<std::int32_t>(dense_parts), dense_part);
}

}  // namespace quarry::cuda
