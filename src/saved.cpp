// SPDX-License-Identifier: Apache-2.0
#include "saved.h"

#include <algorithm>
#include <cstring>

#include "checksum.h"
#include "quarry/indexer.h"

namespace quarry {
namespace {

Status corrupt(const char* field, unsigned long long value, unsigned long long wanted) {
  return Status(StatusCode::invalid_argument, "data: %s is %llu, must be %llu", field, value,
                wanted);
}

std::uint64_t checksum_of(const SavedHeader& header, const void* data, std::size_t bytes) {
  SavedHeader cleared = header;
  cleared.checksum = 0;
  Checksum sum;
  sum.update(&cleared, sizeof cleared);
  sum.update(static_cast<const unsigned char*>(data) + sizeof cleared, bytes - sizeof cleared);
  return sum.value();
}

}  // namespace

SavedLayout::SavedLayout(const IndexView& v, std::int32_t length, bool with_codebook) noexcept {
  const std::int64_t heads = v.num_kv_heads;
  const std::int32_t end = v.block_size > 0 ? length / v.block_size * v.block_size : length;
  const std::int64_t books = with_codebook ? heads : 0;
  const std::int64_t square =
      v.rotation != nullptr ? books * v.head_dim * v.head_dim : std::int64_t{0};
  count[0] = heads * v.code_bytes * std::max(end - v.encode_from, 0);
  count[1] = heads * v.head_dim * coded_blocks(v, length);
  count[2] = books * v.num_subspaces * v.ksub * v.dcent;
  count[3] = v.phi != nullptr ? books * v.num_subspaces : 0;
  count[4] = count[5] = square;
  total = sizeof(SavedHeader);
  for (int i = 0; i < kSavedSections; ++i) {
    bytes[i] = static_cast<std::uint64_t>(count[i] * element_bytes(v, static_cast<Section>(i)));
    offset[i] = total;
    total += bytes[i];
  }
}

Status parse_saved(const void* data, std::size_t bytes, SavedHeader* out) noexcept {
  if (data == nullptr) return Status(StatusCode::invalid_argument, "data is null");
  if (bytes < sizeof(SavedHeader)) {
    return Status(StatusCode::invalid_argument, "bytes is %zu, must be at least %zu", bytes,
                  sizeof(SavedHeader));
  }
  SavedHeader h;
  std::memcpy(&h, data, sizeof h);
  if (std::memcmp(h.magic, kSavedMagic, sizeof h.magic) != 0) {
    return Status(StatusCode::invalid_argument, "data: the magic is not that of a saved sequence");
  }
  if (h.version != kSavedVersion) {
    return Status(StatusCode::unsupported, "data: version is %u, must be %u", h.version,
                  kSavedVersion);
  }
  if (h.header_bytes != sizeof h) return corrupt("header_bytes", h.header_bytes, sizeof h);
  if (h.total_bytes != bytes) return corrupt("total_bytes", h.total_bytes, bytes);
  std::uint64_t rest = bytes - sizeof h;
  for (const std::uint64_t section : h.section_bytes) {
    if (section > rest) {
      return Status(
          StatusCode::invalid_argument, "data: section_bytes holds %llu, only %llu bytes are left",
          static_cast<unsigned long long>(section), static_cast<unsigned long long>(rest));
    }
    rest -= section;
  }
  if (rest != 0) return corrupt("bytes beyond the sections", rest, 0);
  if (const std::uint64_t sum = checksum_of(h, data, bytes); sum != h.checksum) {
    return Status(StatusCode::invalid_argument, "data: checksum is %016llx, must be %016llx",
                  static_cast<unsigned long long>(h.checksum),
                  static_cast<unsigned long long>(sum));
  }
  if (h.has_codebook > 1) return corrupt("has_codebook", h.has_codebook, 1);
  if (h.reserved != 0) return corrupt("reserved", h.reserved, 0);
  if (h.length > 0x7fffffffu) return corrupt("length", h.length, 0x7fffffffu);
  *out = h;
  return {};
}

Status check_saved_codes(const IndexView& v, const unsigned char* codes,
                         std::uint64_t bytes) noexcept {
  if (v.bits == 8) return {};
  const auto refused = [&](std::uint64_t at, int id) {
    const std::uint64_t key = at / static_cast<unsigned>(v.code_bytes);
    return Status(StatusCode::invalid_argument,
                  "data: a code of position %llu is %d, must be below ksub = %d",
                  static_cast<unsigned long long>(key / static_cast<unsigned>(v.num_kv_heads) +
                                                  static_cast<unsigned>(v.encode_from)),
                  id, v.ksub);
  };
  for (std::uint64_t i = 0; i < bytes; ++i) {
    const int low = v.bits <= 4 ? codes[i] & 15 : codes[i];
    if (low >= v.ksub) return refused(i, low);
    if (v.bits > 4) continue;
    // The last byte of an odd number of subspaces is half a byte.
    const int high = codes[i] >> 4;
    const bool half = v.num_subspaces % 2 == 1 && i % static_cast<unsigned>(v.code_bytes) + 1 ==
                                                      static_cast<unsigned>(v.code_bytes);
    if (high >= (half ? 1 : v.ksub)) return refused(i, high);
  }
  return {};
}

Status read_saved(const void* data, std::size_t bytes, SavedSequence* out) noexcept {
  if (out == nullptr) return Status(StatusCode::invalid_argument, "out is null");
  SavedHeader h;
  if (Status s = parse_saved(data, bytes, &h); !s.ok()) return s;
  out->length = static_cast<std::int32_t>(h.length);
  out->has_codebook = h.has_codebook == 1;
  out->codebook_hash = h.codebook_hash;
  return {};
}

}  // namespace quarry
