// SPDX-License-Identifier: Apache-2.0
//
// The byte format of a saved sequence: a header, then the sections in the order of `Section`
// (section.h), without gaps. All numbers are little-endian. docs/design.md has the table.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quarry/status.h"
#include "section.h"

namespace quarry {

constexpr char kSavedMagic[8] = {'Q', 'U', 'A', 'R', 'R', 'Y', 'S', 'Q'};
constexpr std::uint32_t kSavedVersion = 1;
constexpr int kSavedSections = 6;  ///< Section::codes .. Section::query_rotation

struct SavedHeader {
  char magic[8];
  std::uint32_t version;
  std::uint32_t header_bytes;   ///< sizeof(SavedHeader)
  std::uint64_t total_bytes;    ///< header included
  std::uint64_t checksum;       ///< of all bytes, with this field 0 (checksum.h)
  std::uint64_t codebook_hash;  ///< of sections codebooks .. query_rotation, there or not
  std::uint32_t num_kv_heads, head_dim, num_subspaces, bits;
  std::uint32_t metric, block_size, mean_dtype, rotation;
  std::uint32_t encode_from;
  std::uint32_t has_codebook;  ///< 1: sections codebooks .. query_rotation are there
  std::uint32_t length;        ///< positions the index has seen
  std::uint32_t reserved;      ///< 0
  std::uint64_t section_bytes[kSavedSections];
};
static_assert(sizeof(SavedHeader) == 136);

/// Bytes of every section of a sequence that has seen `length` positions.
struct SavedLayout {
  SavedLayout(const IndexView& view, std::int32_t length, bool with_codebook) noexcept;

  std::int64_t count[kSavedSections];
  std::uint64_t bytes[kSavedSections];
  std::uint64_t offset[kSavedSections];  ///< from the start of the header
  std::uint64_t total;
};

/// The header of bytes that are not trusted, after every check that they allow by themselves:
/// afterwards all sections lie within `bytes`.
Status parse_saved(const void* data, std::size_t bytes, SavedHeader* out) noexcept;

/// Refuses a codes section that holds an id a codebook of 2^bits centroids does not have.
Status check_saved_codes(const IndexView& view, const unsigned char* codes,
                         std::uint64_t bytes) noexcept;

}  // namespace quarry
