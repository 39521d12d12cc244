// SPDX-License-Identifier: Apache-2.0
//
// What a stage is told: one plain struct a stage, shared by every backend, and the few
// pieces of index arithmetic both sides must agree on. gcc and nvcc read this file.
#pragma once

#include <cstdint>

#include "quarry/config.h"
#include "quarry/indexer.h"
#include "quarry/tensor.h"

#if defined(__CUDACC__)
#define QUARRY_HD __host__ __device__
#else
#define QUARRY_HD
#endif

namespace quarry {

/// An Indexer's shape and device memory. Codes and means are addressed by cache slot
/// (page, position in the page), so that sequences that share a page share its index.
struct IndexView {
  // Shape; names as in IndexerConfig and docs/design.md.
  std::int32_t num_query_heads, num_kv_heads, group_size, head_dim;
  std::int32_t num_subspaces, bits, ksub, dsub;
  std::int32_t dcent;  ///< dimensions a stored centroid has: dsub, or dsub + 1 (inner_product)
  std::int32_t max_sequences, max_seq_len;
  std::int32_t sink_size, heavy_size, window_size, encode_from;
  std::int32_t dense_limit;  ///< max(dense_threshold, sink + heavy + window)
  std::int32_t refine_factor;
  GqaReduction reduction;
  Metric metric;
  bool rotated;  ///< keys and queries are rotated

  // Pages. A contiguous cache has page_size = max_seq_len and one page a slot.
  std::int32_t page_size;
  std::int64_t num_pages;

  // Codes [num_pages][Hkv][page_slots / tile][code_bytes][tile]. bits <= 4: byte i of a key
  // holds subspace 2i in its low half and 2i + 1 in its high half (0 where there is none),
  // else byte i holds subspace i. A byte belongs to one key alone.
  std::uint8_t* codes;
  std::int32_t code_bytes;  ///< a key's: ceil(m / 2) for bits <= 4, else m
  std::int32_t tile;        ///< consecutive positions interleaved: a power of two, 1 .. 32
  std::int32_t page_slots;  ///< page_size rounded up to `tile`

  // Block means [num_pages][Hkv][blocks_per_page][d] of mean_dtype, where block_size > 0. A
  // block that spans pages keeps its mean with the page of its last position.
  void* means;
  DType mean_dtype;
  std::int32_t block_size, blocks_per_page;

  // Codebooks of slot s start at s * codebook_slot_stride elements of each array
  // (0 where all slots share one).
  float* codebooks;             ///< [slot][Hkv][m][dcent][ksub]: transposed, centroids innermost
  float* phi;                   ///< [slot][Hkv][m], inner_product alone
  float* rotation;              ///< [slot][Hkv][d][d], null where not configured
  float* query_rotation;        ///< [slot][Hkv][d][d]
  std::int32_t codebook_slots;  ///< max_sequences, or 1 where all slots share one

  std::int32_t* seen;           ///< [max_sequences]: n of the last call, 0 at first
  std::uint32_t* has_codebook;  ///< [max_sequences]: 0 or 1
  std::uint64_t* codebook_ids;  ///< [max_sequences]: which content it has, 0 where none

  /// [codebook slot][Hkv]: relative quantization error of the keys a codebook was made from.
  /// 0: unknown; negative: trained just now, stage drift is to measure it.
  float* baseline;
};

/// The batch of one call, and where its per-sequence state is kept for the later stages.
struct SequenceState {
  std::int32_t slot;   ///< -1: inactive or in error, no row of it has entries
  std::int32_t n;      ///< n_0
  std::int32_t begin;  ///< first position to encode (block_size 0), or s (block_size > 0)
  std::int32_t count;  ///< query tokens
  std::int32_t built;  ///< the slot has a codebook
  std::uint32_t bits;  ///< DeviceStatusBit, what was found
};

struct StepView {
  std::int32_t batch_size, query_tokens;
  const std::int32_t* slots;         ///< [B], null: 0 .. B-1
  const std::int32_t* lengths;       ///< [B, T], null in build: fixed_length
  const std::int32_t* query_counts;  ///< [B], null: T
  const std::int32_t* block_table;   ///< [B, block_table_stride], null: contiguous
  std::int64_t block_table_stride;
  std::int32_t fixed_slot, fixed_length;  ///< build: the one sequence, by value
  bool restart;                           ///< build: encode from encode_from whatever was seen
  /// build that trained anew a slot that may have a codebook: encode only if that succeeded,
  /// which on CUDA the device alone knows (IndexView::baseline is negative).
  bool if_trained;
  SequenceState* states;         ///< [B], written by stage encode, read by all later
  std::uint32_t* device_status;  ///< [B] or null
};

/// Stage encode: states[b] for every sequence; codes and means of unseen positions, where
/// the slot has a codebook; afterwards seen[slot] = n (where it has a codebook).
struct EncodeParams {
  IndexView index;
  StepView step;
  KeyView keys;
};

/// Stage train: a codebook for step.fixed_slot from positions encode_from .. fixed_length-1
/// (of complete blocks, where block_size > 0), with the slot's rotation. Afterwards
/// has_codebook[slot] = 1 and baseline negative, or, with fewer than ksub finite keys, nothing
/// but a status.
struct TrainParams {
  IndexView index;
  StepView step;
  KeyView keys;
  /// Leave a slot that has a codebook as it is: what the host could not know, since on CUDA
  /// an earlier training may have failed on the device.
  bool keep_codebook;
  std::uint64_t codebook_id;  ///< of what is trained
  std::int32_t iterations;
  std::uint64_t seed;
  std::int32_t num_positions;  ///< encoded positions, finite or not
  std::int32_t max_samples;    ///< min(num_positions, 256 * ksub)
  // Scratch, carved by plan.h.
  std::int32_t* sample_positions;  ///< [Hkv, max_samples]
  std::int32_t* finite_counts;     ///< [Hkv]
  float* samples;                  ///< [Hkv, m, dcent, max_samples]: transposed vectors
  float* centroids;                ///< [Hkv, m, dcent, ksub]: written to the slot on success
  float* trained_phi;              ///< [Hkv, m]
  std::uint8_t* assignment;        ///< [Hkv, m, max_samples]
  float* distances;                ///< [Hkv, m, max_samples]
  void* backend_scratch;           ///< CUDA's own, train_scratch_bytes() of it
};

/// Stage score: scores[row * score_stride + p] for every candidate p of a sparse query row
/// (rows here are B * T * Hq, whatever is made of the heads later).
/// Entries outside the candidates are left as they are.
struct ScoreParams {
  IndexView index;
  StepView step;
  QueryView queries;
  float* luts;                ///< scratch [rows, m, ksub]
  float* biases;              ///< scratch [rows, bias_stride], where block_size > 0
  std::int64_t bias_stride;   ///< blocks of max_seq_len
  float* scores;              ///< [rows, score_stride]
  std::int64_t score_stride;  ///< max_seq_len rounded up to 32
};

enum class RowKind : std::int32_t {
  empty = 0,      ///< length 0
  dense = 1,      ///< 0 .. n_t-1
  sparse = 2,     ///< sink, heavy, window
  not_built = 3,  ///< sink and window
};

/// What the stages after score do with a row. Candidates are [first, end).
struct RowState {
  RowKind kind;
  std::int32_t n;      ///< n_t
  std::int32_t first;  ///< sink_size
  std::int32_t end;    ///< n_t - window_size, at least first
};

/// Stage mask: rows[row] for every row; bits of lengths out of order.
struct MaskParams {
  IndexView index;
  StepView step;
  std::int32_t list_heads;
  RowState* rows;  ///< [rows]
};

/// What softmax_sum must know of one query row's scores: exp(scale * (s - largest)) * inverse
/// is the softmax of score s.
struct HeadSoftmax {
  float largest;  ///< of the candidates' scores, NaN aside; NaN where there is nothing else
  float inverse;  ///< 1 / the sum of exp(scale * (s - largest)), see reduction.h
};

/// Stage reduce: where one list serves the query heads of a KV head, makes one score a position
/// of theirs. Query rows r * group .. + group - 1 make list row r, and the result takes the
/// place of the first one's scores. First pass (shortlist_counts null): candidates [first, end)
/// of rows[r]; softmax is written. After refine: entries i < shortlist_counts[r]; softmax is
/// read, so that shortlisted positions keep the scale of all candidates.
struct ReduceParams {
  std::int32_t num_rows;  ///< list rows
  std::int32_t group;     ///< G
  GqaReduction reduction;
  float scale;                ///< softmax_scale
  const RowState* rows;       ///< [list rows]
  float* scores;              ///< [list rows * group, score_stride]
  std::int64_t score_stride;  ///< a query row's
  std::int32_t parts;         ///< reduce_parts() of the longest row
  const std::int32_t* shortlist_counts;
  // softmax_sum alone:
  HeadSoftmax* softmax;         ///< [list rows * group]
  float* part_largest;          ///< scratch [list rows * group, parts], first pass
  std::uint64_t* part_weights;  ///< scratch [list rows * group, parts], first pass
};

/// Stage select: of each row's candidates the best min(k, candidates) by (score descending,
/// position ascending), -0 == +0, NaN below every number; written in ascending position.
/// First pass (shortlist null): candidates are positions [first, end) of rows[row].
/// After refine: entry i of scores belongs to position shortlist[row * shortlist_stride + i],
/// i < shortlist_counts[row].
struct SelectParams {
  std::int32_t num_rows;
  std::int32_t k;  ///< at most 8192
  const RowState* rows;
  const float* scores;
  std::int64_t score_stride;
  std::int32_t max_candidates;  ///< over all rows, what the host knows
  const std::int32_t* shortlist;
  const std::int32_t* shortlist_counts;
  std::int64_t shortlist_stride;
  std::int32_t* selected;         ///< [rows, k]; past the count unspecified
  std::int32_t* selected_counts;  ///< [rows]
  void* backend_scratch;          ///< select_scratch_bytes() of the backend
};

/// Stage refine: exact float32 q.k of the shortlist, for every query head of the list.
struct RefineParams {
  IndexView index;
  StepView step;
  QueryView queries;
  KeyView keys;
  std::int32_t list_heads;               ///< Hq, or Hkv under a GQA reduction
  const std::int32_t* shortlist;         ///< [rows, shortlist_stride], ascending positions
  const std::int32_t* shortlist_counts;  ///< [rows]
  std::int64_t shortlist_stride;         ///< r * K
  float* scores;                         ///< [query rows, shortlist_stride]
};

/// Stage emit: the lists, and what the caller asked for beside them.
struct EmitParams {
  IndexView index;
  StepView step;
  std::int32_t num_rows;
  std::int32_t list_heads;
  std::int32_t max_list;
  const RowState* rows;
  const std::int32_t* heavy;         ///< [rows, heavy_size], ascending
  const std::int32_t* heavy_counts;  ///< [rows]
  std::int32_t* indices;             ///< [rows, index_stride] or null
  std::int64_t index_stride;
  std::int32_t* list_lengths;  ///< [rows]
  float* weights;              ///< [rows, index_stride] or null
  float* dense_weights;        ///< [rows, dense_stride] or null
  std::int64_t dense_stride;
  const std::int32_t* previous_indices;  ///< [rows, index_stride] or null
  const std::int32_t* previous_lengths;
  std::int32_t* physical_indices;    ///< [rows, index_stride] or null
  std::int64_t* physical_indices64;  ///< the same, wide
};

/// Algorithm `scan`: a whole step. What it writes is what the stages above would, byte for byte.
struct ScanParams {
  IndexView index;
  StepView step;
  KeyView keys;
  QueryView queries;
  EmitParams emit;        ///< its outputs; rows, heavy and heavy_counts are null
  void* backend_scratch;  ///< scan_scratch_bytes() of the backend
  float scale;            ///< softmax_scale
};

/// Stage sample, of stats(): states[b] as stage encode finds them, with `seen` left as it is,
/// and bits of lengths out of order; rows[i] and sampled[i] of every sampled row, row
/// i * every + (offset + *counter) % every; afterwards *counter is one more.
struct SampleParams {
  IndexView index;
  StepView step;
  std::int32_t num_samples;  ///< 0: states alone
  std::int32_t every, offset;
  std::uint32_t* counter;  ///< or null
  std::int32_t* sampled;   ///< [num_samples]: (b * T + t) * Hq + h, -1 past the last row
  RowState* rows;          ///< [num_samples]
};

/// Stage exact: scores[i * score_stride + p] = float32 q.k for every candidate p of sparse
/// rows[i], summed in stage refine's order.
struct ExactParams {
  IndexView index;
  StepView step;
  QueryView queries;
  KeyView keys;
  std::int32_t num_samples;
  const std::int32_t* sampled;
  const RowState* rows;
  float* scores;
  std::int64_t score_stride;
};

/// Stage recall: how many of selected[i] the list of row sampled[i] holds.
struct RecallParams {
  std::int32_t num_samples;
  std::int32_t query_heads, list_heads;
  std::int32_t k;
  const std::int32_t* sampled;          ///< [num_samples]
  const std::int32_t* selected;         ///< [num_samples, k]: the exact top-K
  const std::int32_t* selected_counts;  ///< [num_samples]
  const std::int32_t* indices;          ///< [rows, index_stride], ascending
  std::int64_t index_stride;
  const std::int32_t* list_lengths;  ///< [rows]
  RecallStats* recall;               ///< [num_samples]
};

/// Stage drift: quantization error by KV head of what is encoded: of the last `most` positions
/// to drift[b][head]; or, with drift null, of `most` positions evenly spaced over all of them
/// to index.baseline, where that is negative.
struct DriftParams {
  IndexView index;
  StepView step;
  KeyView keys;
  std::int32_t most;
  DriftStats* drift;  ///< [B, Hkv] or null
};

/// set_codebook: caller's layout to the index's, has_codebook = 1, seen = encode_from where
/// the slot had codes. With codebooks null (build with a rotation, slot without a codebook):
/// the rotations alone are copied, nothing else changes.
struct SetCodebookParams {
  IndexView index;
  std::int32_t slot;  ///< -1: all
  const float *codebooks, *phi, *rotation, *query_rotation;
  std::uint64_t codebook_id;  ///< of `codebooks`
  const float* baseline;      ///< [Hkv] or null: unknown
};

struct TruncateParams {
  IndexView index;
  const std::int32_t* slots;
  const std::int32_t* lengths;
  std::int32_t count;
};

/// attach: seen[slot] = length for every entry whose slot has the codebook `codebook_id`.
struct AttachParams {
  IndexView index;
  const std::int32_t* slots;  ///< null: 0 .. count-1
  const std::int32_t* lengths;
  std::int32_t count;
  std::uint64_t codebook_id;
  std::uint32_t* device_status;  ///< [count] or null
};

/// copy_pages: codes and means of page from[i] to page to[i].
struct CopyPagesParams {
  IndexView index;
  const std::int32_t *from, *to;
  std::int32_t count;
};

/// fork: to_slot becomes what from_slot is, of positions below `length` at most. The index of
/// a page is copied where the two block tables differ; without tables the slots' own.
struct ForkParams {
  IndexView index;
  std::int32_t from_slot, to_slot;
  const std::int32_t *from_table, *to_table;
  std::int32_t length;
};

struct ResetParams {
  IndexView index;
  std::int32_t slot;
  bool forget_codebook;
};

struct CodesParams {
  IndexView index;
  std::int32_t slot, first, count;
  const std::int32_t* block_table;
  std::uint8_t* out;  ///< [count, Hkv, m]
};

struct CodebookParams {
  IndexView index;
  std::int32_t slot;
  float *codebooks, *phi;
};

// ---------------------------------------------------------------------------------------
// Arithmetic shared by the backends.

/// dtype_size(), on the device too.
QUARRY_HD inline std::int32_t element_size(DType t) {
  return t == DType::float32 ? 4 : t == DType::float8_e4m3 ? 1 : 2;
}

/// Which page of the cache (and index) holds `position` of sequence b, or -1 if the block
/// table's entry is out of range.
QUARRY_HD inline std::int64_t page_of(const IndexView& ix, const std::int32_t* block_table_row,
                                      std::int32_t slot, std::int32_t position) {
  if (block_table_row == nullptr) return slot;
  const std::int32_t page = block_table_row[position / ix.page_size];
  return page >= 0 && page < ix.num_pages ? page : -1;
}

QUARRY_HD inline const std::int32_t* block_table_row(const StepView& step, std::int32_t b) {
  return step.block_table == nullptr ? nullptr : step.block_table + b * step.block_table_stride;
}

/// Offset of byte 0 of a key's code; byte i is i * tile further.
QUARRY_HD inline std::int64_t code_offset(const IndexView& ix, std::int64_t page, std::int32_t head,
                                          std::int32_t in_page) {
  const std::int32_t in_tile = in_page & (ix.tile - 1);  // tile is a power of two
  return ((page * ix.num_kv_heads + head) * ix.page_slots + (in_page - in_tile)) * ix.code_bytes +
         in_tile;
}

/// Element offset of the mean of the block whose last position is `last` (its page `page`).
QUARRY_HD inline std::int64_t mean_offset(const IndexView& ix, std::int64_t page, std::int32_t head,
                                          std::int32_t last) {
  const std::int32_t in_page = ix.blocks_per_page == 1 ? 0 : last % ix.page_size / ix.block_size;
  return ((page * ix.num_kv_heads + head) * ix.blocks_per_page + in_page) * ix.head_dim;
}

/// Element offset of a key in the engine's cache.
QUARRY_HD inline std::int64_t key_offset(const IndexView& ix, const KeyView& keys,
                                         std::int64_t page, std::int32_t head,
                                         std::int32_t position) {
  return page * keys.page_stride + position % ix.page_size * keys.slot_stride +
         head * keys.head_stride;
}

/// What the elements of a KV head's keys are multiplied by: see KeyView.
QUARRY_HD inline float key_scale(const KeyView& keys, std::int32_t head) {
  return keys.scales == nullptr ? 1.0f : keys.scales[keys.num_scales == 1 ? 0 : head];
}

/// Which codebook a slot uses.
QUARRY_HD inline std::int32_t codebook_of(const IndexView& ix, std::int32_t slot) {
  return ix.codebook_slots == 1 ? 0 : slot;
}

/// Row of query token t, list head h of sequence b.
QUARRY_HD inline std::int64_t row_of(const StepView& step, std::int32_t list_heads, std::int32_t b,
                                     std::int32_t t, std::int32_t h) {
  return (static_cast<std::int64_t>(b) * step.query_tokens + t) * list_heads + h;
}

/// The cache's slot that holds `position`: page * page_size + position in the page.
QUARRY_HD inline std::int64_t physical_slot(const IndexView& ix, const std::int32_t* table_row,
                                            std::int32_t slot, std::int32_t position) {
  return page_of(ix, table_row, slot, position) * ix.page_size + position % ix.page_size;
}

/// Where a row's positions lie in the cache, for physical indices.
struct RowPages {
  const std::int32_t* table;
  std::int32_t slot;
};

QUARRY_HD inline bool wants_physical(const EmitParams& p) {
  return p.physical_indices != nullptr || p.physical_indices64 != nullptr;
}

/// Nothing is read where no physical indices are asked for.
QUARRY_HD inline RowPages row_pages(const EmitParams& p, std::int64_t row) {
  if (!wants_physical(p)) return {nullptr, -1};
  const std::int64_t rows = std::int64_t{p.step.query_tokens} * p.list_heads;
  const auto b = static_cast<std::int32_t>(row / rows);
  // A row with entries has a slot in range: no need to wait for states[b].
  return {block_table_row(p.step, b), p.step.slots == nullptr ? b : p.step.slots[b]};
}

/// Entry i of a row's physical indices; `position` is -1 past the list.
QUARRY_HD inline void put_physical(const EmitParams& p, std::int64_t row, std::int32_t i,
                                   std::int32_t position, const RowPages& pages) {
  const std::int64_t at = row * p.index_stride + i;
  const std::int64_t physical =
      position < 0 ? -1 : physical_slot(p.index, pages.table, pages.slot, position);
  if (p.physical_indices != nullptr) p.physical_indices[at] = static_cast<std::int32_t>(physical);
  if (p.physical_indices64 != nullptr) p.physical_indices64[at] = physical;
}

/// Entry i of a row's list, `position` -1 past its end, into every list-aligned output: what
/// whoever writes lists entry by entry writes them through.
QUARRY_HD inline void put_entry(const EmitParams& p, std::int64_t row, std::int32_t i,
                                std::int32_t position, const RowPages& pages) {
  const std::int64_t at = row * p.index_stride + i;
  if (p.indices != nullptr) p.indices[at] = position;
  if (p.weights != nullptr) p.weights[at] = position >= 0 ? 1.0f : 0.0f;
  if (wants_physical(p)) put_physical(p, row, i, position, pages);
}

/// The state of sequence b, without a look at its block table (stage encode does that).
/// `seen` must not have been updated yet.
QUARRY_HD inline SequenceState sequence_state(const IndexView& ix, const StepView& step,
                                              std::int32_t b) {
  SequenceState st{-1, 0, 0, 0, 0, 0};
  std::int32_t slot = step.lengths == nullptr ? step.fixed_slot
                      : step.slots == nullptr ? b
                                              : step.slots[b];
  if (slot < 0) return st;
  const std::int32_t count =
      step.query_counts == nullptr ? step.query_tokens : step.query_counts[b];
  const std::int32_t n = step.lengths == nullptr
                             ? step.fixed_length
                             : step.lengths[static_cast<std::int64_t>(b) * step.query_tokens];
  if (slot >= ix.max_sequences) st.bits |= kSlotOutOfRange;
  if (count < 0 || count > step.query_tokens) st.bits |= kQueryCountOutOfRange;
  if (n < 0 || n > ix.max_seq_len) st.bits |= kLengthOutOfRange;
  if (st.bits != 0 || count == 0) return st;
  st.slot = slot;
  st.n = n;
  st.count = count;
  st.built = ix.has_codebook[slot] != 0 ? 1 : 0;
  if (step.if_trained && !(ix.baseline[codebook_of(ix, slot) * ix.num_kv_heads] < 0)) st.built = 0;
  const std::int32_t seen = step.restart ? 0 : ix.seen[slot];
  const std::int32_t s = seen < n - 1 ? seen : n - 1;
  st.begin = s > ix.encode_from ? s : ix.encode_from;
  return st;
}

/// Row (b, t) of a sequence whose state is known, and the bits it raises.
QUARRY_HD inline RowState row_state(const IndexView& ix, const StepView& step,
                                    const SequenceState& st, std::int32_t b, std::int32_t t,
                                    std::uint32_t* bits) {
  RowState row{RowKind::empty, 0, ix.sink_size, ix.sink_size};
  if (st.slot < 0 || t >= st.count) return row;
  const std::int32_t* lengths = step.lengths + static_cast<std::int64_t>(b) * step.query_tokens;
  const std::int32_t n = lengths[t];
  const std::int32_t before = t == 0 ? n : lengths[t - 1];
  if (n < before || n < st.n || n > st.n + step.query_tokens - 1 || n > ix.max_seq_len) {
    *bits |= kLengthOutOfRange;
    return row;
  }
  row.n = n;
  if (n <= ix.dense_limit) {
    row.kind = RowKind::dense;
    return row;
  }
  row.end = n - ix.window_size;
  row.kind = RowKind::sparse;
  if (st.built == 0) {
    row.kind = RowKind::not_built;
    *bits |= kNotBuilt;
  }
  return row;
}

}  // namespace quarry
