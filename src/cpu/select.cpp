// SPDX-License-Identifier: Apache-2.0
//
// Stage select: exact top-K by streaming. Candidates pass in ascending position; once K are
// held, one enters only if its key is strictly better than the K-th best's, because an equal
// one at a later position ranks below. When the buffer is full the K best are kept, so work
// is O(n) whatever the data. Long rows are cut into chunks, merged in order.
#include <algorithm>
#include <cstring>
#include <functional>
#include <new>
#include <type_traits>

#include "cpu/select_scan.h"
#include "cpu/stages.h"
#include "half.h"

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
    // Room for twice what guess() aims at; no row needs more than all its candidates. 64:
    // scan_above() wants that much.
    capacity = std::min(2 * k + std::max(k, 1024), longest) + 64;
  }

  std::size_t piece_bytes() const {
    const std::size_t buffer = 3 * sizeof(std::uint32_t) * static_cast<std::size_t>(capacity);
    return kHeader + (buffer + 63) / 64 * 64;
  }
};

/// The best K of what has been passed in, in ascending position.
class Best {
 public:
  Best(void* memory, std::int32_t capacity, std::int32_t k)
      : keys_(static_cast<std::uint32_t*>(memory)),
        positions_(reinterpret_cast<std::int32_t*>(keys_ + capacity)),
        copy_(keys_ + 2 * static_cast<std::int64_t>(capacity)),
        capacity_(capacity),
        k_(k) {}

  void scan(const float* scores, std::int32_t first, std::int32_t end) {
    if (end - first >= std::max(4096, 16 * k_)) {
      threshold_ = guess(scores, first, end);
      stream(scores, first, end);
      // K above the guess are the K best of all; fewer say that it was too high.
      if (full_ || count_ >= k_) return;
      count_ = 0;
    }
    // Without a threshold everything enters, NaN too.
    while (first < end && count_ < capacity_) {
      keys_[count_] = selection_key(scores[first]);
      positions_[count_++] = first++;
    }
    if (first == end) return;
    compact();
    stream(scores, first, end);
  }

  void add(const Best& later) {
    for (std::int32_t i = 0; i < later.count_; ++i) {
      if (count_ == capacity_) compact();
      if (full_ && later.keys_[i] <= threshold_) continue;
      keys_[count_] = later.keys_[i];
      positions_[count_++] = later.positions_[i];
    }
  }

  /// Keeps the K best, in order, and their worst as the threshold.
  void compact() {
    if (count_ < k_ || (full_ && count_ == k_)) return;
    std::memcpy(copy_, keys_, sizeof(std::uint32_t) * static_cast<std::size_t>(count_));
    std::nth_element(copy_, copy_ + k_ - 1, copy_ + count_, std::greater<>());
    threshold_ = copy_[k_ - 1];
    full_ = true;
    std::int32_t equals = k_;  // how many of the tied fit: the first ones
    for (std::int32_t i = 0; i < k_; ++i) equals -= copy_[i] > threshold_ ? 1 : 0;
    std::int32_t kept = 0;
    for (std::int32_t i = 0; i < count_ && kept < k_; ++i) {
      const bool tied = keys_[i] == threshold_;
      const bool keep = keys_[i] > threshold_ || (tied && equals > 0);
      equals -= tied ? 1 : 0;
      keys_[kept] = keys_[i];
      positions_[kept] = positions_[i];
      kept += keep ? 1 : 0;
    }
    count_ = kept;
  }

  std::int32_t count() const { return count_; }
  const std::int32_t* positions() const { return positions_; }

 private:
  void stream(const float* scores, std::int32_t first, std::int32_t end) {
    while (first < end) {
      std::int32_t found = 0;
      first = scan_above(scores, first, end, threshold_, capacity_ - count_, keys_ + count_,
                         positions_ + count_, &found);
      count_ += found;
      if (first < end) compact();
    }
  }

  /// A key that some 4 K (for large K: 2 K) candidates are above, from an even sample.
  std::uint32_t guess(const float* scores, std::int32_t first, std::int32_t end) const {
    const std::int64_t above = k_ <= 256 ? 4 * k_ : 2 * k_;
    const std::int32_t rank = k_ <= 256 ? 8 : 16;  // in the sample; more is surer and slower
    const std::int64_t length = end - first;
    const std::int64_t size = std::min<std::int64_t>(capacity_, rank * length / above);
    for (std::int64_t i = 0; i < size; ++i) {
      copy_[i] = selection_key(scores[first + i * length / size]);
    }
    std::nth_element(copy_, copy_ + rank, copy_ + size, std::greater<>());
    return copy_[rank];
  }

  std::uint32_t* keys_;
  std::int32_t* positions_;
  std::uint32_t* copy_;
  std::int32_t capacity_, k_;
  std::int32_t count_ = 0;
  std::uint32_t threshold_ = 0;
  bool full_ = false;
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
