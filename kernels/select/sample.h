// SPDX-License-Identifier: Apache-2.0
//
// How stage select divides a row: which rows are sampled, how large the sample is, and how
// much room what passes the sample's pivot gets. Host and device agree because both ask here.
#pragma once

#include <cmath>
#include <cstdint>

#include "params.h"

namespace quarry::cuda {

/// Rows of at most this many candidates are selected from at once, by one thread block.
constexpr std::int32_t kUnsampledCandidates = 8192;
constexpr std::int32_t kMostSamples = 4096;

/// A sample of `size` candidates, one drawn from each of `size` even stretches of the row. Its
/// `rank`-th best is the pivot. size 0: the row is not sampled.
struct Sample {
  std::int32_t log2_size;
  std::int32_t size;
  std::int32_t rank;
};

/// The k best of n hold about k * size / n samples. The rank lies four standard deviations and
/// six above that, so that fewer than k candidates reach the pivot about once in a million
/// rows; and a rank beyond half of the sample would not thin the row enough to pay.
/// Whatever the pivot turns out to be, the result is exact: a row that it failed is selected
/// from whole.
QUARRY_HD inline Sample sample_of(std::int32_t n, std::int32_t k) {
  if (n <= kUnsampledCandidates) return {0, 0, 0};
  const std::int32_t log2_size = n <= 1 << 17 ? 10 : n <= 1 << 20 ? 11 : 12;
  const std::int32_t size = 1 << log2_size;
  const float expected = static_cast<float>(k) * static_cast<float>(size) / static_cast<float>(n);
  const std::int32_t rank = static_cast<std::int32_t>(expected + 4.0f * sqrtf(expected)) + 7;
  if (2 * rank > size) return {0, 0, 0};
  return {log2_size, size, rank};
}

/// Candidate (0 .. n-1) that stands for stretch i: its place in the stretch is drawn by a fixed
/// hash, so that no period of the row's can hide from the sample.
QUARRY_HD inline std::int32_t sample_position(const Sample& sample, std::int32_t n,
                                              std::int32_t i) {
  const std::uint64_t wide = static_cast<std::uint64_t>(n);
  const auto start =
      static_cast<std::uint32_t>(wide * static_cast<std::uint32_t>(i) >> sample.log2_size);
  const auto end =
      static_cast<std::uint32_t>(wide * (static_cast<std::uint32_t>(i) + 1u) >> sample.log2_size);
  // Finalizer of MurmurHash3.
  std::uint32_t h = static_cast<std::uint32_t>(i) + 0x9e3779b9u;
  h = (h ^ h >> 16) * 0x85ebca6bu;
  h = (h ^ h >> 13) * 0xc2b2ae35u;
  h ^= h >> 16;
  const auto within =
      static_cast<std::uint32_t>(static_cast<std::uint64_t>(h) * (end - start) >> 32);
  return static_cast<std::int32_t>(start + within);
}

/// What passes a pivot, in ascending position.
struct Entry {
  std::uint32_t key;
  std::int32_t position;
};

/// Positions that a thread block of the filter holds in registers at once.
constexpr std::int32_t kFilterTile = 4096;

/// The filter's grid and scratch: each row in `parts` equal stretches, one thread block and one
/// segment of `capacity` entries each.
struct FilterPlan {
  std::int32_t parts;     ///< 0: no row can be sampled
  std::int32_t capacity;  ///< entries a segment
};

/// Thread blocks of the filter over all rows, about: four to eight a multiprocessor. More would
/// read the samples more often than they shorten a stretch.
constexpr std::int32_t kFilterBlocks = 512;

/// Entries to expect above the pivot, for the longest rows (the expectation steps down where
/// the sample grows).
inline std::int64_t most_expected(std::int32_t k, std::int32_t max_candidates) {
  std::int64_t most = 0;
  for (const std::int32_t n : {1 << 17, 1 << 20, max_candidates}) {
    if (n > max_candidates) continue;
    const Sample s = sample_of(n, k);
    if (s.size == 0) continue;
    const std::int64_t expected = (static_cast<std::int64_t>(s.rank) * n >> s.log2_size) + 1;
    most = expected > most ? expected : most;
  }
  return most;
}

/// Candidates of a part, a multiple of 4 so that parts start at aligned positions.
QUARRY_HD inline std::int32_t part_length(std::int32_t range, std::int32_t parts) {
  return ((range + parts - 1) / parts + 3) / 4 * 4;
}

/// Whole tiles of the longest row: more parts than that would be shorter than a tile.
inline std::int64_t filter_tiles(std::int32_t max_candidates) {
  const std::int64_t tiles = max_candidates / kFilterTile;
  return tiles < 1 ? 1 : tiles;
}

/// A segment holds its whole stretch, or, of long stretches, four times what is expected of the
/// row: were all of it to lie in one stretch, there would still be room. One that overflows
/// sends its row to be selected from whole.
inline std::int64_t segment_capacity(std::int32_t k, std::int32_t max_candidates,
                                     std::int32_t parts) {
  const std::int64_t room = 4 * most_expected(k, max_candidates) + 2 * k;
  const std::int64_t stretch = part_length(max_candidates + 3, parts);
  return room < stretch ? room : stretch;
}

inline FilterPlan filter_plan(std::int32_t rows, std::int32_t k, std::int32_t max_candidates) {
  if (max_candidates <= kUnsampledCandidates || most_expected(k, max_candidates) == 0) {
    return {0, 0};
  }
  std::int64_t parts = kFilterBlocks / rows;
  const std::int64_t tiles = filter_tiles(max_candidates);
  parts = parts < 1 ? 1 : parts > tiles ? tiles : parts;
  const auto count = static_cast<std::int32_t>(parts);
  return {count, static_cast<std::int32_t>(segment_capacity(k, max_candidates, count))};
}

/// Bytes for any call of at most `rows` rows: fewer rows have more parts each, but over all
/// rows there are never more segments, and never more entries, than counted here.
inline std::int64_t filter_bytes(std::int32_t rows, std::int32_t k, std::int32_t max_candidates) {
  if (filter_plan(rows, k, max_candidates).parts == 0) return 0;
  const std::int64_t tiles = filter_tiles(max_candidates);
  const std::int64_t all = rows * tiles < kFilterBlocks ? rows * tiles : kFilterBlocks;
  const std::int64_t segments = rows > all ? rows : all;
  const std::int64_t by_room = segments * (4 * most_expected(k, max_candidates) + 2 * k);
  const std::int64_t by_row = rows * (std::int64_t{max_candidates} + 3 + 4 * tiles);
  const std::int64_t entries = by_room < by_row ? by_room : by_row;
  return (segments * 4 + 255) / 256 * 256 + entries * static_cast<std::int64_t>(sizeof(Entry));
}

}  // namespace quarry::cuda
