// SPDX-License-Identifier: Apache-2.0
//
// Stage emit: the ascending lists and the weights that go with them.
#include <algorithm>
#include <cstring>

#include "cpu/rows.h"
#include "cpu/stages.h"

namespace quarry::cpu {
namespace {

std::int32_t* append_range(std::int32_t* out, std::int32_t first, std::int32_t end) {
  for (std::int32_t p = first; p < end; ++p) *out++ = p;
  return out;
}

/// What a row lists.
struct List {
  const RowState& state;
  const std::int32_t* heavy;
  std::int32_t heavy_count;  ///< 0 unless the row is sparse

  std::int32_t length() const {
    if (state.kind == RowKind::empty) return 0;
    if (state.kind == RowKind::dense) return state.n;
    return state.first + heavy_count + (state.n - state.end);
  }

  /// Writes the positions, ascending.
  void write(std::int32_t* out) const {
    if (state.kind == RowKind::empty) return;
    const bool dense = state.kind == RowKind::dense;
    out = append_range(out, 0, dense ? state.n : state.first);
    if (dense) return;
    out = std::copy_n(heavy, heavy_count, out);
    append_range(out, state.end, state.n);
  }

  /// Calls f(i, position) for every entry.
  template <typename F>
  void for_each(F&& f) const {
    const std::int32_t count = length();
    const std::int32_t heavy_from = state.kind == RowKind::dense ? count : state.first;
    for (std::int32_t i = 0; i < count; ++i) {
      const std::int32_t k = i - heavy_from;
      f(i, k < 0 ? i : k < heavy_count ? heavy[k] : state.end + (k - heavy_count));
    }
  }
};

void emit_dense_weights(const EmitParams& p, std::int64_t row, const List& list) {
  const std::int32_t extent = p.index.max_seq_len;
  float* weights = p.dense_weights + row * p.dense_stride;
  if (p.previous_indices != nullptr && p.previous_lengths != nullptr) {
    // The caller's memory: an entry that is no position is passed over, not trusted.
    const std::int32_t* previous = p.previous_indices + row * p.index_stride;
    const std::int64_t count = std::clamp<std::int64_t>(p.previous_lengths[row], 0, p.index_stride);
    for (std::int64_t i = 0; i < count; ++i) {
      if (previous[i] >= 0 && previous[i] < extent) weights[previous[i]] = 0.0f;
    }
  } else {
    std::memset(weights, 0, sizeof(float) * static_cast<std::size_t>(extent));
  }
  list.for_each([&](std::int32_t, std::int32_t position) { weights[position] = 1.0f; });
}

void emit_physical(const EmitParams& p, std::int64_t row, const List& list) {
  const RowPages pages = row_pages(p, row);
  list.for_each(
      [&](std::int32_t i, std::int32_t position) { put_physical(p, row, i, position, pages); });
  for (std::int32_t i = list.length(); i < p.max_list; ++i) put_physical(p, row, i, -1, pages);
}

}  // namespace

void emit_row(const EmitParams& p, std::int64_t row, const RowState& state,
              const std::int32_t* heavy, std::int32_t heavy_count) {
  const List list{state, heavy, state.kind == RowKind::sparse ? heavy_count : 0};
  const std::int32_t length = list.length();
  if (p.indices != nullptr) {
    std::int32_t* const out = p.indices + row * p.index_stride;
    list.write(out);
    std::fill(out + length, out + p.max_list, -1);
  }
  p.list_lengths[row] = length;
  if (p.weights != nullptr) {
    float* const weights = p.weights + row * p.index_stride;
    std::fill_n(weights, length, 1.0f);
    std::fill(weights + length, weights + p.max_list, 0.0f);
  }
  if (wants_physical(p)) emit_physical(p, row, list);
  if (p.dense_weights != nullptr) emit_dense_weights(p, row, list);
}

Status emit(const EmitParams& p, const Launch& launch) noexcept {
  // A few lists take less time than waking a thread.
  const bool large = p.dense_weights != nullptr || p.num_rows >= 256;
#pragma omp parallel for schedule(static) num_threads(launch.num_threads) if (large)
  for (std::int32_t row = 0; row < p.num_rows; ++row) {
    emit_row(p, row, p.rows[row], p.heavy + static_cast<std::int64_t>(row) * p.index.heavy_size,
             p.heavy_counts[row]);
  }
  return Status();
}

}  // namespace quarry::cpu
