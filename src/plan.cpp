// SPDX-License-Identifier: Apache-2.0
#include "plan.h"

#include <algorithm>

#include "reduction.h"

namespace quarry {
namespace {

constexpr std::int64_t kLimit = std::int64_t{1} << 62;

std::int64_t round_up(std::int64_t value, std::int64_t to) { return (value + to - 1) / to * to; }

/// Positions interleaved in the codes: 32 where pages allow, else the largest power of two
/// that divides them, so that no tile spans two pages.
std::int32_t tile_of(std::int32_t page_size) {
  if (page_size == 0) return 32;
  std::int32_t tile = 1;
  while (tile < 32 && page_size % (tile * 2) == 0) tile *= 2;
  return tile;
}

}  // namespace

IndexView make_view(const IndexerConfig& c) noexcept {
  IndexView v{};
  v.num_query_heads = c.num_query_heads;
  v.num_kv_heads = c.num_kv_heads;
  v.group_size = c.num_query_heads / c.num_kv_heads;
  v.head_dim = c.head_dim;
  v.num_subspaces = c.num_subspaces;
  v.bits = c.bits;
  v.ksub = 1 << c.bits;
  v.dsub = c.head_dim / c.num_subspaces;
  v.dcent = v.dsub + (c.metric == Metric::inner_product ? 1 : 0);
  v.max_sequences = c.max_sequences;
  v.max_seq_len = c.max_seq_len;
  v.sink_size = c.sink_size;
  v.heavy_size = c.heavy_size;
  v.window_size = c.window_size;
  v.encode_from = c.encode_from;
  v.dense_limit = std::max(c.dense_threshold, c.sink_size + c.heavy_size + c.window_size);
  v.refine_factor = c.refine_factor;
  v.reduction = c.gqa_reduction;
  v.metric = c.metric;
  v.rotated = c.rotation;
  v.page_size = c.page_size > 0 ? c.page_size : c.max_seq_len;
  v.num_pages = c.page_size > 0 ? c.num_pages : c.max_sequences;
  v.code_bytes = c.bits <= 4 ? (c.num_subspaces + 1) / 2 : c.num_subspaces;
  v.tile = tile_of(c.page_size);
  v.page_slots = static_cast<std::int32_t>(round_up(v.page_size, v.tile));
  v.mean_dtype = c.mean_dtype;
  v.block_size = c.block_size;
  v.blocks_per_page = c.block_size > 0 ? std::max(v.page_size / c.block_size, 1) : 0;
  v.codebook_slots = c.shared_codebook ? 1 : c.max_sequences;
  return v;
}

std::int64_t Arena::product(std::int64_t a, std::int64_t b) noexcept {
  std::int64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result) || result > kLimit) {
    overflowed_ = true;
    return 0;
  }
  return result;
}

void* Arena::take_bytes(std::int64_t count, std::size_t size) noexcept {
  const std::int64_t bytes = product(count, static_cast<std::int64_t>(size));
  const std::int64_t next =
      static_cast<std::int64_t>(used_) + round_up(bytes, static_cast<std::int64_t>(kAlignment));
  if (next > kLimit) overflowed_ = true;
  if (overflowed_) return nullptr;
  void* const here = base_ == nullptr ? nullptr : base_ + used_;
  used_ = static_cast<std::size_t>(next);
  return here;
}

void carve_index(Arena& arena, Plan* plan) noexcept {
  IndexView& v = plan->view;
  const std::int64_t heads = v.num_kv_heads;
  v.codes = arena.take<std::uint8_t>(v.num_pages, heads, v.page_slots, v.code_bytes);
  if (v.block_size > 0) {
    v.means = arena.take<std::byte>(v.num_pages * heads, v.blocks_per_page, v.head_dim,
                                    dtype_size(v.mean_dtype));
  }
  const std::size_t before = arena.bytes();
  const std::int64_t books = v.codebook_slots * heads;
  v.codebooks = arena.take<float>(books, v.num_subspaces, v.dcent, v.ksub);
  if (v.metric == Metric::inner_product) v.phi = arena.take<float>(books, v.num_subspaces);
  if (v.rotated) {
    v.rotation = arena.take<float>(books, v.head_dim, v.head_dim);
    v.query_rotation = arena.take<float>(books, v.head_dim, v.head_dim);
  }
  plan->memory.codebook_bytes =
      (arena.bytes() - before) / static_cast<std::size_t>(v.codebook_slots);
  v.seen = arena.take<std::int32_t>(v.max_sequences);
  v.has_codebook = arena.take<std::uint32_t>(v.max_sequences);
  v.codebook_ids = arena.take<std::uint64_t>(v.max_sequences);
  v.baseline = arena.take<float>(books);
}

NextBuffers carve_next(Arena& arena, const Plan& plan, const Stages& stages,
                       std::int32_t batch_size, std::int32_t query_tokens) noexcept {
  const IndexView& v = plan.view;
  const std::int32_t rows = batch_size * query_tokens * plan.list_heads;
  NextBuffers b{};
  b.states = arena.take<SequenceState>(batch_size);
  if (plan.algorithm == Algorithm::scan) {
    const std::size_t scratch = stages.scan_scratch_bytes(v, batch_size, query_tokens);
    b.scan_scratch = arena.take<std::byte>(static_cast<std::int64_t>(scratch));
    return b;
  }
  const std::int32_t query_rows = rows * plan.list_group;
  b.rows = arena.take<RowState>(rows);
  b.luts = arena.take<float>(query_rows, v.num_subspaces, v.ksub);
  if (v.block_size > 0) b.biases = arena.take<float>(query_rows, plan.bias_stride);
  b.scores = arena.take<float>(query_rows, plan.score_stride);
  if (plan.reduction == GqaReduction::softmax_sum) {
    const std::int32_t parts = reduce_parts(v.max_seq_len);
    b.softmax = arena.take<HeadSoftmax>(query_rows);
    b.part_largest = arena.take<float>(query_rows, parts);
    b.part_weights = arena.take<std::uint64_t>(query_rows, parts);
  }
  b.shortlist = arena.take<std::int32_t>(rows, plan.shortlist);
  b.shortlist_counts = arena.take<std::int32_t>(rows);
  b.heavy = b.shortlist;
  b.heavy_counts = b.shortlist_counts;
  std::size_t scratch = stages.select_scratch_bytes(rows, plan.shortlist, v.max_seq_len);
  if (v.refine_factor > 1) {
    b.refined_scores = arena.take<float>(query_rows, plan.shortlist);
    b.heavy = arena.take<std::int32_t>(rows, v.heavy_size);
    b.heavy_counts = arena.take<std::int32_t>(rows);
    scratch = std::max(scratch, stages.select_scratch_bytes(rows, v.heavy_size, plan.shortlist));
  }
  b.select_scratch = arena.take<std::byte>(static_cast<std::int64_t>(scratch));
  return b;
}

StatsBuffers carve_stats(Arena& arena, const Plan& plan, const Stages& stages,
                         std::int32_t batch_size, std::int32_t query_tokens,
                         std::int32_t sample_every) noexcept {
  const IndexView& v = plan.view;
  StatsBuffers b{};
  b.states = arena.take<SequenceState>(batch_size);
  if (sample_every == 0) return b;
  const std::int32_t rows = batch_size * query_tokens * v.num_query_heads;
  const std::int32_t num_samples = (rows - 1) / sample_every + 1;
  b.num_samples = num_samples;
  b.sampled = arena.take<std::int32_t>(num_samples);
  b.rows = arena.take<RowState>(num_samples);
  b.scores = arena.take<float>(num_samples, plan.score_stride);
  b.selected = arena.take<std::int32_t>(num_samples, v.heavy_size);
  b.selected_counts = arena.take<std::int32_t>(num_samples);
  const std::size_t scratch = stages.select_scratch_bytes(num_samples, v.heavy_size, v.max_seq_len);
  b.select_scratch = arena.take<std::byte>(static_cast<std::int64_t>(scratch));
  return b;
}

BuildBuffers carve_build(Arena& arena, const Plan& plan, const Stages& stages) noexcept {
  const IndexView& v = plan.view;
  BuildBuffers b{};
  b.states = arena.take<SequenceState>(1);
  if (!plan.trains) return b;
  const std::int32_t positions = encoded_positions(v, v.max_seq_len);
  const std::int32_t samples = std::min(positions, 256 * v.ksub);
  const std::int64_t tables = std::int64_t{v.num_kv_heads} * v.num_subspaces;
  TrainParams& t = b.train;
  t.max_samples = samples;
  t.sample_positions = arena.take<std::int32_t>(v.num_kv_heads, samples);
  t.finite_counts = arena.take<std::int32_t>(v.num_kv_heads);
  t.samples = arena.take<float>(tables, v.dcent, samples);
  t.centroids = arena.take<float>(tables, v.dcent, v.ksub);
  t.trained_phi = arena.take<float>(tables);
  t.assignment = arena.take<std::uint8_t>(tables, samples);
  t.distances = arena.take<float>(tables, samples);
  const std::size_t scratch = stages.train_scratch_bytes(v, samples);
  t.backend_scratch = arena.take<std::byte>(static_cast<std::int64_t>(scratch));
  return b;
}

std::int32_t encoded_positions(const IndexView& v, std::int32_t length) noexcept {
  const std::int32_t end = v.block_size > 0 ? length / v.block_size * v.block_size : length;
  return std::max(end - v.encode_from, 0);
}

Status make_plan(const IndexerConfig& c, const Stages& stages, Plan* out) noexcept {
  Plan plan{};
  plan.view = make_view(c);
  plan.trains = !c.shared_codebook;
  plan.paged = c.page_size > 0;
  plan.algorithm = c.algorithm;
  plan.reduction = c.gqa_reduction;
  plan.softmax_scale = c.softmax_scale;
  plan.list_group = c.gqa_reduction == GqaReduction::per_head ? 1 : plan.view.group_size;
  plan.list_heads = c.num_query_heads / plan.list_group;
  plan.max_list = max_list_length(c);
  plan.shortlist = c.refine_factor * c.heavy_size;
  plan.score_stride = round_up(c.max_seq_len, 32);
  plan.bias_stride = c.block_size > 0 ? std::max(c.max_seq_len / c.block_size, 1) : 0;

  Arena index;
  carve_index(index, &plan);
  Arena next;
  carve_next(next, plan, stages, c.max_sequences, c.max_query_tokens);
  std::size_t next_bytes = next.bytes();
  if (c.algorithm == Algorithm::scan) {
    // Few rows are cut into more chunks each: a smaller call may need more.
    const std::int64_t queries = std::int64_t{c.max_sequences} * c.max_query_tokens;
    std::size_t most = 0;
    for (std::int32_t q = 1; q <= std::min<std::int64_t>(queries, 256); ++q) {
      most = std::max(most, stages.scan_scratch_bytes(plan.view, q, 1));
    }
    Arena arena;
    arena.take<SequenceState>(c.max_sequences);
    arena.take<std::byte>(static_cast<std::int64_t>(most));
    next_bytes = std::max(next_bytes, arena.bytes());
  }
  Arena build;
  carve_build(build, plan, stages);
  if (index.overflowed() || next.overflowed() || build.overflowed()) {
    return Status(StatusCode::invalid_argument,
                  "config asks for more than 2^62 bytes (max_sequences %d, max_seq_len %d, "
                  "num_pages %lld, page_size %d)",
                  c.max_sequences, c.max_seq_len, static_cast<long long>(c.num_pages), c.page_size);
  }
  MemoryRequirements& m = plan.memory;
  m.index_bytes = index.bytes();
  m.next_workspace_bytes = next_bytes;
  m.build_workspace_bytes = build.bytes();
  m.transfer_workspace_bytes = stages.transfer_scratch_bytes;
  m.alignment = kAlignment;
  m.code_bytes_per_key = plan.view.code_bytes;
  if (c.block_size > 0) {
    m.mean_bytes_per_key = static_cast<double>(c.head_dim) *
                           static_cast<double>(dtype_size(c.mean_dtype)) / c.block_size;
  }
  *out = plan;
  return {};
}

}  // namespace quarry
