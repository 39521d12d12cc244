// SPDX-License-Identifier: Apache-2.0
//
// A small serving engine with continuous batching: a paged cache with reference counts,
// copy-on-write and prefix caching, speculative drafts, and sequences that join from a prompt,
// a cached prefix, a live sequence or saved bytes, and leave. The oracle goes along.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "checksum.h"
#include "device.h"
#include "launch_modes.h"
#include "oracle.h"
#include "random.h"

namespace quarry::test {

struct SoakSetup {
  IndexerConfig config;
  Backend backend = Backend::cpu;
  LaunchMode mode = LaunchMode::stream;
  int threads = 0;
  std::uint64_t seed = 1;
  int check_every = 8;  ///< steps between lists compared with the oracle
};

/// What a run did: a soak that never forked has tested nothing.
struct SoakCounts {
  int steps = 0, prompts = 0, attached = 0, refused = 0, forks = 0, restored = 0, saved = 0;
  int left = 0, truncated = 0, copied_pages = 0, evicted = 0, rejected_drafts = 0;
  int checked_rows = 0, checked_codes = 0;
};

class Soak {
 public:
  explicit Soak(const SoakSetup& setup);

  void step();

  const std::string& error() const { return error_; }
  const SoakCounts& counts() const { return counts_; }
  /// Checksum of every list and length so far.
  std::uint64_t digest() const { return digest_.value(); }
  long allocations() const { return allocations_; }  ///< by quarry's calls

 private:
  struct Sequence {
    bool active = false;
    int n = 0;     ///< accepted positions, keys written
    int seen = 0;  ///< what the index has seen
    Pages pages;
  };
  struct Prefix {
    Pages pages;
    int length;
    std::uint64_t codebook_id;
  };
  struct SavedSequence {
    std::vector<std::uint8_t> bytes;
    std::vector<float> keys;  ///< [n][Hkv][d]
    int n;
    Oracle::Saved oracle;
  };

  // soak.cpp: the step.
  void take_steps();
  void check(const HostBatch& batch, const std::vector<float>& queries);
  void check_codes();
  template <typename F>
  bool call(const char* what, const std::string& shape, F&& f);
  void fail(const std::string& text);
  KeyView key_view(const std::int32_t* table);
  void upload_keys();
  const std::int32_t* upload_table(int row, const Pages& pages);

  // soak_life.cpp: joining, leaving, pages.
  void join(int slot);
  void join_by_prompt(int slot);
  bool join_by_prefix(int slot);
  bool join_by_fork(int slot, int from);
  bool join_by_restore(int slot);
  void leave(int slot);
  void rewind(int slot);
  int take_page();
  void drop_page(int page);
  bool own(Sequence& s, int from, int to);
  bool copy_on_write(Sequence& s, std::size_t index);
  void write_keys(const Sequence& s, int from, int to);
  int slot_of_choice(bool active);
  float* key(const Sequence& s, int position);

  SoakSetup setup_;
  Random random_;
  Oracle oracle_;
  Launcher launcher_;
  Indexer indexer_;
  MemoryRequirements need_;
  Cache cache_;
  std::vector<int> references_;
  std::vector<int> free_pages_;
  std::vector<Sequence> sequences_;
  std::deque<Prefix> prefixes_;
  std::deque<SavedSequence> saved_;
  std::vector<Codebook> books_;
  int table_stride_;
  std::unique_ptr<DeviceBuffer<float>> keys_, queries_, book_, phi_;
  std::unique_ptr<DeviceBuffer<std::int32_t>> table_, slots_, lengths_, counts_of_, list_, lens_,
      pairs_;
  std::unique_ptr<DeviceBuffer<std::uint32_t>> status_;
  std::unique_ptr<DeviceBytes> scratch_;
  SoakCounts counts_;
  Checksum digest_;
  long allocations_ = 0;
  std::string error_;
};

}  // namespace quarry::test
