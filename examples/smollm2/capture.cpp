// SPDX-License-Identifier: Apache-2.0
#include "capture.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "half.h"
#include "safetensors.h"

namespace quarry::smollm2 {
namespace {

constexpr std::int32_t kDecodeStep = 8, kPromptStep = 16;

void narrow(const float* from, std::int64_t count, std::byte* to) {
  for (std::int64_t i = 0; i < count; ++i) store_element(to, DType::float16, i, from[i]);
}

tools::TypedArray narrowed(const float* from, std::int64_t count) {
  tools::TypedArray out;
  out.dtype = DType::float16;
  out.bytes.resize(static_cast<std::size_t>(2 * count));
  narrow(from, count, out.bytes.data());
  return out;
}

}  // namespace

Capture::Capture(const ModelShape& model, std::int32_t n) : model_(model), n_(n), dense_(model) {
  for (std::int32_t p = 0; p < n / 2; p += kPromptStep) prompt_.positions.push_back(p);
  for (std::int32_t p = n / 2; p < n; p += kDecodeStep) decode_.positions.push_back(p);
  for (Queries* queries : {&decode_, &prompt_}) {
    queries->layers.resize(static_cast<std::size_t>(model.layers));
    for (tools::TypedArray& array : queries->layers) {
      array.dtype = DType::float16;
      array.bytes.resize(queries->positions.size() * static_cast<std::size_t>(2 * model.width));
    }
  }
}

void Capture::attend(std::int32_t layer, std::int32_t first, std::int32_t count, const float* q,
                     const KvCache& cache, float* out) {
  keep(&decode_, layer, first, count, q);
  keep(&prompt_, layer, first, count, q);
  dense_.attend(layer, first, count, q, cache, out);
}

void Capture::keep(Queries* queries, std::int32_t layer, std::int32_t first, std::int32_t count,
                   const float* q) const {
  std::byte* to = queries->layers[static_cast<std::size_t>(layer)].bytes.data();
  for (const std::int32_t p : queries->positions) {
    if (p >= first && p < first + count) {
      narrow(q + std::int64_t{p - first} * model_.width, model_.width, to);
    }
    to += 2 * model_.width;
  }
}

tools::Trace Capture::trace(std::int32_t layer, const KvCache& cache, const std::string& model,
                            const std::string& text) const {
  const auto index = static_cast<std::size_t>(layer);
  tools::Trace out;
  out.n = n_;
  out.hkv = model_.kv_heads;
  out.hq = model_.query_heads;
  out.d = model_.d;
  out.k = narrowed(cache.keys(layer), n_ * cache.row());
  out.v = narrowed(cache.values(layer), n_ * cache.row());
  out.q = decode_.layers[index];
  out.q_pos = decode_.positions;
  out.queries = static_cast<std::int32_t>(decode_.positions.size());
  out.q_train = prompt_.layers[index];
  out.train_queries = static_cast<std::int32_t>(prompt_.positions.size());
  out.metadata = {{"layer", std::to_string(layer)},
                  {"model", model},
                  {"text", text},
                  {"keys", "after rotary embedding"},
                  {"scale", fmt::format("{:g}", 1 / std::sqrt(static_cast<double>(model_.d)))}};
  return out;
}

void save_trace(const std::string& path, const tools::Trace& trace) {
  const auto shape = [&](std::int64_t rows, std::int64_t heads) {
    return std::vector<std::int64_t>{rows, heads, trace.d};
  };
  tools::write_safetensors(
      path,
      {{"k", "F16", shape(trace.n, trace.hkv), trace.k.bytes.data()},
       {"v", "F16", shape(trace.n, trace.hkv), trace.v.bytes.data()},
       {"q", "F16", shape(trace.queries, trace.hq), trace.q.bytes.data()},
       {"q_train", "F16", shape(trace.train_queries, trace.hq), trace.q_train.bytes.data()},
       {"q_pos", "I32", {trace.queries}, trace.q_pos.data()}},
      trace.metadata);
}

}  // namespace quarry::smollm2
