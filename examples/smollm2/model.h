// SPDX-License-Identifier: Apache-2.0
//
// A llama-architecture model read from a GGUF file, and its forward pass with the attention
// left to others.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "arithmetic.h"
#include "gguf.h"

namespace quarry::smollm2 {

struct ModelShape {
  std::int32_t layers = 0, width = 0, hidden = 0, vocabulary = 0, context = 0;
  std::int32_t query_heads = 0, kv_heads = 0, d = 0;
  float norm_eps = 0;
  double rotary_base = 0;
};

struct LayerWeights {
  std::vector<float> attention_norm, ffn_norm;
  Matrix q, k, v, output, gate, up, down;
};

struct Model {
  std::string name;
  ModelShape shape;
  std::vector<LayerWeights> layers;
  std::vector<float> final_norm;
  Matrix embedding;  ///< [vocabulary, width], of input and output
};

/// Dequantizes all weights. Throws BadInput where the file is of another architecture or a
/// tensor has another shape than its metadata say.
Model load_model(const GgufFile& file);

/// Keys (after rotary embedding) and values of one sequence, float32: a layer's are
/// [capacity, kv_heads, d].
class KvCache {
 public:
  KvCache(const ModelShape& shape, std::int32_t capacity);

  std::int32_t capacity() const noexcept { return capacity_; }
  std::int64_t row() const noexcept { return row_; }  ///< kv_heads * d
  float* keys(std::int32_t layer) { return keys_.data() + layer * layer_; }
  float* values(std::int32_t layer) { return values_.data() + layer * layer_; }
  const float* keys(std::int32_t layer) const { return keys_.data() + layer * layer_; }
  const float* values(std::int32_t layer) const { return values_.data() + layer * layer_; }
  HeadCache head(std::int32_t layer, std::int32_t kv_head) const;

 private:
  std::int32_t capacity_, d_;
  std::int64_t row_, layer_;
  std::vector<float> keys_, values_;
};

/// How a layer attends.
class Attention {
 public:
  virtual ~Attention() = default;
  /// Writes out [count, query_heads, d] for the queries q of the same shape at positions
  /// first, first + 1, ..., whose keys and values are in the cache.
  virtual void attend(std::int32_t layer, std::int32_t first, std::int32_t count, const float* q,
                      const KvCache& cache, float* out) = 0;
};

/// Runs tokens at positions first, first + 1, ... through all layers, appending to the cache
/// what they bring; positions below first must be there. The hidden states [count, width]
/// after the last norm are returned. With causal attention the result does not depend, up to
/// rounding, on how a sequence is cut into calls: one token a call is a decode, all at once
/// is teacher forcing with the projections as matrix products.
class Forward {
 public:
  Forward(const Model& model, std::int32_t capacity);

  std::vector<float> run(std::span<const std::int32_t> tokens, std::int32_t first,
                         Attention& attention, KvCache& cache,
                         const std::function<void(std::int32_t layer)>& progress = {}) const;

  /// logits [rows, vocabulary].
  void logits(const float* hidden, std::int64_t rows, float* out) const {
    project(hidden, rows, model_.embedding, out);
  }
  const Model& model() const noexcept { return model_; }

 private:
  void feed_forward(const LayerWeights& layer, std::int64_t rows, float* x) const;

  const Model& model_;
  RotaryTable rotary_;
};

}  // namespace quarry::smollm2
