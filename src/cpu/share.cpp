// SPDX-License-Identifier: Apache-2.0
//
// What lets sequences share and copy an index: attach, copy_pages, fork.
#include <cstring>

#include "cpu/stages.h"
#include "life.h"

namespace quarry::cpu {
namespace {

/// Every KV head of a page's first `positions` positions.
void copy_page(const IndexView& ix, std::int64_t from, std::int64_t to, std::int32_t positions) {
  auto* const means = static_cast<std::byte*>(ix.means);
  for (std::int32_t head = 0; head < ix.num_kv_heads; ++head) {
    const PageRun run = page_run(ix, from, to, head, positions);
    std::memcpy(ix.codes + run.codes_to, ix.codes + run.codes_from,
                static_cast<std::size_t>(run.code_bytes));
    if (run.mean_bytes > 0) {
      std::memcpy(means + run.means_to, means + run.means_from,
                  static_cast<std::size_t>(run.mean_bytes));
    }
  }
}

/// One slot's part of an array that has `count` elements a slot.
void copy_book(float* array, std::int64_t from, std::int64_t to, std::int64_t count) {
  if (array == nullptr) return;
  std::memcpy(array + to * count, array + from * count,
              sizeof(float) * static_cast<std::size_t>(count));
}

}  // namespace

Status attach(const AttachParams& p, const Launch&) noexcept {
  for (std::int32_t i = 0; i < p.count; ++i) {
    const std::uint32_t bits = attach_entry(p, i);
    if (p.device_status != nullptr) p.device_status[i] |= bits;
  }
  return Status();
}

Status copy_pages(const CopyPagesParams& p, const Launch& launch) noexcept {
  const IndexView& ix = p.index;
#pragma omp parallel for schedule(static) num_threads(launch.num_threads) if (p.count > 16)
  for (std::int32_t i = 0; i < p.count; ++i) {
    const std::int64_t from = p.from[i], to = p.to[i];
    if (from < 0 || to < 0 || from >= ix.num_pages || to >= ix.num_pages || from == to) continue;
    copy_page(ix, from, to, ix.page_size);
  }
  return Status();
}

Status fork(const ForkParams& p, const Launch&) noexcept {
  const IndexView& ix = p.index;
  const std::int32_t length = fork_length(p);
  for (std::int32_t page = 0; page < fork_pages(ix, length); ++page) {
    std::int64_t from = 0, to = 0;
    if (fork_page(p, page, &from, &to)) {
      copy_page(ix, from, to, fork_positions(ix, page, length));
    }
  }
  if (ix.codebook_slots > 1) {
    const std::int64_t heads = ix.num_kv_heads;
    const std::int64_t square = heads * ix.head_dim * ix.head_dim;
    copy_book(ix.codebooks, p.from_slot, p.to_slot, heads * ix.num_subspaces * ix.dcent * ix.ksub);
    copy_book(ix.phi, p.from_slot, p.to_slot, heads * ix.num_subspaces);
    copy_book(ix.baseline, p.from_slot, p.to_slot, heads);
    copy_book(ix.rotation, p.from_slot, p.to_slot, square);
    copy_book(ix.query_rotation, p.from_slot, p.to_slot, square);
  }
  ix.has_codebook[p.to_slot] = ix.has_codebook[p.from_slot];
  ix.codebook_ids[p.to_slot] = ix.codebook_ids[p.from_slot];
  ix.seen[p.to_slot] = length;
  return Status();
}

}  // namespace quarry::cpu
