// SPDX-License-Identifier: Apache-2.0
//
// The C API: the same bytes as the C++ API, older and newer structs, and misuse.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "c_convert.h"
#include "decode.h"
#include "expect.h"
#include "support/backends.h"
#include "support/random.h"

namespace quarry::test {
namespace {

class CApi : public BackendTest {};

/// What decode.c is given, the same for both APIs.
struct Input {
  explicit Input(Backend backend)
      : keys(backend, random(DECODE_SEQUENCES * DECODE_MAX_LEN * DECODE_KV_HEADS * DECODE_DIM, 1)),
        queries(backend, random(DECODE_STEPS * DECODE_ROWS * DECODE_DIM, 2)),
        lengths(backend, step_lengths()),
        slots(backend, std::vector<std::int32_t>{1, 0}),
        fallen(backend, std::vector<std::int32_t>{DECODE_PREFILL - 40}) {}

  static std::vector<float> random(std::size_t count, std::uint64_t seed) {
    Random source(seed);
    std::vector<float> out(count);
    for (float& x : out) x = static_cast<float>(source.normal());
    return out;
  }
  static std::vector<std::int32_t> step_lengths() {
    std::vector<std::int32_t> out;
    for (int step = 0; step < DECODE_STEPS; ++step) {
      out.push_back(DECODE_PREFILL + 1 + step);
      out.push_back(DECODE_PREFILL + 1 + 7 * step);
    }
    return out;
  }

  DeviceBuffer<float> keys, queries;
  DeviceBuffer<std::int32_t> lengths, slots, fallen;
};

struct Output {
  explicit Output(Backend backend)
      : indices(backend, DECODE_STEPS * DECODE_ROWS * DECODE_MAX_LIST),
        list_lengths(backend, DECODE_STEPS * DECODE_ROWS),
        device_status(backend, std::vector<std::uint32_t>(DECODE_SEQUENCES, 0)),
        codebook(backend, DECODE_KV_HEADS * DECODE_SUBSPACES * DECODE_KSUB * DECODE_DSUB),
        codes(backend, (DECODE_PREFILL - 16) * DECODE_KV_HEADS * DECODE_SUBSPACES) {
    indices.fill(0x5b), list_lengths.fill(0x5b), codebook.fill(0x5b), codes.fill(0x5b);
  }

  DeviceBuffer<std::int32_t> indices, list_lengths;
  DeviceBuffer<std::uint32_t> device_status;
  DeviceBuffer<float> codebook;
  DeviceBuffer<std::uint8_t> codes;
};

KeyView key_view(const Input& in) {
  KeyView keys;
  keys.data = in.keys.data();
  keys.head_stride = DECODE_DIM;
  keys.slot_stride = DECODE_KV_HEADS * DECODE_DIM;
  keys.page_stride = DECODE_MAX_LEN * keys.slot_stride;
  return keys;
}

/// What decode.c does, in C++.
void decode_in_cpp(Backend backend, Stream stream, const Input& in, const Workspace& workspace,
                   Output* out) {
  IndexerConfig c;
  c.num_query_heads = DECODE_QUERY_HEADS;
  c.num_kv_heads = DECODE_KV_HEADS;
  c.head_dim = DECODE_DIM;
  c.max_sequences = DECODE_SEQUENCES;
  c.max_seq_len = DECODE_MAX_LEN;
  c.num_subspaces = DECODE_SUBSPACES;
  c.bits = 4;
  c.block_size = 16;
  c.sink_size = 16;
  c.heavy_size = 24;
  c.window_size = 32;
  c.dense_threshold = 16 + 24 + 32;
  c.seed = 5;
  Indexer indexer;
  ASSERT_TRUE(Indexer::create(c, {backend, 0}, {}, &indexer).ok());
  for (int slot = 0; slot < DECODE_SEQUENCES; ++slot) {
    BuildArgs build;
    build.slot = slot;
    build.length = DECODE_PREFILL;
    build.keys = key_view(in);
    build.workspace = workspace;
    ASSERT_TRUE(indexer.build(build, stream).ok());
  }
  for (int step = 0; step < DECODE_STEPS; ++step) {
    if (step == 5) {
      ASSERT_TRUE(indexer.truncate(in.slots.data(), in.fallen.data(), 1, stream).ok());
    }
    NextArgs next;
    next.batch.batch_size = DECODE_SEQUENCES;
    next.batch.slots = in.slots.data();
    next.batch.lengths = in.lengths.data() + step * DECODE_SEQUENCES;
    next.keys = key_view(in);
    next.queries.data = in.queries.data() + step * DECODE_ROWS * DECODE_DIM;
    next.queries.head_stride = DECODE_DIM;
    next.queries.token_stride = next.queries.batch_stride = DECODE_QUERY_HEADS * DECODE_DIM;
    next.workspace = workspace;
    next.indices = out->indices.data() + step * DECODE_ROWS * DECODE_MAX_LIST;
    next.index_stride = DECODE_MAX_LIST;
    next.list_lengths = out->list_lengths.data() + step * DECODE_ROWS;
    ASSERT_TRUE(indexer.next(next, stream).ok());
  }
  ASSERT_TRUE(indexer.codebook(1, out->codebook.data(), nullptr, stream).ok());
  ASSERT_TRUE(indexer.codes(0, 16, DECODE_PREFILL - 16, nullptr, out->codes.data(), stream).ok());
}

TEST_P(CApi, ADecodeInCGivesTheSameBytes) {
  const Backend backend = GetParam();
  const Input in(backend);
  const DeviceBytes scratch(backend, std::size_t{16} << 20);
  StreamHandle stream(backend);
  Output of_c(backend), of_cpp(backend);

  decode_io io{};
  io.backend = static_cast<std::int32_t>(backend);
  io.stream = stream.get();
  io.keys = in.keys.data();
  io.queries = in.queries.data();
  io.lengths = in.lengths.data();
  io.slots = in.slots.data();
  io.fallen = in.fallen.data();
  io.workspace = scratch.data();
  io.workspace_bytes = scratch.bytes();
  io.indices = of_c.indices.data();
  io.list_lengths = of_c.list_lengths.data();
  io.device_status = of_c.device_status.data();
  io.codebook = of_c.codebook.data();
  io.codes = of_c.codes.data();
  ASSERT_EQ(decode(&io), 0) << io.detail;
  stream.synchronize();
  decode_in_cpp(backend, stream.get(), in, {scratch.data(), scratch.bytes()}, &of_cpp);
  stream.synchronize();

  EXPECT_EQ(of_c.device_status.download(), std::vector<std::uint32_t>(DECODE_SEQUENCES, 0));
  EXPECT_EQ(of_c.list_lengths.download(),
            std::vector<std::int32_t>(DECODE_STEPS * DECODE_ROWS, 16 + 24 + 32));
  EXPECT_TRUE(of_c.indices.download() == of_cpp.indices.download());
  EXPECT_TRUE(of_c.codebook.download() == of_cpp.codebook.download());
  EXPECT_TRUE(of_c.codes.download() == of_cpp.codes.download());
}

QUARRY_ON_EVERY_BACKEND(CApi);

TEST(CApiConfig, DefaultsAreThoseOfCpp) {
  const IndexerConfig d;
  const quarry_config c = config_of();
  EXPECT_EQ(c.struct_size, sizeof(quarry_config));
  EXPECT_EQ(c.abi_version, QUARRY_C_ABI_VERSION + 0u);
  EXPECT_EQ(c.num_query_heads, d.num_query_heads);
  EXPECT_EQ(c.max_seq_len, d.max_seq_len);
  EXPECT_EQ(c.encode_from, -1);
  EXPECT_EQ(c.dense_threshold, -1);
  EXPECT_EQ(c.refine_factor, 1);
  EXPECT_EQ(c.kmeans_iterations, 10);
  EXPECT_EQ(c.reserved, 0);
  EXPECT_EQ(quarry_default_config(nullptr, nullptr), QUARRY_INVALID_ARGUMENT);
}

// Every member of a configuration has a value of its own: a member forgotten or swapped on the
// way in or out comes back as another's.
TEST(CApiConfig, EveryMemberGoesInAndComesBack) {
  quarry_config c = config_of();
  c.num_query_heads = 12;
  c.num_kv_heads = 6;
  c.head_dim = 48;
  c.max_sequences = 5;
  c.max_query_tokens = 3;
  c.max_seq_len = 4001;
  c.page_size = 32;
  c.num_pages = 1009;
  c.num_subspaces = 4;
  c.bits = 7;
  c.metric = QUARRY_METRIC_INNER_PRODUCT;
  c.block_size = 16;
  c.mean_dtype = QUARRY_DTYPE_BFLOAT16;
  c.rotation = 1;
  c.shared_codebook = 1;
  c.sink_size = 19;
  c.heavy_size = 57;
  c.window_size = 41;
  c.encode_from = 8;
  c.dense_threshold = 333;
  c.refine_factor = 9;
  c.kmeans_iterations = 23;
  c.seed = 0x123456789abcdefull;
  c.algorithm = QUARRY_ALGORITHM_STAGED;
  c.gqa_reduction = QUARRY_GQA_SOFTMAX_SUM;
  c.softmax_scale = 0.4375f;
  quarry_status status;
  quarry_config resolved;
  QUARRY_C_HEADER(&resolved);
  ASSERT_EQ(quarry_resolve(&c, QUARRY_BACKEND_CPU, &resolved, &status), QUARRY_OK) << status.detail;
  EXPECT_EQ(std::memcmp(&resolved, &c, sizeof c), 0);
  quarry_indexer* indexer = nullptr;
  ASSERT_EQ(quarry_create(&c, nullptr, &indexer, &status), QUARRY_OK) << status.detail;
  quarry_config read;
  QUARRY_C_HEADER(&read);
  ASSERT_EQ(quarry_get_config(indexer, &read, &status), QUARRY_OK);
  EXPECT_EQ(std::memcmp(&read, &c, sizeof c), 0);
  EXPECT_EQ(quarry_list_heads(indexer), 6);
  EXPECT_EQ(quarry_max_list_length(indexer), 333);

  // Against C++'s own reading of the same.
  IndexerConfig d;
  d.num_query_heads = 12;
  d.num_kv_heads = 6;
  d.head_dim = 48;
  d.max_sequences = 5;
  d.max_query_tokens = 3;
  d.max_seq_len = 4001;
  d.page_size = 32;
  d.num_pages = 1009;
  d.num_subspaces = 4;
  d.bits = 7;
  d.metric = Metric::inner_product;
  d.block_size = 16;
  d.mean_dtype = DType::bfloat16;
  d.rotation = d.shared_codebook = true;
  d.sink_size = 19;
  d.heavy_size = 57;
  d.window_size = 41;
  d.encode_from = 8;
  d.dense_threshold = 333;
  d.refine_factor = 9;
  d.gqa_reduction = GqaReduction::softmax_sum;
  d.softmax_scale = 0.4375f;
  MemoryRequirements want;
  ASSERT_TRUE(memory_requirements(d, Backend::cpu, &want).ok());
  quarry_memory memory;
  quarry_memory_init(&memory);
  ASSERT_EQ(quarry_memory_requirements(&c, QUARRY_BACKEND_CPU, &memory, &status), QUARRY_OK);
  EXPECT_EQ(memory.index_bytes, want.index_bytes);
  EXPECT_EQ(memory.next_workspace_bytes, want.next_workspace_bytes);
  EXPECT_EQ(memory.build_workspace_bytes, want.build_workspace_bytes);
  EXPECT_EQ(memory.alignment, want.alignment);
  EXPECT_EQ(memory.code_bytes_per_key, want.code_bytes_per_key);
  EXPECT_EQ(memory.mean_bytes_per_key, want.mean_bytes_per_key);
  EXPECT_EQ(memory.codebook_bytes, want.codebook_bytes);
  EXPECT_EQ(memory.transfer_workspace_bytes, want.transfer_workspace_bytes);
  EXPECT_EQ(quarry_workspace_bytes(indexer, 5, 3), want.next_workspace_bytes);
  EXPECT_EQ(quarry_workspace_bytes(indexer, 6, 1), 0u);
  quarry_destroy(indexer);
}

TEST(CApiConfig, RecommendedIsThatOfCpp) {
  quarry_config c;
  QUARRY_C_HEADER(&c);
  quarry_status status;
  ASSERT_EQ(quarry_recommended_config(64, &c, &status), QUARRY_OK);
  const IndexerConfig d = IndexerConfig::recommended(64);
  EXPECT_EQ(c.head_dim, 64);
  EXPECT_EQ(c.num_subspaces, d.num_subspaces);
  EXPECT_EQ(c.block_size, d.block_size);
  EXPECT_EQ(c.mean_dtype, static_cast<std::int32_t>(d.mean_dtype));
  EXPECT_EQ(c.rotation, 1);
  EXPECT_EQ(c.shared_codebook, 1);
  EXPECT_EQ(c.refine_factor, d.refine_factor);
}

// A caller from when quarry_config ended before refine_factor.
TEST(CApiStructs, AnOlderCallersMissingMembersTakeDefaults) {
  constexpr std::uint32_t kOld = offsetof(quarry_config, refine_factor) & ~7u;
  quarry_config old = config_of(kOld);
  EXPECT_EQ(old.struct_size, kOld);
  EXPECT_EQ(old.max_seq_len, IndexerConfig{}.max_seq_len);
  // What lies beyond is the caller's own memory: not written, and not read.
  EXPECT_EQ(old.refine_factor, 0x5b5b5b5b);
  EXPECT_EQ(old.algorithm, 0x5b5b5b5b);
  quarry_config resolved;
  QUARRY_C_HEADER(&resolved);
  quarry_status status;
  ASSERT_EQ(quarry_resolve(&old, QUARRY_BACKEND_CPU, &resolved, &status), QUARRY_OK)
      << status.detail;
  EXPECT_EQ(resolved.refine_factor, 1);
  EXPECT_EQ(resolved.kmeans_iterations, 10);
  EXPECT_EQ(resolved.seed, 0u);
  EXPECT_GT(resolved.softmax_scale, 0);
  // The least there is: nothing but the header.
  quarry_config bare = config_of(8);
  EXPECT_EQ(bare.head_dim, 0x5b5b5b5b);
  ASSERT_EQ(quarry_resolve(&bare, QUARRY_BACKEND_CPU, &resolved, &status), QUARRY_OK)
      << status.detail;
  EXPECT_EQ(resolved.head_dim, 128);
}

// A caller from the first version of each struct that has grown since, with what is not a member
// of it right behind: not read, not written, and as if it were 0.
TEST(CApiStructs, TheFirstVersionsAreStillServed) {
  constexpr std::uint32_t kConfig = offsetof(quarry_config, softmax_scale);
  quarry_config config = config_of(kConfig);
  EXPECT_NE(config.reserved_2, 0);
  decode_config(&config);
  config.gqa_reduction = QUARRY_GQA_SOFTMAX_SUM;
  quarry_status status;
  quarry_config resolved;
  QUARRY_C_HEADER(&resolved);
  ASSERT_EQ(quarry_resolve(&config, QUARRY_BACKEND_CPU, &resolved, &status), QUARRY_OK)
      << status.detail;
  EXPECT_EQ(resolved.softmax_scale, 1 / std::sqrt(static_cast<float>(DECODE_DIM)));

  quarry_memory memory;
  std::memset(&memory, 0x5b, sizeof memory);
  QUARRY_C_HEADER(&memory);
  memory.struct_size = offsetof(quarry_memory, transfer_workspace_bytes);
  ASSERT_EQ(quarry_memory_requirements(&config, QUARRY_BACKEND_CPU, &memory, &status), QUARRY_OK);
  EXPECT_EQ(memory.codebook_bytes,
            sizeof(float) * DECODE_KV_HEADS * DECODE_SUBSPACES * DECODE_KSUB * DECODE_DSUB);
  EXPECT_EQ(memory.transfer_workspace_bytes, 0x5b5b5b5b5b5b5b5bu);

  quarry_indexer* indexer = nullptr;
  ASSERT_EQ(quarry_create(&config, nullptr, &indexer, &status), QUARRY_OK) << status.detail;
  // Where the members behind were read, their addresses would be refused: they are odd.
  void* const odd = reinterpret_cast<void*>(std::uintptr_t{0x5b});
  quarry_codebook_args codebook;
  quarry_codebook_args_init(&codebook);
  const std::vector<float> books(DECODE_KV_HEADS * DECODE_SUBSPACES * DECODE_KSUB * DECODE_DSUB);
  codebook.codebooks = books.data();
  codebook.baseline_error = static_cast<const float*>(odd);
  expect_refused(quarry_set_codebook(indexer, &codebook, nullptr, &status), status,
                 QUARRY_INVALID_ARGUMENT, "baseline_error");
  codebook.struct_size = offsetof(quarry_codebook_args, baseline_error);
  EXPECT_EQ(quarry_set_codebook(indexer, &codebook, nullptr, &status), QUARRY_OK) << status.detail;

  const std::vector<float> data(DECODE_QUERY_HEADS * DECODE_DIM);
  const std::int32_t length = 0;
  alignas(256) static unsigned char scratch[1 << 20];
  std::vector<std::int32_t> list(DECODE_KV_HEADS * DECODE_MAX_LIST), lengths(DECODE_KV_HEADS);
  quarry_next_args next;
  quarry_next_args_init(&next);
  next.batch.batch_size = 1;
  next.batch.lengths = &length;
  next.keys.data = data.data();
  next.keys.head_stride = DECODE_DIM;
  next.keys.slot_stride = next.keys.page_stride = DECODE_KV_HEADS * DECODE_DIM;
  next.queries.data = data.data();
  next.queries.head_stride = DECODE_DIM;
  next.queries.token_stride = next.queries.batch_stride = DECODE_QUERY_HEADS * DECODE_DIM;
  next.workspace = {scratch, sizeof scratch};
  next.indices = list.data();
  next.index_stride = DECODE_MAX_LIST;
  next.list_lengths = lengths.data();
  next.physical_indices = static_cast<std::int32_t*>(odd);
  next.physical_indices64 = static_cast<std::int64_t*>(odd);
  expect_refused(quarry_next(indexer, &next, nullptr, &status), status, QUARRY_INVALID_ARGUMENT,
                 "physical_indices");
  next.struct_size = offsetof(quarry_next_args, physical_indices);
  EXPECT_EQ(quarry_next(indexer, &next, nullptr, &status), QUARRY_OK) << status.detail;
  quarry_destroy(indexer);
}

// Scales came after the key view, so the args that hold it have them.
TEST(CApiStructs, KeyScalesReachTheIndexer) {
  const float scale = 0.5f;
  quarry_next_args next;
  quarry_append_args append;
  quarry_build_args build;
  quarry_stats_args stats;
  quarry_next_args_init(&next);
  quarry_append_args_init(&append);
  quarry_build_args_init(&build);
  quarry_stats_args_init(&stats);
  const auto check = [&](auto& args, auto& out) {
    args.keys.dtype = QUARRY_DTYPE_FLOAT8_E4M3;
    args.key_scales = &scale;
    args.num_key_scales = 1;
    ASSERT_TRUE(c_abi::from_c(&args, &out).ok());
    EXPECT_EQ(out.keys.dtype, DType::float8_e4m3);
    EXPECT_EQ(out.keys.scales, &scale);
    EXPECT_EQ(out.keys.num_scales, 1);
    // A caller from before them has none.
    args.struct_size = static_cast<std::uint32_t>(reinterpret_cast<const char*>(&args.key_scales) -
                                                  reinterpret_cast<const char*>(&args));
    ASSERT_TRUE(c_abi::from_c(&args, &out).ok());
    EXPECT_EQ(out.keys.scales, nullptr);
    EXPECT_EQ(out.keys.num_scales, 0);
  };
  NextArgs next_out;
  AppendArgs append_out;
  BuildArgs build_out;
  StatsArgs stats_out;
  check(next, next_out), check(append, append_out), check(build, build_out);
  check(stats, stats_out);
  next.struct_size = sizeof next;
  next.reserved = 1;
  const Status s = c_abi::from_c(&next, &next_out);
  EXPECT_EQ(s.code(), StatusCode::invalid_argument);
  EXPECT_NE(std::string(s.detail()).find("reserved"), std::string::npos) << s.detail();
}

// A caller from when structs will have grown.
TEST(CApiStructs, ANewerCallerIsServedAsLongAsWhatIsNewIsZero) {
  struct Newer {
    quarry_config config;
    std::uint64_t future[2];
  } newer{config_of(), {0, 0}};
  newer.config.struct_size = sizeof newer;
  quarry_config resolved;
  QUARRY_C_HEADER(&resolved);
  quarry_status status;
  EXPECT_EQ(quarry_resolve(&newer.config, QUARRY_BACKEND_CPU, &resolved, &status), QUARRY_OK);
  newer.future[1] = 1;
  expect_refused(quarry_resolve(&newer.config, QUARRY_BACKEND_CPU, &resolved, &status), status,
                 QUARRY_UNSUPPORTED, "struct_size");
  // As an output, what this library does not know becomes 0.
  EXPECT_EQ(quarry_default_config(&newer.config, &status), QUARRY_OK);
  EXPECT_EQ(newer.config.struct_size, sizeof newer);
  EXPECT_EQ(newer.future[0], 0u);
  EXPECT_EQ(newer.future[1], 0u);
}

TEST(CApiStructs, SizesAndVersionsThatCannotBeAreRefused) {
  quarry_status status;
  quarry_config resolved;
  QUARRY_C_HEADER(&resolved);
  for (const std::uint32_t size : {0u, 4u, 7u, 12u, 119u, 4104u, 0xffffffffu}) {
    quarry_config c = config_of();
    c.struct_size = size;
    expect_refused(quarry_resolve(&c, QUARRY_BACKEND_CPU, &resolved, &status), status,
                   QUARRY_INVALID_ARGUMENT, "config.struct_size");
    expect_refused(quarry_default_config(&c, &status), status, QUARRY_INVALID_ARGUMENT,
                   "out.struct_size");
  }
  for (const std::uint32_t version : {0u, QUARRY_C_ABI_VERSION + 1u, 0x5b5b5b5bu}) {
    quarry_config c = config_of();
    c.abi_version = version;
    expect_refused(quarry_create(&c, nullptr, nullptr, &status), status, QUARRY_INVALID_ARGUMENT,
                   "out is null");
    quarry_indexer* indexer = nullptr;
    expect_refused(quarry_create(&c, nullptr, &indexer, &status), status, QUARRY_UNSUPPORTED,
                   "config.abi_version");
    EXPECT_EQ(indexer, nullptr);
  }
}

TEST(CApiLog, TellsACCallback) {
  std::vector<std::string> said;
  quarry_set_log_callback(
      [](std::int32_t level, const char* message, void* user) {
        static_cast<std::vector<std::string>*>(user)->push_back(std::to_string(level) + message);
      },
      &said, QUARRY_LOG_DEBUG);
  quarry_status s;
  EXPECT_NE(quarry_next(nullptr, nullptr, nullptr, &s), QUARRY_OK);
  quarry_set_log_callback(nullptr, nullptr, QUARRY_LOG_DEBUG);
  EXPECT_NE(quarry_next(nullptr, nullptr, nullptr, &s), QUARRY_OK);
  EXPECT_EQ(said, std::vector<std::string>{"3next: invalid_argument: indexer is null"});
}

TEST(CApiNames, AreThoseOfCpp) {
  EXPECT_STREQ(quarry_version(), QUARRY_VERSION_STRING);
  EXPECT_EQ(quarry_abi_version(), QUARRY_C_ABI_VERSION + 0u);
  const std::pair<quarry_code, StatusCode> codes[] = {
      {QUARRY_OK, StatusCode::ok},
      {QUARRY_INVALID_ARGUMENT, StatusCode::invalid_argument},
      {QUARRY_OUT_OF_RANGE, StatusCode::out_of_range},
      {QUARRY_UNSUPPORTED, StatusCode::unsupported},
      {QUARRY_WORKSPACE_TOO_SMALL, StatusCode::workspace_too_small},
      {QUARRY_OUT_OF_MEMORY, StatusCode::out_of_memory},
      {QUARRY_NOT_BUILT, StatusCode::not_built},
      {QUARRY_TOO_FEW_KEYS, StatusCode::too_few_keys},
      {QUARRY_DEVICE_ERROR, StatusCode::device_error}};
  for (const auto& [c, cpp] : codes) {
    EXPECT_EQ(c, static_cast<std::int32_t>(cpp));
    EXPECT_STREQ(quarry_code_name(c), to_string(cpp));
  }
  EXPECT_STREQ(quarry_code_name(99), "unknown");
  EXPECT_EQ(QUARRY_BIT_LENGTH_OUT_OF_RANGE + 0u, kLengthOutOfRange);
  EXPECT_EQ(QUARRY_BIT_SLOT_OUT_OF_RANGE + 0u, kSlotOutOfRange);
  EXPECT_EQ(QUARRY_BIT_PAGE_OUT_OF_RANGE + 0u, kPageOutOfRange);
  EXPECT_EQ(QUARRY_BIT_NOT_BUILT + 0u, kNotBuilt);
  EXPECT_EQ(QUARRY_BIT_TOO_FEW_KEYS + 0u, kTooFewKeys);
  EXPECT_EQ(QUARRY_BIT_QUERY_COUNT_OUT_OF_RANGE + 0u, kQueryCountOutOfRange);
  EXPECT_EQ(QUARRY_BIT_CODEBOOK_MISMATCH + 0u, kCodebookMismatch);
  EXPECT_EQ(QUARRY_DTYPE_FLOAT8_E4M3, static_cast<std::int32_t>(DType::float8_e4m3));
  EXPECT_EQ(QUARRY_GQA_SOFTMAX_SUM, static_cast<std::int32_t>(GqaReduction::softmax_sum));
}

}  // namespace
}  // namespace quarry::test
