// SPDX-License-Identifier: Apache-2.0
//
// Stage select: exact top-K by streaming (best.h). Long rows are cut into chunks, merged in
// order.
#include <algorithm>
#include <new>
#include <type_traits>

#include "cpu/best.h"
#include "cpu/stages.h"

namespace quarry::cpu {
namespace {

/// How rows are cut and what each piece needs; a function of shapes alone.
struct Layout {
  static constexpr std::int32_t kPieces = 64;       // enough for any machine's threads
  static constexpr std::int32_t kShortest = 65536;  // far above K, or merging costs as much
  static constexpr std::size_t kHeader = 64;

  std::int32_t chunk, chunks, capacity;
  std::int64_t pieces;  // at most, and never fewer for more rows

  Layout(std::int32_t rows, std::int32_t k, std::int32_t max_candidates) {
    const std::int32_t longest = std::max(max_candidates, 1);
    const std::int32_t most = (longest - 1) / kShortest + 1;
    chunks = std::clamp(kPieces / std::max(rows, 1), 1, most);
    chunk = (longest - 1) / chunks + 1;
    pieces = std::min<std::int64_t>(std::int64_t{rows} * most, std::max(rows, kPieces));
    capacity = Best::capacity(k, longest);
  }

  std::size_t piece_bytes() const { return kHeader + (Best::bytes(capacity) + 63) / 64 * 64; }
};

struct Span {
  const float* scores;
  std::int32_t first, end;
};

Span span_of(const SelectParams& p, std::int64_t row) {
  const float* scores = p.scores + row * p.score_stride;
  if (p.shortlist != nullptr) return {scores, 0, std::max(p.shortlist_counts[row], 0)};
  const RowState& state = p.rows[row];
  if (state.kind != RowKind::sparse) return {scores, 0, 0};
  return {scores, state.first, state.end};
}

static_assert(sizeof(Best) <= Layout::kHeader && std::is_trivially_destructible_v<Best>);

}  // namespace

std::size_t select_scratch_bytes(std::int32_t rows, std::int32_t k,
                                 std::int32_t max_candidates) noexcept {
  const Layout layout(rows, k, max_candidates);
  return layout.piece_bytes() * static_cast<std::size_t>(layout.pieces);
}

Status select(const SelectParams& p, const Launch& launch) noexcept {
  const Layout layout(p.num_rows, p.k, p.max_candidates);
  const std::int64_t pieces = static_cast<std::int64_t>(p.num_rows) * layout.chunks;
  // A piece lies in scratch with its buffer behind it.
  const auto memory = [&](std::int64_t piece) {
    return static_cast<std::byte*>(p.backend_scratch) +
           piece * static_cast<std::int64_t>(layout.piece_bytes());
  };
  const auto piece_at = [&](std::int64_t piece) {
    return std::launder(reinterpret_cast<Best*>(memory(piece)));
  };
#pragma omp parallel num_threads(launch.num_threads)
  {
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t piece = 0; piece < pieces; ++piece) {
      const Span span = span_of(p, piece / layout.chunks);
      const std::int64_t start = span.first + piece % layout.chunks * layout.chunk;
      const std::int64_t end = std::min<std::int64_t>(start + layout.chunk, span.end);
      Best* best = new (memory(piece)) Best(memory(piece) + Layout::kHeader, layout.capacity, p.k);
      if (p.k > 0 && start < end) {
        best->scan(span.scores, static_cast<std::int32_t>(start), static_cast<std::int32_t>(end));
        best->compact();
      }
    }
#pragma omp for schedule(dynamic, 1)
    for (std::int32_t row = 0; row < p.num_rows; ++row) {
      const std::int64_t first = std::int64_t{row} * layout.chunks;
      Best* best = piece_at(first);
      for (std::int32_t c = 1; c < layout.chunks; ++c) best->add(*piece_at(first + c));
      if (p.k > 0) best->compact();
      p.selected_counts[row] = best->count();
      std::int32_t* out = p.selected + std::int64_t{row} * p.k;
      std::copy_n(best->positions(), best->count(), out);
      if (p.shortlist != nullptr) {
        const std::int32_t* shortlist = p.shortlist + row * p.shortlist_stride;
        for (std::int32_t i = 0; i < best->count(); ++i) out[i] = shortlist[out[i]];
      }
    }
  }
  return Status();
}

}  // namespace quarry::cpu
