// SPDX-License-Identifier: Apache-2.0
//
// Stage encode: block means and codes of the positions the index has not seen.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/nearest.h"
#include "cpu/simd.h"
#include "cpu/stages.h"
#include "cpu/vectors.h"
#include "half.h"

namespace quarry::cpu {
namespace {

/// True if every page that the sequence's rows can touch is in range.
bool pages_valid(const EncodeParams& p, const SequenceState& st, std::int32_t b) {
  const std::int32_t* table = block_table_row(p.step, b);
  if (table == nullptr) return true;
  std::int32_t n = st.n;
  if (p.step.lengths != nullptr) {
    std::uint32_t ignored = 0;
    for (std::int32_t t = 0; t < st.count; ++t) {
      n = std::max(n, row_state(p.index, p.step, st, b, t, &ignored).n);
    }
  }
  for (std::int32_t position = 0; position < n; position += p.index.page_size) {
    if (page_of(p.index, table, st.slot, position) < 0) return false;
  }
  return true;
}

/// Codes of positions first .. first+count-1 (count <= keys_per_group()), of one block where
/// there are blocks.
void encode_group(const KeySource& source, std::int32_t first, std::int32_t count,
                  const float* mean) {
  const IndexView& ix = source.index;
  const std::int32_t m = ix.num_subspaces;
  const std::int64_t book = codebook_of(ix, source.slot);
  const std::int64_t head = book * ix.num_kv_heads + source.head;
  alignas(64) float vectors[kGroupFloats];
  alignas(64) float augmented[kGroupFloats + kGroup];
  std::uint8_t ids[kGroup * 64];  // m <= 64
  load_vectors(source, first, count, mean, vectors);
  for (std::int32_t s = 0; s < m; ++s) {
    const float phi = ix.phi == nullptr ? 0.0f : ix.phi[head * m + s];
    std::int64_t stride = 0;
    const float* x = subvectors(ix, vectors, count, s, phi, augmented, &stride);
    const float* centroids = ix.codebooks + (head * m + s) * ix.dcent * ix.ksub;
    nearest(x, count, stride, centroids, ix.dcent, ix.ksub, ids + s, m, nullptr);
  }
  for (std::int32_t i = 0; i < count; ++i) {
    const std::int32_t position = first + i;
    const std::int64_t page = page_of(ix, source.table, source.slot, position);
    std::uint8_t* code = ix.codes + code_offset(ix, page, source.head, position % ix.page_size);
    const std::uint8_t* id = ids + i * m;
    for (std::int32_t byte = 0; byte < ix.code_bytes; ++byte) {
      const std::int32_t s = ix.bits <= 4 ? 2 * byte : byte;
      std::uint8_t value = id[s];
      if (ix.bits <= 4 && s + 1 < m) value = static_cast<std::uint8_t>(value | id[s + 1] << 4);
      code[byte * ix.tile] = value;
    }
  }
}

void encode_positions(const KeySource& source, std::int32_t first, std::int32_t end,
                      const float* mean) {
  const std::int32_t group = keys_per_group(source.index);
  for (std::int32_t p = first; p < end; p += group) {
    encode_group(source, p, std::min(group, end - p), mean);
  }
}

void encode_block(const KeySource& source, std::int32_t block) {
  const IndexView& ix = source.index;
  const std::int32_t end = (block + 1) * ix.block_size;
  alignas(64) float mean[kMaxHeadDim];
  block_mean(source, block, mean);
  const std::int64_t page = page_of(ix, source.table, source.slot, end - 1);
  const std::int64_t offset = mean_offset(ix, page, source.head, end - 1);
  for (std::int32_t i = 0; i < ix.head_dim; ++i) {
    store_element(ix.means, ix.mean_dtype, offset + i, mean[i]);
  }
  widen(ix.means, ix.mean_dtype, 1.0f, offset, ix.head_dim, nullptr, mean);
  // A mean with an infinity in it must give NaN under any query, not +-inf by its sign. The
  // codes are 0 either way: no distance from it is finite.
  for (std::int32_t i = 0; i < ix.head_dim; ++i) {
    if (std::isfinite(mean[i])) continue;
    mean[i] = std::numeric_limits<float>::quiet_NaN();
    store_element(ix.means, ix.mean_dtype, offset + i, mean[i]);
  }
  encode_positions(source, std::max(block * ix.block_size, ix.encode_from), end, mean);
}

/// Units of work of a sequence: blocks, or runs of kRun positions.
constexpr std::int32_t kRun = 128;

struct Units {
  std::int32_t first = 0, end = 0;
};

Units units_of(const IndexView& ix, const SequenceState& st) {
  if (st.slot < 0 || st.built == 0 || st.begin >= st.n) return {};
  // A block is due where its end is above begin and at most n.
  if (ix.block_size > 0) return {st.begin / ix.block_size, st.n / ix.block_size};
  return {st.begin / kRun, (st.n + kRun - 1) / kRun};
}

}  // namespace

Status encode(const EncodeParams& p, const Launch& launch) noexcept {
  const IndexView& ix = p.index;
  std::int32_t most = 0;
  for (std::int32_t b = 0; b < p.step.batch_size; ++b) {
    SequenceState st = sequence_state(ix, p.step, b);
    if (st.slot >= 0 && !pages_valid(p, st, b)) {
      st.bits |= kPageOutOfRange;
      st.slot = -1;
    }
    p.step.states[b] = st;
    if (p.step.device_status != nullptr) p.step.device_status[b] |= st.bits;
    const Units units = units_of(ix, st);
    most = std::max(most, units.end - units.first);
  }

  const std::int64_t heads = static_cast<std::int64_t>(p.step.batch_size) * ix.num_kv_heads;
  const std::int64_t tasks = heads * most;
#pragma omp parallel for schedule(dynamic, 4) num_threads(launch.num_threads) if (tasks > 1)
  for (std::int64_t task = 0; task < tasks; ++task) {
    // Heads innermost: caches mostly hold a position's heads side by side.
    const auto b = static_cast<std::int32_t>(task / ix.num_kv_heads / most);
    const auto head = static_cast<std::int32_t>(task % ix.num_kv_heads);
    const SequenceState& st = p.step.states[b];
    const Units units = units_of(ix, st);
    const std::int32_t unit =
        units.first + static_cast<std::int32_t>(task / ix.num_kv_heads % most);
    if (unit >= units.end) continue;
    const std::int64_t book = codebook_of(ix, st.slot);
    const std::int64_t square = static_cast<std::int64_t>(ix.head_dim) * ix.head_dim;
    const KeySource source{
        ix,
        p.keys,
        block_table_row(p.step, b),
        st.slot,
        head,
        ix.rotation == nullptr ? nullptr : ix.rotation + (book * ix.num_kv_heads + head) * square};
    if (ix.block_size > 0) {
      encode_block(source, unit);
    } else {
      encode_positions(source, std::max(unit * kRun, st.begin), std::min((unit + 1) * kRun, st.n),
                       nullptr);
    }
  }

  for (std::int32_t b = 0; b < p.step.batch_size; ++b) {
    const SequenceState& st = p.step.states[b];
    if (st.slot >= 0 && st.built != 0) ix.seen[st.slot] = st.n;
  }
  return Status();
}

}  // namespace quarry::cpu
