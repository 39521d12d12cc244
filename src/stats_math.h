// SPDX-License-Identifier: Apache-2.0
//
// What stats() measures, as plain arithmetic that every backend runs: which rows and keys it
// looks at, and what becomes of the sums. gcc and nvcc read this file.
#pragma once

#include "half.h"
#include "params.h"

namespace quarry {

QUARRY_HD inline float not_a_number() { return bits_to_float(0x7fc00000u); }

/// `v` where it can be compared with, 0 where it says nothing.
QUARRY_HD inline float known_baseline(float v) {
  return v > 0.0f && v <= 3.402823466e38f ? v : 0.0f;
}

/// First sampled row: rows phase, phase + every, ...
QUARRY_HD inline std::int32_t sample_phase(std::int32_t every, std::int32_t offset,
                                           std::uint32_t counter) {
  return static_cast<std::int32_t>(
      (static_cast<std::uint64_t>(counter) + static_cast<std::uint32_t>(offset)) %
      static_cast<std::uint32_t>(every));
}

/// A sampled row's place in its batch.
struct SampledRow {
  std::int32_t row, b, t, head;
};

/// Row `row` of [B, T, Hq].
QUARRY_HD inline SampledRow sampled_row(std::int32_t row, std::int32_t query_tokens,
                                        std::int32_t query_heads) {
  const std::int32_t query = row / query_heads;
  return {row, query / query_tokens, query % query_tokens, row % query_heads};
}

/// Sample i's row, or -1 past the last.
QUARRY_HD inline std::int32_t sample_at(const SampleParams& p, std::int32_t i, std::int32_t phase) {
  const std::int64_t rows =
      std::int64_t{p.step.batch_size} * p.step.query_tokens * p.index.num_query_heads;
  const std::int64_t row = std::int64_t{i} * p.every + phase;
  return row < rows ? static_cast<std::int32_t>(row) : -1;
}

/// The list that serves a query head's row: its own, or its group's.
QUARRY_HD inline std::int64_t list_row(const RecallParams& p, std::int32_t row) {
  return std::int64_t{row / p.query_heads} * p.list_heads +
         row % p.query_heads / (p.query_heads / p.list_heads);
}

/// Does the ascending list hold `position`?
QUARRY_HD inline bool lists(const std::int32_t* list, std::int32_t length, std::int32_t position) {
  std::int32_t low = 0, high = length;
  while (low < high) {
    const std::int32_t middle = low + (high - low) / 2;
    if (list[middle] < position) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < length && list[low] == position;
}

/// Entries of a list that may be read whatever its length says.
QUARRY_HD inline std::int32_t readable_length(const RecallParams& p, std::int64_t row) {
  const std::int32_t length = p.list_lengths[row];
  if (length < 0) return 0;
  return length < p.index_stride ? length : static_cast<std::int32_t>(p.index_stride);
}

QUARRY_HD inline RecallStats recall_stats(std::int32_t row, std::int32_t exact,
                                          std::int32_t found) {
  if (row < 0 || exact <= 0) return {row, 0, 0, not_a_number()};
  return {row, exact, found, static_cast<float>(found) / static_cast<float>(exact)};
}

/// `count` positions evenly spaced over [first, first + length).
struct KeySpan {
  std::int32_t first, length, count;

  QUARRY_HD std::int32_t position(std::int32_t i) const {
    return first + static_cast<std::int32_t>(std::int64_t{i} * length / count);
  }
};

/// Which encoded positions of a sequence stage drift measures.
QUARRY_HD inline KeySpan measured_keys(const DriftParams& p, const SequenceState& st) {
  const IndexView& ix = p.index;
  if (st.slot < 0 || st.built == 0) return {0, 0, 0};
  // Below n alone the keys are the sequence's; below `seen` alone they are encoded.
  std::int32_t end = ix.seen[st.slot] < st.n ? ix.seen[st.slot] : st.n;
  if (ix.block_size > 0) end = end / ix.block_size * ix.block_size;
  std::int32_t first = ix.encode_from;
  if (p.drift != nullptr && end - p.most > first) first = end - p.most;
  const std::int32_t length = end > first ? end - first : 0;
  return {first, length, length < p.most ? length : p.most};
}

/// Centroid id of subspace s of an encoded key.
QUARRY_HD inline std::int32_t stored_code(const IndexView& ix, std::int64_t page, std::int32_t head,
                                          std::int32_t in_page, std::int32_t s) {
  const std::uint8_t* code = ix.codes + code_offset(ix, page, head, in_page);
  if (ix.bits > 4) return code[s * ix.tile];
  return code[s / 2 * ix.tile] >> s % 2 * 4 & 15;
}

/// The sums over `keys` keys, as they are reported.
QUARRY_HD inline DriftStats drift_stats(double error, double norm, std::int32_t keys,
                                        float baseline) {
  DriftStats d{not_a_number(), known_baseline(baseline), not_a_number(), keys};
  if (keys > 0 && norm > 0) d.error = static_cast<float>(error / norm);
  if (d.baseline > 0) d.ratio = d.error / d.baseline;
  return d;
}

/// Where a KV head's sums go, and whether they are wanted.
QUARRY_HD inline float* baseline_of(const IndexView& ix, std::int32_t slot, std::int32_t head) {
  return ix.baseline + (std::int64_t{codebook_of(ix, slot)} * ix.num_kv_heads + head);
}

}  // namespace quarry
