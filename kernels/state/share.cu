// SPDX-License-Identifier: Apache-2.0
//
// What lets sequences share and copy an index: attach, copy_pages, fork. One small kernel
// each, so all can be captured; what they copy is read from device memory (seen, block
// tables), so their grids depend on the configuration alone.
#include "state/share.h"

#include "common/launch.h"
#include "life.h"

namespace quarry::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kPageParts = 256;  // thread blocks a KV head's pages are dealt over

/// `bytes` bytes by one thread block, 16 at a time where both ends allow it.
__device__ void copy_bytes(unsigned char* to, const unsigned char* from, std::int64_t bytes) {
  const std::int64_t first = threadIdx.x;
  std::int64_t done = 0;
  if ((reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from)) % 16 == 0) {
    const std::int64_t wide = bytes / 16;
    for (std::int64_t i = first; i < wide; i += kThreads) {
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
    }
    done = wide * 16;
  }
  for (std::int64_t i = done + first; i < bytes; i += kThreads) to[i] = from[i];
}

__device__ void copy_page(const IndexView& ix, std::int64_t from, std::int64_t to,
                          std::int32_t head, std::int32_t positions) {
  const PageRun run = page_run(ix, from, to, head, positions);
  copy_bytes(ix.codes + run.codes_to, ix.codes + run.codes_from, run.code_bytes);
  if (run.mean_bytes == 0) return;
  auto* const means = static_cast<unsigned char*>(ix.means);
  copy_bytes(means + run.means_to, means + run.means_from, run.mean_bytes);
}

/// One KV head's part of an array that has `count` elements a slot and head, by the threads
/// of gridDim.x thread blocks.
__device__ void copy_book(const ForkParams& p, float* array, std::int32_t head,
                          std::int64_t count) {
  if (array == nullptr) return;
  const float* from = array + (std::int64_t{p.from_slot} * p.index.num_kv_heads + head) * count;
  float* to = array + (std::int64_t{p.to_slot} * p.index.num_kv_heads + head) * count;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += std::int64_t{gridDim.x} * kThreads) {
    to[i] = from[i];
  }
}

__global__ void __launch_bounds__(kThreads) attach_kernel(AttachParams p) {
  wait_for_predecessor();
  let_successor_start();
  for (std::int32_t i = static_cast<std::int32_t>(blockIdx.x * kThreads + threadIdx.x); i < p.count;
       i += static_cast<std::int32_t>(gridDim.x) * kThreads) {
    const std::uint32_t bits = attach_entry(p, i);
    if (bits != 0 && p.device_status != nullptr) atomicOr(p.device_status + i, bits);
  }
}

// Grid (pages, Hkv): a thread block a page and KV head, looping over the rest.
__global__ void __launch_bounds__(kThreads) copy_pages_kernel(CopyPagesParams p) {
  wait_for_predecessor();
  let_successor_start();
  const IndexView& ix = p.index;
  for (auto i = static_cast<std::int32_t>(blockIdx.x); i < p.count;
       i += static_cast<std::int32_t>(gridDim.x)) {
    const std::int64_t from = p.from[i], to = p.to[i];
    if (from < 0 || to < 0 || from >= ix.num_pages || to >= ix.num_pages || from == to) continue;
    copy_page(ix, from, to, static_cast<std::int32_t>(blockIdx.y), ix.page_size);
  }
}

// Grid (pages, Hkv), looping over the rest of the pages. Only the target's state is written,
// which no other thread block reads.
__global__ void __launch_bounds__(kThreads) fork_kernel(ForkParams p) {
  wait_for_predecessor();
  let_successor_start();
  const IndexView& ix = p.index;
  const auto head = static_cast<std::int32_t>(blockIdx.y);
  const std::int32_t length = fork_length(p);
  const std::int32_t pages = fork_pages(ix, length);
  for (auto page = static_cast<std::int32_t>(blockIdx.x); page < pages;
       page += static_cast<std::int32_t>(gridDim.x)) {
    std::int64_t from = 0, to = 0;
    if (fork_page(p, page, &from, &to)) {
      copy_page(ix, from, to, head, fork_positions(ix, page, length));
    }
  }
  if (ix.codebook_slots > 1) {
    const std::int64_t square = std::int64_t{ix.head_dim} * ix.head_dim;
    copy_book(p, ix.codebooks, head, std::int64_t{ix.num_subspaces} * ix.dcent * ix.ksub);
    copy_book(p, ix.phi, head, ix.num_subspaces);
    copy_book(p, ix.baseline, head, 1);
    copy_book(p, ix.rotation, head, square);
    copy_book(p, ix.query_rotation, head, square);
  }
  if (blockIdx.x != 0 || head != 0 || threadIdx.x != 0) return;
  ix.has_codebook[p.to_slot] = ix.has_codebook[p.from_slot];
  ix.codebook_ids[p.to_slot] = ix.codebook_ids[p.from_slot];
  ix.seen[p.to_slot] = length;
}

}  // namespace

Status attach(const AttachParams& p, const Launch& launch) noexcept {
  return launch_kernel<attach_kernel>("attach", launch, blocks_for(p.count, kThreads, 64), kThreads,
                                      0, p);
}

Status copy_pages(const CopyPagesParams& p, const Launch& launch) noexcept {
  const dim3 grid(blocks_for(p.count, 1, 4096), static_cast<unsigned>(p.index.num_kv_heads));
  return launch_kernel<copy_pages_kernel>("copy_pages", launch, grid, kThreads, 0, p);
}

Status fork(const ForkParams& p, const Launch& launch) noexcept {
  // A contiguous cache is one page: its codebooks still want more than one thread block.
  const std::int64_t pages = fork_pages(p.index, p.index.max_seq_len);
  const unsigned parts = blocks_for(pages < 16 ? 16 : pages, 1, kPageParts);
  const dim3 grid(parts, static_cast<unsigned>(p.index.num_kv_heads));
  return launch_kernel<fork_kernel>("fork", launch, grid, kThreads, 0, p);
}

}  // namespace quarry::cuda
