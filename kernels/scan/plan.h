// SPDX-License-Identifier: Apache-2.0
//
// How algorithm scan divides a call. Plain arithmetic, for host and device: the numbers depend
// on the configuration and the call's shape alone, never on lengths or on the device, so one
// plan counts the scratch, sizes the grid and serves a captured graph whatever the lengths
// become.
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

/// Keys a chunk gets at least, where there are as many: fewer would not pay for its tables. At
/// most 2^16, so that a place in it takes two bytes.
constexpr std::int32_t kLeastScanChunk = 2048;
constexpr std::int32_t kMostScanChunk = 1 << 16;
/// Thread blocks aimed at: two a multiprocessor of the largest devices of today.
constexpr std::int32_t kScanBlocks = 256;
/// Blocks of a cluster: those share the rotated query and the pivot's sample.
constexpr std::int32_t kMostScanCluster = 8;

/// Dynamic shared memory of a thread block, so that two fit a multiprocessor from 9.0 on and one
/// fits everywhere (99 KB from 8.6 on). A configuration that needs more with one head and the
/// least chunk is not served.
constexpr std::int64_t kScanShared = 96 * 1024;

struct ScanPlan {
  std::int32_t heads;        ///< query heads a thread block serves: 1, 2 or 4
  std::int32_t head_groups;  ///< of them, a KV head
  std::int32_t chunk;        ///< positions of a chunk at most, a multiple of 4
  std::int32_t chunks;       ///< of a row, a multiple of `cluster`
  std::int32_t cluster;      ///< thread blocks
  std::int32_t capacity;     ///< candidates a chunk and row may pass on
  std::int32_t samples;      ///< of a row and cluster, from which its pivot is taken
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

/// The sample of `size` candidates, one from each of as many even stretches of `n`: which
/// candidate stands for stretch i. A fixed hash draws it, so that no period of the keys can
/// hide from the sample.
QUARRY_HD inline std::int32_t scan_sample(std::int32_t n, std::int32_t size, std::int32_t i) {
  const auto start = static_cast<std::int32_t>(std::int64_t{n} * i / size);
  const auto end = static_cast<std::int32_t>(std::int64_t{n} * (i + 1) / size);
  std::uint32_t h = static_cast<std::uint32_t>(i) + 0x9e3779b9u;  // MurmurHash3's finalizer
  h = (h ^ h >> 16) * 0x85ebca6bu;
  h = (h ^ h >> 13) * 0xc2b2ae35u;
  h ^= h >> 16;
  const auto within = static_cast<std::int32_t>(
      static_cast<std::uint64_t>(h) * static_cast<std::uint32_t>(end - start) >> 32);
  return start + within;
}

/// Which of the sample, counted from the best, is the pivot: about k * size / n of the sample
/// are among the k best, and this lies four standard deviations above. What the pivot turns out
/// to be decides a row's cost alone, never its result.
QUARRY_HD inline std::int32_t scan_rank(std::int32_t k, std::int32_t size, std::int32_t n) {
  const float expected = static_cast<float>(k) * static_cast<float>(size) / static_cast<float>(n);
  float root = expected > 1.0f ? expected : 1.0f;  // Newton from above: host and device agree
  for (int i = 0; i < 24; ++i) root = 0.5f * (root + expected / root);
  const auto rank = static_cast<std::int32_t>(expected + 4.0f * root) + 7;
  return rank < size ? rank : size;
}

inline std::int64_t align16(std::int64_t bytes) { return (bytes + 15) / 16 * 16; }

/// Dynamic shared memory of a scan block. The code that counts it carves it (scan/shared.cuh).
struct ScanSizes {
  std::int64_t tables, packed, ranges, queries, biases, packed_biases, candidates, bins, total;
};

/// Floats that rotating the query works in; the tables are built there afterwards.
constexpr std::int64_t kScanRotationFloats = 4096;
/// Bins of the pivot's search, a head.
constexpr std::int32_t kPivotBins = 1024;

inline ScanSizes scan_sizes(const IndexView& ix, const ScanPlan& plan) {
  ScanSizes s{};
  const std::int64_t heads = plan.heads, m = ix.num_subspaces;
  std::int64_t floats = m * heads * plan.stride;
  if (ix.rotated && floats < kScanRotationFloats) floats = kScanRotationFloats;
  s.tables = align16(floats * 4);
  s.packed = align16(m * heads * plan.stride * 2);
  s.ranges = align16(2 * m * heads * 4);
  s.queries = align16((ix.rotated ? 2 : 1) * heads * ix.head_dim * 4);
  const std::int64_t blocks = ix.block_size > 0 ? plan.chunk / ix.block_size + 2 : 0;
  s.biases = align16(blocks * heads * 4);
  s.packed_biases = align16(blocks * heads * 2);
  // The sample and its search come before the candidates.
  const std::int64_t sample = heads * plan.samples * 4;
  const std::int64_t found = heads * plan.capacity * 2;
  s.candidates = align16(sample > found ? sample : found);
  s.bins = align16(heads * kPivotBins * 4);
  if (s.bins < 16384) s.bins = 16384;  // the exact search's storage
  s.total = s.tables + s.packed + s.ranges + s.queries + s.biases + s.packed_biases + s.candidates +
            s.bins;
  return s;
}

inline ScanPlan scan_plan(const IndexView& ix, std::int32_t batch_size, std::int32_t query_tokens) {
  ScanPlan plan{};
  plan.select = ix.refine_factor * ix.heavy_size;
  plan.stride = ix.bits <= 4 ? 16 : ix.bits <= 6 ? 64 : 256;
  plan.capacity = plan.select * 5 / 2 + 256;
  if (plan.capacity < kLeastScanChunk) plan.capacity = kLeastScanChunk;
  plan.block_shift = -1;
  if (ix.block_size > 0 && (ix.block_size & (ix.block_size - 1)) == 0) {
    plan.block_shift = 0;
    while (1 << plan.block_shift < ix.block_size) ++plan.block_shift;
  }
  // As many heads at once as shared memory holds with room for the biases of a worthwhile chunk.
  // Codes that are read byte by byte (pages of other than four positions) go a head at a time.
  plan.heads = ix.tile < 4 ? 1 : ix.group_size > 2 ? 4 : ix.group_size > 1 ? 2 : 1;
  for (;; plan.heads /= 2) {
    plan.samples = 2048;
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
  chunk = chunk < kLeastScanChunk  ? kLeastScanChunk
          : chunk < kMostScanChunk ? chunk
                                   : kMostScanChunk;
  plan.chunk = static_cast<std::int32_t>(chunk);
  while (plan.chunk > kLeastScanChunk && scan_sizes(ix, plan).total > kScanShared) {
    plan.chunk = (plan.chunk / 2 + 127) / 128 * 128;
  }
  plan.chunks = (ix.max_seq_len + plan.chunk - 1) / plan.chunk;
  plan.cluster = 1;
  while (plan.cluster < kMostScanCluster && plan.cluster < plan.chunks) plan.cluster *= 2;
  plan.chunks = (plan.chunks + plan.cluster - 1) / plan.cluster * plan.cluster;
  return plan;
}

/// Chunks of a row at most: the second kernel counts them in shared memory.
constexpr std::int32_t kMostScanChunks = 4096;

inline bool plan_serves(const IndexView& ix) {
  const ScanPlan plan = scan_plan(ix, 1, 1);  // a single row has the most chunks
  return plan.chunks <= kMostScanChunks && scan_sizes(ix, plan).total <= kScanShared;
}

/// Scratch of a call, in the order in which scan.cu carves it.
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
