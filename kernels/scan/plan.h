// SPDX-License-Identifier: Apache-2.0
//
// How algorithm scan divides a call. Plain arithmetic: the numbers depend on the configuration
// and the call's shape alone, never on lengths or on the device, so one plan counts the scratch,
// sizes the grid and serves a captured graph whatever the lengths become.
#pragma once

#include <cstdint>

#include "params.h"

namespace quarry::cuda {

constexpr int kScanThreads = 512;
constexpr int kFinishThreads = 256;

/// Neighbouring keys that a thread scores, in registers.
constexpr int kRun = 16;
/// Keys that a thread block scores at once: a stretch.
constexpr std::int32_t kStretch = kScanThreads * kRun;

/// A candidate that a thread block passed on to its row's selection.
struct Candidate {
  float score;
  std::int32_t position;
};

/// Keys a chunk gets at least, where there are as many: fewer would not pay for its tables.
constexpr std::int32_t kLeastScanChunk = 2048;
/// Thread blocks aimed at: one a multiprocessor of the largest devices of today, so that a
/// step's encoding runs beside them.
constexpr std::int32_t kScanBlocks = 128;
/// Chunks of a row at most: the second kernel counts them in shared memory.
constexpr std::int32_t kMostScanChunks = 4096;

/// Dynamic shared memory of a thread block: two fit a multiprocessor from 9.0 on, one fits
/// everywhere (99 KB from 8.6 on, static memory included).
constexpr std::int64_t kScanShared = 88 * 1024;

/// Block biases of a chunk that are made at once.
constexpr std::int32_t kMostBiases = 2048;

/// Candidates of a chunk of several stretches that a thread looks at when they are pruned.
constexpr int kPruned = 8;

struct ScanPlan {
  std::int32_t heads;        ///< query heads a thread block serves
  std::int32_t head_groups;  ///< of them, a KV head
  std::int32_t chunk;        ///< positions of a chunk at most, a multiple of 128
  std::int32_t chunks;       ///< of a row
  std::int32_t capacity;     ///< candidates a chunk and row may pass on, at least `select`
  std::int32_t stride;       ///< of a table: 16, 64 or 256 entries, at least ksub
  std::int32_t block_shift;  ///< log2(block_size), -1 where it is no power of two
  std::int32_t page_shift;   ///< log2(page_size) likewise
  float per_chunk;           ///< 1 / chunks
  std::int32_t select;       ///< r * K
  bool biased_once;          ///< biases of the whole chunk fit, not only those of a stretch
  std::int32_t buffer;       ///< candidates a head that a chunk keeps, at least `capacity`; or 0
};

/// Positions of a chunk of a row whose candidates span `range`: even shares of at least
/// kLeastScanChunk, as far as the plan's chunks reach.
QUARRY_HD inline std::int32_t scan_chunk(const ScanPlan& plan, std::int32_t range) {
  // Up to one more than a division says, which would take longer.
  std::int32_t even = static_cast<std::int32_t>(static_cast<float>(range) * plan.per_chunk) + 2;
  even = (even + 127) / 128 * 128;
  if (even < kLeastScanChunk) even = kLeastScanChunk;
  return even < plan.chunk ? even : plan.chunk;
}

/// Dynamic shared memory of a thread block: where its parts begin, in bytes. The code that counts
/// it places it; a kernel adds one number to find a part, where adding up sizes would take it
/// more instructions than using the part.
struct ScanLayout {
  std::int32_t query, rotated, bias;  ///< behind the tables, which are first
  std::int32_t codebook;              ///< -1: it is read where it lies
  std::int32_t rotation;              ///< -1 likewise, and where there is none
  std::int32_t buffer;                ///< in the place of the two before
  std::int32_t total;
};

/// A KV head's codebook, and its rotation beside it, are copied to shared memory up to these bytes.
constexpr std::int64_t kStagedCodebook = 32 * 1024;
constexpr std::int64_t kStagedBooks = 72 * 1024;

inline ScanLayout scan_layout(const IndexView& ix, const ScanPlan& plan) {
  const std::int64_t heads = plan.heads, m = ix.num_subspaces, d = ix.head_dim;
  const std::int64_t blocks =
      ix.block_size > 0 ? (plan.biased_once ? plan.chunk : kStretch) / ix.block_size + 2 : 0;
  std::int64_t bytes = 0;
  const auto take = [&](std::int64_t count) {
    const std::int64_t here = bytes;
    bytes += (count * 4 + 15) / 16 * 16;
    // A layout beyond what any device has is refused by its total.
    return static_cast<std::int32_t>(here < kScanShared ? here : kScanShared);
  };
  ScanLayout at{};
  take(m * heads * plan.stride);
  at.query = take(heads * d);
  at.rotated = ix.rotated ? take(heads * d) : at.query;
  at.bias = take(blocks * heads);
  const std::int64_t work = bytes;
  const std::int64_t codebook = (m * ix.dcent) << ix.bits;
  const bool copied = codebook * 4 <= kStagedCodebook && codebook % 4 == 0;  // by 16 bytes
  at.codebook = copied ? take(codebook) : -1;
  const std::int64_t both = d * d * 4 + (copied ? codebook * 4 : 0);
  at.rotation = ix.rotated && both <= kStagedBooks ? take(d * d) : -1;
  const std::int64_t staged = bytes;
  bytes = work;
  at.buffer = take(heads * plan.buffer * 2);
  if (bytes < staged) bytes = staged;
  at.total = static_cast<std::int32_t>(bytes < 2 * kScanShared ? bytes : 2 * kScanShared);
  return at;
}

/// log2(size), -1 where it is no power of two.
inline std::int32_t shift_of(std::int32_t size) {
  if (size <= 0 || (size & (size - 1)) != 0) return -1;
  std::int32_t shift = 0;
  while (1 << shift < size) ++shift;
  return shift;
}

inline ScanPlan scan_plan(const IndexView& ix, std::int32_t batch_size, std::int32_t query_tokens) {
  ScanPlan plan{};
  plan.select = ix.refine_factor * ix.heavy_size;
  plan.stride = ix.bits <= 4 ? 16 : ix.bits <= 6 ? 64 : 256;
  plan.capacity = plan.select + plan.select / 4 + 192;
  if (plan.capacity > kStretch) plan.capacity = kStretch;
  plan.block_shift = shift_of(ix.block_size);
  plan.page_shift = shift_of(ix.page_size);
  // What a stretch may add to as many as are kept without pruning.
  const std::int32_t buffer = 2 * plan.capacity + plan.select / 2;
  const bool streams = buffer <= kPruned * kScanThreads;
  // Two and four heads a thread block share the codes' reading and masks, but pass on twice and
  // four times as many candidates a row, which took longer (docs/scan-notes.md).
  plan.heads = 1;
  plan.head_groups = (ix.group_size + plan.heads - 1) / plan.heads;
  const std::int64_t groups =
      std::int64_t{batch_size} * query_tokens * ix.num_kv_heads * plan.head_groups;
  const std::int64_t wanted = groups < kScanBlocks ? kScanBlocks / groups : 1;
  std::int64_t chunk = ((ix.max_seq_len + wanted - 1) / wanted + 127) / 128 * 128;
  if (chunk < kLeastScanChunk) chunk = kLeastScanChunk;
  if (chunk > kStretch && !streams) chunk = kStretch;
  plan.chunk = static_cast<std::int32_t>(chunk);
  plan.buffer = chunk > kStretch ? buffer : plan.capacity;
  plan.biased_once = ix.block_size > 0 && chunk / ix.block_size <= kMostBiases;
  const auto fits = [&] { return scan_layout(ix, plan).total <= kScanShared; };
  if (!fits()) plan.biased_once = false;
  if (!fits() && plan.chunk > kStretch) {
    plan.chunk = kStretch;
    plan.buffer = plan.capacity;
  }
  if (!fits()) plan.buffer = 0;
  plan.chunks = (ix.max_seq_len + plan.chunk - 1) / plan.chunk;
  plan.per_chunk = 1.0f / static_cast<float>(plan.chunks);
  return plan;
}

inline bool plan_serves(const IndexView& ix) {
  // A single row has the most chunks, many rows have the longest.
  const ScanPlan one = scan_plan(ix, 1, 1), many = scan_plan(ix, kScanBlocks, 1);
  return one.chunks <= kMostScanChunks && scan_layout(ix, one).total <= kScanShared &&
         many.chunks <= kMostScanChunks && scan_layout(ix, many).total <= kScanShared;
}

/// Scratch of a call. The code that counts it carves it.
struct ScanScratch {
  std::uint32_t* encoded;  ///< [B]: thread blocks that have encoded their share
  std::int32_t* counts;    ///< [rows][chunks]: candidates passed on
  Candidate* candidates;   ///< [rows][chunks][capacity]
  std::int64_t bytes;

  ScanScratch(void* base, const ScanPlan& plan, std::int64_t batch_size, std::int64_t rows) {
    bytes = 0;
    const auto take = [&](std::int64_t count, std::size_t size) {
      void* const here = base == nullptr ? nullptr : static_cast<char*>(base) + bytes;
      bytes += (count * static_cast<std::int64_t>(size) + 255) / 256 * 256;
      return here;
    };
    const std::int64_t segments = rows * plan.chunks;
    encoded = static_cast<std::uint32_t*>(take(batch_size, 4));
    counts = static_cast<std::int32_t*>(take(segments, 4));
    candidates = static_cast<Candidate*>(take(segments * plan.capacity, sizeof(Candidate)));
  }
};

}  // namespace quarry::cuda
