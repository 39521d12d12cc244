// SPDX-License-Identifier: Apache-2.0
//
// Traces of a dense run, as quarry-replay and quarry-calibrate read them.
#pragma once

#include <string>
#include <vector>

#include "attention.h"
#include "trace.h"

namespace quarry::smollm2 {

/// Dense attention that keeps some of the queries it sees. The second half of a run of n
/// tokens stands for the decode: every 8th query of it becomes the trace's `q`, every 16th of
/// the first half, the prompt, its `q_train`.
class Capture final : public Attention {
 public:
  Capture(const ModelShape& model, std::int32_t n);

  void attend(std::int32_t layer, std::int32_t first, std::int32_t count, const float* q,
              const KvCache& cache, float* out) override;

  /// A layer after the run: float16 keys after rotary embedding, values and queries.
  tools::Trace trace(std::int32_t layer, const KvCache& cache, const std::string& model,
                     const std::string& text) const;

 private:
  struct Queries {
    std::vector<std::int32_t> positions;
    std::vector<tools::TypedArray> layers;  // [positions, query_heads, d] each
  };
  void keep(Queries* queries, std::int32_t layer, std::int32_t first, std::int32_t count,
            const float* q) const;

  ModelShape model_;
  std::int32_t n_;
  DenseAttention dense_;
  Queries decode_, prompt_;
};

/// Throws Error (internal) where the file cannot be written.
void save_trace(const std::string& path, const tools::Trace& trace);

}  // namespace quarry::smollm2
