// SPDX-License-Identifier: Apache-2.0
//
// The contract of docs/design.md once more: plain, slow, in double, sharing no code with the
// library. Scores come with a bound on what float32 rounding may do to them, derived from m,
// d and the magnitudes, so that a list is either right, or differs among keys whose scores
// float32 cannot tell apart, or is wrong.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "quarry/quarry.h"

namespace quarry::test {

/// float32 to `dtype` and back, round to nearest even.
float round_to(DType dtype, float value);
/// The 16-bit pattern of a value that round_to() returned.
std::uint16_t bits16(DType dtype, float value);
/// The E4M3 pattern of a value that round_to() gave.
std::uint8_t float8_bits(float value);
/// What an E4M3 pattern stands for.
float from_float8_bits(std::uint8_t bits);

/// The engine's keys as float32: [num_pages][page_size][heads][dim], without padding.
struct Cache {
  int num_pages = 0, page_size = 0, heads = 0, dim = 0;
  std::vector<float> keys;

  std::size_t offset(std::int64_t cache_slot, int head) const {
    return (static_cast<std::size_t>(cache_slot) * heads + head) * dim;
  }
  const float* key(std::int64_t cache_slot, int head) const {
    return keys.data() + offset(cache_slot, head);
  }
};

/// The pages of one sequence; a contiguous cache has one, the slot.
using Pages = std::vector<std::int32_t>;

struct Codebook {
  std::vector<float> centroids;                 ///< [Hkv][m][ksub][dcent]
  std::vector<float> phi;                       ///< [Hkv][m]
  std::vector<float> rotation, query_rotation;  ///< [Hkv][d][d] or empty
};

/// A value and how far a float32 evaluation of it may lie away.
struct Score {
  double value = 0, bound = 0;
};

/// Order as a double: NaN below -infinity, and what float32 cannot hold as infinity.
double rank_low(const Score& s);
double rank_high(const Score& s);
double rank(const Score& s);

enum class Kind { empty, dense, sparse, not_built };

struct OracleRow {
  Kind kind = Kind::empty;
  int n = 0;
  int first = 0, end = 0;     ///< candidates
  std::vector<Score> scores;  ///< of candidate first + i
  std::vector<Score> exact;   ///< by q.k, of candidate first + i, where refine_factor > 1
  std::vector<int> list;      ///< what the oracle itself would list
};

/// What one call is told, in host memory.
struct HostBatch {
  int batch_size = 1, query_tokens = 1;
  std::vector<std::int32_t> slots;         ///< [B] or empty
  std::vector<std::int32_t> lengths;       ///< [B, T]
  std::vector<std::int32_t> query_counts;  ///< [B] or empty

  int slot(int b) const { return slots.empty() ? b : slots[b]; }
  int count(int b) const { return query_counts.empty() ? query_tokens : query_counts[b]; }
  int length(int b, int t) const { return lengths[b * query_tokens + t]; }
};

class Oracle {
 public:
  explicit Oracle(const IndexerConfig& config);

  const IndexerConfig& config() const { return c_; }
  int ksub() const { return 1 << c_.bits; }
  int dsub() const { return c_.head_dim / c_.num_subspaces; }
  int dcent() const { return dsub() + (c_.metric == Metric::inner_product ? 1 : 0); }
  int group() const { return c_.num_query_heads / c_.num_kv_heads; }
  /// Query heads a list, lists a (sequence, query token).
  int list_group() const { return c_.gqa_reduction == GqaReduction::per_head ? 1 : group(); }
  int list_heads() const { return c_.num_query_heads / list_group(); }
  int page_size() const { return c_.page_size > 0 ? c_.page_size : c_.max_seq_len; }
  int num_pages() const {
    return c_.page_size > 0 ? static_cast<int>(c_.num_pages) : c_.max_sequences;
  }
  int dense_limit() const;
  int max_list() const;

  int seen(int slot) const { return seen_[slot]; }
  bool built(int slot) const { return built_[slot]; }
  const Codebook& codebook(int slot) const { return codebooks_[slot]; }

  void set_codebook(int slot, const Codebook& codebook);
  void truncate(int slot, int length);
  void reset(int slot);
  void attach(int slot, int length);
  /// What fork() does to `to`; the pages whose index goes along are the tables' business.
  void fork(int from, int to, int length);
  void copy_page(int from, int to);

  /// A sequence apart from the pages it lies in.
  struct Saved {
    int seen = 0;
    Codebook codebook;
    std::vector<std::uint8_t> codes;  ///< [position][Hkv][m], all below seen
    std::vector<float> means;         ///< [position][Hkv][d], of blocks' last positions
  };
  Saved save(const Pages& pages, int slot, int length) const;
  void restore(const Pages& pages, int slot, const Saved& saved);

  /// From now on sequences only grow: for who compares two runs with each other. Nothing may be
  /// asked for codes, means or lists.
  void without_codes() { keeps_codes_ = false; }
  /// Stage encode for one sequence; `restart` is build's: whatever was seen.
  void encode(const Cache& cache, const Pages& pages, int slot, int n, bool restart);
  /// First position not encoded once `n` positions are seen.
  int encoded_end(int n) const;

  /// next() of a whole batch: rows [B, T, list heads] and the status bits each sequence gains.
  std::vector<OracleRow> next(const Cache& cache, const std::vector<Pages>& tables,
                              const HostBatch& batch, const std::vector<float>& queries,
                              std::vector<std::uint32_t>* bits);
  /// append(): the encoding part alone.
  void append(const Cache& cache, const std::vector<Pages>& tables, const HostBatch& batch,
              std::vector<std::uint32_t>* bits);

  std::int64_t cache_slot(const Pages& pages, int position) const {
    return static_cast<std::int64_t>(pages[position / page_size()]) * page_size() +
           position % page_size();
  }
  const std::uint8_t* code(std::int64_t cache_slot, int head) const {
    return codes_.data() + (cache_slot * c_.num_kv_heads + head) * c_.num_subspaces;
  }
  const float* mean(std::int64_t last_cache_slot, int head) const {
    return means_.data() + (last_cache_slot * c_.num_kv_heads + head) * c_.head_dim;
  }

  /// Inconsistencies between the float32 form and the double form of a distance, found while
  /// encoding: a defect of this oracle. Empty when there are none.
  const std::string& defects() const { return defects_; }

  /// Codes of one vector (a key, or its residual) of `head`: nearest centroid per subspace.
  void encode_vector(const Codebook& codebook, int head, const float* x, std::uint8_t* code);

 private:
  bool sequence(const std::vector<Pages>& tables, const HostBatch& batch, int b,
                std::uint32_t* bits) const;
  OracleRow row(const Cache& cache, const Pages& pages, int slot, bool built, int n, int list_head,
                const float* queries) const;
  std::vector<Score> pq_scores(const Pages& pages, int slot, int head, const float* query,
                               int first, int end) const;

  IndexerConfig c_;
  bool keeps_codes_ = true;
  std::vector<Codebook> codebooks_;  // by slot
  std::vector<char> built_;
  std::vector<int> seen_;
  std::vector<std::uint8_t> codes_;  // [cache slot][Hkv][m]
  std::vector<float> means_;         // [cache slot of the block's last position][Hkv][d]
  std::string defects_;
};

/// q.k in double with the bound of any float32 summation order.
Score dot(const float* a, const float* b, int n);

/// Does `list` (length included) agree with the oracle's row? `exact` demands equality; else
/// keys may be exchanged whose scores float32 cannot tell apart. Empty: it does.
std::string compare(const IndexerConfig& resolved, const OracleRow& row,
                    const std::vector<std::int32_t>& list, bool exact);

/// The oracle's own resolution of -1.
IndexerConfig resolved(IndexerConfig config);

}  // namespace quarry::test
