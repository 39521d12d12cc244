// SPDX-License-Identifier: Apache-2.0
//
// What restricting attention to lists costs and how fast it decodes.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "attention.h"
#include "model.h"

namespace quarry::smollm2 {

struct EvaluateOptions {
  std::int32_t prefill = 4096;  ///< positions read densely
  std::int32_t decode = 64;     ///< tokens decoded one by one for the speed
  ListShape lists;
  std::int32_t index_threads = 1;  ///< of next(): a small layer's step is too short to share
};

/// A way of attending: "dense", "exact", "recommended" (calibrated) or "original" (trained on
/// the prompt).
struct ModeResult {
  std::string name;
  double perplexity = 0;         ///< of the tokens after the first that attends by lists
  double tokens_per_second = 0;  ///< 1 / median time of a decoded token, its logits included
  // Processor time does not depend on who else uses the machine.
  double cpu_ms = 0;              ///< median of a decoded token, all threads
  double list_ms = 0;             ///< of it, mean of all layers' lists
  double largest_difference = 0;  ///< of log-likelihoods, decoded one by one against all at once
  std::size_t index_bytes = 0;    ///< of all layers, 0 without an index
};

/// One sequence whose prompt has been read: modes are measured on it one after the other.
class Evaluation {
 public:
  /// Reads the prompt densely. `tokens` and `calibrations` are the caller's. Throws Error.
  Evaluation(const Model& model, std::span<const std::int32_t> tokens,
             const std::vector<tools::LayerCalibration>& calibrations,
             const EvaluateOptions& options);

  /// Every token from `prefill` on attends, in every layer, the way `mode` says. Perplexity is
  /// measured with all tokens of a layer at once (the layer below is known for all of them),
  /// each asking its lists in order; then the first `decode` ones again one by one.
  ModeResult run(const std::string& mode);

  double prefill_seconds() const noexcept { return prefill_seconds_; }

 private:
  struct Chosen {
    std::unique_ptr<Attention> attention;
    const ListAttention* lists = nullptr;  // null: dense
    std::size_t index_bytes = 0;
  };
  Chosen choose(const std::string& mode) const;
  std::vector<double> log_likelihoods(const std::vector<float>& hidden) const;
  void decode(const std::string& mode, const std::vector<double>& expected, ModeResult* result);

  std::span<const std::int32_t> tokens_;
  const std::vector<tools::LayerCalibration>& calibrations_;
  EvaluateOptions options_;
  Forward forward_;
  KvCache cache_;
  double prefill_seconds_ = 0;
};

/// What QuarryLists are made with in the modes "recommended" and "original".
IndexerConfig recommended_config(const ModelShape& model, const ListShape& lists);
IndexerConfig original_config(const ListShape& lists);

}  // namespace quarry::smollm2
