// SPDX-License-Identifier: Apache-2.0
//
// Stream-ordered changes of a slot's state, and copies of codebooks and codes. None of them
// is in the hot path; each is one small kernel, so all can be captured.
#include "state/state.h"

#include "common/launch.h"
#include "stats_math.h"

namespace quarry::cuda {
namespace {

constexpr int kThreads = 256;
constexpr unsigned kParts = 16;  // thread blocks a KV head's copy is spread over

// A KV head's codebooks: the index holds them transposed, centroids innermost.
// Element i of the index's [m][dcent][ksub] is this element of the caller's [m][ksub][dcent].
__host__ __device__ inline std::int32_t transposed(const IndexView& ix, std::int32_t i) {
  const std::int32_t c = i % ix.ksub;
  const std::int32_t j = i / ix.ksub % ix.dcent;
  const std::int32_t s = i / (ix.ksub * ix.dcent);
  return (s * ix.ksub + c) * ix.dcent + j;
}

__device__ void copy(float* to, const float* from, std::int32_t count, std::int32_t first,
                     std::int32_t step) {
  if (to == nullptr || from == nullptr) return;
  for (std::int32_t i = first; i < count; i += step) to[i] = from[i];
}

// Grid (codebook slots written, Hkv, kParts).
__global__ void __launch_bounds__(kThreads) set_codebook_kernel(SetCodebookParams p) {
  wait_for_predecessor();
  let_successor_start();
  const IndexView& ix = p.index;
  const std::int32_t slot = gridDim.x == 1 ? codebook_of(ix, p.slot < 0 ? 0 : p.slot)
                                           : static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t head = static_cast<std::int32_t>(blockIdx.y);
  const std::int64_t from = head, to = std::int64_t{slot} * ix.num_kv_heads + head;
  const std::int32_t first = static_cast<std::int32_t>(blockIdx.z * kThreads + threadIdx.x);
  const std::int32_t step = static_cast<std::int32_t>(gridDim.z) * kThreads;
  const std::int32_t square = ix.head_dim * ix.head_dim;
  if (ix.rotation != nullptr && p.rotation != nullptr) {
    copy(ix.rotation + to * square, p.rotation + from * square, square, first, step);
    copy(ix.query_rotation + to * square, p.query_rotation + from * square, square, first, step);
  }
  if (p.codebooks == nullptr) return;
  const std::int32_t size = ix.num_subspaces * ix.dcent * ix.ksub;
  for (std::int32_t i = first; i < size; i += step) {
    ix.codebooks[to * size + i] = p.codebooks[from * size + transposed(ix, i)];
  }
  if (ix.phi != nullptr && p.phi != nullptr) {
    copy(ix.phi + to * ix.num_subspaces, p.phi + from * ix.num_subspaces, ix.num_subspaces, first,
         step);
  }
  if (first == 0) {
    ix.baseline[to] = p.baseline == nullptr ? 0.0f : known_baseline(p.baseline[from]);
  }
  if (head != 0) return;
  // A codebook that all slots share changes all of them.
  const bool all = ix.codebook_slots == 1;
  for (std::int32_t i = first; i < ix.max_sequences; i += step) {
    if (!all && i != slot) continue;
    ix.has_codebook[i] = 1;
    ix.codebook_ids[i] = p.codebook_id;
    if (ix.seen[i] > ix.encode_from) ix.seen[i] = ix.encode_from;
  }
}

__global__ void __launch_bounds__(kThreads) truncate_kernel(TruncateParams p) {
  wait_for_predecessor();
  let_successor_start();
  const IndexView& ix = p.index;
  for (std::int32_t i = static_cast<std::int32_t>(blockIdx.x * kThreads + threadIdx.x); i < p.count;
       i += static_cast<std::int32_t>(gridDim.x) * kThreads) {
    const std::int32_t slot = p.slots == nullptr ? i : p.slots[i];
    if (slot < 0 || slot >= ix.max_sequences) continue;
    const std::int32_t length = p.lengths[i];
    if (length < 0 || length > ix.max_seq_len) continue;
    // Atomic, so that a slot named twice ends at the least of its lengths.
    atomicMin(ix.seen + slot, length);
  }
}

__global__ void reset_kernel(ResetParams p) {
  wait_for_predecessor();
  let_successor_start();
  if (threadIdx.x != 0) return;
  p.index.seen[p.slot] = 0;
  if (!p.forget_codebook) return;
  p.index.has_codebook[p.slot] = 0;
  p.index.codebook_ids[p.slot] = 0;
}

// One thread a byte of the output.
__global__ void __launch_bounds__(kThreads) codes_kernel(CodesParams p) {
  wait_for_predecessor();
  let_successor_start();
  const IndexView& ix = p.index;
  const std::int64_t row = std::int64_t{ix.num_kv_heads} * ix.num_subspaces;
  const std::int64_t total = p.count * row;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < total;
       i += std::int64_t{gridDim.x} * kThreads) {
    const std::int32_t position = p.first + static_cast<std::int32_t>(i / row);
    const std::int32_t in_row = static_cast<std::int32_t>(i % row);
    const std::int32_t head = in_row / ix.num_subspaces, s = in_row % ix.num_subspaces;
    const std::int64_t page = page_of(ix, p.block_table, p.slot, position);
    std::uint8_t code = 0;
    if (page >= 0) {
      const std::uint8_t* key = ix.codes + code_offset(ix, page, head, position % ix.page_size);
      code = ix.bits <= 4 ? key[s / 2 * ix.tile] >> (s % 2 * 4) & 0xf : key[s * ix.tile];
    }
    p.out[i] = code;
  }
}

// Grid (1, Hkv, kParts).
__global__ void __launch_bounds__(kThreads) codebook_kernel(CodebookParams p) {
  wait_for_predecessor();
  let_successor_start();
  const IndexView& ix = p.index;
  const std::int64_t to = blockIdx.y;
  const std::int64_t from =
      std::int64_t{codebook_of(ix, p.slot)} * ix.num_kv_heads + static_cast<std::int64_t>(to);
  const std::int32_t first = static_cast<std::int32_t>(blockIdx.z * kThreads + threadIdx.x);
  const std::int32_t step = static_cast<std::int32_t>(gridDim.z) * kThreads;
  const std::int32_t size = ix.num_subspaces * ix.dcent * ix.ksub;
  for (std::int32_t i = first; i < size; i += step) {
    p.codebooks[to * size + transposed(ix, i)] = ix.codebooks[from * size + i];
  }
  if (ix.phi == nullptr) return;
  copy(p.phi == nullptr ? nullptr : p.phi + to * ix.num_subspaces, ix.phi + from * ix.num_subspaces,
       ix.num_subspaces, first, step);
}

}  // namespace

Status set_codebook(const SetCodebookParams& p, const Launch& launch) noexcept {
  const IndexView& ix = p.index;
  const unsigned slots = p.slot < 0 ? static_cast<unsigned>(ix.codebook_slots) : 1u;
  const dim3 grid(slots, static_cast<unsigned>(ix.num_kv_heads), kParts);
  return launch_kernel<set_codebook_kernel>("set_codebook", launch, grid, kThreads, 0, p);
}

Status truncate(const TruncateParams& p, const Launch& launch) noexcept {
  return launch_kernel<truncate_kernel>("truncate", launch, blocks_for(p.count, kThreads, 64),
                                        kThreads, 0, p);
}

Status reset(const ResetParams& p, const Launch& launch) noexcept {
  return launch_kernel<reset_kernel>("reset", launch, 1, 32, 0, p);
}

Status codes(const CodesParams& p, const Launch& launch) noexcept {
  const std::int64_t total = std::int64_t{p.count} * p.index.num_kv_heads * p.index.num_subspaces;
  return launch_kernel<codes_kernel>("codes", launch, blocks_for(total, kThreads, 4096), kThreads,
                                     0, p);
}

Status codebook(const CodebookParams& p, const Launch& launch) noexcept {
  const dim3 grid(1, static_cast<unsigned>(p.index.num_kv_heads), kParts);
  return launch_kernel<codebook_kernel>("codebook", launch, grid, kThreads, 0, p);
}

}  // namespace quarry::cuda
