// SPDX-License-Identifier: Apache-2.0
//
// What changes or reads an index beside the steps: set_codebook, truncate, reset, codes,
// codebook.
#include <algorithm>
#include <cstring>

#include "cpu/stages.h"
#include "stats_math.h"

namespace quarry::cpu {
namespace {

/// Codebooks of one slot between the caller's [Hkv, m, ksub, dcent] and the index's
/// [Hkv, m, dcent, ksub].
void transpose(const float* from, float* to, std::int64_t matrices, std::int32_t rows,
               std::int32_t cols) {
  const std::int64_t size = static_cast<std::int64_t>(rows) * cols;
  for (std::int64_t i = 0; i < matrices; ++i) {
    for (std::int32_t r = 0; r < rows; ++r) {
      for (std::int32_t c = 0; c < cols; ++c) {
        to[i * size + std::int64_t{c} * rows + r] = from[i * size + std::int64_t{r} * cols + c];
      }
    }
  }
}

void copy(const float* from, float* to, std::int64_t count) {
  if (from != nullptr && to != nullptr && count > 0) {
    std::memcpy(to, from, sizeof(float) * static_cast<std::size_t>(count));
  }
}

}  // namespace

Status set_codebook(const SetCodebookParams& p, const Launch&) noexcept {
  const IndexView& ix = p.index;
  const std::int64_t matrices = static_cast<std::int64_t>(ix.num_kv_heads) * ix.num_subspaces;
  const std::int64_t size = matrices * ix.dcent * ix.ksub;
  const std::int64_t square =
      static_cast<std::int64_t>(ix.num_kv_heads) * ix.head_dim * ix.head_dim;
  const std::int32_t first_book = p.slot < 0 ? 0 : codebook_of(ix, p.slot);
  const std::int32_t end_book = p.slot < 0 ? ix.codebook_slots : first_book + 1;
  for (std::int64_t book = first_book; book < end_book; ++book) {
    if (p.codebooks != nullptr) {
      transpose(p.codebooks, ix.codebooks + book * size, matrices, ix.ksub, ix.dcent);
    }
    if (ix.phi != nullptr) copy(p.phi, ix.phi + book * matrices, matrices);
    if (ix.rotation != nullptr) copy(p.rotation, ix.rotation + book * square, square);
    if (ix.query_rotation != nullptr) {
      copy(p.query_rotation, ix.query_rotation + book * square, square);
    }
  }
  if (p.codebooks == nullptr) return Status();  // rotations ahead of training
  for (std::int64_t i = first_book * ix.num_kv_heads; i < end_book * ix.num_kv_heads; ++i) {
    ix.baseline[i] = p.baseline == nullptr ? 0.0f : known_baseline(p.baseline[i % ix.num_kv_heads]);
  }
  // A shared codebook is every slot's.
  const bool all = p.slot < 0 || ix.codebook_slots == 1;
  const std::int32_t first = all ? 0 : p.slot;
  const std::int32_t end = all ? ix.max_sequences : p.slot + 1;
  for (std::int32_t slot = first; slot < end; ++slot) {
    // Codes of another codebook mean nothing now: the next call encodes them anew.
    ix.seen[slot] = std::min(ix.seen[slot], ix.encode_from);
    ix.has_codebook[slot] = 1;
    ix.codebook_ids[slot] = p.codebook_id;
  }
  return Status();
}

Status truncate(const TruncateParams& p, const Launch&) noexcept {
  for (std::int32_t i = 0; i < p.count; ++i) {
    const std::int32_t slot = p.slots == nullptr ? i : p.slots[i];
    if (slot < 0 || slot >= p.index.max_sequences || p.lengths[i] < 0) continue;
    p.index.seen[slot] = std::min(p.index.seen[slot], p.lengths[i]);
  }
  return Status();
}

Status reset(const ResetParams& p, const Launch&) noexcept {
  p.index.seen[p.slot] = 0;
  if (!p.forget_codebook) return Status();
  p.index.has_codebook[p.slot] = 0;
  p.index.codebook_ids[p.slot] = 0;
  return Status();
}

Status codes(const CodesParams& p, const Launch& launch) noexcept {
  const IndexView& ix = p.index;
  const std::int32_t m = ix.num_subspaces;
#pragma omp parallel for schedule(static) num_threads(launch.num_threads) if (p.count > 256)
  for (std::int32_t i = 0; i < p.count; ++i) {
    const std::int32_t position = p.first + i;
    const std::int64_t page = page_of(ix, p.block_table, p.slot, position);
    for (std::int32_t head = 0; head < ix.num_kv_heads; ++head) {
      std::uint8_t* out = p.out + (static_cast<std::int64_t>(i) * ix.num_kv_heads + head) * m;
      if (page < 0) {
        std::fill_n(out, m, std::uint8_t{0});
        continue;
      }
      const std::uint8_t* code = ix.codes + code_offset(ix, page, head, position % ix.page_size);
      for (std::int32_t s = 0; s < m; ++s) {
        out[s] = ix.bits <= 4 ? static_cast<std::uint8_t>(code[s / 2 * ix.tile] >> s % 2 * 4 & 15)
                              : code[s * ix.tile];
      }
    }
  }
  return Status();
}

Status codebook(const CodebookParams& p, const Launch&) noexcept {
  const IndexView& ix = p.index;
  const std::int64_t matrices = static_cast<std::int64_t>(ix.num_kv_heads) * ix.num_subspaces;
  const std::int64_t book = codebook_of(ix, p.slot);
  transpose(ix.codebooks + book * matrices * ix.dcent * ix.ksub, p.codebooks, matrices, ix.dcent,
            ix.ksub);
  if (ix.phi != nullptr) copy(ix.phi + book * matrices, p.phi, matrices);
  return Status();
}

}  // namespace quarry::cpu
