// SPDX-License-Identifier: Apache-2.0
#include "support/layers.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <utility>

#include "half.h"

namespace quarry::bench {
namespace {

using tools::DeviceMemory;
using tools::DeviceQueue;

std::size_t key_rows(const IndexerConfig& c) {
  return static_cast<std::size_t>(c.max_sequences) * static_cast<std::size_t>(c.max_seq_len);
}

/// Elements of a position of the cache.
std::size_t key_row(const IndexerConfig& c) {
  return static_cast<std::size_t>(c.num_kv_heads) * static_cast<std::size_t>(c.head_dim);
}

std::size_t layer_count(const MemoryRequirements& need, Backend backend) {
  return std::clamp<std::size_t>(2 * cache_bytes(backend) / need.index_bytes + 1, 1, 24);
}

}  // namespace

Workload original() {
  IndexerConfig c;
  c.max_seq_len = 32768;
  return {"original", c, 32000, DType::float16};
}

Workload codes_of(std::int32_t m, std::int32_t b) {
  Workload w = original();
  w.name = m == 8 ? "m8_b4" : "m16_b4";
  w.config.num_subspaces = m;
  w.config.bits = b;
  return w;
}

Workload original_rotated() {
  Workload w = original();
  w.name = "original_rotated";
  w.config.rotation = true;
  return w;
}

Workload original_refined() {
  Workload w = original();
  w.name = "original_refine4";
  w.config.refine_factor = 4;
  return w;
}

Workload reduced(GqaReduction reduction, std::int32_t m) {
  const char* const names[][2] = {{"gqa4_per_head_m8_b4", "gqa4_per_head_m16_b4"},
                                  {"gqa4_sum_m8_b4", "gqa4_sum_m16_b4"},
                                  {"gqa4_softmax_sum_m8_b4", "gqa4_softmax_sum_m16_b4"},
                                  {"gqa4_max_m8_b4", "gqa4_max_m16_b4"}};
  Workload w = codes_of(m, 4);
  w.name = names[static_cast<int>(reduction)][m == 8 ? 0 : 1];
  w.config.num_kv_heads = 8;
  w.config.gqa_reduction = reduction;
  return w;
}

Workload paged(Workload workload, std::int32_t page_size, const char* name) {
  workload.name = name;
  workload.config.page_size = page_size;
  workload.config.num_pages =
      std::int64_t{workload.config.max_sequences} * (workload.config.max_seq_len / page_size);
  return workload;
}

Workload within_block(Workload workload, const char* name) {
  workload.name = name;
  workload.length -= 1;
  return workload;
}

Workload gqa_128k() {
  IndexerConfig c;
  c.num_kv_heads = 8;
  c.max_seq_len = 131072;
  return {"gqa_32_8_128k", c, 131072, DType::bfloat16};
}

Workload rows_256() {
  IndexerConfig c;
  c.max_sequences = 8;
  c.max_seq_len = 131072;
  c.heavy_size = 1024;
  return {"rows_256_128k", c, 131072, DType::bfloat16};
}

Workload recommended(std::int32_t sequences) {
  IndexerConfig c = IndexerConfig::recommended(128);
  c.num_kv_heads = 8;
  c.max_sequences = sequences;
  c.max_seq_len = 131072;
  c.heavy_size = 256;
  return {sequences == 1 ? "recommended_b1_128k" : "recommended_b8_128k", c, 131072,
          DType::bfloat16};
}

Workload calibrated_32k() {
  IndexerConfig c = IndexerConfig::recommended(128);
  c.max_seq_len = 32768;
  return {"calibrated_m16_b4", c, 32768, DType::bfloat16};
}

Workload prefill(Workload workload) {
  workload.length = workload.config.max_seq_len;
  workload.dtype = DType::bfloat16;
  return workload;
}

Workload with(Algorithm algorithm, Workload workload) {
  workload.config.algorithm = algorithm;
  return workload;
}

std::vector<float> normal(std::size_t count, unsigned seed) {
  // Sums of four 16-bit uniforms: as good as normal for a benchmark, and quick.
  std::mt19937_64 random(seed);
  std::vector<float> values(count);
  for (float& value : values) {
    const std::uint64_t bits = random();
    const std::uint64_t sum =
        (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
    value = (static_cast<float>(sum) - 131070.0f) / 37837.0f;
  }
  return values;
}

std::vector<std::byte> narrowed(const std::vector<float>& values, DType dtype) {
  std::vector<std::byte> bytes(values.size() * static_cast<std::size_t>(dtype_size(dtype)));
  for (std::size_t i = 0; i < values.size(); ++i) {
    store_element(bytes.data(), dtype, static_cast<std::int64_t>(i), values[i]);
  }
  return bytes;
}

KeyCache::KeyCache(const Workload& workload, DeviceQueue& queue) : workload_(workload) {
  const IndexerConfig& c = workload.config;
  const std::size_t rows = key_rows(c), row = key_row(c);
  const std::size_t stretch = std::min<std::size_t>(rows, 32768);
  const std::vector<std::byte> part = narrowed(normal(stretch * row, 1), workload.dtype);
  const std::size_t row_bytes = part.size() / stretch;
  memory_ = DeviceMemory(queue, rows * row_bytes);
  for (std::size_t at = 0; at < rows; at += stretch) {
    memory_.upload(part.data(), std::min(stretch, rows - at) * row_bytes, at * row_bytes);
  }
  view_.data = memory_.as<void>();
  view_.dtype = workload.dtype;
  view_.head_stride = c.head_dim;
  view_.slot_stride = static_cast<std::int64_t>(row);
  view_.page_stride =
      static_cast<std::int64_t>(row) * (c.page_size > 0 ? c.page_size : c.max_seq_len);
}

bool KeyCache::fits(const Workload& workload) const noexcept {
  const IndexerConfig &a = workload_.config, &b = workload.config;
  return a.max_sequences == b.max_sequences && a.max_seq_len == b.max_seq_len &&
         a.num_kv_heads == b.num_kv_heads && a.head_dim == b.head_dim &&
         a.page_size == b.page_size && workload_.dtype == workload.dtype;
}

Layer::Layer(const Workload& workload, Backend backend, const KeyCache& keys, DeviceQueue& queue,
             unsigned seed) {
  status_ = fill(workload, backend, keys, queue, seed);
}

Status Layer::fill(const Workload& workload, Backend backend, const KeyCache& keys,
                   DeviceQueue& queue, unsigned seed) {
  const IndexerConfig& c = workload.config;
  const Device device{backend, 0};
  MemoryRequirements need;
  if (Status s = memory_requirements(c, backend, &need); !s.ok()) return s;
  memory_.reserve(32);  // references into it are handed out
  const auto device_bytes = [&](std::size_t bytes) -> DeviceMemory& {
    memory_.emplace_back(queue, bytes);
    return memory_.back();
  };
  Resources resources;
  resources.index_memory = index_memory_ = device_bytes(need.index_bytes).as<void>();
  resources.index_memory_bytes = need.index_bytes;
  if (Status s = Indexer::create(c, device, resources, &indexer_); !s.ok()) return s;
  const auto put = [&](const void* data, std::size_t bytes) {
    DeviceMemory& m = device_bytes(bytes);
    m.upload(data, bytes);
    return m.as<void>();
  };
  const auto put_floats = [&](std::size_t count, unsigned s) {
    const std::vector<float> values = normal(count, s);
    return static_cast<const float*>(put(values.data(), count * sizeof(float)));
  };
  const auto d = static_cast<std::size_t>(c.head_dim);
  const auto heads = static_cast<std::size_t>(c.num_kv_heads);
  const auto sequences = static_cast<std::size_t>(c.max_sequences);

  args_.keys = keys.view();
  if (c.page_size > 0) {
    std::vector<std::int32_t> pages(static_cast<std::size_t>(c.num_pages));
    std::iota(pages.begin(), pages.end(), 0);
    std::shuffle(pages.begin(), pages.end(), std::mt19937_64(seed));
    args_.keys.block_table =
        static_cast<const std::int32_t*>(put(pages.data(), pages.size() * sizeof(std::int32_t)));
    args_.keys.block_table_stride = c.num_pages / c.max_sequences;
  }

  CodebookArgs books;
  books.codebooks = put_floats(heads * d << c.bits, seed + 1);
  std::vector<float> identity(heads * d * d);
  for (std::size_t i = 0; i < heads * d; ++i) identity[i * d + i % d] = 1.0f;
  if (c.rotation) {
    books.rotation =
        static_cast<const float*>(put(identity.data(), identity.size() * sizeof(float)));
    books.query_rotation = books.rotation;
  }
  if (Status s = indexer_.set_codebook(books, queue.stream()); !s.ok()) return s;

  const std::size_t rows = sequences * static_cast<std::size_t>(c.num_query_heads);
  const std::vector<std::byte> queries = narrowed(normal(rows * d, seed + 2), workload.dtype);
  args_.queries.data = put(queries.data(), queries.size());
  args_.queries.dtype = workload.dtype;
  args_.queries.head_stride = c.head_dim;
  args_.queries.token_stride = args_.queries.batch_stride =
      std::int64_t{c.num_query_heads} * c.head_dim;

  const std::vector<std::int32_t> lengths(sequences, workload.length);
  args_.batch.batch_size = c.max_sequences;
  args_.batch.lengths =
      static_cast<const std::int32_t*>(put(lengths.data(), sequences * sizeof(std::int32_t)));
  args_.workspace = {device_bytes(need.next_workspace_bytes).as<void>(), need.next_workspace_bytes};
  args_.index_stride = indexer_.max_list_length();
  args_.indices =
      device_bytes(rows * static_cast<std::size_t>(args_.index_stride) * 4).as<std::int32_t>();
  args_.list_lengths = device_bytes(rows * 4).as<std::int32_t>();

  AppendArgs append;
  append.batch = args_.batch;
  append.keys = args_.keys;
  append.workspace = args_.workspace;
  if (Status s = indexer_.append(append, queue.stream()); !s.ok()) return s;
  queue.synchronize();
  return {};
}

Status Layer::build(DeviceQueue& queue, bool retrain) {
  MemoryRequirements need;
  if (Status s = memory_requirements(indexer_.config(), indexer_.device().backend, &need);
      !s.ok()) {
    return s;
  }
  if (build_workspace_.size() < need.build_workspace_bytes) {
    build_workspace_ = DeviceMemory(queue, need.build_workspace_bytes);
  }
  BuildArgs build;
  build.length = indexer_.config().max_seq_len;
  build.keys = args_.keys;
  build.retrain = retrain;
  build.workspace = {build_workspace_.as<void>(), build_workspace_.size()};
  return indexer_.build(build, queue.stream());
}

Model::Model(const Workload& workload, Backend backend, DeviceQueue& queue)
    : Model(workload, backend, queue, std::make_shared<KeyCache>(workload, queue)) {}

Model::Model(const Workload& workload, Backend backend, DeviceQueue& queue,
             std::shared_ptr<const KeyCache> given)
    : keys(std::move(given)) {
  MemoryRequirements need;
  if (!memory_requirements(workload.config, backend, &need).ok()) return;
  const std::size_t count = layer_count(need, backend);
  layers.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    layers.emplace_back(workload, backend, *keys, queue, static_cast<unsigned>(i));
  }
}

Status model_bytes(const Workload& workload, Backend backend, std::size_t* bytes) {
  IndexerConfig c;
  MemoryRequirements need;
  if (Status s = resolve(workload.config, backend, &c); !s.ok()) return s;
  if (Status s = memory_requirements(c, backend, &need); !s.ok()) return s;
  const std::size_t lists = static_cast<std::size_t>(c.max_sequences) *
                            static_cast<std::size_t>(c.num_query_heads) *
                            static_cast<std::size_t>(max_list_length(c) + 1) * sizeof(std::int32_t);
  *bytes = key_rows(c) * key_row(c) * static_cast<std::size_t>(dtype_size(workload.dtype)) +
           layer_count(need, backend) * (need.index_bytes + need.next_workspace_bytes + lists);
  return {};
}

std::vector<Work> Model::steps() {
  std::vector<Work> work;
  for (Layer& layer : layers) {
    work.emplace_back([&layer](DeviceQueue& queue) { return layer.next(queue); });
  }
  return work;
}

Status Model::status() const {
  if (layers.empty()) return Status(StatusCode::invalid_argument, "the workload was refused");
  for (const Layer& layer : layers) {
    if (!layer.status().ok()) return layer.status();
  }
  return {};
}

void for_each_backend(const std::string& name,
                      const std::function<void(benchmark::State&, Backend)>& run,
                      const std::function<bool(Backend)>& serves) {
  for (const Backend backend : {Backend::cpu, Backend::cuda}) {
    if (!backend_available(backend) || (serves && !serves(backend))) continue;
    const std::string full = name + "/" + to_string(backend);
    benchmark::RegisterBenchmark(full.c_str(),
                                 [run, backend](benchmark::State& state) { run(state, backend); })
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
  }
}

}  // namespace quarry::bench
