// SPDX-License-Identifier: Apache-2.0
//
// What an engine around quarry has of one layer and one sequence, and its two own steps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "quarry/quarry.h"

#if defined(__CUDACC__)
#define EXAMPLE_HD __host__ __device__
#else
#define EXAMPLE_HD
#endif

/// All pointers are memory that the backend's device reads and writes. Keys and values lie in
/// pages [num_pages, page_size, kv_heads, d]; position p is in page block_table[p / page_size].
struct LayerStep {
  std::int32_t query_heads = 0, kv_heads = 0, d = 0, page_size = 0;
  float* keys = nullptr;
  float* values = nullptr;
  const std::int32_t* block_table = nullptr;
  std::int32_t* length = nullptr;  ///< positions in the cache; append_token() adds one

  // The token being decoded: what the layer's projections made of it.
  const float* k = nullptr;  ///< [kv_heads, d]
  const float* v = nullptr;  ///< [kv_heads, d]
  const float* q = nullptr;  ///< [query_heads, d]

  // What next() wrote, and what attention makes of it.
  const std::int32_t* lists = nullptr;  ///< [query_heads, list_stride]
  std::int32_t list_stride = 0;
  const std::int32_t* list_lengths = nullptr;  ///< [query_heads]
  float* out = nullptr;                        ///< [query_heads, d]

  EXAMPLE_HD std::int64_t offset(std::int32_t position, std::int32_t kv_head) const {
    const std::int64_t page = block_table[position / page_size];
    return ((page * page_size + position % page_size) * kv_heads + kv_head) * d;
  }
};

/// The CPU's: length grows by one, k and v go to the new position.
void append_token(const LayerStep& step);
/// The CPU's: softmax(q.k / sqrt(d)) v over each head's list, a reference.
void sparse_attention(const LayerStep& step);

// step_cuda.cu, where CUDA is built. All throw std::runtime_error.

/// Memory that host and device share. Managed memory keeps this example short; an engine has
/// its own.
std::shared_ptr<void> allocate_managed(std::size_t bytes);

/// Waits for all that the device was given, on every stream.
void finish_device();

/// A whole decode step, captured once: append, next(), sparse attention. The length lies in
/// device memory, so one graph serves the growing sequence.
class StepGraph {
 public:
  StepGraph(const LayerStep& step, const std::function<quarry::Status(quarry::Stream)>& next);
  /// Runs the step and waits for it.
  void replay();

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};
