// SPDX-License-Identifier: Apache-2.0
//
// The ways a layer attends here: over all positions, or over lists that come from exact
// scores or from quarry.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "calibration.h"
#include "model.h"
#include "quarry/quarry.h"

namespace quarry::smollm2 {

class DenseAttention : public Attention {
 public:
  explicit DenseAttention(const ModelShape& model) : query_heads_(model.query_heads) {}
  void attend(std::int32_t layer, std::int32_t first, std::int32_t count, const float* q,
              const KvCache& cache, float* out) override;

 private:
  std::int32_t query_heads_;
};

/// One list a query and query head.
struct Lists {
  std::int32_t stride = 0;
  std::vector<std::int32_t> entries;  ///< [count, query_heads, stride]
  std::vector<std::int32_t> lengths;  ///< [count, query_heads]
};

/// Attention over lists, by a plain gather: what an engine's sparse kernel computes.
class ListAttention : public Attention {
 public:
  void attend(std::int32_t layer, std::int32_t first, std::int32_t count, const float* q,
              const KvCache& cache, float* out) final;

  /// Processor time spent in find() so far.
  double list_seconds() const noexcept { return list_seconds_; }

 protected:
  explicit ListAttention(std::int32_t query_heads) : query_heads_(query_heads) {}
  /// `lists` comes with lengths of the right size and entries to be sized.
  virtual void find(std::int32_t layer, std::int32_t first, std::int32_t count, const float* q,
                    const KvCache& cache, Lists* lists) = 0;
  std::int32_t query_heads_;

 private:
  Lists lists_;
  double list_seconds_ = 0;
};

/// The three parts of a list.
struct ListShape {
  std::int32_t sink = 16, heavy = 128, window = 64;
};

/// Sink, the K candidates of largest q.k (ties to the lower position), window: the ceiling.
class ExactLists final : public ListAttention {
 public:
  ExactLists(const ModelShape& model, const ListShape& shape)
      : ListAttention(model.query_heads), shape_(shape) {}

 protected:
  void find(std::int32_t layer, std::int32_t first, std::int32_t count, const float* q,
            const KvCache& cache, Lists* lists) override;

 private:
  ListShape shape_;
};

/// One Indexer a layer, asked token by token as an engine asks it.
class QuarryLists final : public ListAttention {
 public:
  /// `config` needs no shape; one calibration a layer where config.shared_codebook. The
  /// prompt, positions below `prefill`, is in the cache. Throws Error.
  QuarryLists(IndexerConfig config, const ModelShape& model, const KvCache& cache,
              std::int32_t prefill, const std::vector<tools::LayerCalibration>& calibrations,
              std::int32_t threads);

  /// Codes, means, codebooks and state of all layers.
  std::size_t index_bytes() const noexcept { return index_bytes_; }

 protected:
  void find(std::int32_t layer, std::int32_t first, std::int32_t count, const float* q,
            const KvCache& cache, Lists* lists) override;

 private:
  std::vector<Indexer> layers_;
  std::vector<std::byte> memory_;
  Workspace workspace_;
  std::size_t index_bytes_ = 0;
};

}  // namespace quarry::smollm2
