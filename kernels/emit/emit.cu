// SPDX-License-Identifier: Apache-2.0
//
// Stage emit: the sparse lists and, where asked for, their weights and the dense weights.
#include "emit/emit.h"

#include <algorithm>

#include "common/launch.h"

namespace quarry::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int32_t kListPart = 4 * kThreads;    // list entries a thread block writes
constexpr std::int32_t kDensePart = 16 * kThreads;  // positions a thread block clears

/// A list: `sink` positions from 0, `heavy` ones of the row's selection, `window` ones from
/// `window_from`; ascending, no position twice.
struct List {
  std::int32_t sink, heavy, window, window_from;
  __host__ __device__ std::int32_t length() const { return sink + heavy + window; }
};

__host__ __device__ inline List list_of(const IndexView& ix, const RowState& row,
                                        std::int32_t heavy_count) {
  if (row.kind == RowKind::empty) return {0, 0, 0, 0};
  if (row.kind == RowKind::dense) return {row.n, 0, 0, row.n};
  const std::int32_t sink = row.n < ix.sink_size ? row.n : ix.sink_size;
  std::int32_t from = row.n - ix.window_size;
  if (from < ix.sink_size) from = ix.sink_size;
  const std::int32_t window = row.n > from ? row.n - from : 0;
  return {sink, row.kind == RowKind::sparse ? heavy_count : 0, window, from};
}

/// First of ascending values[0 .. count) that is at least `least`.
__device__ __forceinline__ std::int32_t lower_bound(const std::int32_t* values, std::int32_t count,
                                                    std::int32_t least) {
  std::int32_t low = 0, high = count;
  while (low < high) {
    const std::int32_t middle = (low + high) / 2;
    if (values[middle] < least) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

/// Entries [part * kListPart, ..) of a row: the list, -1 past its end, weights beside it.
__device__ void emit_list(const EmitParams& p, const List& list, std::int64_t row,
                          std::int32_t part) {
  const std::int32_t* heavy = p.heavy + row * p.index.heavy_size;
  const std::int32_t length = min(list.length(), p.max_list);
  const std::int32_t start = part * kListPart;
  const std::int32_t stop = min(start + kListPart, p.max_list);
  for (std::int32_t i = start + static_cast<std::int32_t>(threadIdx.x); i < stop; i += kThreads) {
    std::int32_t position = -1;
    if (i < list.sink) {
      position = i;
    } else if (i < list.sink + list.heavy) {
      position = heavy[i - list.sink];
    } else if (i < length) {
      position = list.window_from + (i - list.sink - list.heavy);
    }
    p.indices[row * p.index_stride + i] = position;
    if (p.weights != nullptr) p.weights[row * p.index_stride + i] = i < length ? 1.0f : 0.0f;
  }
  if (part == 0 && threadIdx.x == 0) p.list_lengths[row] = length;
}

/// Dense weights of positions [start, stop) of a row. A thread block owns its positions, the
/// clearing and the setting, so no other races with it.
__device__ void emit_dense(const EmitParams& p, const List& list, std::int64_t row,
                           std::int32_t start, std::int32_t stop) {
  float* out = p.dense_weights + row * p.dense_stride;
  const auto tid = static_cast<std::int32_t>(threadIdx.x);
  if (p.previous_indices != nullptr && p.previous_lengths != nullptr) {
    const std::int32_t* previous = p.previous_indices + row * p.index_stride;
    // The caller's memory: an entry that is no position is passed over, not trusted.
    const std::int64_t count =
        min(static_cast<std::int64_t>(p.previous_lengths[row]), p.index_stride);
    for (std::int64_t i = tid; i < count; i += kThreads) {
      const std::int32_t position = previous[i];
      if (position >= start && position < stop) out[position] = 0.0f;
    }
  } else {
    for (std::int32_t i = start + tid; i < stop; i += kThreads) out[i] = 0.0f;
  }
  __syncthreads();
  for (std::int32_t i = start + tid; i < min(stop, list.sink); i += kThreads) out[i] = 1.0f;
  const std::int32_t* heavy = p.heavy + row * p.index.heavy_size;
  for (std::int32_t i = lower_bound(heavy, list.heavy, start) + tid; i < list.heavy;
       i += kThreads) {
    if (heavy[i] >= stop) break;
    out[heavy[i]] = 1.0f;
  }
  for (std::int32_t i = max(start, list.window_from) + tid;
       i < min(stop, list.window_from + list.window); i += kThreads) {
    out[i] = 1.0f;
  }
}

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
  if (part < list_parts) {
    emit_list(p, list, row, part);
  } else {
    const std::int64_t start = static_cast<std::int64_t>(part - list_parts) * dense_part;
    const std::int64_t end =
        min(start + dense_part, static_cast<std::int64_t>(p.index.max_seq_len));
    emit_dense(p, list, row, static_cast<std::int32_t>(start), static_cast<std::int32_t>(end));
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
