// SPDX-License-Identifier: Apache-2.0
//
// Shared pages, fork, save, restore and stats: the same bytes through C and through C++.
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <vector>

#include "life.h"
#include "support/backends.h"
#include "support/random.h"

namespace quarry::test {
namespace {

class CApiLife : public BackendTest {};

template <typename T>
struct OnDevice {
  OnDevice(Backend backend, const T& value) : memory(backend, sizeof(T)) {
    memory.upload(&value, sizeof(T));
  }
  T* get() const { return static_cast<T*>(memory.data()); }
  std::unique_ptr<T> download() const {
    auto out = std::make_unique<T>();
    memory.download(out.get(), sizeof(T));
    return out;
  }
  DeviceBytes memory;
};

std::unique_ptr<life_input> make_input() {
  auto in = std::make_unique<life_input>();
  life_fill(in.get());
  Random source(3);
  for (auto& step : in->queries) {
    for (float& x : step) x = static_cast<float>(source.normal());
  }
  for (auto& page : in->keys) {
    for (float& x : page) x = static_cast<float>(source.normal());
  }
  life_copy_keys(in.get());
  return in;
}

IndexerConfig config_in_cpp() {
  IndexerConfig c;
  c.num_query_heads = LIFE_QUERY_HEADS;
  c.num_kv_heads = LIFE_KV_HEADS;
  c.head_dim = LIFE_DIM;
  c.max_sequences = LIFE_SEQUENCES;
  c.max_seq_len = LIFE_MAX_LEN;
  c.page_size = LIFE_PAGE;
  c.num_pages = LIFE_PAGES;
  c.num_subspaces = 4;
  c.bits = 4;
  c.block_size = 16;
  c.mean_dtype = DType::float8_e4m3;
  c.sink_size = 16;
  c.heavy_size = LIFE_HEAVY;
  c.window_size = 32;
  c.dense_threshold = LIFE_LIST;
  return c;
}

/// What life.c does, in C++.
class LifeInCpp {
 public:
  LifeInCpp(const life_input* in, life_output* out, const Workspace& workspace, Stream stream)
      : in_(in), out_(out), workspace_(workspace), stream_(stream) {
    keys_ = {in->keys[0],
             DType::float32,
             LIFE_PAGE * LIFE_KV_HEADS * LIFE_DIM,
             LIFE_KV_HEADS * LIFE_DIM,
             LIFE_DIM,
             in->tables[0],
             LIFE_TABLE};
  }

  void run(Backend backend, std::vector<unsigned char>* saved) {
    ASSERT_TRUE(Indexer::create(config_in_cpp(), {backend, 0}, {}, &indexer_).ok());
    ASSERT_NO_FATAL_FAILURE(share());
    ASSERT_NO_FATAL_FAILURE(step(0));
    ASSERT_NO_FATAL_FAILURE(step(1));
    ASSERT_NO_FATAL_FAILURE(move(saved));
    ASSERT_NO_FATAL_FAILURE(step(2));
  }

 private:
  void share() {
    BuildArgs build;
    build.length = LIFE_PREFILL;
    build.keys = keys_;
    build.workspace = workspace_;
    ASSERT_TRUE(indexer_.build(build, stream_).ok());
    ASSERT_TRUE(indexer_.codebook(0, out_->codebook, nullptr, stream_).ok());
    CodebookArgs codebook;
    codebook.codebooks = out_->codebook;
    codebook.baseline_error = in_->baseline;
    ASSERT_TRUE(indexer_.set_codebook(codebook, stream_).ok());
    AppendArgs append;
    append.batch.batch_size = 1;
    append.batch.lengths = &in_->prefill;
    append.keys = keys_;
    append.workspace = workspace_;
    ASSERT_TRUE(indexer_.append(append, stream_).ok());
    ASSERT_TRUE(indexer_.copy_pages(in_->from_pages, in_->to_pages, LIFE_COPIED, stream_).ok());
    AttachArgs attach;
    attach.slots = &in_->attached;
    attach.lengths = &in_->prefill;
    attach.count = 1;
    attach.codebook_id = indexer_.codebook_id(0);
    ASSERT_TRUE(indexer_.attach(attach, stream_).ok());
    ASSERT_TRUE(indexer_.fork({0, 2, -1, in_->tables[0], in_->tables[2]}, stream_).ok());
  }

  void step(int call) {
    const int at = call == 0 ? 0 : 1;
    NextArgs next;
    next.batch.batch_size = LIFE_SEQUENCES;
    next.batch.lengths = in_->lengths[at];
    next.keys = keys_;
    next.queries = {in_->queries[at], DType::float32, LIFE_QUERY_HEADS * LIFE_DIM,
                    LIFE_QUERY_HEADS * LIFE_DIM, LIFE_DIM};
    next.workspace = workspace_;
    next.indices = call == 0 ? nullptr : out_->indices[call - 1];
    next.index_stride = LIFE_LIST;
    next.list_lengths = out_->list_lengths[call];
    next.physical_indices = out_->physical[call];
    if (call == 0) next.physical_indices64 = out_->physical64;
    ASSERT_TRUE(indexer_.next(next, stream_).ok());
    if (call != 1) return;
    StatsArgs stats;
    stats.batch = next.batch;
    stats.keys = keys_;
    stats.workspace = workspace_;
    stats.drift = reinterpret_cast<DriftStats*>(out_->drift);
    stats.recent_keys = 64;
    stats.recall = reinterpret_cast<RecallStats*>(out_->recall);
    stats.sample_every = LIFE_SAMPLE_EVERY;
    stats.sample_offset = 1;
    stats.sample_counter = &out_->counter;
    stats.queries = next.queries;
    stats.indices = next.indices;
    stats.index_stride = LIFE_LIST;
    stats.list_lengths = next.list_lengths;
    ASSERT_TRUE(indexer_.stats(stats, stream_).ok());
  }

  void move(std::vector<unsigned char>* saved) {
    std::size_t bytes = 0;
    ASSERT_TRUE(indexer_
                    .save({2, -1, in_->tables[2], workspace_, saved->data(), saved->size(), &bytes},
                          stream_)
                    .ok());
    saved->resize(bytes);
    ASSERT_TRUE(indexer_.reset(2, stream_).ok());
    ASSERT_TRUE(
        indexer_.restore({2, in_->tables[2], workspace_, saved->data(), bytes}, stream_).ok());
  }

  const life_input* in_;
  life_output* out_;
  Workspace workspace_;
  Stream stream_;
  KeyView keys_;
  Indexer indexer_;
};

/// What the lists and figures must be whichever API they come from.
void check(const life_input& in, const life_output& out) {
  for (const std::uint32_t bits : out.device_status) EXPECT_EQ(bits, 0u);
  for (const auto& lengths : out.list_lengths) {
    for (const std::int32_t length : lengths) EXPECT_EQ(length, LIFE_LIST);
  }
  for (int i = 0; i < LIFE_ROWS * LIFE_LIST; ++i) {
    ASSERT_EQ(out.physical64[i], out.physical[0][i]) << i;
    const std::int32_t p = out.indices[0][i];
    const std::int32_t page = in.tables[i / LIFE_LIST / LIFE_QUERY_HEADS][p / LIFE_PAGE];
    ASSERT_EQ(out.physical[1][i], page * LIFE_PAGE + p % LIFE_PAGE) << i;
  }
  // The restored sequence goes on where it was.
  EXPECT_EQ(std::memcmp(out.indices[0], out.indices[1], sizeof out.indices[0]), 0);
  EXPECT_EQ(std::memcmp(out.physical[1], out.physical[2], sizeof out.physical[1]), 0);
  for (int i = 0; i < LIFE_SEQUENCES * LIFE_KV_HEADS; ++i) {
    EXPECT_EQ(out.drift[i].keys, 64);
    EXPECT_GT(out.drift[i].error, 0);
    EXPECT_EQ(out.drift[i].baseline, in.baseline[i % LIFE_KV_HEADS]);
    EXPECT_EQ(out.drift[i].ratio, out.drift[i].error / out.drift[i].baseline);
  }
  for (int i = 0; i < LIFE_SAMPLES; ++i) {
    EXPECT_EQ(out.recall[i].row, i * LIFE_SAMPLE_EVERY + 1);
    EXPECT_EQ(out.recall[i].exact, LIFE_HEAVY);
    EXPECT_GT(out.recall[i].found, 0);
    EXPECT_EQ(out.recall[i].recall, static_cast<float>(out.recall[i].found) / float{LIFE_HEAVY});
  }
  EXPECT_EQ(out.counter, 1u);
}

TEST_P(CApiLife, InCGivesTheSameBytes) {
  const Backend backend = GetParam();
  const auto host_input = make_input();
  const OnDevice<life_input> in(backend, *host_input);
  const auto zero = std::make_unique<life_output>();
  const OnDevice<life_output> of_c(backend, *zero), of_cpp(backend, *zero);
  const DeviceBytes scratch(backend, std::size_t{16} << 20);
  StreamHandle stream(backend);
  std::vector<unsigned char> saved(std::size_t{1} << 20), saved_by_cpp(saved.size());

  life_io io{};
  io.backend = static_cast<std::int32_t>(backend);
  io.stream = stream.get();
  io.in = in.get();
  io.out = of_c.get();
  io.workspace = scratch.data();
  io.workspace_bytes = scratch.bytes();
  io.saved = saved.data();
  io.saved_capacity = saved.size();
  ASSERT_EQ(life(&io), 0) << io.detail;
  stream.synchronize();
  LifeInCpp cpp(in.get(), of_cpp.get(), {scratch.data(), scratch.bytes()}, stream.get());
  ASSERT_NO_FATAL_FAILURE(cpp.run(backend, &saved_by_cpp));
  stream.synchronize();

  const auto result = of_c.download();
  check(*host_input, *result);
  EXPECT_EQ(std::memcmp(result.get(), of_cpp.download().get(), sizeof(life_output)), 0);
  saved.resize(io.saved_bytes);
  EXPECT_TRUE(saved == saved_by_cpp);
  SavedSequence header;
  ASSERT_TRUE(read_saved(saved.data(), saved.size(), &header).ok());
  EXPECT_EQ(io.header.length, host_input->lengths[1][2]);
  EXPECT_EQ(io.header.has_codebook, 1);
  EXPECT_EQ(io.header.codebook_hash, header.codebook_hash);
}

QUARRY_ON_EVERY_BACKEND(CApiLife);

}  // namespace
}  // namespace quarry::test
