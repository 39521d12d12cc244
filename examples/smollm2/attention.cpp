// SPDX-License-Identifier: Apache-2.0
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <ctime>

#include "error.h"

namespace quarry::smollm2 {

void DenseAttention::attend(std::int32_t layer, std::int32_t first, std::int32_t count,
                            const float* q, const KvCache& cache, float* out) {
  constexpr std::int32_t kPart = 64;  // queries whose scores are held at once
  const auto d = cache.head(layer, 0).d;
  const auto kv_heads = static_cast<std::int32_t>(cache.row() / d);
  const std::int32_t heads = query_heads_;
  const std::int64_t row = std::int64_t{heads} * d;
  const std::int32_t parts = (count + kPart - 1) / kPart;
#pragma omp parallel
  {
    std::vector<float> scores;
#pragma omp for schedule(dynamic)
    for (std::int32_t task = parts * heads - 1; task >= 0; --task) {  // the longest first
      const std::int32_t begin = task / heads * kPart, h = task % heads;
      const std::int32_t part = std::min(kPart, count - begin);
      scores.resize(static_cast<std::size_t>(part) *
                    static_cast<std::size_t>(first + begin + part));
      const std::int64_t offset = begin * row + std::int64_t{h} * d;
      attend_dense(cache.head(layer, h / (heads / kv_heads)), q + offset, row, first + begin, part,
                   scores.data(), out + offset, row);
    }
  }
}

void ListAttention::attend(std::int32_t layer, std::int32_t first, std::int32_t count,
                           const float* q, const KvCache& cache, float* out) {
  const std::int32_t heads = query_heads_;
  lists_.lengths.resize(static_cast<std::size_t>(count) * static_cast<std::size_t>(heads));
  const std::clock_t start = std::clock();
  find(layer, first, count, q, cache, &lists_);
  list_seconds_ += static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;

  const auto d = cache.head(layer, 0).d;
  const auto group = static_cast<std::int32_t>(heads / (cache.row() / d));
#pragma omp parallel
  {
    std::vector<float> scores(static_cast<std::size_t>(lists_.stride));
#pragma omp for schedule(static)
    for (std::int64_t r = 0; r < std::int64_t{count} * heads; ++r) {
      const auto h = static_cast<std::int32_t>(r % heads);
      attend_list(cache.head(layer, h / group), q + r * d,
                  lists_.entries.data() + r * lists_.stride,
                  lists_.lengths[static_cast<std::size_t>(r)], scores.data(), out + r * d);
    }
  }
}

void ExactLists::find(std::int32_t layer, std::int32_t first, std::int32_t count, const float* q,
                      const KvCache& cache, Lists* lists) {
  constexpr std::int32_t kPart = 64;
  const auto d = cache.head(layer, 0).d;
  const std::int32_t heads = query_heads_;
  const auto group = static_cast<std::int32_t>(heads / (cache.row() / d));
  const std::int64_t row = std::int64_t{heads} * d;
  lists->stride = shape_.sink + shape_.heavy + shape_.window;
  lists->entries.resize(lists->lengths.size() * static_cast<std::size_t>(lists->stride));
  const std::int32_t parts = (count + kPart - 1) / kPart;
#pragma omp parallel
  {
    std::vector<float> scores;
    std::vector<std::int32_t> order;
#pragma omp for schedule(dynamic)
    for (std::int32_t task = 0; task < parts * heads; ++task) {
      const std::int32_t begin = task / heads * kPart, h = task % heads;
      const std::int32_t part = std::min(kPart, count - begin), last = first + begin + part;
      scores.resize(static_cast<std::size_t>(part) * static_cast<std::size_t>(last));
      score_keys(cache.head(layer, h / group), q + begin * row + std::int64_t{h} * d, row, part,
                 last, scores.data());
      for (std::int32_t t = 0; t < part; ++t) {
        float* s = scores.data() + std::int64_t{t} * last;
        // NaN ranks below every number, and a comparison must order all there is.
        std::replace_if(
            s, s + last, [](float v) { return std::isnan(v); }, -INFINITY);
        const std::int32_t n = first + begin + t + 1;
        const std::int32_t from = std::min(shape_.sink, n);
        const std::int32_t to = std::max(from, n - shape_.window);
        order.clear();
        for (std::int32_t p = from; p < to; ++p) order.push_back(p);
        const auto kept = std::min<std::ptrdiff_t>(shape_.heavy, to - from);
        std::nth_element(
            order.begin(), order.begin() + kept, order.end(),
            [&](std::int32_t a, std::int32_t b) { return s[a] != s[b] ? s[a] > s[b] : a < b; });
        order.resize(static_cast<std::size_t>(kept));
        std::sort(order.begin(), order.end());
        const std::int64_t r = std::int64_t{begin + t} * heads + h;
        std::int32_t* list = lists->entries.data() + r * lists->stride;
        std::int32_t* end = list;
        for (std::int32_t p = 0; p < from; ++p) *end++ = p;
        end = std::copy(order.begin(), order.end(), end);
        for (std::int32_t p = to; p < n; ++p) *end++ = p;
        lists->lengths[static_cast<std::size_t>(r)] = static_cast<std::int32_t>(end - list);
      }
    }
  }
}

namespace {

KeyView view(const KvCache& cache, std::int32_t layer, std::int32_t d) {
  KeyView keys;
  keys.data = cache.keys(layer);
  keys.page_stride = cache.row() * cache.capacity();
  keys.slot_stride = cache.row();
  keys.head_stride = d;
  return keys;
}

}  // namespace

QuarryLists::QuarryLists(IndexerConfig config, const ModelShape& model, const KvCache& cache,
                         std::int32_t prefill,
                         const std::vector<tools::LayerCalibration>& calibrations,
                         std::int32_t threads)
    : ListAttention(model.query_heads) {
  config.num_query_heads = model.query_heads;
  config.num_kv_heads = model.kv_heads;
  config.head_dim = model.d;
  config.max_seq_len = cache.capacity();
  MemoryRequirements needs;
  tools::check(memory_requirements(config, Backend::cpu, &needs), "memory_requirements");
  const std::size_t bytes = std::max(needs.next_workspace_bytes, needs.build_workspace_bytes);
  memory_.resize(bytes + needs.alignment);
  void* aligned = memory_.data();
  std::size_t space = memory_.size();
  std::align(needs.alignment, bytes, aligned, space);
  workspace_ = {aligned, bytes};
  index_bytes_ = needs.index_bytes * static_cast<std::size_t>(model.layers);

  layers_.resize(static_cast<std::size_t>(model.layers));
  for (std::int32_t l = 0; l < model.layers; ++l) {
    Indexer& indexer = layers_[static_cast<std::size_t>(l)];
    const std::string label = "layer " + std::to_string(l) + ", ";
    tools::check(Indexer::create(config, {}, {threads, nullptr, 0}, &indexer), label + "create");
    if (config.shared_codebook) {
      const tools::LayerCalibration& of = calibrations.at(static_cast<std::size_t>(l));
      CodebookArgs codebook;
      codebook.codebooks = of.model.codebooks.data();
      codebook.rotation = of.model.rotation.data();
      codebook.query_rotation = of.model.query_rotation.data();
      tools::check(indexer.set_codebook(codebook, nullptr), label + "set_codebook");
    }
    BuildArgs build;
    build.length = prefill;
    build.keys = view(cache, l, model.d);
    build.workspace = workspace_;
    tools::check(indexer.build(build, nullptr), label + "build");
  }
}

void QuarryLists::find(std::int32_t layer, std::int32_t first, std::int32_t count, const float* q,
                       const KvCache& cache, Lists* lists) {
  Indexer& indexer = layers_[static_cast<std::size_t>(layer)];
  const IndexerConfig& config = indexer.config();
  const std::int64_t row = std::int64_t{config.num_query_heads} * config.head_dim;
  lists->stride = indexer.max_list_length();
  lists->entries.resize(lists->lengths.size() * static_cast<std::size_t>(lists->stride));

  NextArgs next;
  next.batch.batch_size = 1;
  next.keys = view(cache, layer, config.head_dim);
  next.queries.batch_stride = next.queries.token_stride = row;
  next.queries.head_stride = config.head_dim;
  next.workspace = workspace_;
  next.index_stride = lists->stride;
  std::uint32_t seen_by_device = 0;
  next.device_status = &seen_by_device;
  for (std::int32_t t = 0; t < count; ++t) {
    const std::int32_t length = first + t + 1;
    const std::int64_t at = std::int64_t{t} * config.num_query_heads;
    next.batch.lengths = next.batch.host_lengths = &length;
    next.queries.data = q + t * row;
    next.indices = lists->entries.data() + at * lists->stride;
    next.list_lengths = lists->lengths.data() + at;
    tools::check(indexer.next(next, nullptr), "next");
    if (seen_by_device != 0) {
      throw tools::Error(tools::kExitInternal,
                         "next: device_status " + std::to_string(seen_by_device));
    }
  }
}

}  // namespace quarry::smollm2
