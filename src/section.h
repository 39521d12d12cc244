// SPDX-License-Identifier: Apache-2.0
//
// A slot's index as flat arrays in an order that no backend's memory layout shows in: what
// save() writes and restore() reads. One mapping serves both directions on both backends.
#pragma once

#include <cstddef>

#include "params.h"

namespace quarry {

enum class Section : std::int32_t {
  codes = 0,           ///< uint8 [positions from encode_from][Hkv][code_bytes]
  means = 1,           ///< mean_dtype [blocks from encode_from's][Hkv][d]
  codebooks = 2,       ///< float32 [Hkv][m][ksub][dcent]
  phi = 3,             ///< float32 [Hkv][m]
  rotation = 4,        ///< float32 [Hkv][d][d]
  query_rotation = 5,  ///< float32 [Hkv][d][d]
  state = 6,           ///< uint32 [4]: seen, has_codebook, the codebook's id, low half first
  table = 7,           ///< int32, the block table row; read only
  baseline = 8,        ///< float32 [Hkv]; not saved: it says where a codebook came from
};

constexpr std::int64_t kStateElements = 4;

/// Elements first .. first + count - 1 of a section.
struct SectionParams {
  IndexView index;
  std::int32_t slot;
  const std::int32_t* block_table;  ///< the sequence's row, null: contiguous
  Section section;
  std::int64_t first, count;
  void* staging;  ///< CUDA: device memory of staging_bytes, at least 256
  std::size_t staging_bytes;
};

QUARRY_HD inline std::int32_t element_bytes(const IndexView& ix, Section section) {
  if (section == Section::codes) return 1;
  return section == Section::means ? element_size(ix.mean_dtype) : 4;
}

/// First and end block with a code, once `seen` positions are seen; none without blocks.
QUARRY_HD inline std::int32_t first_coded_block(const IndexView& ix) {
  return ix.block_size > 0 ? ix.encode_from / ix.block_size : 0;
}
QUARRY_HD inline std::int32_t coded_blocks(const IndexView& ix, std::int32_t seen) {
  if (ix.block_size == 0) return 0;
  const std::int32_t blocks = seen / ix.block_size - first_coded_block(ix);
  return blocks > 0 ? blocks : 0;
}

/// Where an element lives in the index (or the table); null where its page is out of range.
QUARRY_HD inline unsigned char* element_at(const SectionParams& p, std::int64_t i) {
  const IndexView& ix = p.index;
  const std::int32_t heads = ix.num_kv_heads;
  const std::int64_t book = std::int64_t{codebook_of(ix, p.slot)} * heads;
  float* floats = nullptr;
  switch (p.section) {
    case Section::codes: {
      const auto byte = static_cast<std::int32_t>(i % ix.code_bytes);
      const auto head = static_cast<std::int32_t>(i / ix.code_bytes % heads);
      const auto position = static_cast<std::int32_t>(i / ix.code_bytes / heads) + ix.encode_from;
      const std::int64_t page = page_of(ix, p.block_table, p.slot, position);
      if (page < 0) return nullptr;
      return ix.codes + code_offset(ix, page, head, position % ix.page_size) +
             std::int64_t{byte} * ix.tile;
    }
    case Section::means: {
      const auto dim = static_cast<std::int32_t>(i % ix.head_dim);
      const auto head = static_cast<std::int32_t>(i / ix.head_dim % heads);
      const std::int32_t block =
          static_cast<std::int32_t>(i / ix.head_dim / heads) + first_coded_block(ix);
      const std::int32_t last = (block + 1) * ix.block_size - 1;
      const std::int64_t page = page_of(ix, p.block_table, p.slot, last);
      if (page < 0) return nullptr;
      return static_cast<unsigned char*>(ix.means) +
             (mean_offset(ix, page, head, last) + dim) * element_bytes(ix, p.section);
    }
    case Section::codebooks: {
      const std::int64_t dim = i % ix.dcent, id = i / ix.dcent % ix.ksub;
      const std::int64_t table = i / ix.dcent / ix.ksub + book * ix.num_subspaces;
      floats = ix.codebooks + (table * ix.dcent + dim) * ix.ksub + id;
      break;
    }
    case Section::phi:
      floats = ix.phi + book * ix.num_subspaces + i;
      break;
    case Section::rotation:
      floats = ix.rotation + book * ix.head_dim * ix.head_dim + i;
      break;
    case Section::query_rotation:
      floats = ix.query_rotation + book * ix.head_dim * ix.head_dim + i;
      break;
    case Section::baseline:
      floats = ix.baseline + book + i;
      break;
    case Section::state:
      if (i == 0) return reinterpret_cast<unsigned char*>(ix.seen + p.slot);
      if (i == 1) return reinterpret_cast<unsigned char*>(ix.has_codebook + p.slot);
      return reinterpret_cast<unsigned char*>(ix.codebook_ids + p.slot) + (i - 2) * 4;
    case Section::table:
      return reinterpret_cast<unsigned char*>(const_cast<std::int32_t*>(p.block_table) + i);
  }
  return reinterpret_cast<unsigned char*>(floats);
}

/// One element between its place and `flat`, which may have any alignment on the host but
/// has the element's on the device.
template <typename T, bool kImport>
QUARRY_HD inline void move_element(const SectionParams& p, std::int64_t i, T* flat) {
  T* const there = reinterpret_cast<T*>(element_at(p, p.first + i));
  if constexpr (kImport) {
    if (there != nullptr) *there = flat[i];
  } else {
    flat[i] = there != nullptr ? *there : T{0};
  }
}

}  // namespace quarry
