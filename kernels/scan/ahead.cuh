// SPDX-License-Identifier: Apache-2.0
//
// What a chunk's thread block will read, towards the second level cache, while the work before
// the kernel still runs: a step's bytes are few and cold, so their latency is most of its time.
// Lengths, slots and pages may yet be written by that work. They are read past this
// multiprocessor's cache, so that no later read finds what is read here, checked, and used for
// nothing but the choice of what to fetch.
#pragma once

#include "common/copy.cuh"
#include "scan/chunk.cuh"
#include "score/bias.cuh"
#include "score/lut.cuh"

namespace quarry::cuda {

/// As the value is now, from no cache of this multiprocessor.
__device__ __forceinline__ std::int32_t glance(const std::int32_t* p) {
  std::int32_t v;
  asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}

/// Codes and block means of candidates [low, high), by all threads.
__device__ __forceinline__ void fetch_codes_ahead(const IndexView& ix,
                                                  const std::int32_t* table_row, std::int32_t slot,
                                                  std::int32_t kv, std::int32_t low,
                                                  std::int32_t high) {
  const std::int64_t mean_bytes = std::int64_t{ix.head_dim} * element_size(ix.mean_dtype);
  const auto tid = static_cast<std::int32_t>(threadIdx.x);
  const auto threads = static_cast<std::int32_t>(blockDim.x);
  const char* const means = static_cast<const char*>(ix.means);
  if (table_row == nullptr) {
    const std::int32_t from = low / ix.tile * ix.tile;
    prefetch_to_l2(ix.codes + code_offset(ix, slot, kv, from),
                   static_cast<std::int64_t>(high - from) * ix.code_bytes);
    if (ix.block_size > 0) {
      const std::int32_t first = low / ix.block_size, last = (high - 1) / ix.block_size;
      prefetch_to_l2(means + block_mean(ix, nullptr, slot, kv, first) / ix.head_dim * mean_bytes,
                     (last - first + 1) * mean_bytes);
    }
    return;
  }
  constexpr std::int32_t kLine = 128;
  const std::int32_t last = (high - 1) / ix.page_size;
#pragma unroll 1
  for (std::int32_t i = low / ix.page_size + tid; i <= last; i += threads) {
    const std::int32_t page = glance(table_row + i);
    if (page < 0 || page >= ix.num_pages) continue;
    const std::uint8_t* codes = ix.codes + code_offset(ix, page, kv, 0);
    const std::int32_t bytes = ix.page_slots * ix.code_bytes;
    for (std::int32_t at = 0; at < bytes; at += kLine) prefetch(codes + at);
    if (ix.block_size == 0) continue;
    const char* mean = means + mean_offset(ix, page, kv, 0) / ix.head_dim * mean_bytes;
    for (std::int64_t at = 0; at < ix.blocks_per_page * mean_bytes; at += kLine) {
      prefetch(mean + at);
    }
  }
}

/// All of it, for chunk `chunk_id` of row (b, t) and heads head .. head + live - 1 of KV head kv.
__device__ __forceinline__ void fetch_chunk_ahead(const ChunkParams& p, const ClusterPlace& place,
                                                  std::int32_t b, std::int32_t t, std::int32_t kv,
                                                  std::int32_t head, std::int32_t live,
                                                  std::int32_t chunk_id) {
  const IndexView& ix = p.encode.index;
  const StepView& step = p.encode.step;
  const auto tid = static_cast<std::int32_t>(threadIdx.x);
  const std::int32_t slot = step.slots == nullptr ? b : glance(step.slots + b);
  const std::int32_t n =
      glance(step.lengths + static_cast<std::int64_t>(b) * step.query_tokens + t);
  if (slot < 0 || slot >= ix.max_sequences || n <= ix.dense_limit || n > ix.max_seq_len) return;
  if (tid == 0) prefetch(ix.seen + slot);
  if (tid == 32) prefetch(ix.has_codebook + slot);
  const QueryView& q = p.queries;
  const std::int64_t size = element_size(q.dtype), d = ix.head_dim;
  const std::int64_t query = b * q.batch_stride + t * q.token_stride + head * q.head_stride;
  if (tid < 32 * live) {  // a warp a head
    const char* const row =
        static_cast<const char*>(q.data) + (query + tid / 32 * q.head_stride) * size;
    if (std::int64_t{tid % 32 * 128} < d * size) prefetch(row + tid % 32 * 128);
  }
  const std::int64_t book = static_cast<std::int64_t>(codebook_of(ix, slot)) * ix.num_kv_heads + kv;
  const std::int64_t book_bytes =
      (static_cast<std::int64_t>(ix.num_subspaces) * ix.dcent << ix.bits) * 4;
  prefetch_to_l2(reinterpret_cast<const char*>(ix.codebooks) + book * book_bytes, book_bytes);
  if (ix.rotated) {  // this block's columns, as in rotate_queries()
    const std::int64_t columns = d / place.blocks;
    const float* const from = ix.query_rotation + book * d * d + place.rank * columns;
    for (std::int64_t row = tid; row < d; row += blockDim.x) {
      for (std::int64_t i = 0; i < columns; i += 32) prefetch(from + row * d + i);
    }
  }
  const ChunkSpan span(p.plan, ix.sink_size, n - ix.window_size, chunk_id);
  if (span.low >= span.high) return;
  fetch_codes_ahead(ix, block_table_row(step, b), slot, kv, span.low, span.high);
}

}  // namespace quarry::cuda
