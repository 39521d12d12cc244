// SPDX-License-Identifier: Apache-2.0
#include "model.h"

#include <algorithm>
#include <cmath>

#include "dequantize.h"
#include "error.h"

namespace quarry::smollm2 {
namespace {

/// A model beyond these is not what this example is for; products of them stay in 64 bits.
constexpr std::uint64_t kMaxExtent = 1u << 20;
constexpr std::uint64_t kMaxLayers = 1024;

class Loader {
 public:
  explicit Loader(const GgufFile& file) : file_(file) {}

  Model load() {
    if (file_.text("general.architecture") != "llama") {
      file_.refuse("general.architecture is '" +
                   tools::printable(file_.text("general.architecture")) + "', llama is built");
    }
    Model model;
    model.name = tools::printable(file_.text("general.name"));
    read_shape(&model.shape);
    if (file_.has_tensor("output.weight")) {
      file_.refuse("has output.weight: models whose embedding is tied are built");
    }
    const ModelShape& s = model.shape;
    model.embedding = matrix("token_embd.weight", s.vocabulary, s.width);
    model.final_norm = matrix("output_norm.weight", 1, s.width).data;
    for (std::int32_t i = 0; i < s.layers; ++i) model.layers.push_back(layer(i, s));
    return model;
  }

 private:
  std::int32_t extent(const std::string& key, std::uint64_t at_most = kMaxExtent) const {
    const std::uint64_t value = file_.number(key);
    if (value == 0 || value > at_most) {
      file_.refuse(key + " is " + std::to_string(value) + ", 1 to " + std::to_string(at_most) +
                   " are possible");
    }
    return static_cast<std::int32_t>(value);
  }

  void read_shape(ModelShape* s) const {
    s->layers = extent("llama.block_count", kMaxLayers);
    s->width = extent("llama.embedding_length");
    s->hidden = extent("llama.feed_forward_length");
    s->vocabulary = extent("llama.vocab_size");
    s->context = extent("llama.context_length");
    s->query_heads = extent("llama.attention.head_count");
    s->kv_heads = extent("llama.attention.head_count_kv");
    s->norm_eps = static_cast<float>(file_.real("llama.attention.layer_norm_rms_epsilon"));
    s->rotary_base = file_.real("llama.rope.freq_base");
    s->d = s->width / s->query_heads;
    if (s->width % s->query_heads != 0 || s->query_heads % s->kv_heads != 0 || s->d % 2 != 0) {
      file_.refuse(std::to_string(s->query_heads) + " query and " + std::to_string(s->kv_heads) +
                   " KV heads do not divide a width of " + std::to_string(s->width));
    }
    if (file_.number("llama.rope.dimension_count") != static_cast<std::uint64_t>(s->d)) {
      file_.refuse("llama.rope.dimension_count is not the head dimension " + std::to_string(s->d));
    }
    if (!(s->norm_eps >= 0) || !(s->rotary_base > 0) || !std::isfinite(s->rotary_base)) {
      file_.refuse("the norm's epsilon or the rotary base is not a positive number");
    }
  }

  /// [out, in]; a vector where out is 1.
  Matrix matrix(const std::string& name, std::int64_t out, std::int64_t in) const {
    const GgufTensor& tensor = file_.tensor(name);
    std::vector<std::uint64_t> expected = {static_cast<std::uint64_t>(in)};
    if (out != 1) expected.push_back(static_cast<std::uint64_t>(out));
    if (tensor.extents != expected) {
      file_.refuse("tensor '" + name + "' is " + describe(tensor) + ", not " + std::to_string(out) +
                   " rows of " + std::to_string(in));
    }
    return {dequantize(tensor), out, in};
  }

  /// GGUF's llama weights have the rows of a head interleaved, so that elements 2i and 2i+1 are
  /// a rotary pair. Back in the model's own order, where i and d/2 + i are: the keys are then
  /// what most engines cache.
  static Matrix unpermuted(const Matrix& from, std::int64_t d) {
    Matrix to = from;
    for (std::int64_t row = 0; row < from.out; ++row) {
      const std::int64_t head = row / d * d, i = row % d;
      std::copy_n(from.data.data() + row * from.in, from.in,
                  to.data.data() + (head + i / 2 + i % 2 * (d / 2)) * from.in);
    }
    return to;
  }

  LayerWeights layer(std::int32_t index, const ModelShape& s) const {
    const std::string prefix = "blk." + std::to_string(index) + ".";
    const auto named = [&](const char* name, std::int64_t out, std::int64_t in) {
      return matrix(prefix + name + ".weight", out, in);
    };
    const std::int64_t kv_width = std::int64_t{s.kv_heads} * s.d;
    LayerWeights w;
    w.attention_norm = named("attn_norm", 1, s.width).data;
    w.ffn_norm = named("ffn_norm", 1, s.width).data;
    w.q = unpermuted(named("attn_q", s.width, s.width), s.d);
    w.k = unpermuted(named("attn_k", kv_width, s.width), s.d);
    w.v = named("attn_v", kv_width, s.width);
    w.output = named("attn_output", s.width, s.width);
    w.gate = named("ffn_gate", s.hidden, s.width);
    w.up = named("ffn_up", s.hidden, s.width);
    w.down = named("ffn_down", s.width, s.hidden);
    return w;
  }

  const GgufFile& file_;
};

void add(const std::vector<float>& from, float* to) {
  for (std::size_t i = 0; i < from.size(); ++i) to[i] += from[i];
}

}  // namespace

Model load_model(const GgufFile& file) { return Loader(file).load(); }

KvCache::KvCache(const ModelShape& shape, std::int32_t capacity)
    : capacity_(capacity),
      d_(shape.d),
      row_(std::int64_t{shape.kv_heads} * shape.d),
      layer_(row_ * capacity),
      keys_(static_cast<std::size_t>(layer_ * shape.layers)),
      values_(keys_.size()) {}

HeadCache KvCache::head(std::int32_t layer, std::int32_t kv_head) const {
  const std::int64_t offset = std::int64_t{kv_head} * d_;
  return {keys(layer) + offset, values(layer) + offset, row_, d_};
}

Forward::Forward(const Model& model, std::int32_t capacity)
    : model_(model), rotary_(capacity, model.shape.d, model.shape.rotary_base) {}

std::vector<float> Forward::run(std::span<const std::int32_t> tokens, std::int32_t first,
                                Attention& attention, KvCache& cache,
                                const std::function<void(std::int32_t)>& progress) const {
  const ModelShape& s = model_.shape;
  const auto rows = static_cast<std::int64_t>(tokens.size());
  if (first < 0 || first + rows > cache.capacity()) {
    throw tools::BadInput(std::to_string(first + rows) + " positions in a cache of " +
                          std::to_string(cache.capacity()));
  }
  std::vector<float> x(static_cast<std::size_t>(rows * s.width));
  for (std::int64_t t = 0; t < rows; ++t) {
    const std::int32_t token = tokens[static_cast<std::size_t>(t)];
    if (token < 0 || token >= s.vocabulary) {
      throw tools::BadInput("token " + std::to_string(token) + " is not in the vocabulary");
    }
    std::copy_n(model_.embedding.data.data() + std::int64_t{token} * s.width, s.width,
                x.data() + t * s.width);
  }

  std::vector<float> normed(x.size()), q(x.size()), out(x.size());
  for (std::int32_t l = 0; l < s.layers; ++l) {
    const LayerWeights& w = model_.layers[static_cast<std::size_t>(l)];
    float* keys = cache.keys(l) + first * cache.row();
    rms_norm(x.data(), rows, w.attention_norm, s.norm_eps, normed.data());
    project(normed.data(), rows, w.q, q.data());
    project(normed.data(), rows, w.k, keys);
    project(normed.data(), rows, w.v, cache.values(l) + first * cache.row());
    for (std::int32_t t = 0; t < rows; ++t) {
      rotary_.rotate(q.data() + std::int64_t{t} * s.width, s.query_heads, first + t);
      rotary_.rotate(keys + t * cache.row(), s.kv_heads, first + t);
    }
    attention.attend(l, first, static_cast<std::int32_t>(rows), q.data(), cache, out.data());
    project(out.data(), rows, w.output, normed.data());
    add(normed, x.data());
    feed_forward(w, rows, x.data());
    if (progress) progress(l);
  }
  rms_norm(x.data(), rows, model_.final_norm, s.norm_eps, x.data());
  return x;
}

void Forward::feed_forward(const LayerWeights& layer, std::int64_t rows, float* x) const {
  // In parts: the hidden activations of a long prompt need not all exist at once.
  constexpr std::int64_t kPart = 1024;
  const ModelShape& s = model_.shape;
  std::vector<float> normed, gate, up;
  for (std::int64_t begin = 0; begin < rows; begin += kPart) {
    const std::int64_t part = std::min(kPart, rows - begin);
    float* to = x + begin * s.width;
    normed.resize(static_cast<std::size_t>(part * s.width));
    gate.resize(static_cast<std::size_t>(part * s.hidden));
    up.resize(gate.size());
    rms_norm(to, part, layer.ffn_norm, s.norm_eps, normed.data());
    project(normed.data(), part, layer.gate, gate.data());
    project(normed.data(), part, layer.up, up.data());
    swiglu(gate.data(), up.data(), part * s.hidden);
    project(gate.data(), part, layer.down, normed.data());
    add(normed, to);
  }
}

}  // namespace quarry::smollm2
