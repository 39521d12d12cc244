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

/// Bins of a head's histogram of sums. More would find the threshold more sharply than a row has
/// candidates near it, and the whole cluster's are added up.
constexpr std::int32_t kScanBins = 256;

/// Up to this many candidates, for each one wanted, every sum is counted; of more, the largest
/// of four neighbours.
constexpr std::int32_t kCountedEach = 8;

/// Dynamic shared memory of a thread block: where its parts begin, in bytes. The code that counts
/// it places it; a kernel adds one number to find a part, where adding up sizes would take it
/// more instructions than using the part.
struct ScanLayout {
  std::int32_t lut, tables, lows, highs, query, rotated, bias, packed_bias, kept, sums, found;
  std::int32_t codebook;  ///< in the place of the sums, before them; -1: it is read where it lies
  std::int32_t total;
};

/// Floats that rotating the query works in, where the sums go afterwards.
constexpr std::int64_t kScanRotationFloats = 4096;
/// A KV head's codebook is copied to shared memory, while the query is on its way, up to these
/// bytes.
constexpr std::int64_t kStagedCodebook = 32 * 1024;
/// Of the exact search of a chunk, which takes the place of the sums too.
constexpr std::int64_t kChunkSearchBytes = 16 * 1024;

/// Bytes of a head's histogram; those of the heads come first of all.
constexpr std::int32_t kScanBinBytes = kScanBins * 4;

inline ScanLayout scan_layout(const IndexView& ix, const ScanPlan& plan) {
  const std::int64_t heads = plan.heads, m = ix.num_subspaces;
  const std::int64_t blocks = ix.block_size > 0 ? plan.chunk / ix.block_size + 2 : 0;
  std::int64_t bytes = heads * kScanBinBytes;
  const auto take = [&](std::int64_t count, std::int64_t size) {
    const std::int64_t here = bytes;
    bytes += (count * size + 15) / 16 * 16;
    // A layout beyond what any device has is refused by its total.
    return static_cast<std::int32_t>(here < kScanShared ? here : kScanShared);
  };
  ScanLayout at{};
  at.lut = take(m * heads * plan.stride, 4);
  at.tables = take(m * heads * plan.stride, 2);
  at.lows = take(m * heads, 4);
  at.highs = take(m * heads, 4);
  at.query = take(heads * ix.head_dim, 4);
  at.rotated = ix.rotated ? take(heads * ix.head_dim, 4) : at.query;
  at.bias = take(blocks * heads, 4);
  at.packed_bias = take(blocks * heads, 2);
  at.kept = take(blocks * heads, 2);
  std::int64_t sums = std::int64_t{plan.chunk} * heads * 2;
  if (sums < kChunkSearchBytes) sums = kChunkSearchBytes;
  const std::int64_t rotation = ix.rotated ? kScanRotationFloats * 4 : 0;
  const std::int64_t codebook = ((m * ix.dcent) << ix.bits) * 4;
  const bool staged = codebook <= kStagedCodebook && codebook % 16 == 0;  // copied by 16 bytes
  if (staged && sums < rotation + codebook) sums = rotation + codebook;
  at.sums = take(sums, 1);
  at.codebook = staged ? static_cast<std::int32_t>(at.sums + rotation) : -1;
  // The cluster's histogram lies where candidates go, before anything is found.
  const std::int64_t found = heads * plan.capacity * 2, bins = heads * kScanBinBytes;
  at.found = take(found < bins ? bins : found, 1);
  at.total = static_cast<std::int32_t>(bytes < 2 * kScanShared ? bytes : 2 * kScanShared);
  return at;
}

inline ScanPlan scan_plan(const IndexView& ix, std::int32_t batch_size, std::int32_t query_tokens) {
  ScanPlan plan{};
  plan.select = ix.refine_factor * ix.heavy_size;
  plan.stride = ix.bits <= 4 ? 16 : ix.bits <= 6 ? 64 : 256;
  plan.capacity = plan.select + 512;
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
    if (plan.heads == 1 || scan_layout(ix, plan).total <= kScanShared) break;
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
  while (plan.chunk > kLeastScanChunk && scan_layout(ix, plan).total > kScanShared) {
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
  return plan.chunks <= kMostScanChunks && scan_layout(ix, plan).total <= kScanShared;
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
