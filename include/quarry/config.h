// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "quarry/status.h"
#include "quarry/tensor.h"

namespace quarry {

/// How keys are compared with centroids when they are encoded.
enum class Metric : std::int32_t {
  euclidean = 0,
  /// MIPS-to-L2: each subvector gains the coordinate sqrt(max(phi - |x|^2, 0))
  /// (Bachrach et al. 2014); a centroid is dsub + 1 wide and scores with its first dsub.
  inner_product = 1,
};

/// How a step is carried out; the lists are byte-identical.
enum class Algorithm : std::int32_t {
  automatic = 0,  ///< resolved at create() from the configuration alone
  staged = 1,     ///< one kernel a stage
  scan = 2,       ///< the whole step at once; unsupported where the backend has none for the shape
};

/// What becomes of the query heads that share a KV head. All but per_head give one list a KV
/// head, by a score that is made of its G query heads' own, position by position, in float32.
/// Both algorithms of the CPU serve them, `staged` alone on CUDA. docs/design.md, "One list a KV
/// head", has the numbers.
enum class GqaReduction : std::int32_t {
  per_head = 0,  ///< one list a query head
  /// Scores added in ascending head. A NaN of any head ranks the position below every number.
  sum = 1,
  /// Each head's softmax of softmax_scale * score over the row's candidates, then as `sum`: the
  /// attention mass that the group would give a position.
  softmax_sum = 2,
  /// The largest score; NaN only where it is NaN in every head.
  max = 3,
};

/// Everything that fixes an Indexer's shape and behaviour. The default is the original
/// workload: m = 2, b = 6, sink = window = heavy = 128, 32 heads of 128, no blocks.
struct IndexerConfig {
  // Shape of the attention layer.
  std::int32_t num_query_heads = 32;  ///< Hq, a multiple of num_kv_heads
  std::int32_t num_kv_heads = 32;     ///< Hkv
  std::int32_t head_dim = 128;        ///< d, a multiple of 8, at most 512
  std::int32_t max_sequences = 1;     ///< slots
  std::int32_t max_query_tokens = 1;  ///< T at most; above 1 for speculative decoding
  std::int32_t max_seq_len = 32768;   ///< positions of a sequence

  // The cache: page_size 0 is a contiguous cache (one page of max_seq_len a slot).
  std::int32_t page_size =
      0;  ///< positions a page; with blocks, a multiple or divisor of block_size
  std::int64_t num_pages = 0;  ///< pages of the cache; 0 where page_size is 0

  // Product quantization.
  std::int32_t num_subspaces = 2;  ///< m, divides head_dim, 1..64
  std::int32_t bits = 6;           ///< b, 1..8; ksub = 2^b
  Metric metric = Metric::euclidean;
  std::int32_t block_size = 0;        ///< positions a block, 0: keys are encoded as they are
  DType mean_dtype = DType::float32;  ///< of the stored block means
  bool rotation =
      false;  ///< keys and queries are rotated; set_codebook()/build() bring the matrices
  bool shared_codebook =
      false;  ///< one codebook for all slots, given by set_codebook(); no training

  // The list.
  std::int32_t sink_size = 128;
  std::int32_t heavy_size = 128;      ///< K
  std::int32_t window_size = 128;     ///< at least block_size + max_query_tokens - 1
  std::int32_t encode_from = -1;      ///< first encoded position, at most sink_size; -1: sink_size
  std::int32_t dense_threshold = -1;  ///< -1: heavy_size + encode_from + 1 + ksub
  std::int32_t refine_factor = 1;     ///< r; above 1: select r*K, re-rank by exact q.k
  GqaReduction gqa_reduction = GqaReduction::per_head;
  /// Factor of the scores under softmax_sum, which alone reads it; finite, not negative.
  /// 0: 1 / sqrt(head_dim).
  float softmax_scale = 0;

  // Training.
  std::int32_t kmeans_iterations = 10;
  std::uint64_t seed = 0;

  Algorithm algorithm = Algorithm::automatic;

  /// What README, demo and docs lead with: block_size 64, b = 4, dsub = 8, refine 4,
  /// rotation and calibrated codebooks (call set_codebook()), sink 16, window 64.
  /// Set the shape fields afterwards.
  static IndexerConfig recommended(std::int32_t head_dim) noexcept;
};

/// Where an Indexer lives.
enum class Backend : std::int32_t { cpu = 0, cuda = 1 };

const char* to_string(Metric v) noexcept;
const char* to_string(Algorithm v) noexcept;
const char* to_string(GqaReduction v) noexcept;
const char* to_string(Backend v) noexcept;

/// True where this build holds the backend and, for cuda, a device is present.
bool backend_available(Backend backend) noexcept;

struct Device {
  Backend backend = Backend::cpu;
  std::int32_t ordinal = 0;  ///< CUDA device; ignored on the CPU
};

/// Bytes, exact. Workspaces are aligned to `alignment` and are the caller's.
struct MemoryRequirements {
  std::size_t index_bytes = 0;  ///< codes, means, codebooks and state, held from create() on
  std::size_t next_workspace_bytes = 0;      ///< for any next() or append() of this configuration
  std::size_t build_workspace_bytes = 0;     ///< for any build() of this configuration
  std::size_t transfer_workspace_bytes = 0;  ///< for any save() or restore()
  std::size_t alignment = 256;

  // What index_bytes is made of, for planning: a key and KV head, and a slot (or, with
  // shared_codebook, the model).
  double code_bytes_per_key = 0;
  double mean_bytes_per_key = 0;
  std::size_t codebook_bytes = 0;  ///< codebooks, rotations and phi of one slot
};

/// Validates `config` and says what an Indexer of it needs on `backend`.
/// Nothing is allocated.
Status memory_requirements(const IndexerConfig& config, Backend backend,
                           MemoryRequirements* out) noexcept;

/// `config` with every -1, `automatic` and softmax_scale 0 replaced by what create() would use.
Status resolve(const IndexerConfig& config, Backend backend, IndexerConfig* out) noexcept;

/// Entries a list can have: min(max_seq_len, max(dense_threshold, sink + heavy + window)).
/// `config` as resolve() returned it.
std::int32_t max_list_length(const IndexerConfig& resolved) noexcept;

}  // namespace quarry
