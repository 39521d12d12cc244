// SPDX-License-Identifier: Apache-2.0
//
// An Indexer with its cache, queries and outputs, filled and ready for a decode step.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "quarry/quarry.h"
#include "support/timing.h"

namespace quarry::bench {

struct Workload {
  const char* name;
  IndexerConfig config;
  std::int32_t length;  ///< n of every sequence
  DType dtype;          ///< of keys and queries
};

/// The workloads that docs and README quote.
Workload original();                                ///< 32 heads x 32000, m=2 b=6
Workload codes_of(std::int32_t m, std::int32_t b);  ///< 32 heads x 32000
Workload original_rotated();                        ///< the original and a rotation
Workload original_refined();                        ///< the original and refine 4
/// The same a position earlier: no block is completed, as in 63 of 64 steps.
Workload within_block(Workload workload, const char* name);
/// codes_of(m, 4) with Hkv 8, one list for 4 query heads.
Workload reduced(GqaReduction reduction, std::int32_t m);
/// The same cache in pages, in random order.
Workload paged(Workload workload, std::int32_t page_size, const char* name);
Workload gqa_128k();                           ///< Hq 32, Hkv 8, 131072 positions, m=2 b=6
Workload rows_256();                           ///< B=8, 32 heads, 131072 positions, K=1024
Workload recommended(std::int32_t sequences);  ///< Hq 32, Hkv 8, 131072, K=256
Workload calibrated_32k();                     ///< 32 heads x 32768, m=16 b=4, block 64, rotation
Workload prefill(Workload workload);           ///< bfloat16 keys, max_seq_len of them
Workload with(Algorithm algorithm, Workload workload);

/// The raw keys of a workload, which all its layers share: it is their codes that are read
/// whole at every step. [sequence][position][head][d]; normal keys, a random stretch of them
/// repeated where the cache is large (2 GB of random numbers would take longer to make than
/// to use).
class KeyCache {
 public:
  KeyCache(const Workload& workload, tools::DeviceQueue& queue);
  const KeyView& view() const noexcept { return view_; }
  /// Whether these are the keys that KeyCache(workload, ...) would make.
  bool fits(const Workload& workload) const noexcept;

 private:
  Workload workload_;
  tools::DeviceMemory memory_;
  KeyView view_;
};

/// One layer of a model. Keys are normal with unit variance; codebooks are drawn alike
/// (a score's cost does not depend on their quality).
class Layer {
 public:
  Layer(const Workload& workload, Backend backend, const KeyCache& keys, tools::DeviceQueue& queue,
        unsigned seed);

  const Status& status() const noexcept { return status_; }
  Indexer& indexer() noexcept { return indexer_; }
  const NextArgs& args() const noexcept { return args_; }
  void* index_memory() const noexcept { return index_memory_; }
  /// A decode step at the workload's length, the newest key encoded anew.
  Status next(tools::DeviceQueue& queue) { return indexer_.next(args_, queue.stream()); }
  /// Prefill of slot 0; `retrain`: with k-means.
  Status build(tools::DeviceQueue& queue, bool retrain);

 private:
  Status fill(const Workload& workload, Backend backend, const KeyCache& keys,
              tools::DeviceQueue& queue, unsigned seed);

  Indexer indexer_;
  NextArgs args_;
  void* index_memory_ = nullptr;
  tools::DeviceMemory build_workspace_;
  std::vector<tools::DeviceMemory> memory_;
  Status status_;
};

/// As many layers as it takes for their codes to exceed twice the device's cache (1 on the
/// CPU), as work to replay.
struct Model {
  Model(const Workload& workload, Backend backend, tools::DeviceQueue& queue);
  /// Over keys that are there; they must fit the workload.
  Model(const Workload& workload, Backend backend, tools::DeviceQueue& queue,
        std::shared_ptr<const KeyCache> keys);
  std::vector<Work> steps();
  Status status() const;

  std::shared_ptr<const KeyCache> keys;
  std::vector<Layer> layers;
};

/// Bytes that a Model of `workload` holds on the backend's device, from the sizes alone: the keys
/// and every layer's index, scratch and lists (codebooks as given and queries are small beside
/// them). Nothing is allocated.
Status model_bytes(const Workload& workload, Backend backend, std::size_t* bytes);

/// Registers `run(state, backend)` for every backend that is there and, where `serves` is given,
/// serves it.
void for_each_backend(const std::string& name,
                      const std::function<void(benchmark::State&, Backend)>& run,
                      const std::function<bool(Backend)>& serves = nullptr);

/// Normal deviates of unit variance, the same for the same seed.
std::vector<float> normal(std::size_t count, unsigned seed);
/// `values` narrowed to `dtype`.
std::vector<std::byte> narrowed(const std::vector<float>& values, DType dtype);

}  // namespace quarry::bench
