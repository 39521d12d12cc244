// SPDX-License-Identifier: Apache-2.0
#include "validate.h"

#include <limits>

namespace quarry {
namespace {

__extension__ typedef __int128 Wide;  // sums of products of int64 strides

Status out_of_range(const char* name, long long value, long long low, long long high) {
  return Status(StatusCode::out_of_range, "%s is %lld, must be %lld..%lld", name, value, low, high);
}

/// `keys`: float8_e4m3 will do.
Status check_dtype(const char* name, DType dtype, bool keys) {
  const auto value = static_cast<std::int32_t>(dtype);
  if (value >= 0 && value <= (keys ? 3 : 2)) return {};
  return Status(StatusCode::invalid_argument, "%s is %d, must be 0 (float32), 1 (float16)%s", name,
                value, keys ? ", 2 (bfloat16) or 3 (float8_e4m3)" : " or 2 (bfloat16)");
}

/// A scale belongs to float8_e4m3: one of all keys, or one a KV head.
Status check_scales(const KeyView& keys, std::int32_t kv_heads) {
  if (keys.scales == nullptr) {
    if (keys.num_scales == 0) return {};
    return Status(StatusCode::invalid_argument,
                  "keys.num_scales is %d, must be 0 where keys.scales is null", keys.num_scales);
  }
  if (keys.dtype != DType::float8_e4m3) {
    return Status(StatusCode::invalid_argument,
                  "keys.scales is given, must be null where keys.dtype is %s",
                  to_string(keys.dtype));
  }
  if (keys.num_scales != 1 && keys.num_scales != kv_heads) {
    return Status(StatusCode::invalid_argument,
                  "keys.num_scales is %d, must be 1 or num_kv_heads, which is %d", keys.num_scales,
                  kv_heads);
  }
  return check_pointer("keys.scales", keys.scales, 4);
}

/// One dimension of a strided view: rows of d must not overlap.
struct Dim {
  const char* name;
  std::int64_t stride, extent;
};

template <std::size_t N>
Status check_dims(const char* view, const Dim (&dims)[N], std::int64_t row) {
  Wide last = row;
  for (const Dim& dim : dims) {
    const std::int64_t least = dim.extent > 1 ? row : 0;
    if (dim.stride < least) {
      return Status(StatusCode::invalid_argument, "%s.%s is %lld, must be at least %lld", view,
                    dim.name, static_cast<long long>(dim.stride), static_cast<long long>(least));
    }
    last += static_cast<Wide>(dim.stride) * (dim.extent - 1);
  }
  if (last > std::numeric_limits<std::int64_t>::max() / 8) {
    return Status(StatusCode::invalid_argument, "%s strides reach beyond 2^60 elements", view);
  }
  return {};
}

/// Refuses a slot that is given twice; `slots[].marked` is false before and after.
Status check_distinct(const char* name, const Plan& plan, const std::int32_t* host_slots,
                      std::int32_t count, HostSlot* slots) {
  Status status;
  std::int32_t b = 0;
  for (; b < count && status.ok(); ++b) {
    const std::int32_t slot = host_slots[b];
    if (slot >= plan.view.max_sequences) {
      status = Status(StatusCode::out_of_range, "%s entry is %d, must be at most %d", name, slot,
                      plan.view.max_sequences - 1);
    } else if (slot >= 0 && slots[slot].marked) {
      status = Status(StatusCode::invalid_argument, "%s holds %d twice", name, slot);
    } else if (slot >= 0) {
      slots[slot].marked = true;
    }
  }
  while (b-- > 0) {
    const std::int32_t slot = host_slots[b];
    if (slot >= 0 && slot < plan.view.max_sequences) slots[slot].marked = false;
  }
  return status;
}

/// The caller's host copies: everything only the device would find out later.
Status check_host_copies(const Plan& plan, const Batch& batch, HostSlot* slots) {
  if (batch.host_slots != nullptr) {
    if (Status s =
            check_distinct("batch.host_slots", plan, batch.host_slots, batch.batch_size, slots);
        !s.ok()) {
      return s;
    }
  }
  if (batch.host_lengths == nullptr) return {};
  for (std::int32_t b = 0; b < batch.batch_size; ++b) {
    const std::int32_t slot = batch.host_slots != nullptr ? batch.host_slots[b]
                              : batch.slots == nullptr    ? b
                                                          : -1;
    if (batch.host_slots != nullptr && slot < 0) continue;  // inactive: its length means nothing
    const std::int32_t* lengths =
        batch.host_lengths + static_cast<std::int64_t>(b) * batch.query_tokens;
    for (std::int32_t t = 0; t < batch.query_tokens; ++t) {
      if (lengths[t] < 0 || lengths[t] > plan.view.max_seq_len) {
        return out_of_range("batch.host_lengths entry", lengths[t], 0, plan.view.max_seq_len);
      }
      if (slot >= 0 && !slots[slot].built && lengths[t] > plan.view.dense_limit) {
        return Status(StatusCode::not_built,
                      "slot %d has no codebook and length %d is beyond the dense range of %d", slot,
                      lengths[t], plan.view.dense_limit);
      }
    }
  }
  return {};
}

/// The lists: positions, physical slots, or both.
Status check_indices(const Plan& plan, const NextArgs& args) {
  const bool physical = args.physical_indices != nullptr || args.physical_indices64 != nullptr;
  if (args.indices != nullptr || !physical) {
    if (Status s = check_pointer("indices", args.indices, 4); !s.ok()) return s;
  }
  const Status wide = check_optional("physical_indices64", args.physical_indices64, 8);
  if (!wide.ok()) return wide;
  if (args.physical_indices == nullptr) return {};
  const std::int64_t slots = plan.view.num_pages * plan.view.page_size;
  if (slots > std::int64_t{1} << 31) {
    return Status(StatusCode::invalid_argument,
                  "physical_indices is given, but the cache has %lld slots, beyond int32: use "
                  "physical_indices64",
                  static_cast<long long>(slots));
  }
  return check_pointer("physical_indices", args.physical_indices, 4);
}

}  // namespace

Status check_slot(const char* name, const IndexerConfig& config, std::int32_t slot) noexcept {
  if (slot >= 0 && slot < config.max_sequences) return {};
  return out_of_range(name, slot, 0, config.max_sequences - 1);
}

Status check_table(const char* name, const Plan& plan, const std::int32_t* table) noexcept {
  if (plan.paged) return check_pointer(name, table, 4);
  if (table == nullptr) return {};
  return Status(StatusCode::invalid_argument,
                "%s is given, must be null where config.page_size is 0", name);
}

Status check_pointer(const char* name, const void* pointer, std::size_t alignment) noexcept {
  if (pointer == nullptr) return Status(StatusCode::invalid_argument, "%s is null", name);
  if (reinterpret_cast<std::uintptr_t>(pointer) % alignment != 0) {
    return Status(StatusCode::invalid_argument, "%s is %p, must be aligned to %zu bytes", name,
                  pointer, alignment);
  }
  return {};
}

Status check_optional(const char* name, const void* pointer, std::size_t alignment) noexcept {
  return pointer == nullptr ? Status() : check_pointer(name, pointer, alignment);
}

Status check_queries(const IndexerConfig& config, const Batch& batch, const QueryView& q) noexcept {
  if (Status s = check_dtype("queries.dtype", q.dtype, false); !s.ok()) return s;
  if (Status s =
          check_pointer("queries.data", q.data, static_cast<std::size_t>(dtype_size(q.dtype)));
      !s.ok()) {
    return s;
  }
  const Dim dims[] = {{"batch_stride", q.batch_stride, batch.batch_size},
                      {"token_stride", q.token_stride, batch.query_tokens},
                      {"head_stride", q.head_stride, config.num_query_heads}};
  return check_dims("queries", dims, config.head_dim);
}

Status check_stride(const char* name, std::int64_t stride, std::int64_t least) noexcept {
  if (stride >= least && stride <= std::numeric_limits<std::int32_t>::max()) return {};
  return Status(StatusCode::invalid_argument, "%s is %lld, must be %lld..2^31-1", name,
                static_cast<long long>(stride), static_cast<long long>(least));
}

Status check_keys(const Plan& plan, const KeyView& keys, std::int32_t positions,
                  bool batched) noexcept {
  const IndexView& v = plan.view;
  if (Status s = check_dtype("keys.dtype", keys.dtype, true); !s.ok()) return s;
  if (Status s =
          check_pointer("keys.data", keys.data, static_cast<std::size_t>(dtype_size(keys.dtype)));
      !s.ok()) {
    return s;
  }
  const Dim dims[] = {{"page_stride", keys.page_stride, v.num_pages},
                      {"slot_stride", keys.slot_stride, v.page_size},
                      {"head_stride", keys.head_stride, v.num_kv_heads}};
  if (Status s = check_dims("keys", dims, v.head_dim); !s.ok()) return s;
  if (Status s = check_scales(keys, v.num_kv_heads); !s.ok()) return s;
  if (!plan.paged) {
    if (keys.block_table == nullptr) return {};
    return Status(StatusCode::invalid_argument,
                  "keys.block_table is given, must be null where config.page_size is 0");
  }
  if (Status s = check_pointer("keys.block_table", keys.block_table, 4); !s.ok()) return s;
  const std::int64_t pages = (std::int64_t{positions} + v.page_size - 1) / v.page_size;
  if (batched && keys.block_table_stride < pages) {
    return Status(StatusCode::invalid_argument,
                  "keys.block_table_stride is %lld, must be at least %lld",
                  static_cast<long long>(keys.block_table_stride), static_cast<long long>(pages));
  }
  return {};
}

Status check_workspace(const Workspace& workspace, std::size_t needed) noexcept {
  if (Status s = check_pointer("workspace.data", workspace.data, kAlignment); !s.ok()) return s;
  if (workspace.bytes >= needed) return {};
  return Status(StatusCode::workspace_too_small, "workspace.bytes is %zu, must be at least %zu",
                workspace.bytes, needed);
}

Status check_batch(const Plan& plan, const IndexerConfig& config, const Batch& batch,
                   HostSlot* slots) noexcept {
  if (batch.batch_size < 1 || batch.batch_size > config.max_sequences) {
    return out_of_range("batch.batch_size", batch.batch_size, 1, config.max_sequences);
  }
  if (batch.query_tokens < 1 || batch.query_tokens > config.max_query_tokens) {
    return out_of_range("batch.query_tokens", batch.query_tokens, 1, config.max_query_tokens);
  }
  if (Status s = check_pointer("batch.lengths", batch.lengths, 4); !s.ok()) return s;
  if (Status s = check_optional("batch.slots", batch.slots, 4); !s.ok()) return s;
  if (Status s = check_optional("batch.query_counts", batch.query_counts, 4); !s.ok()) return s;
  return check_host_copies(plan, batch, slots);
}

Status check_next(const Plan& plan, const IndexerConfig& config, const NextArgs& args,
                  HostSlot* slots) noexcept {
  if (Status s = check_batch(plan, config, args.batch, slots); !s.ok()) return s;
  if (Status s = check_keys(plan, args.keys, config.max_seq_len, true); !s.ok()) return s;
  if (Status s = check_queries(config, args.batch, args.queries); !s.ok()) return s;
  if (Status s = check_indices(plan, args); !s.ok()) return s;
  if (Status s = check_stride("index_stride", args.index_stride, plan.max_list); !s.ok()) return s;
  if (Status s = check_pointer("list_lengths", args.list_lengths, 4); !s.ok()) return s;
  if (Status s = check_optional("weights", args.weights, 4); !s.ok()) return s;
  if (Status s = check_optional("device_status", args.device_status, 4); !s.ok()) return s;
  const bool previous = args.previous_indices != nullptr || args.previous_lengths != nullptr;
  if (args.dense_weights == nullptr) {
    if (!previous) return {};
    return Status(StatusCode::invalid_argument,
                  "previous_indices and previous_lengths are given without dense_weights");
  }
  if (Status s = check_pointer("dense_weights", args.dense_weights, 4); !s.ok()) return s;
  if (Status s = check_stride("dense_stride", args.dense_stride, config.max_seq_len); !s.ok()) {
    return s;
  }
  if (!previous) return {};
  if (Status s = check_pointer("previous_indices", args.previous_indices, 4); !s.ok()) return s;
  if (Status s = check_pointer("previous_lengths", args.previous_lengths, 4); !s.ok()) return s;
  if (args.indices != nullptr && args.previous_indices == args.indices) {
    return Status(StatusCode::invalid_argument, "previous_indices is indices, must be another");
  }
  if (args.previous_lengths == args.list_lengths) {
    return Status(StatusCode::invalid_argument,
                  "previous_lengths is list_lengths, must be another");
  }
  return {};
}

Status check_build(const Plan& plan, const IndexerConfig& config, const BuildArgs& args,
                   const HostSlot* slots) noexcept {
  if (args.slot < 0 || args.slot >= config.max_sequences) {
    return out_of_range("slot", args.slot, 0, config.max_sequences - 1);
  }
  if (args.length < 0 || args.length > config.max_seq_len) {
    return out_of_range("length", args.length, 0, config.max_seq_len);
  }
  if (Status s = check_keys(plan, args.keys, args.length, false); !s.ok()) return s;
  if (Status s = check_workspace(args.workspace, plan.memory.build_workspace_bytes); !s.ok()) {
    return s;
  }
  if (Status s = check_optional("device_status", args.device_status, 4); !s.ok()) return s;
  const HostSlot& slot = slots[args.slot];
  if (!plan.trains) {
    if (args.retrain) {
      return Status(StatusCode::invalid_argument,
                    "retrain is set, but config.shared_codebook is never trained");
    }
    if (!slot.built) {
      return Status(StatusCode::not_built,
                    "config.shared_codebook has no codebook: call set_codebook first");
    }
  }
  const bool trains = plan.trains && (args.retrain || !slot.built);
  if ((args.rotation == nullptr) != (args.query_rotation == nullptr)) {
    return Status(StatusCode::invalid_argument,
                  "rotation and query_rotation must be given together");
  }
  if (args.rotation != nullptr) {
    if (!config.rotation) {
      return Status(StatusCode::invalid_argument, "rotation is given, but config.rotation is off");
    }
    if (slot.built) {
      return Status(StatusCode::invalid_argument,
                    "rotation is given, but slot %d has a codebook in another: reset it first",
                    args.slot);
    }
    if (Status s = check_pointer("rotation", args.rotation, 4); !s.ok()) return s;
    if (Status s = check_pointer("query_rotation", args.query_rotation, 4); !s.ok()) return s;
  } else if (trains && config.rotation && !slot.rotation) {
    return Status(StatusCode::invalid_argument,
                  "rotation is null, but config.rotation is on and slot %d has none", args.slot);
  }
  if (trains && encoded_positions(plan.view, args.length) < plan.view.ksub) {
    return Status(StatusCode::too_few_keys,
                  "length %d leaves %d keys to train on, must be at least ksub = %d", args.length,
                  encoded_positions(plan.view, args.length), plan.view.ksub);
  }
  return {};
}

Status check_attach(const Plan& plan, const IndexerConfig& config, const AttachArgs& args,
                    HostSlot* slots) noexcept {
  if (args.count < 1 || args.count > config.max_sequences) {
    return out_of_range("count", args.count, 1, config.max_sequences);
  }
  if (Status s = check_pointer("lengths", args.lengths, 4); !s.ok()) return s;
  if (Status s = check_optional("slots", args.slots, 4); !s.ok()) return s;
  if (Status s = check_optional("device_status", args.device_status, 4); !s.ok()) return s;
  if (args.host_slots != nullptr) {
    if (Status s = check_distinct("host_slots", plan, args.host_slots, args.count, slots);
        !s.ok()) {
      return s;
    }
  }
  const auto id = [](std::uint64_t v) { return static_cast<unsigned long long>(v); };
  const bool known = args.host_slots != nullptr || args.slots == nullptr;
  for (std::int32_t i = 0; known && i < args.count; ++i) {
    const std::int32_t slot = args.host_slots == nullptr ? i : args.host_slots[i];
    if (slot < 0 || (slots[slot].built && slots[slot].codebook_id == args.codebook_id)) continue;
    return Status(StatusCode::invalid_argument, "codebook_id is %llu, slot %d has %llu",
                  id(args.codebook_id), slot, id(slots[slot].codebook_id));
  }
  // Slots that only the device knows: the id must at least be somebody's.
  bool anybody = known;
  for (std::int32_t slot = 0; slot < config.max_sequences && !anybody; ++slot) {
    anybody = slots[slot].built && slots[slot].codebook_id == args.codebook_id;
  }
  if (anybody) return {};
  return Status(StatusCode::invalid_argument, "codebook_id is %llu, which no slot has",
                id(args.codebook_id));
}

Status check_codebook(const Plan& plan, const IndexerConfig& config,
                      const CodebookArgs& args) noexcept {
  if (args.slot < -1 || args.slot >= config.max_sequences) {
    return out_of_range("slot", args.slot, -1, config.max_sequences - 1);
  }
  if (!plan.trains && args.slot != -1) {
    return Status(StatusCode::invalid_argument,
                  "slot is %d, must be -1 (all) where config.shared_codebook is set", args.slot);
  }
  if (Status s = check_pointer("codebooks", args.codebooks, 4); !s.ok()) return s;
  struct Optional {
    const char* name;
    const float* pointer;
    bool wanted;
    const char* by;
  };
  if (Status s = check_optional("baseline_error", args.baseline_error, 4); !s.ok()) return s;
  const Optional optionals[] = {
      {"phi", args.phi, config.metric == Metric::inner_product, "config.metric inner_product"},
      {"rotation", args.rotation, config.rotation, "config.rotation"},
      {"query_rotation", args.query_rotation, config.rotation, "config.rotation"},
  };
  for (const Optional& o : optionals) {
    if (o.wanted) {
      if (Status s = check_pointer(o.name, o.pointer, 4); !s.ok()) return s;
    } else if (o.pointer != nullptr) {
      return Status(StatusCode::invalid_argument, "%s is given without %s", o.name, o.by);
    }
  }
  return {};
}

}  // namespace quarry
