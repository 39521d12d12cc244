// SPDX-License-Identifier: Apache-2.0
//
// The C ABI over the C++ API: structs are checked and translated, everything else is the
// Indexer's to check.
#include "quarry/c_api.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <new>
#include <type_traits>

#include "call.h"
#include "log.h"
#include "quarry/quarry.h"

struct quarry_indexer {
  quarry::Indexer indexer;
};

namespace quarry {
namespace {

static_assert(sizeof(std::size_t) == sizeof(std::uint64_t));
static_assert(sizeof(quarry_status) == 256);

// Results in device memory: the library writes its own struct where C reads the other.
template <typename C, typename Cpp>
constexpr bool kSameBytes = sizeof(C) == sizeof(Cpp) && alignof(C) == alignof(Cpp) &&
                            std::is_trivially_copyable_v<Cpp>&& std::is_standard_layout_v<Cpp>;
static_assert(kSameBytes<quarry_drift_stats, DriftStats>);
static_assert(offsetof(quarry_drift_stats, error) == offsetof(DriftStats, error));
static_assert(offsetof(quarry_drift_stats, baseline) == offsetof(DriftStats, baseline));
static_assert(offsetof(quarry_drift_stats, ratio) == offsetof(DriftStats, ratio));
static_assert(offsetof(quarry_drift_stats, keys) == offsetof(DriftStats, keys));
static_assert(kSameBytes<quarry_recall_stats, RecallStats>);
static_assert(offsetof(quarry_recall_stats, row) == offsetof(RecallStats, row));
static_assert(offsetof(quarry_recall_stats, exact) == offsetof(RecallStats, exact));
static_assert(offsetof(quarry_recall_stats, found) == offsetof(RecallStats, found));
static_assert(offsetof(quarry_recall_stats, recall) == offsetof(RecallStats, recall));

constexpr std::uint32_t kHeaderBytes = 8;       // struct_size and abi_version
constexpr std::uint32_t kLargestStruct = 4096;  // a size beyond it was never set

quarry_code finish(const Status& from, quarry_status* to) noexcept {
  const auto code = static_cast<quarry_code>(from.code());
  if (to != nullptr) {
    to->code = code;
    static_assert(Status::capacity() <= sizeof to->detail);
    std::strncpy(to->detail, from.detail(), sizeof to->detail);  // zeroes the rest
  }
  return code;
}

/// What every growing struct starts with, as the caller set it.
template <typename T>
Status check_header(const char* name, const T* given) {
  if (given == nullptr) return Status(StatusCode::invalid_argument, "%s is null", name);
  if (reinterpret_cast<std::uintptr_t>(given) % alignof(T) != 0) {
    return Status(StatusCode::invalid_argument, "%s is %p, must be aligned to %zu bytes", name,
                  static_cast<const void*>(given), alignof(T));
  }
  // Members are in units of 8 bytes, so that no size ends within one.
  static_assert(sizeof(T) % 8 == 0 && sizeof(T) <= kLargestStruct);
  const std::uint32_t size = given->struct_size;
  if (size < kHeaderBytes || size > kLargestStruct || size % 8 != 0) {
    return Status(StatusCode::invalid_argument,
                  "%s.struct_size is %u, must be sizeof *%s (a multiple of 8 in %u..%u)", name,
                  size, name, kHeaderBytes, kLargestStruct);
  }
  if (given->abi_version != QUARRY_C_ABI_VERSION) {
    return Status(StatusCode::unsupported, "%s.abi_version is %u, this library serves %d", name,
                  given->abi_version, QUARRY_C_ABI_VERSION);
  }
  return {};
}

/// Lays what the caller's struct has over `*out`, which holds the defaults.
template <typename T>
Status take(const char* name, const T* given, T* out) {
  if (Status s = check_header(name, given); !s.ok()) return s;
  const std::size_t size = given->struct_size;
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (std::size_t i = sizeof(T); i < size; ++i) {
    if (bytes[i] == 0) continue;
    return Status(StatusCode::unsupported,
                  "%s.struct_size is %zu, this library knows %zu, and byte %zu is not 0", name,
                  size, sizeof(T), i);
  }
  std::memcpy(out, given, std::min(size, sizeof(T)));
  return {};
}

/// Writes what the caller's struct has room for; members it has beyond T become 0.
template <typename T>
Status give(const char* name, T value, T* out) {
  if (Status s = check_header(name, out); !s.ok()) return s;
  const std::size_t size = out->struct_size;
  value.struct_size = out->struct_size;
  value.abi_version = out->abi_version;
  std::memset(out, 0, size);
  std::memcpy(out, &value, std::min(size, sizeof(T)));
  return {};
}

/// A member with few values, 0 .. most.
struct Choice {
  const char* name;
  std::int32_t value, most;
};

template <std::size_t N>
Status check_choices(const char* of, const Choice (&choices)[N]) {
  for (const Choice& c : choices) {
    if (c.value >= 0 && c.value <= c.most) continue;
    return Status(StatusCode::invalid_argument, "%s.%s is %d, must be 0..%d", of, c.name, c.value,
                  c.most);
  }
  return {};
}

quarry_config to_c(const IndexerConfig& c) {
  quarry_config out{};
  out.num_query_heads = c.num_query_heads;
  out.num_kv_heads = c.num_kv_heads;
  out.head_dim = c.head_dim;
  out.max_sequences = c.max_sequences;
  out.max_query_tokens = c.max_query_tokens;
  out.max_seq_len = c.max_seq_len;
  out.num_pages = c.num_pages;
  out.page_size = c.page_size;
  out.num_subspaces = c.num_subspaces;
  out.bits = c.bits;
  out.metric = static_cast<std::int32_t>(c.metric);
  out.block_size = c.block_size;
  out.mean_dtype = static_cast<std::int32_t>(c.mean_dtype);
  out.rotation = c.rotation ? 1 : 0;
  out.shared_codebook = c.shared_codebook ? 1 : 0;
  out.sink_size = c.sink_size;
  out.heavy_size = c.heavy_size;
  out.window_size = c.window_size;
  out.encode_from = c.encode_from;
  out.dense_threshold = c.dense_threshold;
  out.refine_factor = c.refine_factor;
  out.gqa_reduction = static_cast<std::int32_t>(c.gqa_reduction);
  out.kmeans_iterations = c.kmeans_iterations;
  out.seed = c.seed;
  out.algorithm = static_cast<std::int32_t>(c.algorithm);
  out.softmax_scale = c.softmax_scale;
  return out;
}

Status from_c(const quarry_config* given, IndexerConfig* out) {
  quarry_config c = to_c(IndexerConfig{});
  if (Status s = take("config", given, &c); !s.ok()) return s;
  // Enumerations out of range are resolve()'s to refuse, as in C++.
  const Choice choices[] = {{"rotation", c.rotation, 1},
                            {"shared_codebook", c.shared_codebook, 1},
                            {"reserved", c.reserved, 0},
                            {"reserved_2", c.reserved_2, 0}};
  if (Status s = check_choices("config", choices); !s.ok()) return s;
  out->num_query_heads = c.num_query_heads;
  out->num_kv_heads = c.num_kv_heads;
  out->head_dim = c.head_dim;
  out->max_sequences = c.max_sequences;
  out->max_query_tokens = c.max_query_tokens;
  out->max_seq_len = c.max_seq_len;
  out->num_pages = c.num_pages;
  out->page_size = c.page_size;
  out->num_subspaces = c.num_subspaces;
  out->bits = c.bits;
  out->metric = static_cast<Metric>(c.metric);
  out->block_size = c.block_size;
  out->mean_dtype = static_cast<DType>(c.mean_dtype);
  out->rotation = c.rotation != 0;
  out->shared_codebook = c.shared_codebook != 0;
  out->sink_size = c.sink_size;
  out->heavy_size = c.heavy_size;
  out->window_size = c.window_size;
  out->encode_from = c.encode_from;
  out->dense_threshold = c.dense_threshold;
  out->refine_factor = c.refine_factor;
  out->gqa_reduction = static_cast<GqaReduction>(c.gqa_reduction);
  out->kmeans_iterations = c.kmeans_iterations;
  out->seed = c.seed;
  out->algorithm = static_cast<Algorithm>(c.algorithm);
  out->softmax_scale = c.softmax_scale;
  return {};
}

Status from_c(const quarry_key_view& k, KeyView* out) {
  const Choice choices[] = {{"reserved", k.reserved, 0}};
  if (Status s = check_choices("keys", choices); !s.ok()) return s;
  *out = {k.data,        static_cast<DType>(k.dtype), k.page_stride, k.slot_stride, k.head_stride,
          k.block_table, k.block_table_stride};
  return {};
}

Status from_c(const quarry_query_view& q, QueryView* out) {
  const Choice choices[] = {{"reserved", q.reserved, 0}};
  if (Status s = check_choices("queries", choices); !s.ok()) return s;
  *out = {q.data, static_cast<DType>(q.dtype), q.batch_stride, q.token_stride, q.head_stride};
  return {};
}

Batch from_c(const quarry_batch& b) {
  return {b.batch_size,   b.query_tokens, b.slots,       b.lengths,
          b.query_counts, b.host_slots,   b.host_lengths};
}

Workspace from_c(const quarry_workspace& w) { return {w.data, w.bytes}; }

Status from_c(const quarry_build_args* given, BuildArgs* out) {
  quarry_build_args a;
  quarry_build_args_init(&a);
  if (Status s = take("args", given, &a); !s.ok()) return s;
  const Choice choices[] = {{"retrain", a.retrain, 1}, {"reserved", a.reserved, 0}};
  if (Status s = check_choices("args", choices); !s.ok()) return s;
  if (Status s = from_c(a.keys, &out->keys); !s.ok()) return s;
  out->slot = a.slot;
  out->length = a.length;
  out->workspace = from_c(a.workspace);
  out->rotation = a.rotation;
  out->query_rotation = a.query_rotation;
  out->retrain = a.retrain != 0;
  out->device_status = a.device_status;
  return {};
}

Status from_c(const quarry_next_args* given, NextArgs* out) {
  quarry_next_args a;
  quarry_next_args_init(&a);
  if (Status s = take("args", given, &a); !s.ok()) return s;
  if (Status s = from_c(a.keys, &out->keys); !s.ok()) return s;
  if (Status s = from_c(a.queries, &out->queries); !s.ok()) return s;
  out->batch = from_c(a.batch);
  out->workspace = from_c(a.workspace);
  out->indices = a.indices;
  out->index_stride = a.index_stride;
  out->list_lengths = a.list_lengths;
  out->weights = a.weights;
  out->dense_weights = a.dense_weights;
  out->dense_stride = a.dense_stride;
  out->previous_indices = a.previous_indices;
  out->previous_lengths = a.previous_lengths;
  out->device_status = a.device_status;
  out->physical_indices = a.physical_indices;
  out->physical_indices64 = a.physical_indices64;
  return {};
}

Status from_c(const quarry_append_args* given, AppendArgs* out) {
  quarry_append_args a;
  quarry_append_args_init(&a);
  if (Status s = take("args", given, &a); !s.ok()) return s;
  if (Status s = from_c(a.keys, &out->keys); !s.ok()) return s;
  out->batch = from_c(a.batch);
  out->workspace = from_c(a.workspace);
  out->device_status = a.device_status;
  return {};
}

Status from_c(const quarry_codebook_args* given, CodebookArgs* out) {
  quarry_codebook_args a;
  quarry_codebook_args_init(&a);
  if (Status s = take("args", given, &a); !s.ok()) return s;
  const Choice choices[] = {{"reserved", a.reserved, 0}};
  if (Status s = check_choices("args", choices); !s.ok()) return s;
  *out = {a.slot, a.codebooks, a.phi, a.rotation, a.query_rotation, a.baseline_error};
  return {};
}

Status from_c(const quarry_stats_args* given, StatsArgs* out) {
  quarry_stats_args a;
  quarry_stats_args_init(&a);
  if (Status s = take("args", given, &a); !s.ok()) return s;
  const Choice choices[] = {{"reserved", a.reserved, 0}};
  if (Status s = check_choices("args", choices); !s.ok()) return s;
  if (Status s = from_c(a.keys, &out->keys); !s.ok()) return s;
  if (Status s = from_c(a.queries, &out->queries); !s.ok()) return s;
  out->batch = from_c(a.batch);
  out->workspace = from_c(a.workspace);
  out->drift = reinterpret_cast<DriftStats*>(a.drift);
  out->recent_keys = a.recent_keys;
  out->recall = reinterpret_cast<RecallStats*>(a.recall);
  out->sample_every = a.sample_every;
  out->sample_offset = a.sample_offset;
  out->sample_counter = a.sample_counter;
  out->indices = a.indices;
  out->index_stride = a.index_stride;
  out->list_lengths = a.list_lengths;
  out->device_status = a.device_status;
  return {};
}

Status from_c(const quarry_attach_args* given, AttachArgs* out) {
  quarry_attach_args a;
  quarry_attach_args_init(&a);
  if (Status s = take("args", given, &a); !s.ok()) return s;
  const Choice choices[] = {{"reserved", a.reserved, 0}};
  if (Status s = check_choices("args", choices); !s.ok()) return s;
  *out = {a.slots, a.lengths, a.count, a.codebook_id, a.host_slots, a.device_status};
  return {};
}

Status from_c(const quarry_fork_args* given, ForkArgs* out) {
  quarry_fork_args a;
  quarry_fork_args_init(&a);
  if (Status s = take("args", given, &a); !s.ok()) return s;
  const Choice choices[] = {{"reserved", a.reserved, 0}};
  if (Status s = check_choices("args", choices); !s.ok()) return s;
  *out = {a.from_slot, a.to_slot, a.length, a.from_block_table, a.to_block_table};
  return {};
}

Status from_c(const quarry_restore_args* given, RestoreArgs* out) {
  quarry_restore_args a;
  quarry_restore_args_init(&a);
  if (Status s = take("args", given, &a); !s.ok()) return s;
  const Choice choices[] = {{"reserved", a.reserved, 0}};
  if (Status s = check_choices("args", choices); !s.ok()) return s;
  *out = {a.slot, a.block_table, from_c(a.workspace), a.data, a.bytes};
  return {};
}

/// `*bytes` is written also where the call is refused: it says what the call takes.
Status save(const Indexer& indexer, const quarry_save_args* given, Stream stream) {
  quarry_save_args a;
  quarry_save_args_init(&a);
  if (Status s = take("args", given, &a); !s.ok()) return s;
  if (a.bytes == nullptr) return Status(StatusCode::invalid_argument, "args.bytes is null");
  if (reinterpret_cast<std::uintptr_t>(a.bytes) % alignof(std::uint64_t) != 0) {
    return Status(StatusCode::invalid_argument, "args.bytes is %p, must be aligned to %zu bytes",
                  static_cast<const void*>(a.bytes), alignof(std::uint64_t));
  }
  std::size_t bytes = *a.bytes;
  const Status s = indexer.save(
      {a.slot, a.length, a.block_table, from_c(a.workspace), a.data, a.capacity, &bytes}, stream);
  *a.bytes = bytes;
  return s;
}

Status create(const quarry_config* given_config, const quarry_create_args* given,
              quarry_indexer** out) {
  if (out == nullptr) return Status(StatusCode::invalid_argument, "out is null");
  IndexerConfig config;
  if (Status s = from_c(given_config, &config); !s.ok()) return s;
  quarry_create_args a;
  quarry_create_args_init(&a);
  if (given != nullptr) {
    if (Status s = take("args", given, &a); !s.ok()) return s;
  }
  const Choice choices[] = {{"reserved", a.reserved, 0}};
  if (Status s = check_choices("args", choices); !s.ok()) return s;
  auto* made = new (std::nothrow) quarry_indexer;
  if (made == nullptr) return Status(StatusCode::out_of_memory, "no host memory for the Indexer");
  Status s = Indexer::create(config, {static_cast<Backend>(a.backend), a.ordinal},
                             {a.num_threads, a.index_memory, a.index_memory_bytes}, &made->indexer);
  if (s.ok()) {
    *out = made;
  } else {
    delete made;
  }
  return s;
}

Stream stream_of(quarry_stream stream) { return static_cast<Stream>(stream); }

/// A call with arguments of its own struct.
template <typename Args, typename CArgs>
quarry_code call_with(const char* name, quarry_indexer* indexer, const CArgs* given,
                      Status (Indexer::*member)(const Args&, Stream) noexcept, quarry_stream stream,
                      quarry_status* status) noexcept {
  const Call call(name);
  if (indexer == nullptr) {
    return finish(Status(StatusCode::invalid_argument, "indexer is null"), status);
  }
  Args args;
  if (Status s = from_c(given, &args); !s.ok()) return finish(s, status);
  return finish((indexer->indexer.*member)(args, stream_of(stream)), status);
}

/// Any other call.
template <typename Handle, typename Body>
quarry_code call_on(const char* name, Handle* indexer, quarry_status* status,
                    const Body& body) noexcept {
  const Call call(name);
  if (indexer == nullptr) {
    return finish(Status(StatusCode::invalid_argument, "indexer is null"), status);
  }
  return finish(body(indexer->indexer), status);
}

}  // namespace
}  // namespace quarry

using namespace quarry;  // NOLINT: what follows is C's

const char* quarry_version(void) noexcept { return QUARRY_VERSION_STRING; }

uint32_t quarry_abi_version(void) noexcept { return QUARRY_C_ABI_VERSION; }

const char* quarry_code_name(quarry_code code) noexcept {
  return to_string(static_cast<StatusCode>(code));
}

int32_t quarry_backend_available(int32_t backend) noexcept {
  return backend_available(static_cast<Backend>(backend)) ? 1 : 0;
}

quarry_code quarry_default_config(quarry_config* out, quarry_status* status) noexcept {
  const Call call("default_config");
  return finish(give("out", to_c(IndexerConfig{}), out), status);
}

quarry_code quarry_recommended_config(int32_t head_dim, quarry_config* out,
                                      quarry_status* status) noexcept {
  const Call call("recommended_config");
  return finish(give("out", to_c(IndexerConfig::recommended(head_dim)), out), status);
}

quarry_code quarry_resolve(const quarry_config* config, int32_t backend, quarry_config* out,
                           quarry_status* status) noexcept {
  const Call call("resolve");
  IndexerConfig c;
  if (Status s = from_c(config, &c); !s.ok()) return finish(s, status);
  if (Status s = resolve(c, static_cast<Backend>(backend), &c); !s.ok()) return finish(s, status);
  return finish(give("out", to_c(c), out), status);
}

quarry_code quarry_memory_requirements(const quarry_config* config, int32_t backend,
                                       quarry_memory* out, quarry_status* status) noexcept {
  const Call call("memory_requirements");
  IndexerConfig c;
  if (Status s = from_c(config, &c); !s.ok()) return finish(s, status);
  MemoryRequirements m;
  if (Status s = memory_requirements(c, static_cast<Backend>(backend), &m); !s.ok()) {
    return finish(s, status);
  }
  const quarry_memory value{0,
                            0,
                            m.index_bytes,
                            m.next_workspace_bytes,
                            m.build_workspace_bytes,
                            m.alignment,
                            m.code_bytes_per_key,
                            m.mean_bytes_per_key,
                            m.codebook_bytes,
                            m.transfer_workspace_bytes};
  return finish(give("out", value, out), status);
}

quarry_code quarry_create(const quarry_config* config, const quarry_create_args* args,
                          quarry_indexer** out, quarry_status* status) noexcept {
  const Call call("create");
  return finish(create(config, args, out), status);
}

void quarry_destroy(quarry_indexer* indexer) noexcept { delete indexer; }

quarry_code quarry_build(quarry_indexer* indexer, const quarry_build_args* args,
                         quarry_stream stream, quarry_status* status) noexcept {
  return call_with<BuildArgs>("build", indexer, args, &Indexer::build, stream, status);
}

quarry_code quarry_next(quarry_indexer* indexer, const quarry_next_args* args, quarry_stream stream,
                        quarry_status* status) noexcept {
  return call_with<NextArgs>("next", indexer, args, &Indexer::next, stream, status);
}

quarry_code quarry_append(quarry_indexer* indexer, const quarry_append_args* args,
                          quarry_stream stream, quarry_status* status) noexcept {
  return call_with<AppendArgs>("append", indexer, args, &Indexer::append, stream, status);
}

quarry_code quarry_set_codebook(quarry_indexer* indexer, const quarry_codebook_args* args,
                                quarry_stream stream, quarry_status* status) noexcept {
  return call_with<CodebookArgs>("set_codebook", indexer, args, &Indexer::set_codebook, stream,
                                 status);
}

quarry_code quarry_truncate(quarry_indexer* indexer, const int32_t* slots, const int32_t* lengths,
                            int32_t count, quarry_stream stream, quarry_status* status) noexcept {
  return call_on("truncate", indexer, status, [&](Indexer& it) {
    return it.truncate(slots, lengths, count, stream_of(stream));
  });
}

quarry_code quarry_reset(quarry_indexer* indexer, int32_t slot, quarry_stream stream,
                         quarry_status* status) noexcept {
  return call_on("reset", indexer, status,
                 [&](Indexer& it) { return it.reset(slot, stream_of(stream)); });
}

quarry_code quarry_stats(quarry_indexer* indexer, const quarry_stats_args* args,
                         quarry_stream stream, quarry_status* status) noexcept {
  return call_with<StatsArgs>("stats", indexer, args, &Indexer::stats, stream, status);
}

quarry_code quarry_attach(quarry_indexer* indexer, const quarry_attach_args* args,
                          quarry_stream stream, quarry_status* status) noexcept {
  return call_with<AttachArgs>("attach", indexer, args, &Indexer::attach, stream, status);
}

quarry_code quarry_copy_pages(quarry_indexer* indexer, const int32_t* from_pages,
                              const int32_t* to_pages, int32_t count, quarry_stream stream,
                              quarry_status* status) noexcept {
  return call_on("copy_pages", indexer, status, [&](Indexer& it) {
    return it.copy_pages(from_pages, to_pages, count, stream_of(stream));
  });
}

quarry_code quarry_fork(quarry_indexer* indexer, const quarry_fork_args* args, quarry_stream stream,
                        quarry_status* status) noexcept {
  return call_with<ForkArgs>("fork", indexer, args, &Indexer::fork, stream, status);
}

quarry_code quarry_save(const quarry_indexer* indexer, const quarry_save_args* args,
                        quarry_stream stream, quarry_status* status) noexcept {
  return call_on("save", indexer, status,
                 [&](const Indexer& it) { return save(it, args, stream_of(stream)); });
}

quarry_code quarry_restore(quarry_indexer* indexer, const quarry_restore_args* args,
                           quarry_stream stream, quarry_status* status) noexcept {
  return call_with<RestoreArgs>("restore", indexer, args, &Indexer::restore, stream, status);
}

quarry_code quarry_read_saved(const void* data, uint64_t bytes, quarry_saved_sequence* out,
                              quarry_status* status) noexcept {
  const Call call("read_saved");
  SavedSequence saved;
  if (Status s = read_saved(data, bytes, &saved); !s.ok()) return finish(s, status);
  const quarry_saved_sequence value{0, 0, saved.length, saved.has_codebook ? 1 : 0,
                                    saved.codebook_hash};
  return finish(give("out", value, out), status);
}

quarry_code quarry_codes(const quarry_indexer* indexer, int32_t slot, int32_t first, int32_t count,
                         const int32_t* block_table, uint8_t* out, quarry_stream stream,
                         quarry_status* status) noexcept {
  return call_on("codes", indexer, status, [&](const Indexer& it) {
    return it.codes(slot, first, count, block_table, out, stream_of(stream));
  });
}

quarry_code quarry_codebook(const quarry_indexer* indexer, int32_t slot, float* codebooks,
                            float* phi, quarry_stream stream, quarry_status* status) noexcept {
  return call_on("codebook", indexer, status, [&](const Indexer& it) {
    return it.codebook(slot, codebooks, phi, stream_of(stream));
  });
}

uint64_t quarry_workspace_bytes(const quarry_indexer* indexer, int32_t batch_size,
                                int32_t query_tokens) noexcept {
  return indexer == nullptr ? 0 : indexer->indexer.workspace_bytes(batch_size, query_tokens);
}

uint64_t quarry_stats_workspace_bytes(const quarry_indexer* indexer, int32_t batch_size,
                                      int32_t query_tokens, int32_t sample_every) noexcept {
  if (indexer == nullptr) return 0;
  return indexer->indexer.stats_workspace_bytes(batch_size, query_tokens, sample_every);
}

uint64_t quarry_saved_bytes(const quarry_indexer* indexer, int32_t length) noexcept {
  return indexer == nullptr ? 0 : indexer->indexer.saved_bytes(length);
}

uint64_t quarry_codebook_id(const quarry_indexer* indexer, int32_t slot) noexcept {
  return indexer == nullptr ? 0 : indexer->indexer.codebook_id(slot);
}

int32_t quarry_shareable_positions(const quarry_indexer* indexer, int32_t length) noexcept {
  return indexer == nullptr ? 0 : indexer->indexer.shareable_positions(length);
}

int32_t quarry_list_heads(const quarry_indexer* indexer) noexcept {
  return indexer == nullptr ? 0 : indexer->indexer.list_heads();
}

int32_t quarry_max_list_length(const quarry_indexer* indexer) noexcept {
  return indexer == nullptr ? 0 : indexer->indexer.max_list_length();
}

quarry_code quarry_get_config(const quarry_indexer* indexer, quarry_config* out,
                              quarry_status* status) noexcept {
  return call_on("config", indexer, status,
                 [&](const Indexer& it) { return give("out", to_c(it.config()), out); });
}

void quarry_set_log_callback(quarry_log_callback callback, void* user, int32_t most) noexcept {
  set_log_callbacks(nullptr, callback, user, most);
}
