// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "quarry/config.h"
#include "quarry/status.h"
#include "quarry/tensor.h"

struct CUstream_st;

namespace quarry {

/// A cudaStream_t. Ignored by the CPU backend, whose calls are complete on return.
using Stream = CUstream_st*;

/// Bits that a call ORs into device_status[b]: what only the device can see. A row
/// concerned has length 0 unless said otherwise. Never cleared by quarry.
enum DeviceStatusBit : std::uint32_t {
  kLengthOutOfRange = 1u << 0,  ///< a length < 0, > max_seq_len, or outside n_0 .. n_0+T-1
  kSlotOutOfRange = 1u << 1,    ///< slots[b] >= max_sequences (negative: inactive, no error)
  kPageOutOfRange = 1u << 2,    ///< a block table entry outside 0 .. num_pages-1
  kNotBuilt = 1u << 3,          ///< no codebook beyond the dense range; the list is sink + window
  kTooFewKeys = 1u << 4,        ///< build() found fewer than ksub finite keys (CUDA); not built
  kQueryCountOutOfRange = 1u << 5,  ///< query_counts[b] < 0 or > T
  kCodebookMismatch = 1u << 6,      ///< attach(): the slot has another codebook, or none; ignored
};

/// In this file "device memory" means memory the backend's device can read and write:
/// on the CPU backend, host memory. Every pointer named so is read and written in
/// stream order and must stay valid until the stream has passed the call.

/// Memory and threads of an Indexer.
struct Resources {
  /// CPU backend: threads of a call; 0 takes OpenMP's default. No result depends on it.
  std::int32_t num_threads = 0;
  /// Caller-owned device memory of at least index_bytes, aligned to `alignment`, for the
  /// index; it must outlive the Indexer. Null: quarry allocates and frees it.
  void* index_memory = nullptr;
  std::size_t index_memory_bytes = 0;
};

/// What a call with lengths needs to know of its batch.
struct Batch {
  std::int32_t batch_size = 0;    ///< B, 1 .. max_sequences
  std::int32_t query_tokens = 1;  ///< T, 1 .. max_query_tokens
  /// Device memory int32 [B], all distinct: the slot of each sequence; a negative one is
  /// inactive (its rows have length 0, its index stays as it is). Null: 0 .. B-1.
  const std::int32_t* slots = nullptr;
  /// Device memory int32 [B, T]: n_t, the length of the sequence as token t sees it, its
  /// own position included. n = n_0: positions below it are accepted for good.
  const std::int32_t* lengths = nullptr;
  /// Device memory int32 [B]: query tokens of each sequence, at most T; 0 is inactive.
  /// Null: T for all.
  const std::int32_t* query_counts = nullptr;
  /// Optional host copies of `slots` [B] and `lengths` [B, T]. Where given, a slot or a
  /// length out of range, a repeated slot and a sequence that is not built are refused
  /// before anything is launched. Not read after the call returns.
  const std::int32_t* host_slots = nullptr;
  const std::int32_t* host_lengths = nullptr;
};

/// Scratch of a call, the caller's: at least what memory_requirements() or
/// workspace_bytes() says, aligned to 256 bytes, used in stream order, content arbitrary.
struct Workspace {
  void* data = nullptr;
  std::size_t bytes = 0;
};

/// A decode step.
struct NextArgs {
  Batch batch;
  KeyView keys;       ///< of positions the index has not seen (and, with refine, any listed one)
  QueryView queries;  ///< [B, T, Hq, d]
  Workspace workspace;

  /// Device memory int32 [rows, index_stride], rows = B * T * list heads, row
  /// (b * T + t) * heads + h: ascending positions, then -1 to max_list_length().
  /// May be null where physical indices are given.
  std::int32_t* indices = nullptr;
  std::int64_t index_stride = 0;         ///< at least max_list_length()
  std::int32_t* list_lengths = nullptr;  ///< device memory int32 [rows]

  /// Optional, device memory [rows, index_stride], entry by entry beside `indices`: where in
  /// the cache the listed position lies, block_table[p / page_size] * page_size +
  /// p % page_size, or slot * max_seq_len + p in a contiguous cache; -1 past the list. In
  /// ascending order of positions, not of slots. int32 where every slot of the cache fits
  /// (num_pages * page_size <= 2^31), or int64, or both.
  std::int32_t* physical_indices = nullptr;
  std::int64_t* physical_indices64 = nullptr;

  /// Optional, device memory float32 [rows, index_stride]: 1 at listed entries, 0 from the
  /// list's length to max_list_length().
  float* weights = nullptr;

  /// Optional, device memory float32 [rows, dense_stride]: 1 at listed positions, 0 at all
  /// others below max_seq_len.
  float* dense_weights = nullptr;
  std::int64_t dense_stride = 0;  ///< at least max_seq_len
  /// Optional: the lists `dense_weights` last held ([rows, index_stride] and [rows], not
  /// `indices` itself). Given, only those entries are cleared; without them, all are.
  const std::int32_t* previous_indices = nullptr;
  const std::int32_t* previous_lengths = nullptr;

  /// Optional, device memory uint32 [B]: DeviceStatusBit bits are ORed in.
  std::uint32_t* device_status = nullptr;
};

/// Encode without a query: what next() does of stage `encode` alone (lengths [B, 1]).
struct AppendArgs {
  Batch batch;  ///< query_tokens must be 1
  KeyView keys;
  Workspace workspace;
  std::uint32_t* device_status = nullptr;  ///< optional, as in NextArgs
};

/// Prefill of one sequence: train where the slot is given no codebook, encode.
struct BuildArgs {
  std::int32_t slot = 0;
  std::int32_t length = 0;  ///< n, 0 .. max_seq_len
  KeyView keys;             ///< block_table: this sequence's row
  Workspace workspace;      ///< build_workspace_bytes
  /// With config.rotation and per-slot codebooks: device memory float32 [Hkv, d, d], both.
  /// Null: the slot's present ones stay.
  const float* rotation = nullptr;
  const float* query_rotation = nullptr;
  /// Train even if the slot has a codebook. Never with shared_codebook.
  bool retrain = false;
  std::uint32_t* device_status = nullptr;  ///< optional, device memory uint32 [1]
};

/// Codebooks from elsewhere: calibrated, or another Indexer's.
struct CodebookArgs {
  std::int32_t slot = -1;  ///< -1: all slots
  /// Device memory float32 [Hkv, m, ksub, dsub], dsub + 1 for inner_product.
  const float* codebooks = nullptr;
  const float* phi = nullptr;             ///< [Hkv, m], for inner_product alone
  const float* rotation = nullptr;        ///< [Hkv, d, d], with config.rotation alone
  const float* query_rotation = nullptr;  ///< [Hkv, d, d], with config.rotation alone
  /// Optional, [Hkv]: the quantization error of the keys the codebooks were trained on
  /// (DriftStats::error of them), what stats() compares recent keys with. Where it is null,
  /// or an entry is not a positive finite number, it is unknown.
  const float* baseline_error = nullptr;
};

/// How well one KV head's codebook fits the recent keys of a sequence.
struct DriftStats {
  /// Sum of |x - c|^2 over sum of |x|^2: x what is encoded (a key, or its residual from the
  /// block's mean; rotated), c the centroids its codes name, both without the coordinate that
  /// inner_product adds. NaN where no key was measured or all are zero.
  float error;
  /// The same of the keys the codebook was made from: CodebookArgs::baseline_error, or, for a
  /// codebook build() trained, measured there. 0: unknown.
  float baseline;
  /// error / baseline: near 1 while the codebook fits, well above where it does not. NaN
  /// where either is unknown.
  float ratio;
  std::int32_t keys;  ///< keys measured: encoded and finite
};

/// One sampled row beside the exact top-K.
struct RecallStats {
  std::int32_t row;  ///< (b * T + t) * Hq + h, or -1: the batch has no such row
  std::int32_t
      exact;  ///< |exact top-K|; 0 where the row has no heavy part (dense, empty, not built)
  std::int32_t found;  ///< of them, how many are listed
  float recall;        ///< found / exact, NaN where exact is 0
};

/// What is to be measured after a next() (or, drift alone, an append()) of the same batch.
struct StatsArgs {
  Batch batch;          ///< as the call before had it
  KeyView keys;         ///< likewise
  Workspace workspace;  ///< stats_workspace_bytes()

  /// Optional, device memory [B, Hkv]: quantization error of the last `recent_keys` encoded
  /// positions below n_0 of each sequence (fewer where there are fewer).
  DriftStats* drift = nullptr;
  std::int32_t recent_keys = 256;  ///< 1 .. max_seq_len

  /// Optional, device memory [ceil(B * T * Hq / sample_every)]: entry i is row
  /// i * sample_every + (sample_offset + *sample_counter) % sample_every, compared with the
  /// exact top-K: float32 q.k on the raw keys among the same candidates, K = heavy_size, ties
  /// to the lower position.
  RecallStats* recall = nullptr;
  std::int32_t sample_every = 0;   ///< N, 1 .. 2^30 (with recall)
  std::int32_t sample_offset = 0;  ///< 0 .. N-1
  /// Optional, device memory uint32 [1], 0 where null: the call adds 1 to it, so that a captured
  /// graph takes another row every time.
  std::uint32_t* sample_counter = nullptr;
  // With recall: the queries and the lists of that next().
  QueryView queries;                           ///< [B, T, Hq, d]
  const std::int32_t* indices = nullptr;       ///< as in NextArgs
  std::int64_t index_stride = 0;               ///< as in NextArgs
  const std::int32_t* list_lengths = nullptr;  ///< as in NextArgs

  std::uint32_t* device_status = nullptr;  ///< optional, as in NextArgs
};

/// A prefix-cache hit: positions below lengths[i] of slot slots[i] are encoded in the pages
/// that the sequence's block table names (by the sequence that filled them).
struct AttachArgs {
  /// Device memory int32 [count], all distinct; negative: inactive. Null: 0 .. count-1.
  const std::int32_t* slots = nullptr;
  const std::int32_t* lengths = nullptr;  ///< device memory int32 [count], 0 .. max_seq_len
  std::int32_t count = 0;                 ///< 1 .. max_sequences
  /// codebook_id() of the slot that encoded the pages, when it did.
  std::uint64_t codebook_id = 0;
  /// Optional host copy of `slots`: a slot out of range, repeated, or with another codebook is
  /// then refused before anything is launched. Not read after the call returns.
  const std::int32_t* host_slots = nullptr;
  /// Optional, device memory uint32 [count]: DeviceStatusBit bits are ORed in.
  std::uint32_t* device_status = nullptr;
};

/// One sequence becomes two: `to_slot` takes over what `from_slot` has.
struct ForkArgs {
  std::int32_t from_slot = 0;
  std::int32_t to_slot = 0;  ///< another slot; what it held is replaced
  /// Positions taken over, at most; -1: all that from_slot has seen.
  std::int32_t length = -1;
  /// Device memory, the two sequences' block table rows, of which entries up to the last
  /// position taken over are read; both null where config.page_size is 0.
  const std::int32_t* from_block_table = nullptr;
  const std::int32_t* to_block_table = nullptr;
};

/// A sequence's index to host memory.
struct SaveArgs {
  std::int32_t slot = 0;
  std::int32_t length = -1;  ///< positions saved, at most; -1: all that the slot has seen
  const std::int32_t* block_table = nullptr;  ///< device memory, the sequence's row, or null
  Workspace workspace;                        ///< transfer_workspace_bytes
  void* data = nullptr;                       ///< host memory
  std::size_t capacity = 0;                   ///< of `data`
  std::size_t* bytes = nullptr;               ///< host memory: bytes written
};

/// A sequence's index from host memory. `data` is not trusted.
struct RestoreArgs {
  std::int32_t slot = 0;
  const std::int32_t* block_table = nullptr;  ///< device memory, the sequence's row, or null
  Workspace workspace;                        ///< transfer_workspace_bytes
  const void* data = nullptr;                 ///< host memory
  std::size_t bytes = 0;
};

/// One layer's index: max_sequences slots of codes, block means and codebooks.
///
/// Calls of one Indexer must be ordered by the caller: on CUDA by the stream, on the CPU
/// by not overlapping them. Different Indexers are independent. Every call checks what the
/// host can know before any work; a refused call changes nothing.
class Indexer {
 public:
  Indexer() noexcept;
  ~Indexer();
  Indexer(Indexer&&) noexcept;
  Indexer& operator=(Indexer&&) noexcept;
  Indexer(const Indexer&) = delete;
  Indexer& operator=(const Indexer&) = delete;

  /// Takes all memory, leaves every slot empty. `*out` is replaced on success alone.
  static Status create(const IndexerConfig& config, const Device& device,
                       const Resources& resources, Indexer* out) noexcept;

  /// Trains on positions encode_from .. n-1 (k-means; product quantization after Jegou et
  /// al. 2011) unless the slot has a codebook, then encodes them. Too few finite keys
  /// (below ksub for a KV head): too_few_keys, the index unchanged. On CUDA the host knows
  /// only how many positions there are; that too few are finite is kTooFewKeys in
  /// device_status, and the next build() of the slot trains again.
  /// Reads positions encode_from .. n-1 of the cache.
  Status build(const BuildArgs& args, Stream stream) noexcept;

  /// A decode step: encodes positions the index has not seen, then writes a sparse list for
  /// every row: sink, the top-K by PQ score, window. See docs/design.md for the contract.
  /// A row is a (sequence, query token) and a query head or, under a GQA reduction, a KV head.
  /// Never allocates, synchronizes or trains; can be captured into a CUDA graph.
  /// Reads positions min(seen, n-1) .. n-1 of the cache, back to the start of the block
  /// the first of them is in; with refine also the r*K shortlisted positions.
  Status next(const NextArgs& args, Stream stream) noexcept;

  /// Stage `encode` of next() alone.
  Status append(const AppendArgs& args, Stream stream) noexcept;

  /// Copies codebooks in. A slot with codes is encoded anew from encode_from by the next
  /// append() or next(), from the cache.
  Status set_codebook(const CodebookArgs& args, Stream stream) noexcept;

  /// Measures, beside the stream of steps and changing nothing of the index: how well the
  /// codebooks fit recent keys, and the recall of sampled rows. Like next() it never allocates
  /// or synchronizes and can be captured; its cost is that of reading what it measures.
  /// A sequence in error, inactive or without a codebook has `keys` 0 and no recall.
  /// Reads the measured positions of the cache, and for a sampled row all of its candidates
  /// [sink, n_t - window).
  Status stats(const StatsArgs& args, Stream stream) noexcept;

  /// Forgets positions from lengths[i] on: the index has then seen at most lengths[i].
  /// Both int32 [count] in device memory; slots null means 0 .. count-1. Entries out of
  /// range are ignored.
  Status truncate(const std::int32_t* slots, const std::int32_t* lengths, std::int32_t count,
                  Stream stream) noexcept;

  /// Forgets a slot's positions and, without shared_codebook, its codebook.
  Status reset(std::int32_t slot, Stream stream) noexcept;

  /// A prefix-cache hit: sets what slots have seen to `lengths`, and nothing else, so that
  /// next() goes on from there. Index storage lies beside the cache's slots: pages shared
  /// through the block table share codes and means. An entry is ignored, with its bit in
  /// device_status, where its slot or length is out of range or its slot has another codebook
  /// than codebook_id (invalid_argument where the host knows). Stream-ordered, capturable.
  ///
  /// A next() or append() of length n afterwards writes no code or mean of a position below
  /// shareable_positions(min(length, n - 1)). The pages of the positions from there on must be
  /// the sequence's own: the engine copies a key page, copy_pages() its index.
  Status attach(const AttachArgs& args, Stream stream) noexcept;

  /// How many of a sequence's first `length` positions lie in pages that it can share while it
  /// or another grows beyond them: `length` rounded down to whole pages and whole blocks. Of
  /// those from there on, each sequence that writes keys needs its own copy, also of whole
  /// pages of a block that is not complete: its codes will be residuals from a mean of keys
  /// that are not written yet. 0 for a length out of range.
  std::int32_t shareable_positions(std::int32_t length) const noexcept;

  /// Copies codes and means of page from_pages[i] to page to_pages[i]: what an engine calls
  /// beside its own copy of a page's keys (copy-on-write). Both int32 [count] in device memory;
  /// no page may be both copied to and named again. Entries out of range are ignored. Paged
  /// caches alone. Stream-ordered, capturable.
  Status copy_pages(const std::int32_t* from_pages, const std::int32_t* to_pages,
                    std::int32_t count, Stream stream) noexcept;

  /// One sequence becomes two. Pages that both block tables name are shared; where the tables
  /// differ the page's index is copied (a contiguous cache: the slot's), as the engine copies
  /// its keys. The engine makes the tables differ from shareable_positions(length) on, before
  /// either sequence writes a key; then neither sees the other. Codebook, rotations, phi and
  /// codebook_id of from_slot are copied too, where the configuration has one a slot, or
  /// their absence. Stream-ordered, capturable.
  Status fork(const ForkArgs& args, Stream stream) noexcept;

  /// Which codebook a slot has: a number that no other content of a codebook has in this
  /// process; 0 where it has none or the slot is out of range. set_codebook() of all slots
  /// gives all the same, fork() the source's, each training a new one.
  std::uint64_t codebook_id(std::int32_t slot) const noexcept;

  /// Writes the slot's index to host memory, in the byte format of docs/design.md: the same
  /// bytes on every backend for the same codes. Waits for the stream, so it cannot be captured.
  /// not_built where the slot has no codebook. With too small a capacity (or data null and
  /// capacity 0) invalid_argument, and *bytes is what it takes.
  Status save(const SaveArgs& args, Stream stream) const noexcept;

  /// Bytes save() writes of a slot that has seen `length` positions; 0 for one out of range.
  std::size_t saved_bytes(std::int32_t length) const noexcept;

  /// The slot goes on where the saved one was: codes, means, what it has seen and, without
  /// shared_codebook, its codebook (a slot that has the same already keeps its codebook_id).
  /// With shared_codebook the codebook must be the one that encoded the saved positions. The
  /// sequence's pages must be its own. What does not fit this Indexer, or is not as it was
  /// written, is refused by name and nothing changes. Waits for the stream.
  Status restore(const RestoreArgs& args, Stream stream) noexcept;

  /// Writes the codes of positions first .. first+count-1, unpacked, as uint8
  /// [count, Hkv, m] to device memory `out`. Positions not encoded give unspecified codes.
  /// `block_table` as in BuildArgs::keys, null where page_size is 0.
  Status codes(std::int32_t slot, std::int32_t first, std::int32_t count,
               const std::int32_t* block_table, std::uint8_t* out, Stream stream) const noexcept;

  /// Writes the slot's codebooks (layout of CodebookArgs) to device memory; phi may be null.
  Status codebook(std::int32_t slot, float* codebooks, float* phi, Stream stream) const noexcept;

  /// Exact scratch of a next() or append() of B sequences and T query tokens.
  std::size_t workspace_bytes(std::int32_t batch_size, std::int32_t query_tokens) const noexcept;

  /// Exact scratch of a stats() of B sequences and T query tokens that samples every
  /// `sample_every`-th row (0: drift alone). 0 where an argument is out of range.
  std::size_t stats_workspace_bytes(std::int32_t batch_size, std::int32_t query_tokens,
                                    std::int32_t sample_every) const noexcept;

  /// The resolved configuration: no -1, no `automatic`, a softmax_scale above 0.
  const IndexerConfig& config() const noexcept;
  const Device& device() const noexcept;
  /// Lists a (sequence, query token): Hq, or Hkv under a GQA reduction.
  std::int32_t list_heads() const noexcept;
  std::int32_t max_list_length() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// What save() wrote, for an engine that must find pages before it restores.
struct SavedSequence {
  std::int32_t length = 0;          ///< positions the index had seen
  bool has_codebook = false;        ///< the bytes hold codebooks, not just their checksum
  std::uint64_t codebook_hash = 0;  ///< of codebooks, phi and rotations
};

/// Reads the header of saved bytes, after all checks that need no Indexer.
Status read_saved(const void* data, std::size_t bytes, SavedSequence* out) noexcept;

}  // namespace quarry
