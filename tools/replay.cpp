// SPDX-License-Identifier: Apache-2.0
#include "replay.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>

#include "device_memory.h"
#include "error.h"
#include "live.h"
#include "safetensors.h"

namespace quarry::tools {
namespace {

using Clock = std::chrono::steady_clock;

double microseconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::micro>(to - from).count();
}

const Model& model_of(const Trace& trace, const ReplayOptions& options) {
  return options.model != nullptr ? *options.model : trace.model;
}

void check_model(const Model& model, const IndexerConfig& config) {
  const bool inner_product = config.metric == Metric::inner_product;
  if (model.codebooks.empty()) return;
  const std::string given = "the trace's codebooks have ";
  if (model.subspaces != config.num_subspaces) {
    throw BadInput(given + std::to_string(model.subspaces) + " subspaces, --subspaces is " +
                   std::to_string(config.num_subspaces));
  }
  // An inadmissible --bits is left to the library, which names its bounds.
  if (config.bits < 1 || config.bits > 8 || config.num_subspaces < 1) return;
  if (model.ksub != 1 << config.bits) {
    throw BadInput(given + std::to_string(model.ksub) + " centroids a subspace, --bits " +
                   std::to_string(config.bits) + " means " + std::to_string(1 << config.bits));
  }
  const std::int32_t width = config.head_dim / config.num_subspaces + (inner_product ? 1 : 0);
  if (model.dcent != width) {
    throw BadInput(given + std::to_string(model.dcent) + " coordinates a centroid, " +
                   to_string(config.metric) + " needs " + std::to_string(width));
  }
  if (inner_product && model.phi.empty()) {
    throw BadInput("the trace's codebooks come without phi, which inner_product needs");
  }
}

/// One sequence in slot 0 of one Indexer, its key cache and the buffers of a step.
class Engine {
 public:
  Engine(const Trace& trace, const ReplayOptions& options, ReplayResult& result)
      : trace_(trace), model_(model_of(trace, options)), result_(result), queue_(options.device) {
    const IndexerConfig config = config_for(trace, options);
    const Backend backend = options.device.backend;
    check(resolve(config, backend, &result.config), "configuration");
    check(memory_requirements(config, backend, &result.memory), "configuration");
    check(
        Indexer::create(config, options.device, Resources{options.threads, nullptr, 0}, &indexer_),
        "Indexer::create");
    const IndexerConfig& c = result.config;
    result.rows = indexer_.list_heads();
    result.max_list = indexer_.max_list_length();
    result.dense_limit = std::max(c.dense_threshold, c.sink_size + c.heavy_size + c.window_size);

    cache_ = memory(trace.k.bytes.size());
    key_scales_ = floats(trace.k_scale);
    queries_ = memory(trace.q.bytes.size());
    queries_.upload(trace.q.bytes.data(), trace.q.bytes.size());
    workspace_ =
        memory(std::max(result.memory.next_workspace_bytes, result.memory.build_workspace_bytes));
    length_ = memory(sizeof(std::int32_t));
    device_status_ = memory(sizeof(std::uint32_t));
    const std::size_t rows = static_cast<std::size_t>(result.rows);
    list_ = memory(rows * static_cast<std::size_t>(result.max_list) * sizeof(std::int32_t));
    list_length_ = memory(rows * sizeof(std::int32_t));
    if (options.sample_every > 0) live_.emplace(indexer_, queue_, options.sample_every);
    give_model();
  }

  void prefill(std::int32_t length) {
    write_keys(0, length);
    build(length);
  }

  /// The token at `position` arrives without a query.
  void append(std::int32_t position) {
    arrive(position);
    AppendArgs args;
    args.batch = batch();
    args.keys = keys();
    args.workspace = workspace();
    args.device_status = device_status_.as<std::uint32_t>();
    check(indexer_.append(args, queue_.stream()), "Indexer::append");
    queue_.synchronize();
    check_device_status(position);
  }

  /// The token at `position` arrives and asks query t.
  void next(std::int32_t position, std::int32_t t) {
    arrive(position);
    const std::int64_t head_bytes = trace_.d * dtype_size(trace_.q.dtype);
    NextArgs args;
    args.batch = batch();
    args.keys = keys();
    args.queries.data = queries_.as<std::byte>() + t * trace_.hq * head_bytes;
    args.queries.dtype = trace_.q.dtype;
    args.queries.head_stride = trace_.d;
    args.queries.token_stride = static_cast<std::int64_t>(trace_.hq) * trace_.d;
    args.queries.batch_stride = args.queries.token_stride;
    args.workspace = workspace();
    args.indices = list_.as<std::int32_t>();
    args.index_stride = result_.max_list;
    args.list_lengths = list_length_.as<std::int32_t>();
    args.device_status = device_status_.as<std::uint32_t>();

    const auto start = Clock::now();
    const Status status = indexer_.next(args, queue_.stream());
    queue_.synchronize();
    const auto end = Clock::now();
    check(status, "Indexer::next");
    check_device_status(position);
    result_.next_us.push_back(microseconds(start, end));
    if (!built_ && position + 1 > result_.dense_limit) result_.unbuilt_rows += result_.rows;

    const std::size_t rows = static_cast<std::size_t>(result_.rows);
    const std::size_t entries = rows * static_cast<std::size_t>(result_.max_list);
    result_.indices.resize(result_.indices.size() + entries);
    result_.lens.resize(result_.lens.size() + rows);
    list_.download(result_.indices.data() + result_.indices.size() - entries, list_.size());
    list_length_.download(result_.lens.data() + result_.lens.size() - rows, list_length_.size());
    if (!live_) return;
    for (const RecallStats& row : live_->sample(args)) {
      if (row.exact > 0) result_.live.push_back({t, row});
    }
  }

  /// How well the codebooks fit the last keys of the trace.
  void measure_drift() {
    if (live_) result_.drift = live_->drift(batch(), keys());
  }

  /// The codes of everything that is encoded once `n` positions were seen.
  void read_codes(std::int32_t n) {
    const IndexerConfig& c = result_.config;
    const std::int32_t end = c.block_size == 0 ? n : n / c.block_size * c.block_size;
    const std::int32_t count = built_ ? std::max(0, end - c.encode_from) : 0;
    result_.encoded = count;
    result_.codes.resize(static_cast<std::size_t>(count) *
                         static_cast<std::size_t>(trace_.hkv * c.num_subspaces));
    if (count == 0) return;
    DeviceMemory codes = memory(result_.codes.size());
    check(
        indexer_.codes(0, c.encode_from, count, nullptr, codes.as<std::uint8_t>(), queue_.stream()),
        "Indexer::codes");
    codes.download(result_.codes.data(), result_.codes.size());
  }

 private:
  DeviceMemory memory(std::size_t bytes) { return DeviceMemory(queue_, bytes); }

  DeviceMemory floats(const std::vector<float>& values) {
    DeviceMemory out = memory(values.size() * sizeof(float));
    out.upload(values.data(), out.size());
    return out;
  }

  void give_model() {
    const bool rotated = !model_.rotation.empty();
    if (rotated) {
      rotation_ = floats(model_.rotation);
      query_rotation_ = floats(model_.query_rotation);
    }
    if (model_.codebooks.empty()) return;
    const DeviceMemory codebooks = floats(model_.codebooks);
    const DeviceMemory phi = floats(model_.phi);
    CodebookArgs args;
    args.slot = 0;
    args.codebooks = codebooks.as<float>();
    if (result_.config.metric == Metric::inner_product) args.phi = phi.as<float>();
    if (rotated) {
      args.rotation = rotation_.as<float>();
      args.query_rotation = query_rotation_.as<float>();
    }
    const DeviceMemory baseline = floats(model_.quantization_error);
    if (!model_.quantization_error.empty()) args.baseline_error = baseline.as<float>();
    check(indexer_.set_codebook(args, queue_.stream()), "Indexer::set_codebook");
    queue_.synchronize();
    built_ = true;
  }

  /// Trains where there is no codebook yet. Too few keys is no error as long as the lists
  /// are dense: arrive() tries again when they end.
  void build(std::int32_t length) {
    BuildArgs args;
    args.slot = 0;
    args.length = length;
    args.keys = keys();
    args.workspace = workspace();
    if (!built_ && !model_.rotation.empty()) {
      args.rotation = rotation_.as<float>();
      args.query_rotation = query_rotation_.as<float>();
    }
    args.device_status = device_status_.as<std::uint32_t>();
    const std::uint32_t clear = 0;
    device_status_.upload(&clear, sizeof clear);
    const auto start = Clock::now();
    const Status status = indexer_.build(args, queue_.stream());
    queue_.synchronize();
    result_.build_ms += microseconds(start, Clock::now()) / 1000;
    if (status.code() == StatusCode::too_few_keys) return;
    check(status, "Indexer::build");
    std::uint32_t bits = 0;
    device_status_.download(&bits, sizeof bits);
    if (bits == kTooFewKeys) return;
    check_device_status(length - 1);
    built_ = true;
  }

  void arrive(std::int32_t position) {
    const std::int32_t n = position + 1;
    if (!built_ && n > result_.dense_limit) build(position);
    write_keys(position, n);
    length_.upload(&n, sizeof n);
    const std::uint32_t clear = 0;
    device_status_.upload(&clear, sizeof clear);
  }

  /// Keys enter the cache when their token does: reading ahead would read NaN.
  void write_keys(std::int32_t begin, std::int32_t end) {
    const std::size_t row = trace_.k.bytes.size() / static_cast<std::size_t>(trace_.n);
    const std::size_t first = static_cast<std::size_t>(begin) * row;
    cache_.upload(trace_.k.bytes.data() + first, static_cast<std::size_t>(end - begin) * row,
                  first);
  }

  void check_device_status(std::int32_t position) {
    std::uint32_t bits = 0;
    device_status_.download(&bits, sizeof bits);
    if (!built_) bits &= ~std::uint32_t{kNotBuilt};
    if (bits == 0) return;
    throw Error(kExitInternal, "device_status is " + std::to_string(bits) + " at position " +
                                   std::to_string(position));
  }

  Batch batch() const {
    Batch batch;
    batch.batch_size = 1;
    batch.lengths = length_.as<std::int32_t>();
    return batch;
  }

  KeyView keys() const {
    KeyView view;
    view.data = cache_.as<void>();
    view.dtype = trace_.k.dtype;
    if (!trace_.k_scale.empty()) {
      view.scales = key_scales_.as<float>();
      view.num_scales = static_cast<std::int32_t>(trace_.k_scale.size());
    }
    view.head_stride = trace_.d;
    view.slot_stride = static_cast<std::int64_t>(trace_.hkv) * trace_.d;
    view.page_stride = view.slot_stride * trace_.n;
    return view;
  }

  Workspace workspace() const { return {workspace_.as<void>(), workspace_.size()}; }

  const Trace& trace_;
  const Model& model_;
  ReplayResult& result_;
  DeviceQueue queue_;
  Indexer indexer_;
  DeviceMemory cache_, key_scales_, queries_, workspace_, length_, device_status_, list_,
      list_length_;
  DeviceMemory rotation_, query_rotation_;
  std::optional<LiveStats> live_;
  bool built_ = false;
};

}  // namespace

std::int32_t resolve_prefill(const Trace& trace, const ReplayOptions& options) {
  const std::int32_t first_query = trace.q_pos.front();
  const std::int32_t prefill = options.prefill < 0 ? first_query : options.prefill;
  if (prefill > first_query) {
    throw BadInput("--prefill " + std::to_string(prefill) +
                   " is past the first query, at position " + std::to_string(first_query));
  }
  return prefill;
}

IndexerConfig config_for(const Trace& trace, const ReplayOptions& options) {
  IndexerConfig config = options.config;
  config.num_query_heads = trace.hq;
  config.num_kv_heads = trace.hkv;
  config.head_dim = trace.d;
  config.max_sequences = 1;
  config.max_query_tokens = 1;
  config.max_seq_len = trace.n;
  const Model& model = model_of(trace, options);
  config.rotation = !model.rotation.empty();
  check_model(model, config);
  return config;
}

ReplayResult replay(const Trace& trace, const ReplayOptions& options,
                    const std::function<void(std::int64_t, std::int64_t)>& progress) {
  ReplayResult result;
  result.prefill = resolve_prefill(trace, options);
  Engine engine(trace, options, result);
  engine.prefill(result.prefill);
  const std::int32_t steps = trace.n - result.prefill;
  std::int32_t t = 0;
  for (std::int32_t position = result.prefill; position < trace.n; ++position) {
    if (t < trace.queries && trace.q_pos[static_cast<std::size_t>(t)] == position) {
      engine.next(position, t++);
    } else {
      engine.append(position);
    }
    progress(position + 1 - result.prefill, steps);
  }
  engine.read_codes(trace.n);
  engine.measure_drift();
  return result;
}

void write_lists(const std::string& path, const Trace& trace, const ReplayResult& result) {
  write_safetensors(
      path,
      {{"indices", "I32", {trace.queries, result.rows, result.max_list}, result.indices.data()},
       {"lens", "I32", {trace.queries, result.rows}, result.lens.data()},
       {"codes",
        "U8",
        {result.encoded, trace.hkv, result.config.num_subspaces},
        result.codes.data()}});
}

}  // namespace quarry::tools
