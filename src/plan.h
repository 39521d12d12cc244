// SPDX-License-Identifier: Apache-2.0
//
// Memory: what an Indexer of a configuration holds and what its calls need. The functions
// that count bytes are the ones that hand out pointers, so the two cannot differ.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend.h"

namespace quarry {

constexpr std::size_t kAlignment = 256;

/// Hands out consecutive aligned arrays of a memory block, or, without one, counts.
class Arena {
 public:
  explicit Arena(void* base = nullptr) noexcept : base_(static_cast<std::byte*>(base)) {}

  template <typename T>
  T* take(std::int64_t a, std::int64_t b = 1, std::int64_t c = 1, std::int64_t e = 1) noexcept {
    return static_cast<T*>(take_bytes(product(product(a, b), product(c, e)), sizeof(T)));
  }

  std::size_t bytes() const noexcept { return used_; }
  /// A size did not fit 2^62: nothing that was handed out may be used.
  bool overflowed() const noexcept { return overflowed_; }

 private:
  std::int64_t product(std::int64_t a, std::int64_t b) noexcept;
  void* take_bytes(std::int64_t count, std::size_t size) noexcept;

  std::byte* base_;
  std::size_t used_ = 0;
  bool overflowed_ = false;
};

/// A resolved configuration's shape and sizes.
struct Plan {
  IndexView view;  ///< without memory
  MemoryRequirements memory;
  bool trains;          ///< codebooks are a slot's own
  bool paged;           ///< positions go through a block table
  Algorithm algorithm;  ///< staged or scan
  GqaReduction reduction;
  float softmax_scale;
  std::int32_t list_heads;
  std::int32_t list_group;  ///< query heads a list: 1, or G under a reduction
  std::int32_t max_list;
  std::int32_t shortlist;  ///< r * K
  std::int64_t score_stride;
  std::int64_t bias_stride;
};

/// A resolved configuration's shape, without memory.
IndexView make_view(const IndexerConfig& resolved) noexcept;

Status make_plan(const IndexerConfig& resolved, const Stages& stages, Plan* out) noexcept;

/// The index's arrays, into plan->view.
void carve_index(Arena& arena, Plan* plan) noexcept;

/// Scratch of a next() or append(): states, and what the configuration's algorithm needs.
/// Tables and scores are the query rows', the rest is the lists'.
struct NextBuffers {
  SequenceState* states;
  void* scan_scratch;  ///< algorithm scan; what follows is null
  RowState* rows;
  float* luts;
  float* biases;
  float* scores;
  HeadSoftmax* softmax;  ///< softmax_sum
  float* part_largest;
  std::uint64_t* part_weights;
  std::int32_t *shortlist, *shortlist_counts;
  float* refined_scores;
  std::int32_t *heavy, *heavy_counts;  ///< the shortlist itself where there is no refine
  void* select_scratch;
};
NextBuffers carve_next(Arena& arena, const Plan& plan, const Stages& stages,
                       std::int32_t batch_size, std::int32_t query_tokens) noexcept;

/// Scratch of a build(); the training part only where the configuration trains.
struct BuildBuffers {
  SequenceState* states;
  TrainParams train;  ///< its scratch pointers alone
};
BuildBuffers carve_build(Arena& arena, const Plan& plan, const Stages& stages) noexcept;

/// Scratch of a stats() of every `sample_every`-th row; 0: none, and states alone.
struct StatsBuffers {
  std::int32_t num_samples;
  SequenceState* states;
  std::int32_t* sampled;
  RowState* rows;
  float* scores;
  std::int32_t *selected, *selected_counts;
  void* select_scratch;
};
StatsBuffers carve_stats(Arena& arena, const Plan& plan, const Stages& stages,
                         std::int32_t batch_size, std::int32_t query_tokens,
                         std::int32_t sample_every) noexcept;

/// Encoded positions of a sequence of `length`: with blocks, those of complete ones.
std::int32_t encoded_positions(const IndexView& view, std::int32_t length) noexcept;

}  // namespace quarry
