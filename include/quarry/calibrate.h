// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "quarry/config.h"
#include "quarry/status.h"
#include "quarry/tensor.h"

namespace quarry {

/// Vectors [count, heads, d] in host memory, contiguous in d, strides in elements. Queries are
/// float32, float16 or bfloat16.
struct HostVectors {
  const void* data = nullptr;
  DType dtype = DType::float32;
  std::int64_t count = 0;
  std::int64_t row_stride = 0;
  std::int64_t head_stride = 0;
  /// As in KeyView, in host memory: of float8_e4m3 keys alone, 1 of them or one a head.
  const float* scales = nullptr;
  std::int32_t num_scales = 0;
};

/// One captured sequence of a layer: keys as the cache holds them (after rotary embedding),
/// and queries of any of its positions.
struct CalibrationTrace {
  HostVectors keys;                  ///< [n, Hkv, d], of any dtype, from position 0 on
  std::vector<HostVectors> queries;  ///< each [count, Hq, d]; needed for a rotation alone
};

/// The second moments of a layer's queries, summed as the queries come: all that a rotation
/// needs of them, so that a calibration need not hold them. Takes Hkv * (2 d^2 + 512 d)
/// doubles of host memory (6 MiB for 8 KV heads of 128), however many queries are added. Not for
/// concurrent calls.
class QueryMoments {
 public:
  QueryMoments() noexcept;
  ~QueryMoments();
  QueryMoments(QueryMoments&&) noexcept;
  QueryMoments& operator=(QueryMoments&&) noexcept;

  /// Empty moments for the shape of `config`, which must be one that resolve() takes.
  static Status create(const IndexerConfig& config, QueryMoments* out) noexcept;

  /// Adds queries [count, Hq, d], the next part of an array; `ends_array`: its last one. An
  /// array gives the same bytes in parts of any size, and the same as the whole array in
  /// CalibrationTrace::queries. Non-finite vectors stay out. Refused input leaves the moments
  /// as they were; after out_of_memory they hold a part of it.
  Status add(const HostVectors& queries, bool ends_array = true) noexcept;

  std::int32_t num_kv_heads() const noexcept;  ///< 0 before create()
  std::int32_t head_dim() const noexcept;
  /// Vectors of the KV head in the arrays that ended; 0 for a head that there is none of.
  std::int64_t count(std::int32_t kv_head) const noexcept;
  /// Writes their mean of x x^T, symmetric, to `out` [d, d]; zeros where count() is 0.
  Status second_moment(std::int32_t kv_head, double* out) const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

struct CalibrationOptions {
  std::int32_t num_threads = 0;  ///< 0 takes OpenMP's default; no result depends on it
  /// Called from the calling thread with what is being done and a share of the whole in 0..1.
  void (*progress)(const char* what, double done, void* user) = nullptr;
  void* user = nullptr;
  /// Takes the place of all traces' queries, which are then not read. Not kept.
  const QueryMoments* query_moments = nullptr;
};

/// What a layer's Indexers are given by set_codebook(), in its layouts.
struct Calibration {
  std::vector<float> codebooks;       ///< [Hkv, m, ksub, dcent]
  std::vector<float> phi;             ///< [Hkv, m], inner_product alone
  std::vector<float> rotation;        ///< [Hkv, d, d], with config.rotation alone
  std::vector<float> query_rotation;  ///< its inverse transpose
  /// [Hkv]: train_error of each KV head, for CodebookArgs::baseline_error; 0 where there is none.
  std::vector<float> quantization_error;

  // How good it is: squared error of quantization over the squared norm of what is encoded
  // (in the rotated space), for the keys trained on and for held-out blocks (every 16th).
  // NaN where there are none or all of them are zero.
  double train_error = 0;
  double held_out_error = 0;
  std::int64_t keys = 0;          ///< encoded positions of all traces, finite or not
  std::int64_t sampled_keys = 0;  ///< of them, what k-means ran on, of every KV head
  std::int64_t queries = 0;       ///< query vectors a KV head's second moment is of
};

/// Calibrates a layer once, for every prompt: of `config` the shape, num_subspaces, bits,
/// metric, block_size, mean_dtype, encode_from, rotation, kmeans_iterations and seed count.
///
/// The rotation whitens by the second moment of the KV head's pooled queries (eigenvalues
/// floored at 1e-4 of the largest), then takes the principal axes of the whitened residuals,
/// their eigenvalues dealt to the subspaces in balanced products (parametric OPQ, Ge et al.
/// 2013), so that the error that k-means minimizes is the error of q.k. Keys below
/// encode_from, incomplete last blocks and non-finite keys stay out. k-means runs on at most
/// 256 * ksub keys of every KV head, evenly spaced; memory beyond the traces is bounded by
/// them (and as many held-out ones), 8 bytes a position and the second moments.
/// Deterministic. Nothing is written to `*out` on failure.
Status calibrate(const IndexerConfig& config, const std::vector<CalibrationTrace>& traces,
                 const CalibrationOptions& options, Calibration* out) noexcept;

}  // namespace quarry
