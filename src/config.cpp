// SPDX-License-Identifier: Apache-2.0
#include "quarry/config.h"

#include <algorithm>
#include <cmath>

#include "backend.h"
#include "call.h"
#include "plan.h"

namespace quarry {
namespace {

constexpr std::int32_t kMaxSize = 1 << 28;  // positions: sums of three stay below 2^31

Status invalid(const char* name, long long value, const char* bound) {
  return Status(StatusCode::invalid_argument, "config.%s is %lld, must be %s", name, value, bound);
}

struct Range {
  const char* name;
  std::int64_t value, low, high;
};

Status check_ranges(const IndexerConfig& c) {
  const Range ranges[] = {
      {"num_query_heads", c.num_query_heads, 1, 65536},
      {"num_kv_heads", c.num_kv_heads, 1, 65536},
      {"head_dim", c.head_dim, 8, 512},
      {"max_sequences", c.max_sequences, 1, 65535},
      {"max_query_tokens", c.max_query_tokens, 1, 65535},
      {"max_seq_len", c.max_seq_len, 1, kMaxSize},
      {"page_size", c.page_size, 0, kMaxSize},
      {"num_pages", c.num_pages, c.page_size > 0 ? 1 : 0, c.page_size > 0 ? 0x7fffffff : 0},
      {"num_subspaces", c.num_subspaces, 1, 64},
      {"bits", c.bits, 1, 8},
      {"block_size", c.block_size, 0, kMaxSize},
      {"sink_size", c.sink_size, 0, kMaxSize},
      {"heavy_size", c.heavy_size, 1, 8192},
      {"window_size", c.window_size, 0, kMaxSize},
      {"encode_from", c.encode_from, -1, c.sink_size},
      {"dense_threshold", c.dense_threshold, -1, kMaxSize},
      {"refine_factor", c.refine_factor, 1, 8192},
      {"kmeans_iterations", c.kmeans_iterations, 1, 1000},
      {"metric", static_cast<std::int32_t>(c.metric), 0, 1},
      {"mean_dtype", static_cast<std::int32_t>(c.mean_dtype), 0, 3},
      {"algorithm", static_cast<std::int32_t>(c.algorithm), 0, 2},
      {"gqa_reduction", static_cast<std::int32_t>(c.gqa_reduction), 0, 3},
  };
  for (const Range& r : ranges) {
    if (r.value < r.low || r.value > r.high) {
      return Status(StatusCode::invalid_argument, "config.%s is %lld, must be %lld..%lld", r.name,
                    static_cast<long long>(r.value), static_cast<long long>(r.low),
                    static_cast<long long>(r.high));
    }
  }
  return {};
}

Status check_relations(const IndexerConfig& c) {
  if (c.num_query_heads % c.num_kv_heads != 0) {
    return invalid("num_query_heads", c.num_query_heads, "a multiple of num_kv_heads");
  }
  if (c.head_dim % 8 != 0) return invalid("head_dim", c.head_dim, "a multiple of 8");
  if (c.head_dim % c.num_subspaces != 0) {
    return invalid("num_subspaces", c.num_subspaces, "a divisor of head_dim");
  }
  const std::int64_t reach = std::int64_t{c.block_size} + c.max_query_tokens - 1;
  if (c.window_size < reach) {
    return Status(StatusCode::invalid_argument,
                  "config.window_size is %d, must be at least block_size + max_query_tokens - 1 "
                  "= %lld",
                  c.window_size, static_cast<long long>(reach));
  }
  if (c.block_size > 0 && c.page_size > 0 && c.page_size % c.block_size != 0 &&
      c.block_size % c.page_size != 0) {
    return Status(StatusCode::invalid_argument,
                  "config.page_size is %d, must be a multiple or a divisor of block_size = %d",
                  c.page_size, c.block_size);
  }
  if (std::int64_t{c.refine_factor} * c.heavy_size > 8192) {
    return Status(StatusCode::invalid_argument,
                  "config.refine_factor * heavy_size is %lld, must be at most 8192",
                  static_cast<long long>(c.refine_factor) * c.heavy_size);
  }
  if (std::int64_t{c.max_sequences} * c.max_query_tokens * c.num_query_heads > (1 << 30)) {
    return Status(StatusCode::invalid_argument,
                  "config.max_sequences * max_query_tokens * num_query_heads is %lld, must be at "
                  "most 2^30",
                  static_cast<long long>(c.max_sequences) * c.max_query_tokens * c.num_query_heads);
  }
  if (!std::isfinite(c.softmax_scale) || c.softmax_scale < 0) {
    return Status(StatusCode::invalid_argument,
                  "config.softmax_scale is %g, must be finite and at least 0",
                  static_cast<double>(c.softmax_scale));
  }
  return {};
}

/// Whether `automatic` takes a scan that serves the configuration (docs/design.md). It does not
/// where scan's filter would never be used: pages without whole tiles of 16 keys, or a heavy part
/// (r * K) of more than an eighth of the longest sequence; nor under softmax_sum, which must score
/// every key whatever a filter says (docs/scan-notes.md has the times).
bool prefers_scan(const IndexerConfig& c) {
  return c.gqa_reduction != GqaReduction::softmax_sum && c.page_size % 16 == 0 &&
         c.refine_factor * c.heavy_size <= c.max_seq_len / 8;
}

}  // namespace

IndexerConfig IndexerConfig::recommended(std::int32_t head_dim) noexcept {
  IndexerConfig c;
  c.head_dim = head_dim;
  c.num_subspaces = std::max(head_dim / 8, 1);
  c.bits = 4;
  c.block_size = 64;
  c.mean_dtype = DType::float16;
  c.rotation = true;
  c.shared_codebook = true;
  c.sink_size = 16;
  c.window_size = 64;
  c.refine_factor = 4;
  return c;
}

Status resolve(const IndexerConfig& config, Backend backend, IndexerConfig* out) noexcept {
  const Call call("resolve");
  if (out == nullptr) return Status(StatusCode::invalid_argument, "out is null");
  if (stages_of(backend) == nullptr) {
    return Status(StatusCode::unsupported, "backend %s is not built", to_string(backend));
  }
  if (Status s = check_ranges(config); !s.ok()) return s;
  if (Status s = check_relations(config); !s.ok()) return s;
  IndexerConfig c = config;
  if (c.encode_from < 0) c.encode_from = c.sink_size;
  if (c.dense_threshold < 0) c.dense_threshold = c.heavy_size + c.encode_from + 1 + (1 << c.bits);
  if (c.softmax_scale == 0) {
    c.softmax_scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  }
  const Stages& stages = *stages_of(backend);
  const bool scans = stages.scan != nullptr && stages.scan_serves(make_view(c));
  if (c.algorithm == Algorithm::scan && stages.scan == nullptr) {
    return Status(StatusCode::unsupported, "config.algorithm scan is not built for backend %s",
                  to_string(backend));
  }
  // A backend's scan serves reductions for every shape or for none.
  if (c.algorithm == Algorithm::scan && !scans && c.gqa_reduction != GqaReduction::per_head) {
    return Status(StatusCode::unsupported,
                  "config.algorithm scan does not serve config.gqa_reduction %s on backend %s, "
                  "staged does",
                  to_string(c.gqa_reduction), to_string(backend));
  }
  if (c.algorithm == Algorithm::scan && !scans) {
    return Status(StatusCode::unsupported,
                  "config.algorithm scan does not serve this configuration on backend %s",
                  to_string(backend));
  }
  if (c.algorithm == Algorithm::automatic) {
    c.algorithm = scans && prefers_scan(c) ? Algorithm::scan : Algorithm::staged;
  }
  *out = c;
  return {};
}

std::int32_t max_list_length(const IndexerConfig& c) noexcept {
  return std::min(c.max_seq_len,
                  std::max(c.dense_threshold, c.sink_size + c.heavy_size + c.window_size));
}

Status memory_requirements(const IndexerConfig& config, Backend backend,
                           MemoryRequirements* out) noexcept {
  const Call call("memory_requirements");
  if (out == nullptr) return Status(StatusCode::invalid_argument, "out is null");
  IndexerConfig resolved;
  if (Status s = resolve(config, backend, &resolved); !s.ok()) return s;
  Plan plan;
  if (Status s = make_plan(resolved, *stages_of(backend), &plan); !s.ok()) return s;
  *out = plan.memory;
  return {};
}

bool backend_available(Backend backend) noexcept {
  if (stages_of(backend) == nullptr) return false;
#if QUARRY_HAS_CUDA
  if (backend == Backend::cuda) return cuda::device_present();
#endif
  return true;
}

const Stages* stages_of(Backend backend) noexcept {
  if (backend == Backend::cpu) return &cpu::stages;
#if QUARRY_HAS_CUDA
  if (backend == Backend::cuda) return &cuda::stages;
#endif
  return nullptr;
}

const char* to_string(DType v) noexcept {
  switch (v) {
    case DType::float32:
      return "float32";
    case DType::float16:
      return "float16";
    case DType::bfloat16:
      return "bfloat16";
    case DType::float8_e4m3:
      return "float8_e4m3";
  }
  return "unknown";
}

const char* to_string(Metric v) noexcept {
  switch (v) {
    case Metric::euclidean:
      return "euclidean";
    case Metric::inner_product:
      return "inner_product";
  }
  return "unknown";
}

const char* to_string(Algorithm v) noexcept {
  switch (v) {
    case Algorithm::automatic:
      return "automatic";
    case Algorithm::staged:
      return "staged";
    case Algorithm::scan:
      return "scan";
  }
  return "unknown";
}

const char* to_string(GqaReduction v) noexcept {
  switch (v) {
    case GqaReduction::per_head:
      return "per_head";
    case GqaReduction::sum:
      return "sum";
    case GqaReduction::softmax_sum:
      return "softmax_sum";
    case GqaReduction::max:
      return "max";
  }
  return "unknown";
}

const char* to_string(Backend v) noexcept {
  switch (v) {
    case Backend::cpu:
      return "cpu";
    case Backend::cuda:
      return "cuda";
  }
  return "unknown";
}

}  // namespace quarry
