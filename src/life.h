// SPDX-License-Identifier: Apache-2.0
//
// What attach, copy_pages and fork mean, as plain arithmetic that both backends run.
#pragma once

#include "params.h"

namespace quarry {

/// Entry i of an attach: the bits it raises; without any, an active slot's seen is set.
QUARRY_HD inline std::uint32_t attach_entry(const AttachParams& p, std::int32_t i) {
  const IndexView& ix = p.index;
  const std::int32_t slot = p.slots == nullptr ? i : p.slots[i];
  if (slot < 0) return 0;  // inactive
  if (slot >= ix.max_sequences) return kSlotOutOfRange;
  const std::int32_t length = p.lengths[i];
  if (length < 0 || length > ix.max_seq_len) return kLengthOutOfRange;
  if (ix.codebook_ids[slot] != p.codebook_id) return kCodebookMismatch;
  ix.seen[slot] = length;
  return 0;
}

/// Bytes of one KV head of a page's index: where they are, where they go, how many.
struct PageRun {
  std::int64_t codes_from, codes_to, code_bytes;
  std::int64_t means_from, means_to, mean_bytes;  ///< 0 bytes where block_size is 0
};

/// The first `positions` positions of page `from` (at least 1), for page `to`.
QUARRY_HD inline PageRun page_run(const IndexView& ix, std::int64_t from, std::int64_t to,
                                  std::int32_t head, std::int32_t positions) {
  PageRun run{};
  run.codes_from = code_offset(ix, from, head, 0);
  run.codes_to = code_offset(ix, to, head, 0);
  const std::int64_t tiles = (std::int64_t{positions} + ix.tile - 1) / ix.tile;
  run.code_bytes = tiles * ix.tile * ix.code_bytes;
  if (ix.block_size == 0) return run;
  const std::int64_t element = element_size(ix.mean_dtype);
  const std::int64_t page_means = std::int64_t{ix.blocks_per_page} * ix.head_dim * element;
  run.means_from = (from * ix.num_kv_heads + head) * page_means;
  run.means_to = (to * ix.num_kv_heads + head) * page_means;
  // A page has one mean where a block spans pages; else one a block that is complete.
  const std::int64_t blocks = ix.blocks_per_page == 1 ? 1 : positions / ix.block_size;
  run.mean_bytes = blocks * ix.head_dim * element;
  return run;
}

/// Positions a fork takes over.
QUARRY_HD inline std::int32_t fork_length(const ForkParams& p) {
  const std::int32_t seen = p.index.seen[p.from_slot];
  return seen < p.length ? seen : p.length;
}

/// Pages of a fork of `length` positions; a contiguous cache has one.
QUARRY_HD inline std::int32_t fork_pages(const IndexView& ix, std::int32_t length) {
  return length / ix.page_size + (length % ix.page_size != 0 ? 1 : 0);
}

/// A page of a fork: false where there is nothing to copy, because the two share it or an
/// entry of a table is out of range.
QUARRY_HD inline bool fork_page(const ForkParams& p, std::int32_t page, std::int64_t* from,
                                std::int64_t* to) {
  const std::int64_t first = std::int64_t{page} * p.index.page_size;
  *from = page_of(p.index, p.from_table, p.from_slot, static_cast<std::int32_t>(first));
  *to = page_of(p.index, p.to_table, p.to_slot, static_cast<std::int32_t>(first));
  return *from >= 0 && *to >= 0 && *from != *to;
}

/// Positions of the page that a fork of `length` positions copies.
QUARRY_HD inline std::int32_t fork_positions(const IndexView& ix, std::int32_t page,
                                             std::int32_t length) {
  const std::int64_t rest = length - std::int64_t{page} * ix.page_size;
  return rest < ix.page_size ? static_cast<std::int32_t>(rest) : ix.page_size;
}

}  // namespace quarry
