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

#include <type_traits>

#include "common/launch.h"
#include "encode/step.cuh"
#include "scan/ahead.cuh"
#include "scan/sums.cuh"
#include "score/bias.cuh"
#include "score/lut.cuh"

namespace quarry::cuda {

/// Encodes the pending positions of a chunk. A call, since it is needed off the usual path alone.
static __device__ __noinline__ void encode_backlog(const EncodeParams& p, const StepShape& shape,
                                                   std::int32_t b, std::int32_t kv,
                                                   std::int32_t low, std::int32_t high,
                                                   unsigned char* memory) {
  encode_share(p, shape, plan_sequence(p, b), b, kv, 0, 1, low, high, memory);
  __syncthreads();
}

template <int kHeads, int kStride, bool kVector>
__global__ void __launch_bounds__(kScanThreads, 2)
    chunk_kernel(const __grid_constant__ ChunkParams p) {
  using Entry = typename Packed<kHeads>::Entry;
  constexpr int kWords = Packed<kHeads>::kWords, kBins = kScanBins;
  extern __shared__ __align__(16) unsigned char memory[];
  const IndexView& ix = p.encode.index;
  const StepView& step = p.encode.step;
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
  const ClusterPlace place = cluster_place();
  const std::int32_t head = kv * ix.group_size + first_head;
  const std::int32_t live = min(kHeads, ix.group_size - first_head);
  fetch_chunk_ahead(p, place, b, t, kv, head, live, chunk_id);
  wait_for_predecessor();
  let_successor_start();

  const SequenceState st = sequence_state(ix, step, b);
  const std::int32_t* table_row = block_table_row(step, b);
  if (chunk_id == 0 && first_head == 0 && kv == 0 && t == 0) {
    // One block a sequence tells the rows of the second kernel, which check no pages.
    const SequenceState checked = table_row == nullptr ? st : plan_sequence(p.encode, b);
    if (tid == 0) {
      step.states[b] = checked;
      p.encoded[b] = 0;
      if (checked.bits != 0 && step.device_status != nullptr) {
        atomicOr(step.device_status + b, checked.bits);
      }
    }
  }
  std::uint32_t ignored = 0;
  const RowState row = row_state(ix, step, st, b, t, &ignored);
  if (row.kind != RowKind::sparse) return;  // the whole cluster does
  const ChunkSpan span(plan, row.first, row.end, chunk_id);
  const std::int32_t begin = span.begin, low = span.low, high = span.high;
  const std::int32_t cluster_n =
      span.edge(chunk_id - place.rank + place.blocks) - span.edge(chunk_id - place.rank);
  const std::int64_t first_row = row_of(step, ix.num_query_heads, b, t, head);
  const auto segment_of = [&](std::int32_t h) { return (first_row + h) * plan.chunks + chunk_id; };
  if (cluster_n == 0) {  // the row is short, and the whole cluster without work
    if (tid < live) p.counts[segment_of(tid)] = 0;
    return;
  }

  // The second kernel encodes what is new, which is in the window: unless more of it came at
  // once. Then every block encodes those of its own chunk first, and none waits for another.
  const std::int32_t pending =
      ix.block_size > 0 ? st.begin / ix.block_size * ix.block_size : st.begin;
  if (pending < row.end && low < high) {
    encode_backlog(p.encode, p.step_shape, b, kv, low, high, memory);
  }
  cluster_arrive_relaxed(place);  // from here on the others may write to this shared memory

  const bool blocks = ix.block_size > 0 && low < high;
  const std::int32_t first_block = blocks ? low / ix.block_size : 0;
  const std::int32_t last_block = blocks ? (high - 1) / ix.block_size : -1;
  const std::int32_t num_blocks = last_block - first_block + 1;
  const ChunkShared<kHeads> sh{memory, p.layout};
  __shared__ std::uint32_t bias_ranges[kMostScanCluster][2][kHeads];
  __shared__ std::uint32_t thresholds[kHeads];
  __shared__ std::int32_t counts[kHeads];
  __shared__ WarpCounts<kHeads> warp_counts;
  const std::int32_t d = ix.head_dim;
  const std::int64_t book =
      static_cast<std::int64_t>(codebook_of(ix, st.slot)) * ix.num_kv_heads + kv;
  const std::int64_t book_size = static_cast<std::int64_t>(ix.num_subspaces) * ix.dcent << ix.bits;
  const float* codebook = ix.codebooks + book * book_size;
  const bool staged = p.layout.codebook >= 0;
  if (staged) {
    for (std::int64_t i = tid; i < book_size / 4; i += kScanThreads) {
      copy_async<16>(sh.codebook() + i * 4, codebook + i * 4);
    }
  }
  load_queries<kHeads>(p.queries, b, t, head, live, d, sh.query());
  for (std::int32_t i = tid; i < kHeads * kBins; i += kScanThreads) sh.bins()[i] = 0;
  if (tid < kHeads) counts[tid] = 0;
  for (std::int32_t i = tid; i < ix.num_subspaces * kHeads; i += kScanThreads) {
    sh.lows()[i] = 0xffffffffu;
    sh.highs()[i] = 0;
  }
  wait_for_copies();
  __syncthreads();
  if (blocks) {
    block_biases<kHeads>(ix, table_row, st.slot, kv, first_block, last_block, sh.query(),
                         sh.bias());
  }
  if (ix.rotated) {
    rotate_queries<kHeads>(place, ix.query_rotation + book * d * d, d, sh.query(), sh.rotation(),
                           sh.rotated());
  } else {
    cluster_wait(place);
  }
  const auto made = [&](int s, int h, float entry) {
    widen_range<kHeads>(ix, s, h, entry, sh.lows(), sh.highs());
  };
  if (staged) {
    build_luts_staged<kHeads, kStride>(ix, sh.codebook(), sh.rotated(), sh.lut(), made);
  } else {
    build_luts<kHeads, kStride>(ix, codebook, sh.rotated(), sh.lut(), made);
  }
  __syncthreads();
  const bool biased = ix.block_size > 0;  // the whole cluster's are
  if (biased) {
    share_bias_ranges<kHeads>(place, sh.bias(), blocks ? num_blocks : 0, &bias_ranges[0][0][0]);
  }
  if (biased) {
    cluster_arrive(place);
    cluster_wait(place);
  }
  ScanScale scales[kHeads];
  float bias_lows[kHeads];
  make_scales<kHeads>(ix, sh.lows(), sh.highs(), &bias_ranges[0][0][0], biased ? place.blocks : 0,
                      scales, bias_lows);
  pack_tables<kHeads, kStride>(ix, sh.lut(), sh.lows(), sh.bias(), blocks ? num_blocks : 0, scales,
                               bias_lows, sh.tables(), sh.packed_bias(), sh.kept());
  __syncthreads();

  const Chunk chunk{ix, table_row, st.slot, kv, low, high, first_block, plan.block_shift};
  const bool each = cluster_n <= kCountedEach * plan.select;
  constexpr std::int32_t kTurn = kScanThreads * kKeys;  // whole tiles of codes
  std::int32_t at = begin + tid * kKeys;
  if (kVector && table_row == nullptr && (!blocks || plan.block_shift >= 2)) {
    // What is usual: a turn's codes lie a fixed distance behind the last one's, and four keys in
    // one block. Two turns at once, so that more is under way.
    const std::uint8_t* codes = ix.codes + code_offset(ix, st.slot, kv, at);
    const std::int64_t turn = std::int64_t{kTurn} * ix.code_bytes;
    const auto sum = [&]<int kTurns>(std::integral_constant<int, kTurns>) {
      std::uint32_t word[kTurns][kCodeBatch<kStride>];
      Sums<kHeads> acc[kTurns]{};
      std::int32_t block[kTurns];
#pragma unroll
      for (int l = 0; l < kTurns; ++l) {
        load_codes<kStride>(ix, CodeRun{codes + l * turn, ix.tile}, 0, word[l]);
        if (!blocks) continue;
        block[l] = (min(max(at + l * kTurn, low), high - 1) >> plan.block_shift) - first_block;
        const Entry bias = sh.packed_bias()[block[l]];
#pragma unroll
        for (int k = 0; k < kKeys; ++k) add(acc[l][k], bias);
      }
#pragma unroll
      for (int l = 0; l < kTurns; ++l) {
        add_packed<kHeads, kStride>(ix, sh.tables(), CodeRun{codes + l * turn, ix.tile}, word[l],
                                    acc[l]);
        if (blocks) {
          const Entry mask = sh.kept()[block[l]];
#pragma unroll
          for (int k = 0; k < kKeys; ++k) keep(acc[l][k], mask);
        }
        clear_outside<kHeads>(acc[l], at + l * kTurn, low, high);
        store_sums(sh.sums() + (at + l * kTurn - begin), acc[l]);
        count_sums<kHeads>(acc[l], each, sh.bins());
      }
      at += kTurns * kTurn, codes += kTurns * turn;
    };
#pragma unroll 1
    while (at + kTurn < high) sum(std::integral_constant<int, 2>{});
    if (at < high) sum(std::integral_constant<int, 1>{});
  } else {
    std::uint32_t word[kCodeBatch<kStride>];  // this turn's, while the next one's are on their way
    CodeReader<kVector> read(ix, table_row, st.slot, kv, min(at, high - 1), high - 1);
    if (at < high) load_codes<kStride>(ix, read, 0, word);
#pragma unroll 1
    for (; at < high; at += kTurn) {
      CodeReader<kVector> next = read;
      std::uint32_t ahead[kCodeBatch<kStride>];
      if (at + kTurn < high) {
        next = CodeReader<kVector>(ix, table_row, st.slot, kv, at + kTurn, high - 1);
        load_codes<kStride>(ix, next, 0, ahead);
      }
      Sums<kHeads> acc{};
      std::int32_t block[kKeys];
#pragma unroll
      for (int k = 0; k < kKeys; ++k) {
        if (!blocks) break;
        block[k] = chunk.block_of(min(max(at + k, low), high - 1));
        add(acc[k], sh.packed_bias()[block[k]]);
      }
      add_packed<kHeads, kStride>(ix, sh.tables(), read, word, acc);
#pragma unroll
      for (int k = 0; k < kKeys; ++k) {
        if (!blocks) break;
        keep(acc[k], sh.kept()[block[k]]);
      }
      clear_outside<kHeads>(acc, at, low, high);
      store_sums(sh.sums() + (at - begin), acc);
      count_sums<kHeads>(acc, each, sh.bins());
      read = next;
#pragma unroll
      for (int u = 0; u < kCodeBatch<kStride>; ++u) word[u] = ahead[u];
    }
  }

  // The cluster's histogram, and from it the thresholds.
  cluster_arrive(place);
  cluster_wait(place);
  const std::uint32_t* bins = sh.bins();
  if (place.blocks > 1) {
    for (std::int32_t i = tid; i < kHeads * kBins; i += kScanThreads) {
      std::uint32_t sum = 0;
#pragma unroll
      for (std::int32_t rank = 0; rank < kMostScanCluster; ++rank) {
        if (rank < place.blocks) sum += load_from_block(place, sh.bins() + i, rank);
      }
      sh.all_bins()[i] = sum;
    }
    bins = sh.all_bins();
    __syncthreads();
  }
  find_thresholds<kHeads>(bins, static_cast<std::uint32_t>(plan.select), scales, thresholds);
  cluster_arrive_relaxed(place);  // no other block's shared memory is read after this
  __syncthreads();

  std::uint32_t reach[kWords] = {};
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    // A head past the group's last has no sum that reaches bit 15.
    reach[h / 2] |= (h < live ? 0x8000u - thresholds[h] : 0u) << (h % 2 * 16);
  }
  if (low < high) {
    collect<kHeads>(sh.sums(), low - begin, high - begin, reach, plan.capacity, warp_counts,
                    sh.found(), counts);
  }
  __syncthreads();

  // Exact scores of what was found, all heads' together.
  std::int32_t ends[kHeads];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    const bool fits = h < live && counts[h] <= plan.capacity;
    ends[h] = (h > 0 ? ends[h - 1] : 0) + (fits ? counts[h] : 0);
  }
#pragma unroll 1
  for (std::int32_t i = tid; i < ends[kHeads - 1]; i += kScanThreads) {
    std::int32_t h = 0, before = 0;
#pragma unroll
    for (int other = 0; other + 1 < kHeads; ++other) {
      if (i >= ends[other]) h = other + 1, before = ends[other];
    }
    const std::int32_t position = begin + sh.found()[h * plan.capacity + (i - before)];
    float score[1];
    chunk_scores<1, kHeads, kStride>(chunk, sh.lut() + h * kStride, sh.bias() + h, position, score);
    p.candidates[segment_of(h) * plan.capacity + (i - before)] = {selection_key(score[0]),
                                                                  position};
  }
#pragma unroll 1
  for (std::int32_t h = 0; h < live; ++h) {
    std::int32_t count = counts[h];
    if (count > plan.capacity) {
      count =
          select_chunk<kHeads, kStride>(chunk, sh.lut(), sh.bias(), h, plan.select, sh.storage(),
                                        p.candidates + segment_of(h) * plan.capacity);
    }
    if (tid == 0) p.counts[segment_of(h)] = count;
  }
  cluster_wait(place);
}

}  // namespace quarry::cuda
