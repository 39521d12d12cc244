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
constexpr int kFinishThreads = 512;

/// A candidate that a thread block passed on to its row's selection.
struct Candidate {
  std::uint32_t key;  ///< selection_key() of its score
  std::int32_t position;
};

/// Keys a chunk gets at least, where there are as many: fewer would not pay for its tables.
constexpr std::int32_t kLeastScanChunk = 2048;
/// Shared memory for the packed sums of a chunk, two bytes a key and head.
constexpr std::int32_t kSumBytes = 64 * 1024;
/// Thread blocks aimed at: one a multiprocessor of the largest devices of today, so that a
/// step's encoding runs beside them.
constexpr std::int32_t kScanBlocks = 128;
/// Blocks of a cluster: those share the rotated query and the histogram of sums.
constexpr std::int32_t kMostScanCluster = 8;
/// Chunks of a row at most: the second kernel counts them in shared memory.
constexpr std::int32_t kMostScanChunks = 4096;

/// Dynamic shared memory of a thread block: two fit a multiprocessor from 9.0 on, one fits
/// everywhere (99 KB from 8.6 on, static memory included).
constexpr std::int64_t kScanShared = 97 * 1024;

struct ScanPlan {
  std::int32_t heads;        ///< query heads a thread block serves: 1, 2 or 4
  std::int32_t head_groups;  ///< of them, a KV head
  std::int32_t chunk;        ///< positions of a chunk at most, a multiple of 128
  std::int32_t chunks;       ///< of a row, a multiple of `cluster`
  std::int32_t cluster;      ///< thread blocks
  std::int32_t capacity;     ///< candidates a chunk and row may pass on, at least `select`
  std::int32_t stride;       ///< of a table: 16, 64 or 256 entries, at least ksub
  std::int32_t block_shift;  ///< log2(block_size), -1 where it is no power of two
  std::int32_t select;       ///< r * K
};

/// Positions of a chunk of a row whose candidates span `range`: even shares of at least
/// kLeastScanChunk, as far as the plan's chunks reach.
QUARRY_HD inline std::int32_t scan_chunk(const ScanPlan& plan, std::int32_t range) {
  std::int32_t even = (range + plan.chunks - 1) / plan.chunks;
  even = (even + 127) / 128 * 128;
  if (even < kLeastScanChunk) even = kLeastScanChunk;
  return even < plan.chunk ? even : plan.chunk;
}

/// Bins of the histogram of sums, a head: coarser where more heads share a thread block.
QUARRY_HD constexpr std::int32_t scan_bins(std::int32_t heads) { return 1024 / heads; }

/// Up to this many candidates, for each one wanted, every sum is counted; of more, the largest
/// of four neighbours.
constexpr std::int32_t kCountedEach = 8;

inline std::int64_t align16(std::int64_t bytes) { return (bytes + 15) / 16 * 16; }

/// Dynamic shared memory of a thread block. The code that counts it carves it (ChunkShared).
struct ScanSizes {
  std::int64_t tables, packed, ranges, queries, biases, packed_biases, sums, found, total;
};

/// Floats that rotating the query works in, where the sums go afterwards.
constexpr std::int64_t kScanRotationFloats = 4096;
/// Of the exact search of a chunk, which takes the place of the sums too.
constexpr std::int64_t kChunkSearchBytes = 16 * 1024;

inline ScanSizes scan_sizes(const IndexView& ix, const ScanPlan& plan) {
  ScanSizes s{};
  const std::int64_t heads = plan.heads, m = ix.num_subspaces;
  s.tables = align16(m * heads * plan.stride * 4);
  s.packed = align16(m * heads * plan.stride * 2);
  s.ranges = align16(2 * m * heads * 4);
  s.queries = align16((ix.rotated ? 2 : 1) * heads * ix.head_dim * 4);
  const std::int64_t blocks = ix.block_size > 0 ? plan.chunk / ix.block_size + 2 : 0;
  s.biases = align16(blocks * heads * 4);
  s.packed_biases = align16(2 * blocks * heads * 2);
  s.sums = align16(std::int64_t{plan.chunk} * heads * 2);
  if (s.sums < kChunkSearchBytes) s.sums = kChunkSearchBytes;
  s.found = align16(heads * plan.capacity * 2);
  if (s.found < 4096) s.found = 4096;  // the cluster's histogram, before anything is found
  s.total = s.tables + s.packed + s.ranges + s.queries + s.biases + s.packed_biases + s.sums +
            s.found + 4096;
  return s;
}

inline ScanPlan scan_plan(const IndexView& ix, std::int32_t batch_size, std::int32_t query_tokens) {
  ScanPlan plan{};
  plan.select = ix.refine_factor * ix.heavy_size;
  plan.stride = ix.bits <= 4 ? 16 : ix.bits <= 6 ? 64 : 256;
  plan.capacity = plan.select * 3 / 2 + 512;
  plan.block_shift = -1;
  if (ix.block_size > 0 && (ix.block_size & (ix.block_size - 1)) == 0) {
    plan.block_shift = 0;
    while (1 << plan.block_shift < ix.block_size) ++plan.block_shift;
  }
  // As many heads at once as shared memory holds beside a chunk that is worth its tables. Codes
  // that are read byte by byte (pages of other than four positions) go a head at a time.
  plan.heads = ix.tile < 4 ? 1 : ix.group_size > 2 ? 4 : ix.group_size > 1 ? 2 : 1;
  for (;; plan.heads /= 2) {
    plan.chunk = kLeastScanChunk;
    if (plan.heads == 1 || scan_sizes(ix, plan).total <= kScanShared) break;
  }
  plan.head_groups = (ix.group_size + plan.heads - 1) / plan.heads;
  const std::int64_t groups =
      std::int64_t{batch_size} * query_tokens * ix.num_kv_heads * plan.head_groups;
  std::int64_t wanted = kScanBlocks / groups;
  if (wanted < 1) wanted = 1;
  std::int64_t chunk = (ix.max_seq_len + wanted - 1) / wanted;
  chunk = (chunk + 127) / 128 * 128;
  const std::int64_t most = kSumBytes / (2 * plan.heads);
  chunk = chunk < kLeastScanChunk ? kLeastScanChunk : chunk < most ? chunk : most;
  plan.chunk = static_cast<std::int32_t>(chunk);
  while (plan.chunk > kLeastScanChunk && scan_sizes(ix, plan).total > kScanShared) {
    plan.chunk -= 128;
  }
  plan.chunks = (ix.max_seq_len + plan.chunk - 1) / plan.chunk;
  plan.cluster = 1;
  while (plan.cluster < kMostScanCluster && plan.cluster < plan.chunks) plan.cluster *= 2;
  plan.chunks = (plan.chunks + plan.cluster - 1) / plan.cluster * plan.cluster;
  return plan;
}

inline bool plan_serves(const IndexView& ix) {
  const ScanPlan plan = scan_plan(ix, 1, 1);  // a single row has the most chunks
  return plan.chunks <= kMostScanChunks && scan_sizes(ix, plan).total <= kScanShared;
}

/// Scratch of a call. The code that counts it carves it.
struct ScanScratch {
  std::int32_t* counts;   ///< [rows][chunks]: candidates passed on
  Candidate* candidates;  ///< [rows][chunks][capacity]
  std::int64_t bytes;

  ScanScratch(void* base, const ScanPlan& plan, std::int64_t rows) {
    const std::int64_t segments = rows * plan.chunks;
    const std::int64_t counted = (segments * 4 + 255) / 256 * 256;
    bytes = counted + segments * plan.capacity * static_cast<std::int64_t>(sizeof(Candidate));
    counts = static_cast<std::int32_t*>(base);
    candidates = base == nullptr ? nullptr
                                 : reinterpret_cast<Candidate*>(static_cast<char*>(base) + counted);
  }
};

}  // namespace quarry::cuda
