// SPDX-License-Identifier: Apache-2.0
//
// A small engine around one Indexer and the oracle beside it. Every call goes to both; what
// the Indexer writes is compared with the oracle (oracle.h) and looked at a second time
// (check.h). Outputs and scratch are poisoned, scratch is of the exact size, and keys the
// contract does not allow a call to read are NaN while it runs.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "device.h"
#include "launch_modes.h"
#include "oracle.h"
#include "random.h"

namespace quarry::test {

/// Where keys, queries and centroids come from.
enum class Values {
  gaussian,      ///< with a mean that drifts along the positions, as real keys have
  integers,      ///< -3 .. 3: float32 sums of them are exact
  tied,          ///< all keys the same
  two_valued,    ///< two keys
  nan,           ///< gaussian, some coordinates NaN
  infinite,      ///< gaussian, some coordinates +-infinity
  signed_zero,   ///< -0, +0 and a few +-1
  denormal,      ///< gaussian times the smallest denormals
  huge_cluster,  ///< nearly all keys the same, the others far away
};
const char* to_string(Values v);

struct Scenario {
  IndexerConfig config;
  Backend backend = Backend::cpu;
  LaunchMode mode = LaunchMode::stream;
  DType key_dtype = DType::float32, query_dtype = DType::float32;
  std::vector<float> key_scales;  ///< of float8_e4m3 keys: none, one, or one a KV head
  Values keys = Values::gaussian, queries = Values::gaussian, centroids = Values::gaussian;
  bool padded = false;      ///< heads outermost in a page, gaps between everything
  bool misaligned = false;  ///< keys and queries aligned to their element alone
  bool weights = false, dense_weights = false;
  bool physical = false;  ///< both widths of physical_indices
  bool previous = false;  ///< previous_* for dense_weights from the second step on
  bool host_copies = false;
  bool caller_memory = false;
  int threads = 0;
  int index_padding = 0;  ///< entries of index_stride beyond max_list_length()
  std::uint64_t seed = 1;
  bool check = true;       ///< compare with the oracle (off: only collect what came out)
  bool write_keys = true;  ///< off: the test writes all of them, and they are 0 before

  /// After `config` has been set: its algorithm is part of it.
  void on(const Target& target) {
    backend = target.backend;
    config.algorithm = target.algorithm;
  }
  /// A GQA reduction is served by `staged` alone on CUDA.
  bool served_by(const Target& target) const {
    return target.algorithm != Algorithm::scan || target.backend == Backend::cpu ||
           config.gqa_reduction == GqaReduction::per_head;
  }
};

/// A configuration of modest size to start from.
IndexerConfig small_config();
/// Pages of `page_size` for every slot and a few to spare.
void use_pages(IndexerConfig* config, int page_size);

/// One sequence a slot 0 .. B-1, one token each.
HostBatch lengths(std::vector<std::int32_t> n);

struct StepOutput {
  Status status;
  std::vector<std::int32_t> indices;  ///< [rows, max_list]
  std::vector<std::int32_t> lengths;  ///< [rows]
  std::vector<std::uint32_t> bits;    ///< [B], what the call added to device_status

  bool operator==(const StepOutput& o) const {
    return indices == o.indices && lengths == o.lengths && bits == o.bits;
  }
};

class World {
 public:
  explicit World(const Scenario& setup);
  ~World();

  const Scenario& setup() const { return setup_; }
  Indexer& indexer() { return indexer_; }
  Oracle& oracle() { return oracle_; }
  Launcher& launcher() { return launcher_; }
  const IndexerConfig& config() const { return oracle_.config(); }

  /// What went wrong so far; empty when nothing did.
  const std::string& error() const { return error_; }

  void set_codebook(int slot, std::uint64_t seed = 7);
  /// The random codebook set_codebook() would use.
  Codebook make_codebook(std::uint64_t seed) const;
  void set_codebook(int slot, const Codebook& codebook);
  /// `trained`: the codebook it came to is taken over by the oracle.
  Status build(int slot, int n, bool retrain = false, const Codebook* rotations = nullptr);
  void append(const HostBatch& batch);
  StepOutput next(const HostBatch& batch);
  void truncate(const std::vector<std::int32_t>& slots, const std::vector<std::int32_t>& lengths);
  void reset(int slot);

  /// The calls of a sequence's life (life.cpp). The engine's part is done with them: keys of
  /// pages that a fork or copy_pages() copies are copied too.
  Status attach(const std::vector<std::int32_t>& slots, const std::vector<std::int32_t>& lengths,
                std::uint64_t codebook_id, std::vector<std::uint32_t>* bits = nullptr);
  Status fork(int from, int to, int length = -1);
  Status copy_pages(const std::vector<std::int32_t>& from, const std::vector<std::int32_t>& to);
  struct Saved {
    Status status;
    std::vector<std::uint8_t> bytes;
    Oracle::Saved oracle;
  };
  Saved save(int slot, int length = -1);
  Status restore(int slot, const std::vector<std::uint8_t>& bytes, const Oracle::Saved* oracle);

  /// Other keys at positions [from, to) of a slot, as after rejected tokens.
  void overwrite(int slot, int from, int to, std::uint64_t seed);
  Cache& cache() { return cache_; }
  Pages& pages(int slot) { return pages_[slot]; }
  /// Other scales, in the memory the last ones had; the elements of the cache stay.
  void rescale(const std::vector<float>& scales);
  /// The next steps' queries [B, T, Hq, d], in place of random ones.
  void use_queries(std::vector<float> queries) { queries_ = std::move(queries); }

  /// Codes of positions encode_from .. encoded_end(n)-1, as Indexer::codes() gives them.
  std::vector<std::uint8_t> codes(int slot, int n);
  Codebook read_codebook(int slot);

  /// Views over what the last call was given, for calls made by hand.
  KeyView key_view();
  QueryView query_view();

 private:
  struct Buffers;

  void fail(const std::string& text);
  std::vector<float> random_vector(Values values, Random& random, int n, float scale) const;
  float key_scale(int head) const;
  void fill_key(Values values, int head, int slot, int position, std::uint64_t seed);
  void show_keys(const HostBatch* batch, int build_slot, int build_length);
  void show_sequence(std::vector<std::uint8_t>& image, int slot, int begin, int n);
  std::vector<float> put_queries(const HostBatch& batch);
  Batch put_batch(const HostBatch& batch);
  DeviceBytes& workspace(int batch_size, int query_tokens);
  void check_codes(const HostBatch& batch);
  void check_step(const HostBatch& batch, const std::vector<OracleRow>& rows,
                  const std::vector<std::uint32_t>& bits, const std::vector<float>& queries,
                  const StepOutput& out);
  void check_weights(const HostBatch& batch, const StepOutput& out, bool had_previous);
  void check_physical(const HostBatch& batch, const StepOutput& out);
  void copy_keys(int from_page, int to_page);
  std::vector<Pages> tables(const HostBatch& batch) const;
  bool exact() const;

  Scenario setup_;
  Oracle oracle_;
  Launcher launcher_;
  std::unique_ptr<DeviceBytes> index_memory_;
  Indexer indexer_;
  Cache cache_;
  std::vector<Pages> pages_;
  std::vector<float> queries_;
  int step_ = 0;
  std::unique_ptr<Buffers> buffers_;
  std::map<std::pair<int, int>, std::unique_ptr<DeviceBytes>> workspaces_;
  std::optional<std::pair<HostBatch, StepOutput>> last_;
  std::string error_;
};

}  // namespace quarry::test
