// SPDX-License-Identifier: Apache-2.0
//
// The C ABI's structs to and from the C++ API's: headers checked, what an older caller's struct
// lacks as its default, flags and reserved members checked. Everything else is the Indexer's to
// check.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "quarry/c_api.h"
#include "quarry/quarry.h"

namespace quarry::c_abi {

static_assert(sizeof(std::size_t) == sizeof(std::uint64_t));

// Results in device memory: the library writes its own struct where C reads the other.
static_assert(sizeof(quarry_drift_stats) == sizeof(DriftStats) && std::is_trivial_v<DriftStats>);
static_assert(offsetof(quarry_drift_stats, error) == offsetof(DriftStats, error));
static_assert(offsetof(quarry_drift_stats, baseline) == offsetof(DriftStats, baseline));
static_assert(offsetof(quarry_drift_stats, ratio) == offsetof(DriftStats, ratio));
static_assert(offsetof(quarry_drift_stats, keys) == offsetof(DriftStats, keys));
static_assert(sizeof(quarry_recall_stats) == sizeof(RecallStats) && std::is_trivial_v<RecallStats>);
static_assert(offsetof(quarry_recall_stats, row) == offsetof(RecallStats, row));
static_assert(offsetof(quarry_recall_stats, exact) == offsetof(RecallStats, exact));
static_assert(offsetof(quarry_recall_stats, found) == offsetof(RecallStats, found));
static_assert(offsetof(quarry_recall_stats, recall) == offsetof(RecallStats, recall));

constexpr std::uint32_t kHeaderBytes = 8;       // struct_size and abi_version
constexpr std::uint32_t kLargestStruct = 4096;  // a size beyond it was never set

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

inline quarry_config to_c(const IndexerConfig& c) {
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

inline Status from_c(const quarry_config* given, IndexerConfig* out) {
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

/// The view of an args struct, which has grown members of its own for what the view cannot.
template <typename Args>
Status keys_from_c(const Args& a, KeyView* out) {
  const quarry_key_view& k = a.keys;
  const Choice choices[] = {{"reserved", k.reserved, 0}};
  if (Status s = check_choices("keys", choices); !s.ok()) return s;
  *out = {k.data,        static_cast<DType>(k.dtype), k.page_stride, k.slot_stride,   k.head_stride,
          k.block_table, k.block_table_stride,        a.key_scales,  a.num_key_scales};
  return {};
}

inline Status from_c(const quarry_query_view& q, QueryView* out) {
  const Choice choices[] = {{"reserved", q.reserved, 0}};
  if (Status s = check_choices("queries", choices); !s.ok()) return s;
  *out = {q.data, static_cast<DType>(q.dtype), q.batch_stride, q.token_stride, q.head_stride};
  return {};
}

inline Batch from_c(const quarry_batch& b) {
  return {b.batch_size,   b.query_tokens, b.slots,       b.lengths,
          b.query_counts, b.host_slots,   b.host_lengths};
}

inline Workspace from_c(const quarry_workspace& w) { return {w.data, w.bytes}; }

inline Status from_c(const quarry_build_args* given, BuildArgs* out) {
  quarry_build_args a;
  quarry_build_args_init(&a);
  if (Status s = take("args", given, &a); !s.ok()) return s;
  const Choice choices[] = {
      {"retrain", a.retrain, 1}, {"reserved", a.reserved, 0}, {"reserved_2", a.reserved_2, 0}};
  if (Status s = check_choices("args", choices); !s.ok()) return s;
  if (Status s = keys_from_c(a, &out->keys); !s.ok()) return s;
  out->slot = a.slot;
  out->length = a.length;
  out->workspace = from_c(a.workspace);
  out->rotation = a.rotation;
  out->query_rotation = a.query_rotation;
  out->retrain = a.retrain != 0;
  out->device_status = a.device_status;
  return {};
}

inline Status from_c(const quarry_next_args* given, NextArgs* out) {
  quarry_next_args a;
  quarry_next_args_init(&a);
  if (Status s = take("args", given, &a); !s.ok()) return s;
  const Choice choices[] = {{"reserved", a.reserved, 0}};
  if (Status s = check_choices("args", choices); !s.ok()) return s;
  if (Status s = keys_from_c(a, &out->keys); !s.ok()) return s;
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

inline Status from_c(const quarry_append_args* given, AppendArgs* out) {
  quarry_append_args a;
  quarry_append_args_init(&a);
  if (Status s = take("args", given, &a); !s.ok()) return s;
  const Choice choices[] = {{"reserved", a.reserved, 0}};
  if (Status s = check_choices("args", choices); !s.ok()) return s;
  if (Status s = keys_from_c(a, &out->keys); !s.ok()) return s;
  out->batch = from_c(a.batch);
  out->workspace = from_c(a.workspace);
  out->device_status = a.device_status;
  return {};
}

inline Status from_c(const quarry_codebook_args* given, CodebookArgs* out) {
  quarry_codebook_args a;
  quarry_codebook_args_init(&a);
  if (Status s = take("args", given, &a); !s.ok()) return s;
  const Choice choices[] = {{"reserved", a.reserved, 0}};
  if (Status s = check_choices("args", choices); !s.ok()) return s;
  *out = {a.slot, a.codebooks, a.phi, a.rotation, a.query_rotation, a.baseline_error};
  return {};
}

inline Status from_c(const quarry_stats_args* given, StatsArgs* out) {
  quarry_stats_args a;
  quarry_stats_args_init(&a);
  if (Status s = take("args", given, &a); !s.ok()) return s;
  const Choice choices[] = {{"reserved", a.reserved, 0}, {"reserved_2", a.reserved_2, 0}};
  if (Status s = check_choices("args", choices); !s.ok()) return s;
  if (Status s = keys_from_c(a, &out->keys); !s.ok()) return s;
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

inline Status from_c(const quarry_attach_args* given, AttachArgs* out) {
  quarry_attach_args a;
  quarry_attach_args_init(&a);
  if (Status s = take("args", given, &a); !s.ok()) return s;
  const Choice choices[] = {{"reserved", a.reserved, 0}};
  if (Status s = check_choices("args", choices); !s.ok()) return s;
  *out = {a.slots, a.lengths, a.count, a.codebook_id, a.host_slots, a.device_status};
  return {};
}

inline Status from_c(const quarry_fork_args* given, ForkArgs* out) {
  quarry_fork_args a;
  quarry_fork_args_init(&a);
  if (Status s = take("args", given, &a); !s.ok()) return s;
  const Choice choices[] = {{"reserved", a.reserved, 0}};
  if (Status s = check_choices("args", choices); !s.ok()) return s;
  *out = {a.from_slot, a.to_slot, a.length, a.from_block_table, a.to_block_table};
  return {};
}

inline Status from_c(const quarry_restore_args* given, RestoreArgs* out) {
  quarry_restore_args a;
  quarry_restore_args_init(&a);
  if (Status s = take("args", given, &a); !s.ok()) return s;
  const Choice choices[] = {{"reserved", a.reserved, 0}};
  if (Status s = check_choices("args", choices); !s.ok()) return s;
  *out = {a.slot, a.block_table, from_c(a.workspace), a.data, a.bytes};
  return {};
}

}  // namespace quarry::c_abi
