// SPDX-License-Identifier: Apache-2.0
//
// A row's list and how a thread block writes its share of it: for every kernel that emits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "params.h"

namespace quarry::cuda {

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

/// Entries [start, stop) of a row: the list, -1 past its end, weights and physical indices
/// beside it. The thread block with entry 0 writes the length. `heavy`: the row's selection,
/// ascending.
__device__ __forceinline__ void emit_list(const EmitParams& p, const List& list,
                                          const std::int32_t* heavy, std::int64_t row,
                                          std::int32_t start, std::int32_t stop) {
  const std::int32_t length = min(list.length(), p.max_list);
  const RowPages pages = row_pages(p, row);
  const auto threads = static_cast<std::int32_t>(blockDim.x);
  for (std::int32_t i = start + static_cast<std::int32_t>(threadIdx.x); i < stop; i += threads) {
    std::int32_t position = -1;
    if (i < list.sink) {
      position = i;
    } else if (i < list.sink + list.heavy) {
      position = heavy[i - list.sink];
    } else if (i < length) {
      position = list.window_from + (i - list.sink - list.heavy);
    }
    put_entry(p, row, i, position, pages);
  }
  if (start == 0 && threadIdx.x == 0) p.list_lengths[row] = length;
}

/// Dense weights of positions [start, stop) of a row. A thread block owns its positions, the
/// clearing and the setting, so no other races with it.
__device__ __forceinline__ void emit_dense(const EmitParams& p, const List& list,
                                           const std::int32_t* heavy, std::int64_t row,
                                           std::int32_t start, std::int32_t stop) {
  float* out = p.dense_weights + row * p.dense_stride;
  const auto threads = static_cast<std::int32_t>(blockDim.x);
  const auto tid = static_cast<std::int32_t>(threadIdx.x);
  if (p.previous_indices != nullptr && p.previous_lengths != nullptr) {
    const std::int32_t* previous = p.previous_indices + row * p.index_stride;
    // The caller's memory: an entry that is no position is passed over, not trusted.
    const std::int64_t count =
        min(static_cast<std::int64_t>(p.previous_lengths[row]), p.index_stride);
    for (std::int64_t i = tid; i < count; i += threads) {
      const std::int32_t position = previous[i];
      if (position >= start && position < stop) out[position] = 0.0f;
    }
  } else {
    for (std::int32_t i = start + tid; i < stop; i += threads) out[i] = 0.0f;
  }
  __syncthreads();
  for (std::int32_t i = start + tid; i < min(stop, list.sink); i += threads) out[i] = 1.0f;
  for (std::int32_t i = lower_bound(heavy, list.heavy, start) + tid; i < list.heavy; i += threads) {
    if (heavy[i] >= stop) break;
    out[heavy[i]] = 1.0f;
  }
  for (std::int32_t i = max(start, list.window_from) + tid;
       i < min(stop, list.window_from + list.window); i += threads) {
    out[i] = 1.0f;
  }
}

}  // namespace quarry::cuda
