// SPDX-License-Identifier: Apache-2.0
//
// Every bad argument of every call gets a code and a detail that names it, and changes
// nothing: neither the index nor the outputs nor what the next good call gives.
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "support/backends.h"
#include "support/scenario.h"

namespace quarry::test {
namespace {

constexpr StatusCode kInvalid = StatusCode::invalid_argument;
constexpr StatusCode kRange = StatusCode::out_of_range;
constexpr std::uint8_t kPoison = 0x5b;

/// An Indexer in the caller's memory with good arguments for every call.
class Engine {
 public:
  Engine(Backend backend, const IndexerConfig& c)
      : config(resolved(c)),
        oracle(c),
        stream(backend),
        keys(backend, static_cast<std::size_t>(oracle.num_pages()) * oracle.page_size() *
                              c.num_kv_heads * c.head_dim +
                          8),
        queries(backend, static_cast<std::size_t>(c.max_sequences) * c.max_query_tokens *
                                 c.num_query_heads * c.head_dim +
                             8),
        lengths(backend, static_cast<std::size_t>(c.max_sequences) * c.max_query_tokens + 2),
        table(backend, static_cast<std::size_t>(c.max_sequences) * pages() + 2),
        ints(backend, std::vector<std::int32_t>{0, 1, 2, 3, 4, 5, 6, 7}),
        indices(backend, rows() * oracle.max_list()),
        list_lengths(backend, rows()),
        previous(backend, rows() * oracle.max_list()),
        previous_lengths(backend, rows()),
        weights(backend, rows() * oracle.max_list()),
        dense(backend, rows() * c.max_seq_len),
        status(backend, c.max_sequences),
        centroids(backend, static_cast<std::size_t>(c.num_kv_heads) * c.num_subspaces *
                               oracle.ksub() * oracle.dcent()),
        phi(backend, static_cast<std::size_t>(c.num_kv_heads) * c.num_subspaces),
        rotation(backend, static_cast<std::size_t>(c.num_kv_heads) * c.head_dim * c.head_dim + 2),
        bytes(backend, 4096) {
    EXPECT_TRUE(memory_requirements(c, backend, &need).ok());
    index_memory = std::make_unique<DeviceBytes>(backend, need.index_bytes);
    scratch = std::make_unique<DeviceBytes>(
        backend, std::max(need.next_workspace_bytes, need.build_workspace_bytes) + 256);
    const Resources r{0, index_memory->data(), need.index_bytes};
    const Status s = Indexer::create(c, Device{backend, 0}, r, &indexer);
    EXPECT_TRUE(s.ok()) << s.detail();
    Random random(5);
    auto fill = [&](DeviceBuffer<float>& b) {
      std::vector<float> v(b.size());
      for (float& x : v) x = static_cast<float>(random.normal());
      b.upload(v);
    };
    fill(keys), fill(queries), fill(centroids), fill(phi), fill(rotation);
    host_lengths.assign(static_cast<std::size_t>(c.max_sequences) * c.max_query_tokens, 200);
    lengths.upload(host_lengths);
    std::vector<std::int32_t> pages_of(table.size(), 0);
    for (std::size_t i = 0; i < pages_of.size(); ++i) {
      pages_of[i] = static_cast<std::int32_t>(i) % oracle.num_pages();
    }
    table.upload(pages_of);
  }

  int pages() const { return (config.max_seq_len + oracle.page_size() - 1) / oracle.page_size(); }
  std::size_t rows() const {
    return static_cast<std::size_t>(config.max_sequences) * config.max_query_tokens *
           config.num_query_heads;
  }

  KeyView key_view() {
    const std::int64_t d = config.head_dim, heads = config.num_kv_heads;
    KeyView v{
        keys.data(), DType::float32, oracle.page_size() * heads * d, heads * d, d, nullptr, 0};
    if (config.page_size > 0) {
      v.block_table = table.data();
      v.block_table_stride = pages();
    }
    return v;
  }
  Batch batch() {
    Batch b;
    b.batch_size = config.max_sequences;
    b.query_tokens = config.max_query_tokens;
    b.lengths = lengths.data();
    return b;
  }
  NextArgs next() {
    const std::int64_t d = config.head_dim, heads = config.num_query_heads;
    NextArgs a;
    a.batch = batch();
    a.keys = key_view();
    a.queries = {queries.data(), DType::float32, config.max_query_tokens * heads * d, heads * d, d};
    a.workspace = {scratch->data(), need.next_workspace_bytes};
    a.indices = indices.data();
    a.index_stride = oracle.max_list();
    a.list_lengths = list_lengths.data();
    a.weights = weights.data();
    a.dense_weights = dense.data();
    a.dense_stride = config.max_seq_len;
    a.previous_indices = previous.data();
    a.previous_lengths = previous_lengths.data();
    a.device_status = status.data();
    return a;
  }
  AppendArgs append() {
    AppendArgs a;
    a.batch = batch();
    a.batch.query_tokens = 1;
    a.keys = key_view();
    a.workspace = {scratch->data(), need.next_workspace_bytes};
    a.device_status = status.data();
    return a;
  }
  BuildArgs build() {
    BuildArgs a;
    a.slot = 0;
    a.length = 150;
    a.keys = key_view();
    a.workspace = {scratch->data(), need.build_workspace_bytes};
    a.device_status = status.data();
    if (config.rotation) a.rotation = a.query_rotation = rotation.data();
    return a;
  }
  CodebookArgs codebook() {
    CodebookArgs a;
    a.codebooks = centroids.data();
    if (config.metric == Metric::inner_product) a.phi = phi.data();
    if (config.rotation) a.rotation = a.query_rotation = rotation.data();
    return a;
  }

  void poison() {
    indices.fill(kPoison), list_lengths.fill(kPoison), weights.fill(kPoison), dense.fill(kPoison);
    previous_lengths.fill(0), status.fill(0), bytes.fill(kPoison);
  }
  /// Everything a call could have changed.
  std::vector<std::uint8_t> snapshot() {
    stream.synchronize();
    std::vector<std::uint8_t> all(index_memory->bytes());
    index_memory->download(all.data(), all.size());
    auto add = [&](const auto& buffer) {
      const auto v = buffer.download();
      const auto* p = reinterpret_cast<const std::uint8_t*>(v.data());
      all.insert(all.end(), p, p + v.size() * sizeof(v[0]));
    };
    add(indices), add(list_lengths), add(weights), add(dense), add(status), add(bytes),
        add(centroids);
    add(phi), add(rotation);
    return all;
  }

  void expect_refused(const char* named, StatusCode code, const std::function<Status()>& call) {
    poison();
    const std::vector<std::uint8_t> before = snapshot();
    const Status s = call();
    EXPECT_EQ(s.code(), code) << "for " << named << ": " << s.detail();
    EXPECT_NE(std::string(s.detail()).find(named), std::string::npos)
        << "for " << named << ": " << s.detail();
    EXPECT_TRUE(snapshot() == before) << named << ": a refused call changed something";
  }

  IndexerConfig config;
  Oracle oracle;
  MemoryRequirements need;
  StreamHandle stream;
  DeviceBuffer<float> keys, queries;
  DeviceBuffer<std::int32_t> lengths, table, ints, indices, list_lengths, previous,
      previous_lengths;
  DeviceBuffer<float> weights, dense;
  DeviceBuffer<std::uint32_t> status;
  DeviceBuffer<float> centroids, phi, rotation;
  DeviceBuffer<std::uint8_t> bytes;
  std::unique_ptr<DeviceBytes> index_memory, scratch;
  std::vector<std::int32_t> host_lengths;
  Indexer indexer;
};

IndexerConfig misuse_config() {
  IndexerConfig c = small_config();
  c.max_sequences = 3;
  c.max_query_tokens = 2;
  c.max_seq_len = 300;
  return c;
}

IndexerConfig paged_config() {
  IndexerConfig c = misuse_config();
  use_pages(&c, 16);
  return c;
}

template <class T>
T* moved(T* p, std::ptrdiff_t by) {
  return reinterpret_cast<T*>(reinterpret_cast<std::intptr_t>(p) + by);
}
const void* moved(const void* p, std::ptrdiff_t by) { return static_cast<const char*>(p) + by; }

class Misuse : public BackendTest {};

TEST_P(Misuse, NextRefusesByName) {
  Engine e(GetParam(), misuse_config());
  ASSERT_TRUE(e.indexer.set_codebook(e.codebook(), e.stream.get()).ok());
  e.poison();
  ASSERT_TRUE(e.indexer.next(e.next(), e.stream.get()).ok());
  const std::vector<std::uint8_t> good = e.snapshot();

  std::vector<std::int32_t> too_long = e.host_lengths, negative = e.host_lengths;
  too_long[3] = 301;
  negative[5] = -1;
  const std::int32_t twice[] = {1, 0, 1}, beyond[] = {0, 3, 1};
  struct Case {
    const char* named;
    StatusCode code;
    std::function<void(NextArgs&)> change;
  };
  using A = NextArgs&;
  const float* const scales = e.centroids.data();
  const auto to_float8 = [](A args) { args.keys.dtype = DType::float8_e4m3; };
  const Case cases[] = {
      {"batch_size", kRange, [](A a) { a.batch.batch_size = 0; }},
      {"batch_size", kRange, [](A a) { a.batch.batch_size = 4; }},
      {"batch_size", kRange, [](A a) { a.batch.batch_size = -1; }},
      {"query_tokens", kRange, [](A a) { a.batch.query_tokens = 0; }},
      {"query_tokens", kRange, [](A a) { a.batch.query_tokens = 3; }},
      {"lengths", kInvalid, [](A a) { a.batch.lengths = nullptr; }},
      {"lengths", kInvalid, [](A a) { a.batch.lengths = moved(a.batch.lengths, 1); }},
      {"slots", kInvalid, [&](A a) { a.batch.slots = moved(e.ints.data(), 2); }},
      {"query_counts", kInvalid, [&](A a) { a.batch.query_counts = moved(e.ints.data(), 1); }},
      {"host_lengths", kRange, [&](A a) { a.batch.host_lengths = too_long.data(); }},
      {"host_lengths", kRange, [&](A a) { a.batch.host_lengths = negative.data(); }},
      {"host_slots", kInvalid,
       [&](A a) { a.batch.slots = e.ints.data(), a.batch.host_slots = twice; }},
      {"host_slots", kRange,
       [&](A a) { a.batch.slots = e.ints.data(), a.batch.host_slots = beyond; }},
      {"keys.data", kInvalid, [](A a) { a.keys.data = nullptr; }},
      {"keys.data", kInvalid, [](A a) { a.keys.data = moved(a.keys.data, 2); }},
      {"keys.dtype", kInvalid, [](A a) { a.keys.dtype = static_cast<DType>(-1); }},
      {"keys.dtype", kInvalid, [](A a) { a.keys.dtype = static_cast<DType>(4); }},
      {"keys.num_scales", kInvalid, [](A a) { a.keys.num_scales = 1; }},
      {"keys.scales", kInvalid, [&](A a) { a.keys.scales = scales, a.keys.num_scales = 1; }},
      {"keys.scales", kInvalid,
       [&](A a) { a.keys.scales = scales, a.keys.num_scales = 2, a.keys.dtype = DType::bfloat16; }},
      {"keys.scales", kInvalid,
       [&](A a) { to_float8(a), a.keys.scales = moved(scales, 1), a.keys.num_scales = 2; }},
      {"keys.num_scales", kInvalid,
       [&](A a) { to_float8(a), a.keys.scales = scales, a.keys.num_scales = 0; }},
      {"keys.num_scales", kInvalid,
       [&](A a) { to_float8(a), a.keys.scales = scales, a.keys.num_scales = 3; }},
      {"keys.num_scales", kInvalid,
       [&](A a) { to_float8(a), a.keys.scales = scales, a.keys.num_scales = -1; }},
      {"keys.num_scales", kInvalid, [&](A a) { to_float8(a), a.keys.num_scales = 2; }},
      {"queries.dtype", kInvalid, [](A a) { a.queries.dtype = DType::float8_e4m3; }},
      {"page_stride", kInvalid, [](A a) { a.keys.page_stride = -1; }},
      {"page_stride", kInvalid, [](A a) { a.keys.page_stride = 31; }},
      {"slot_stride", kInvalid, [](A a) { a.keys.slot_stride = 31; }},
      {"slot_stride", kInvalid, [](A a) { a.keys.slot_stride = -64; }},
      {"head_stride", kInvalid, [](A a) { a.keys.head_stride = 0; }},
      {"keys", kInvalid, [](A a) { a.keys.page_stride = std::int64_t{1} << 62; }},
      {"keys", kInvalid, [](A a) { a.keys.slot_stride = INT64_MAX; }},
      {"block_table", kInvalid, [&](A a) { a.keys.block_table = e.ints.data(); }},
      {"queries.data", kInvalid, [](A a) { a.queries.data = nullptr; }},
      {"queries.data", kInvalid, [](A a) { a.queries.data = moved(a.queries.data, 2); }},
      {"queries.dtype", kInvalid, [](A a) { a.queries.dtype = static_cast<DType>(-1); }},
      {"queries.batch_stride", kInvalid, [](A a) { a.queries.batch_stride = 31; }},
      {"queries.token_stride", kInvalid, [](A a) { a.queries.token_stride = -1; }},
      {"queries.head_stride", kInvalid, [](A a) { a.queries.head_stride = 8; }},
      {"queries", kInvalid, [](A a) { a.queries.batch_stride = INT64_MAX / 2; }},
      {"workspace.data", kInvalid, [](A a) { a.workspace.data = nullptr; }},
      {"workspace.data", kInvalid,
       [](A a) { a.workspace.data = static_cast<char*>(a.workspace.data) + 128; }},
      {"workspace.bytes", StatusCode::workspace_too_small, [](A a) { --a.workspace.bytes; }},
      {"workspace.bytes", StatusCode::workspace_too_small, [](A a) { a.workspace.bytes = 0; }},
      {"indices", kInvalid, [](A a) { a.indices = nullptr; }},
      {"indices", kInvalid, [](A a) { a.indices = moved(a.indices, 2); }},
      {"index_stride", kInvalid, [](A a) { --a.index_stride; }},
      {"index_stride", kInvalid, [](A a) { a.index_stride = -1; }},
      {"index_stride", kInvalid, [](A a) { a.index_stride = INT64_MAX; }},
      {"list_lengths", kInvalid, [](A a) { a.list_lengths = nullptr; }},
      {"list_lengths", kInvalid, [](A a) { a.list_lengths = moved(a.list_lengths, 1); }},
      {"weights", kInvalid, [](A a) { a.weights = moved(a.weights, 1); }},
      {"dense_weights", kInvalid, [](A a) { a.dense_weights = moved(a.dense_weights, 2); }},
      {"dense_weights", kInvalid, [](A a) { a.dense_weights = nullptr; }},
      {"dense_stride", kInvalid, [](A a) { --a.dense_stride; }},
      {"dense_stride", kInvalid, [](A a) { a.dense_stride = -5; }},
      {"previous_indices", kInvalid, [](A a) { a.previous_indices = nullptr; }},
      {"previous_lengths", kInvalid, [](A a) { a.previous_lengths = nullptr; }},
      {"previous_indices", kInvalid, [](A a) { a.previous_indices = a.indices; }},
      {"previous_lengths", kInvalid, [](A a) { a.previous_lengths = a.list_lengths; }},
      {"previous_indices", kInvalid,
       [](A a) { a.previous_indices = moved(a.previous_indices, 1); }},
      {"previous_lengths", kInvalid,
       [](A a) { a.previous_lengths = moved(a.previous_lengths, 1); }},
      {"device_status", kInvalid, [](A a) { a.device_status = moved(a.device_status, 1); }},
  };
  for (const Case& c : cases) {
    NextArgs args = e.next();
    c.change(args);
    e.expect_refused(c.named, c.code, [&] { return e.indexer.next(args, e.stream.get()); });
  }
  // The same step again gives the same bytes.
  e.poison();
  ASSERT_TRUE(e.indexer.next(e.next(), e.stream.get()).ok());
  EXPECT_TRUE(e.snapshot() == good);
}

TEST_P(Misuse, AcceptsWhatIsAllowed) {
  Engine e(GetParam(), misuse_config());
  ASSERT_TRUE(e.indexer.set_codebook(e.codebook(), e.stream.get()).ok());
  const std::int32_t slots[] = {2, -1, 0};
  e.ints.upload({2, -1, 0});
  std::vector<std::int32_t> lengths = e.host_lengths;
  lengths[2] = lengths[3] = 9999;  // of the inactive sequence
  e.lengths.upload(lengths);
  NextArgs args = e.next();
  args.batch.slots = e.ints.data();
  args.batch.host_slots = slots;
  args.batch.host_lengths = lengths.data();
  args.weights = nullptr;
  args.dense_weights = nullptr;
  args.previous_indices = args.previous_lengths = nullptr;
  args.device_status = nullptr;
  const Status s = e.indexer.next(args, e.stream.get());
  EXPECT_TRUE(s.ok()) << s.detail();
  // One-byte keys lie anywhere; their scales are one, or one a KV head, or none.
  for (const std::int32_t scales : {0, 1, 2}) {
    args.keys.dtype = DType::float8_e4m3;
    args.keys.data = reinterpret_cast<const char*>(e.keys.data()) + 3;
    args.keys.scales = scales == 0 ? nullptr : e.phi.data();
    args.keys.num_scales = scales;
    const Status one_byte = e.indexer.next(args, e.stream.get());
    EXPECT_TRUE(one_byte.ok()) << one_byte.detail();
  }
  // One sequence needs less scratch, exactly what workspace_bytes() says.
  args = e.next();
  args.batch.batch_size = args.batch.query_tokens = 1;
  args.workspace.bytes = e.indexer.workspace_bytes(1, 1);
  EXPECT_LT(args.workspace.bytes, e.need.next_workspace_bytes);
  EXPECT_TRUE(e.indexer.next(args, e.stream.get()).ok());
  --args.workspace.bytes;
  EXPECT_EQ(e.indexer.next(args, e.stream.get()).code(), StatusCode::workspace_too_small);
  e.stream.synchronize();
  EXPECT_EQ(e.indexer.workspace_bytes(3, 2), e.need.next_workspace_bytes);
  EXPECT_EQ(e.indexer.workspace_bytes(4, 2), 0u);
  EXPECT_EQ(e.indexer.workspace_bytes(0, 1), 0u);
}

TEST_P(Misuse, StatsRefusesByName) {
  Engine e(GetParam(), misuse_config());
  ASSERT_TRUE(e.indexer.set_codebook(e.codebook(), e.stream.get()).ok());
  ASSERT_TRUE(e.indexer.next(e.next(), e.stream.get()).ok());
  e.stream.synchronize();
  const std::size_t heads = static_cast<std::size_t>(e.config.num_kv_heads);
  DeviceBuffer<DriftStats> drift(GetParam(), 3 * heads);
  DeviceBuffer<RecallStats> recall(GetParam(), (e.rows() + 4) / 5);
  DeviceBytes scratch(GetParam(), e.indexer.stats_workspace_bytes(3, 2, 5) + 256);
  const auto good = [&] {
    const NextArgs n = e.next();
    StatsArgs a;
    a.batch = n.batch;
    a.keys = n.keys;
    a.queries = n.queries;
    a.indices = n.indices;
    a.index_stride = n.index_stride;
    a.list_lengths = n.list_lengths;
    a.device_status = n.device_status;
    a.drift = drift.data();
    a.recall = recall.data();
    a.sample_every = 5;
    a.sample_offset = 4;
    a.sample_counter = e.status.data();
    a.workspace = {scratch.data(), e.indexer.stats_workspace_bytes(3, 2, 5)};
    return a;
  };
  const Status ok = e.indexer.stats(good(), e.stream.get());
  ASSERT_TRUE(ok.ok()) << ok.detail();
  struct Case {
    const char* named;
    StatusCode code;
    std::function<void(StatsArgs&)> change;
  };
  std::vector<std::int32_t> too_long = e.host_lengths;
  too_long[3] = 301;
  using A = StatsArgs&;
  const Case cases[] = {
      {"drift and recall", kInvalid, [](A a) { a.drift = nullptr, a.recall = nullptr; }},
      {"drift", kInvalid, [](A a) { a.drift = moved(a.drift, 2); }},
      {"recent_keys", kRange, [](A a) { a.recent_keys = 0; }},
      {"recent_keys", kRange, [](A a) { a.recent_keys = -1; }},
      {"recent_keys", kRange, [](A a) { a.recent_keys = 301; }},
      {"recall", kInvalid, [](A a) { a.recall = moved(a.recall, 1); }},
      {"recall", kInvalid, [](A a) { a.recall = nullptr; }},
      {"sample_every", kRange, [](A a) { a.sample_every = 0; }},
      {"sample_every", kRange, [](A a) { a.sample_every = -5; }},
      {"sample_every", kRange, [](A a) { a.sample_every = (1 << 30) + 1; }},
      {"sample_offset", kRange, [](A a) { a.sample_offset = 5; }},
      {"sample_offset", kRange, [](A a) { a.sample_offset = -1; }},
      {"sample_counter", kInvalid, [](A a) { a.sample_counter = moved(a.sample_counter, 1); }},
      {"workspace.data", kInvalid, [](A a) { a.workspace.data = nullptr; }},
      {"workspace.data", kInvalid,
       [](A a) { a.workspace.data = static_cast<char*>(a.workspace.data) + 128; }},
      {"workspace.bytes", StatusCode::workspace_too_small, [](A a) { --a.workspace.bytes; }},
      {"batch_size", kRange, [](A a) { a.batch.batch_size = 4; }},
      {"query_tokens", kRange, [](A a) { a.batch.query_tokens = 0; }},
      {"lengths", kInvalid, [](A a) { a.batch.lengths = nullptr; }},
      {"host_lengths", kRange, [&](A a) { a.batch.host_lengths = too_long.data(); }},
      {"keys.data", kInvalid, [](A a) { a.keys.data = nullptr; }},
      {"keys.dtype", kInvalid, [](A a) { a.keys.dtype = static_cast<DType>(4); }},
      {"keys.scales", kInvalid,
       [&](A a) { a.keys.scales = e.centroids.data(), a.keys.num_scales = 2; }},
      {"block_table", kInvalid, [&](A a) { a.keys.block_table = e.ints.data(); }},
      {"queries.data", kInvalid, [](A a) { a.queries.data = nullptr; }},
      {"queries.head_stride", kInvalid, [](A a) { a.queries.head_stride = 8; }},
      {"indices", kInvalid, [](A a) { a.indices = nullptr; }},
      {"indices", kInvalid, [](A a) { a.indices = moved(a.indices, 2); }},
      {"index_stride", kInvalid, [](A a) { --a.index_stride; }},
      {"list_lengths", kInvalid, [](A a) { a.list_lengths = nullptr; }},
      {"device_status", kInvalid, [](A a) { a.device_status = moved(a.device_status, 1); }},
  };
  for (const Case& c : cases) {
    StatsArgs args = good();
    c.change(args);
    drift.fill(kPoison), recall.fill(kPoison);
    e.expect_refused(c.named, c.code, [&] { return e.indexer.stats(args, e.stream.get()); });
    for (const RecallStats& r : recall.download()) EXPECT_EQ(r.row, 0x5b5b5b5b) << c.named;
    for (const DriftStats& d : drift.download()) EXPECT_EQ(d.keys, 0x5b5b5b5b) << c.named;
  }
  EXPECT_EQ(e.indexer.stats_workspace_bytes(4, 2, 5), 0u);
  EXPECT_EQ(e.indexer.stats_workspace_bytes(3, 3, 5), 0u);
  EXPECT_EQ(e.indexer.stats_workspace_bytes(3, 2, -1), 0u);
  EXPECT_LT(e.indexer.stats_workspace_bytes(3, 2, 0), e.indexer.stats_workspace_bytes(3, 2, 5));
  // Drift alone needs neither queries nor lists.
  StatsArgs alone;
  alone.batch = e.batch();
  alone.keys = e.key_view();
  alone.drift = drift.data();
  alone.workspace = {scratch.data(), e.indexer.stats_workspace_bytes(3, 2, 0)};
  const Status s = e.indexer.stats(alone, e.stream.get());
  EXPECT_TRUE(s.ok()) << s.detail();
  EXPECT_EQ(Indexer().stats(alone, nullptr).code(), kInvalid);
  EXPECT_EQ(Indexer().stats_workspace_bytes(1, 1, 1), 0u);
}

TEST_P(Misuse, AppendRefusesByName) {
  Engine e(GetParam(), misuse_config());
  ASSERT_TRUE(e.indexer.set_codebook(e.codebook(), e.stream.get()).ok());
  struct Case {
    const char* named;
    StatusCode code;
    std::function<void(AppendArgs&)> change;
  };
  using A = AppendArgs&;
  const std::int32_t negative[] = {5, -1, 5};
  const Case cases[] = {
      {"query_tokens", kInvalid, [](A a) { a.batch.query_tokens = 2; }},
      {"batch_size", kRange, [](A a) { a.batch.batch_size = 4; }},
      {"lengths", kInvalid, [](A a) { a.batch.lengths = nullptr; }},
      {"host_lengths", kRange, [&](A a) { a.batch.host_lengths = negative; }},
      {"keys.data", kInvalid, [](A a) { a.keys.data = nullptr; }},
      {"keys.slot_stride", kInvalid, [](A a) { a.keys.slot_stride = 1; }},
      {"keys.num_scales", kInvalid, [](A a) { a.keys.num_scales = 2; }},
      {"workspace.data", kInvalid, [](A a) { a.workspace.data = nullptr; }},
      {"workspace.bytes", StatusCode::workspace_too_small, [](A a) { a.workspace.bytes = 3; }},
      {"device_status", kInvalid, [](A a) { a.device_status = moved(a.device_status, 2); }},
  };
  for (const Case& c : cases) {
    AppendArgs args = e.append();
    c.change(args);
    e.expect_refused(c.named, c.code, [&] { return e.indexer.append(args, e.stream.get()); });
  }
  EXPECT_TRUE(e.indexer.append(e.append(), e.stream.get()).ok());
  e.stream.synchronize();
}

TEST_P(Misuse, PagedCachesNeedTheirTable) {
  Engine e(GetParam(), paged_config());
  ASSERT_TRUE(e.indexer.set_codebook(e.codebook(), e.stream.get()).ok());
  NextArgs args = e.next();
  args.keys.block_table = nullptr;
  e.expect_refused("block_table", kInvalid, [&] { return e.indexer.next(args, e.stream.get()); });
  args = e.next();
  args.keys.block_table = moved(args.keys.block_table, 2);
  e.expect_refused("block_table", kInvalid, [&] { return e.indexer.next(args, e.stream.get()); });
  args = e.next();
  args.keys.block_table_stride = e.pages() - 1;
  e.expect_refused("block_table_stride", kInvalid,
                   [&] { return e.indexer.next(args, e.stream.get()); });
  BuildArgs build = e.build();
  build.keys.block_table = nullptr;
  e.expect_refused("block_table", kInvalid, [&] { return e.indexer.build(build, e.stream.get()); });
  e.expect_refused("block_table", kInvalid, [&] {
    return e.indexer.codes(0, 0, 8, nullptr, e.bytes.data(), e.stream.get());
  });
}

TEST_P(Misuse, BuildRefusesByName) {
  IndexerConfig c = misuse_config();
  c.rotation = true;
  Engine e(GetParam(), c);
  struct Case {
    const char* named;
    StatusCode code;
    std::function<void(BuildArgs&)> change;
  };
  using A = BuildArgs&;
  const Case cases[] = {
      {"slot", kRange, [](A a) { a.slot = -1; }},
      {"slot", kRange, [](A a) { a.slot = 3; }},
      {"length", kRange, [](A a) { a.length = -1; }},
      {"length", kRange, [](A a) { a.length = 301; }},
      {"keys.data", kInvalid, [](A a) { a.keys.data = nullptr; }},
      {"keys.head_stride", kInvalid, [](A a) { a.keys.head_stride = 31; }},
      {"keys.scales", kInvalid,
       [&](A a) { a.keys.scales = e.centroids.data(), a.keys.num_scales = 1; }},
      {"workspace.data", kInvalid, [](A a) { a.workspace.data = nullptr; }},
      {"workspace.data", kInvalid,
       [](A a) { a.workspace.data = static_cast<char*>(a.workspace.data) + 16; }},
      {"workspace.bytes", StatusCode::workspace_too_small, [](A a) { --a.workspace.bytes; }},
      {"query_rotation", kInvalid, [](A a) { a.query_rotation = nullptr; }},
      {"rotation", kInvalid, [](A a) { a.rotation = nullptr; }},
      {"rotation", kInvalid, [](A a) { a.rotation = a.query_rotation = nullptr; }},
      {"rotation", kInvalid, [](A a) { a.rotation = moved(a.rotation, 2); }},
      {"device_status", kInvalid, [](A a) { a.device_status = moved(a.device_status, 1); }},
      {"length", StatusCode::too_few_keys, [](A a) { a.length = 8 + 15; }},
      {"length", StatusCode::too_few_keys, [](A a) { a.length = 0; }},
  };
  for (const Case& k : cases) {
    BuildArgs args = e.build();
    k.change(args);
    e.expect_refused(k.named, k.code, [&] { return e.indexer.build(args, e.stream.get()); });
  }
  EXPECT_TRUE(e.indexer.build(e.build(), e.stream.get()).ok());
  // Codes in one rotation and a codebook in another would not mix.
  e.expect_refused("rotation", kInvalid,
                   [&] { return e.indexer.build(e.build(), e.stream.get()); });
  BuildArgs again = e.build();
  again.rotation = again.query_rotation = nullptr;
  EXPECT_TRUE(e.indexer.build(again, e.stream.get()).ok());
  e.stream.synchronize();

  Engine plain(GetParam(), misuse_config());
  BuildArgs rotated = plain.build();
  rotated.rotation = rotated.query_rotation = plain.rotation.data();
  plain.expect_refused("rotation", kInvalid,
                       [&] { return plain.indexer.build(rotated, plain.stream.get()); });
}

TEST_P(Misuse, SharedCodebooksAreNotTrained) {
  IndexerConfig c = misuse_config();
  c.shared_codebook = true;
  Engine e(GetParam(), c);
  e.expect_refused("codebook", StatusCode::not_built,
                   [&] { return e.indexer.build(e.build(), e.stream.get()); });
  CodebookArgs one = e.codebook();
  one.slot = 0;
  e.expect_refused("slot", kInvalid, [&] { return e.indexer.set_codebook(one, e.stream.get()); });
  ASSERT_TRUE(e.indexer.set_codebook(e.codebook(), e.stream.get()).ok());
  BuildArgs retrain = e.build();
  retrain.retrain = true;
  e.expect_refused("retrain", kInvalid, [&] { return e.indexer.build(retrain, e.stream.get()); });
  EXPECT_TRUE(e.indexer.build(e.build(), e.stream.get()).ok());
  e.stream.synchronize();
}

TEST_P(Misuse, SetCodebookRefusesByName) {
  struct Case {
    Metric metric;
    bool rotation;
    const char* named;
    StatusCode code;
    std::function<void(CodebookArgs&, Engine&)> change;
  };
  using A = CodebookArgs&;
  const Case cases[] = {
      {Metric::euclidean, false, "slot", kRange, [](A a, Engine&) { a.slot = -2; }},
      {Metric::euclidean, false, "slot", kRange, [](A a, Engine&) { a.slot = 3; }},
      {Metric::euclidean, false, "codebooks", kInvalid,
       [](A a, Engine&) { a.codebooks = nullptr; }},
      {Metric::euclidean, false, "codebooks", kInvalid,
       [](A a, Engine&) { a.codebooks = moved(a.codebooks, 1); }},
      {Metric::euclidean, false, "phi", kInvalid, [](A a, Engine& e) { a.phi = e.phi.data(); }},
      {Metric::inner_product, false, "phi", kInvalid, [](A a, Engine&) { a.phi = nullptr; }},
      {Metric::inner_product, false, "phi", kInvalid,
       [](A a, Engine&) { a.phi = moved(a.phi, 2); }},
      {Metric::euclidean, false, "rotation", kInvalid,
       [](A a, Engine& e) { a.rotation = a.query_rotation = e.rotation.data(); }},
      {Metric::euclidean, false, "query_rotation", kInvalid,
       [](A a, Engine& e) { a.query_rotation = e.rotation.data(); }},
      {Metric::euclidean, true, "rotation", kInvalid, [](A a, Engine&) { a.rotation = nullptr; }},
      {Metric::euclidean, true, "query_rotation", kInvalid,
       [](A a, Engine&) { a.query_rotation = nullptr; }},
      {Metric::euclidean, true, "rotation", kInvalid,
       [](A a, Engine&) { a.rotation = moved(a.rotation, 1); }},
  };
  for (const Case& k : cases) {
    IndexerConfig c = misuse_config();
    c.metric = k.metric;
    c.rotation = k.rotation;
    Engine e(GetParam(), c);
    ASSERT_TRUE(e.indexer.set_codebook(e.codebook(), e.stream.get()).ok());
    e.stream.synchronize();
    CodebookArgs args = e.codebook();
    k.change(args, e);
    e.expect_refused(k.named, k.code, [&] { return e.indexer.set_codebook(args, e.stream.get()); });
  }
}

TEST_P(Misuse, StateCallsRefuseByName) {
  Engine e(GetParam(), misuse_config());
  Stream s = e.stream.get();
  Indexer& x = e.indexer;
  e.expect_refused("slot", StatusCode::not_built,
                   [&] { return x.codebook(0, e.centroids.data(), nullptr, s); });
  CodebookArgs one = e.codebook();
  one.slot = 1;
  ASSERT_TRUE(x.set_codebook(one, s).ok());
  struct Case {
    const char* named;
    StatusCode code;
    std::function<Status()> call;
  };
  std::int32_t* ints = e.ints.data();
  std::uint8_t* out = e.bytes.data();
  const Case cases[] = {
      {"count", kRange, [&] { return x.truncate(nullptr, ints, 0, s); }},
      {"count", kRange, [&] { return x.truncate(nullptr, ints, -1, s); }},
      {"count", kRange, [&] { return x.truncate(nullptr, ints, 4, s); }},
      {"lengths", kInvalid, [&] { return x.truncate(nullptr, nullptr, 1, s); }},
      {"lengths", kInvalid, [&] { return x.truncate(nullptr, moved(ints, 1), 1, s); }},
      {"slots", kInvalid, [&] { return x.truncate(moved(ints, 2), ints, 1, s); }},
      {"slot", kRange, [&] { return x.reset(-1, s); }},
      {"slot", kRange, [&] { return x.reset(3, s); }},
      {"slot", kRange, [&] { return x.codes(-1, 0, 1, nullptr, out, s); }},
      {"slot", kRange, [&] { return x.codes(3, 0, 1, nullptr, out, s); }},
      {"first", kRange, [&] { return x.codes(1, -1, 1, nullptr, out, s); }},
      {"first", kRange, [&] { return x.codes(1, 301, 0, nullptr, out, s); }},
      {"count", kRange, [&] { return x.codes(1, 0, -1, nullptr, out, s); }},
      {"count", kRange, [&] { return x.codes(1, 0, 301, nullptr, out, s); }},
      {"count", kRange, [&] { return x.codes(1, 299, 2, nullptr, out, s); }},
      {"out", kInvalid, [&] { return x.codes(1, 0, 1, nullptr, nullptr, s); }},
      {"block_table", kInvalid, [&] { return x.codes(1, 0, 1, ints, out, s); }},
      {"slot", kRange, [&] { return x.codebook(3, e.centroids.data(), nullptr, s); }},
      {"slot", StatusCode::not_built,
       [&] { return x.codebook(0, e.centroids.data(), nullptr, s); }},
      {"codebooks", kInvalid, [&] { return x.codebook(1, nullptr, nullptr, s); }},
      {"codebooks", kInvalid,
       [&] { return x.codebook(1, moved(e.centroids.data(), 2), nullptr, s); }},
      {"phi", kInvalid, [&] { return x.codebook(1, e.centroids.data(), e.phi.data(), s); }},
  };
  for (const Case& c : cases) e.expect_refused(c.named, c.code, c.call);
  EXPECT_TRUE(x.codes(1, 300, 0, nullptr, out, s).ok());
  e.stream.synchronize();
}

TEST_P(Misuse, NotBuiltIsRefusedWhereTheHostKnows) {
  Engine e(GetParam(), misuse_config());
  const int limit = e.oracle.dense_limit();
  CodebookArgs one = e.codebook();
  one.slot = 1;
  ASSERT_TRUE(e.indexer.set_codebook(one, e.stream.get()).ok());
  std::vector<std::int32_t> lengths{limit, limit, limit + 50, limit + 50, limit, limit + 1};
  e.lengths.upload(lengths);
  NextArgs args = e.next();
  args.batch.host_lengths = lengths.data();
  // Slot 2's second token leaves the dense range.
  e.expect_refused("slot 2", StatusCode::not_built,
                   [&] { return e.indexer.next(args, e.stream.get()); });
  lengths[5] = limit;
  e.lengths.upload(lengths);
  EXPECT_TRUE(e.indexer.next(args, e.stream.get()).ok());
  ASSERT_TRUE(e.indexer.reset(1, e.stream.get()).ok());
  e.stream.synchronize();
  e.expect_refused("slot 1", StatusCode::not_built,
                   [&] { return e.indexer.next(args, e.stream.get()); });
}

TEST_P(Misuse, AnEmptyIndexerRefusesEverything) {
  Engine e(GetParam(), misuse_config());
  Indexer taken = std::move(e.indexer);
  EXPECT_EQ(taken.list_heads(), e.config.num_query_heads);
  for (Indexer* x : {&e.indexer}) {
    Stream s = e.stream.get();
    const Status all[] = {x->build(e.build(), s),
                          x->next(e.next(), s),
                          x->append(e.append(), s),
                          x->set_codebook(e.codebook(), s),
                          x->truncate(nullptr, e.ints.data(), 1, s),
                          x->reset(0, s),
                          x->codes(0, 0, 1, nullptr, e.bytes.data(), s),
                          x->codebook(0, e.centroids.data(), nullptr, s)};
    for (const Status& status : all) {
      EXPECT_EQ(status.code(), kInvalid);
      EXPECT_NE(std::string(status.detail()), "");
    }
    EXPECT_EQ(x->workspace_bytes(1, 1), 0u);
    EXPECT_EQ(x->list_heads(), 0);
    EXPECT_EQ(x->max_list_length(), 0);
    static_cast<void>(x->config());
    static_cast<void>(x->device());
  }
  // What moved on works on.
  ASSERT_TRUE(taken.set_codebook(e.codebook(), e.stream.get()).ok());
  EXPECT_TRUE(taken.next(e.next(), e.stream.get()).ok());
  e.stream.synchronize();
  Indexer never;
  EXPECT_FALSE(never.next(e.next(), e.stream.get()).ok());
}

QUARRY_ON_EVERY_BACKEND(Misuse);

}  // namespace
}  // namespace quarry::test
