// SPDX-License-Identifier: Apache-2.0
//
// First of scan's two kernels: of every chunk of every row, the candidates that could be among
// the row's best r * K.
//
// A thread block serves up to four query heads of one KV head, for one chunk of positions, and
// reads its codes once: packed sums (quantize.cuh) go to shared memory and into a histogram,
// which the thread blocks of a cluster, chunks side by side, add up. At least r * K of the
// cluster's sums reach its bin of the r * K-th largest, and so no candidate whose sum lies
// further below than the sums can be off is among the best; the others are scored in float32
// and passed on. Where so many tie that there is no room for them, the chunk's exact best take
// their place.
#pragma once

#include "common/launch.h"
#include "scan/sums.cuh"
#include "score/bias.cuh"
#include "score/lut.cuh"

namespace quarry::cuda {

/// low[h] and high[h] of the biases that are numbers, over the whole cluster, as selection keys:
/// `ranges` holds what each block sent, [block][2][kHeads].
template <int kHeads>
__device__ __forceinline__ void share_bias_ranges(const ClusterPlace& place, const float* bias,
                                                  std::int32_t blocks, std::uint32_t* ranges) {
  constexpr unsigned kAll = 0xffffffffu;
  const auto lane = static_cast<int>(threadIdx.x) % 32, h = static_cast<int>(threadIdx.x) / 32;
  if (h >= kHeads) return;
  std::uint32_t low = 0xffffffffu, high = 0;
  for (std::int32_t i = lane; i < blocks; i += 32) {
    const std::uint32_t key = selection_key(bias[i * kHeads + h]);
    low = min(low, key == 0 ? 0xffffffffu : key);
    high = max(high, key);
  }
  low = __reduce_min_sync(kAll, low);
  high = __reduce_max_sync(kAll, high);
  if (lane < place.blocks) {
    auto* const to = reinterpret_cast<float*>(ranges + place.rank * 2 * kHeads);
    store_to_block(place, to + h, lane, __uint_as_float(low));
    store_to_block(place, to + kHeads + h, lane, __uint_as_float(high));
  }
}

template <int kHeads, int kStride, bool kVector>
__global__ void __launch_bounds__(kScanThreads, 2)
    chunk_kernel(const __grid_constant__ ChunkParams p) {
  using Entry = typename Packed<kHeads>::Entry;
  constexpr int kWords = Packed<kHeads>::kWords, kBins = scan_bins(kHeads);
  let_successor_start();
  extern __shared__ __align__(16) unsigned char memory[];
  const IndexView& ix = p.index;
  const StepView& step = p.step;
  const ScanPlan& plan = p.plan;
  const auto tid = static_cast<std::int32_t>(threadIdx.x);
  std::int32_t rest = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t chunk_id = rest % plan.chunks;
  rest /= plan.chunks;
  const std::int32_t first_head = rest % plan.head_groups * kHeads;  // within the KV head's group
  rest /= plan.head_groups;
  const std::int32_t kv = rest % ix.num_kv_heads;
  rest /= ix.num_kv_heads;
  const std::int32_t t = rest % step.query_tokens, b = rest / step.query_tokens;

  // The kernel before, the step's encoding, has waited for all that came before it, or this
  // block would not run. What it writes is not read here, unless there are more new positions
  // than the window holds; `seen` is moved by the kernel behind.
  const SequenceState st = sequence_state(ix, step, b);
  std::uint32_t ignored = 0;
  const RowState row = row_state(ix, step, st, b, t, &ignored);
  if (row.kind != RowKind::sparse) {  // the whole cluster does
    wait_for_predecessor();
    return;
  }
  const std::int32_t pending =
      ix.block_size > 0 ? st.begin / ix.block_size * ix.block_size : st.begin;
  if (pending < row.end) wait_for_predecessor();

  const ClusterPlace place = cluster_place();
  const std::int32_t base = row.first & ~(kKeys - 1);
  const std::int32_t length = scan_chunk(plan, row.end - base);
  const auto edge = [&](std::int32_t of) {  // where chunk `of` begins, within the candidates
    const std::int64_t at = base + static_cast<std::int64_t>(of) * length;
    return static_cast<std::int32_t>(
        max(min(at, static_cast<std::int64_t>(row.end)), static_cast<std::int64_t>(row.first)));
  };
  const auto begin = static_cast<std::int32_t>(
      min(base + static_cast<std::int64_t>(chunk_id) * length, static_cast<std::int64_t>(row.end)));
  const std::int32_t low = edge(chunk_id), high = edge(chunk_id + 1);
  const std::int32_t cluster_n =
      edge(chunk_id - place.rank + place.blocks) - edge(chunk_id - place.rank);
  const std::int32_t* table_row = block_table_row(step, b);
  const std::int32_t head = kv * ix.group_size + first_head;
  const std::int32_t live = min(kHeads, ix.group_size - first_head);
  const std::int64_t first_row = row_of(step, ix.num_query_heads, b, t, head);
  const auto segment_of = [&](std::int32_t h) { return (first_row + h) * plan.chunks + chunk_id; };
  if (cluster_n == 0) {  // the row is short, and the whole cluster without work
    if (tid < live) p.counts[segment_of(tid)] = 0;
    wait_for_predecessor();
    return;
  }
  cluster_arrive(place);

  const bool blocks = ix.block_size > 0 && low < high;
  const std::int32_t first_block = blocks ? low / ix.block_size : 0;
  const std::int32_t last_block = blocks ? (high - 1) / ix.block_size : -1;
  const std::int32_t num_blocks = last_block - first_block + 1;
  const ChunkShared<kHeads> sh(memory, p.sizes, ix, num_blocks);
  __shared__ ScanScale scales[kHeads];
  __shared__ float bias_lows[kHeads];
  __shared__ std::uint32_t bias_ranges[kMostScanCluster][2][kHeads];
  __shared__ std::uint32_t thresholds[kHeads];
  __shared__ std::int32_t counts[kHeads];
  const std::int32_t d = ix.head_dim;
  const std::int64_t book =
      static_cast<std::int64_t>(codebook_of(ix, st.slot)) * ix.num_kv_heads + kv;
  const std::int64_t book_size = static_cast<std::int64_t>(ix.num_subspaces) * ix.dcent << ix.bits;
  const float* codebook = ix.codebooks + book * book_size;
  prefetch_to_l2(codebook, book_size * 4);
  if (kVector && table_row == nullptr && low < high) {
    const std::int32_t from = low / ix.tile * ix.tile;
    prefetch_to_l2(ix.codes + code_offset(ix, st.slot, kv, from),
                   static_cast<std::int64_t>(high - from) * ix.code_bytes);
  }

  load_queries<kHeads>(p.queries, b, t, head, live, d, sh.query);
  for (std::int32_t i = tid; i < kHeads * kBins; i += kScanThreads) sh.bins[i] = 0;
  if (tid < kHeads) counts[tid] = 0;
  __syncthreads();
  if (blocks) {
    block_biases<kHeads>(ix, table_row, st.slot, kv, first_block, last_block, sh.query, sh.bias);
  }
  if (ix.rotated) {
    rotate_queries<kHeads>(place, ix.query_rotation + book * d * d, d, sh.query, sh.rotation,
                           sh.rotated);
  } else {
    cluster_wait(place);
  }
  build_luts<kHeads, kStride>(ix, codebook, sh.rotated, sh.lut);
  __syncthreads();
  share_bias_ranges<kHeads>(place, sh.bias, blocks ? num_blocks : 0, &bias_ranges[0][0][0]);
  table_ranges<kHeads, kStride>(ix, sh.lut, sh.lows, sh.highs);
  cluster_arrive(place);
  cluster_wait(place);
  if (place.blocks > 1) __syncthreads();
  make_scales<kHeads>(ix, sh.lows, sh.highs, &bias_ranges[0][0][0], place.blocks, scales,
                      bias_lows);
  __syncthreads();
  pack_tables<kHeads, kStride>(ix, sh.lut, sh.lows, sh.bias, blocks ? num_blocks : 0, scales,
                               bias_lows, sh.tables, sh.packed_bias, sh.kept);
  __syncthreads();

  const Chunk chunk{ix, table_row, st.slot, kv, low, high, first_block, plan.block_shift};
  const bool each = cluster_n <= kCountedEach * plan.select;
#pragma unroll 1
  for (std::int32_t at = begin + tid * kKeys; at < high; at += kScanThreads * kKeys) {
    const CodeReader<kVector> read(ix, table_row, st.slot, kv, at, high - 1);
    Sums<kHeads> acc;
#pragma unroll
    for (int k = 0; k < kKeys; ++k) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) acc[k][w] = 0;
      if (blocks) add(acc[k], sh.packed_bias[chunk.block_of(min(max(at + k, low), high - 1))]);
    }
    add_packed<kHeads, kStride>(ix, sh.tables, read, acc);
    const std::int32_t first = low - at, end = high - at;  // of the four, those in the chunk
#pragma unroll
    for (int k = 0; k < kKeys; ++k) {
      if (blocks) keep(acc[k], sh.kept[chunk.block_of(min(max(at + k, low), high - 1))]);
      if (k >= first && k < end) continue;
#pragma unroll
      for (int w = 0; w < kWords; ++w) acc[k][w] = 0;
    }
    store_sums(sh.sums + (at - begin), acc);
    count_sums<kHeads>(acc, first, end, each, sh.bins);
  }

  // The cluster's histogram, and from it the thresholds.
  cluster_arrive(place);
  cluster_wait(place);
  const std::uint32_t* bins = sh.bins;
  if (place.blocks > 1) {
    for (std::int32_t i = tid; i < kHeads * kBins; i += kScanThreads) {
      std::uint32_t sum = 0;
#pragma unroll
      for (std::int32_t rank = 0; rank < kMostScanCluster; ++rank) {
        if (rank < place.blocks) sum += load_from_block(place, sh.bins + i, rank);
      }
      sh.all_bins[i] = sum;
    }
    bins = sh.all_bins;
    __syncthreads();
  }
  find_thresholds<kHeads>(bins, static_cast<std::uint32_t>(plan.select), scales, thresholds);
  cluster_arrive(place);  // no other block's shared memory is read after this
  __syncthreads();

  std::uint32_t reach[kWords] = {};
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    // A head past the group's last has no sum that reaches bit 15.
    reach[h / 2] |= (h < live ? 0x8000u - thresholds[h] : 0u) << (h % 2 * 16);
  }
  if (low < high) {
    collect<kHeads>(sh.sums, low - begin, high - begin, reach, plan.capacity, sh.found, counts);
  }
  __syncthreads();

#pragma unroll 1
  for (std::int32_t h = 0; h < live; ++h) {
    Candidate* const out = p.candidates + segment_of(h) * plan.capacity;
    std::int32_t count = counts[h];
    if (count <= plan.capacity) {
      for (std::int32_t i = tid; i < count; i += kScanThreads) {
        const std::int32_t position = begin + sh.found[h * plan.capacity + i];
        float score[1];
        chunk_scores<1, kHeads, kStride>(chunk, sh.lut + h * kStride, sh.bias + h, position, score);
        out[i] = {selection_key(score[0]), position};
      }
    } else {
      count =
          select_chunk<kHeads, kStride>(chunk, sh.lut, sh.bias, h, plan.select, sh.storage, out);
    }
    if (tid == 0) p.counts[segment_of(h)] = count;
  }
  cluster_wait(place);
  wait_for_predecessor();  // so that whoever waits for this kernel has waited for the one before
}

}  // namespace quarry::cuda
