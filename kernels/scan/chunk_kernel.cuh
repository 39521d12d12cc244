// SPDX-License-Identifier: Apache-2.0
//
// First of scan's two kernels: encodes what is new and passes on, of every chunk of every row,
// the candidates that could be among the row's best r * K.
//
// A thread block serves up to four query heads of one KV head, for one chunk of positions, and
// reads its codes once. It sums packed integers (quantize.cuh) and collects the positions that
// reach the pivot; those alone are scored in float32. The thread blocks of a cluster, chunks
// side by side, share a sample of scores and from it the pivot. That at least r * K candidates
// of the cluster reach it is checked at the end; where not, or where so many do that a chunk's
// room is too small, the chunks' exact best take their place.
#pragma once

#include "common/launch.h"
#include "scan/chunk.cuh"
#include "score/bias.cuh"
#include "score/codes.cuh"
#include "score/lut.cuh"

namespace quarry::cuda {

/// found[h] gains the positions whose packed sums reach the thresholds: bit 15 of a field.
template <int kHeads>
__device__ __forceinline__ void collect(const std::uint32_t (&acc)[kKeys][Packed<kHeads>::kWords],
                                        std::int32_t at, std::int32_t begin, const Chunk& chunk,
                                        std::int32_t capacity, std::uint16_t* found,
                                        std::int32_t* counts) {
  std::uint32_t any = 0;
#pragma unroll
  for (int k = 0; k < kKeys; ++k) {
#pragma unroll
    for (int w = 0; w < Packed<kHeads>::kWords; ++w) any |= acc[k][w];
  }
  if ((any & 0x80008000u) == 0) return;
#pragma unroll
  for (int k = 0; k < kKeys; ++k) {
    if (at + k < chunk.low || at + k >= chunk.high) continue;
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      if ((acc[k][h / 2] >> (h % 2 * 16) & 0x8000u) == 0) continue;
      const std::int32_t i = atomicAdd(counts + h, 1);
      if (i < capacity) found[h * capacity + i] = static_cast<std::uint16_t>(at + k - begin);
    }
  }
}

/// Sums the packed entries of four neighbouring keys, whose code words `read` brings.
template <int kHeads, int kStride, typename Reader>
__device__ __forceinline__ void sum_packed(const IndexView& ix,
                                           const typename Packed<kHeads>::Entry* tables,
                                           const Reader& read,
                                           std::uint32_t (&acc)[kKeys][Packed<kHeads>::kWords]) {
  using Entry = typename Packed<kHeads>::Entry;
  constexpr int kLog2 = kHeads == 1 ? 1 : kHeads == 2 ? 2 : 3;  // of an entry's bytes
  constexpr int kBatch = 4;                                     // code words in flight
  const auto add_entries = [&](const Entry* table, std::uint32_t word, int from) {
#pragma unroll
    for (int k = 0; k < kKeys; ++k) {
      const int shift = 8 * k + from - kLog2;
      const std::uint32_t byte =
          (shift < 0 ? word << -shift : word >> shift) & ((kStride - 1u) << kLog2);
      add(acc[k], *reinterpret_cast<const Entry*>(reinterpret_cast<const char*>(table) + byte));
    }
  };
  constexpr int kByte = kStride == 16 ? 2 * kStride : kStride;  // entries a code byte chooses from
#pragma unroll 1
  for (std::int32_t i = 0; i < ix.code_bytes; i += kBatch, tables += kBatch * kByte) {
    std::uint32_t word[kBatch];
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      if (i + u < ix.code_bytes) word[u] = read(i + u);
    }
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      if (i + u >= ix.code_bytes) break;
      add_entries(tables + u * kByte, word[u], 0);
      if (kStride == 16 && 2 * (i + u) + 1 < ix.num_subspaces) {
        add_entries(tables + u * kByte + kStride, word[u], 4);
      }
    }
  }
}

template <int kHeads, int kStride, bool kVector>
__global__ void __launch_bounds__(kScanThreads, 2)
    chunk_kernel(const __grid_constant__ ChunkParams p) {
  wait_for_predecessor();
  let_successor_start();
  extern __shared__ __align__(16) unsigned char memory[];
  const IndexView& ix = p.encode.index;
  const StepView& step = p.encode.step;
  const ScanPlan& plan = p.plan;
  const auto tid = static_cast<std::int32_t>(threadIdx.x);
  const auto id = static_cast<std::int32_t>(blockIdx.x);
  // The first thread blocks encode: a share of one sequence and KV head each.
  const bool encodes = id < p.encode_blocks;
  const std::int32_t shares = encodes ? p.step_shape.shares : plan.chunks;
  std::int32_t rest = encodes ? id : id - p.encode_blocks;
  const std::int32_t share = rest % shares, chunk_id = encodes ? 0 : share;
  rest /= shares;
  const std::int32_t head_groups = encodes ? 1 : plan.head_groups;
  const std::int32_t first_head = rest % head_groups * kHeads;  // within the KV head's group
  rest /= head_groups;
  const std::int32_t kv = rest % ix.num_kv_heads;
  rest /= ix.num_kv_heads;
  const std::int32_t tokens = encodes ? 1 : step.query_tokens;
  const std::int32_t t = rest % tokens, b = rest / tokens;
  if (b >= step.batch_size) return;  // the encoding clusters' last blocks may have nothing

  SequenceState st = sequence_state(ix, step, b);
  RowState row{RowKind::empty, 0, 0, 0};
  std::uint32_t ignored = 0;
  if (!encodes) {
    row = row_state(ix, step, st, b, t, &ignored);
    if (row.kind != RowKind::sparse) return;  // the whole cluster does
  }
  const ClusterPlace place = cluster_place();
  const std::int32_t base = row.first & ~(kKeys - 1);
  const std::int32_t length = scan_chunk(plan, row.end - base);
  const auto edge = [&](std::int32_t of) {  // where chunk `of` begins, within the candidates
    const std::int64_t at = base + static_cast<std::int64_t>(of) * length;
    return static_cast<std::int32_t>(
        max(min(at, static_cast<std::int64_t>(row.end)), static_cast<std::int64_t>(row.first)));
  };
  const std::int32_t begin = static_cast<std::int32_t>(
      min(base + static_cast<std::int64_t>(chunk_id) * length, static_cast<std::int64_t>(row.end)));
  const std::int32_t low = edge(chunk_id), high = edge(chunk_id + 1);
  const std::int32_t* table_row = block_table_row(step, b);
  const std::int32_t head = kv * ix.group_size + first_head;
  const std::int32_t live = min(kHeads, ix.group_size - first_head);
  const std::int64_t first_row = row_of(step, ix.num_query_heads, b, t, head);
  const auto segment_of = [&](std::int32_t h) { return (first_row + h) * plan.chunks + chunk_id; };
  const std::int32_t cluster_low = edge(chunk_id - place.rank);
  const std::int32_t cluster_n = edge(chunk_id - place.rank + place.blocks) - cluster_low;
  if (!encodes && cluster_n == 0) {  // for the whole cluster: the row is short
    if (tid < live) p.counts[segment_of(tid)] = 0;
    return;
  }

  // New positions among the candidates: more of them than the window holds came at once. Then
  // every block encodes those of its own chunk first, and none waits for another.
  const std::int32_t pending =
      ix.block_size > 0 ? st.begin / ix.block_size * ix.block_size : st.begin;
  if (encodes || (pending < row.end && low < high)) {
    st = plan_sequence(p.encode, b);
    if (encodes && share == 0 && kv == 0 && tid == 0) {
      step.states[b] = st;
      if (st.bits != 0 && step.device_status != nullptr) {
        atomicOr(step.device_status + b, st.bits);
      }
    }
    encode_share(p.encode, p.step_shape, st, b, kv, encodes ? share : 0, encodes ? shares : 1,
                 encodes ? 0 : low, encodes ? INT32_MAX : high, memory);
    if (encodes) return;
    if (st.slot < 0) st.slot = 0;  // an error: what is scored below, no list will hold
    __syncthreads();
  }
  cluster_arrive(place);  // from here on the others may write to this block's shared memory

  const ChunkShared<kHeads> sh(memory, p.sizes, ix);
  __shared__ ScanScale scales[kHeads];
  __shared__ float bias_lows[kHeads];
  __shared__ PivotState<kHeads> pivot;
  __shared__ std::int32_t found_counts[kHeads], passed[kHeads];
  __shared__ std::int32_t reached[kMostScanCluster][kHeads];
  const std::int32_t d = ix.head_dim;
  const std::int64_t book =
      static_cast<std::int64_t>(codebook_of(ix, st.slot)) * ix.num_kv_heads + kv;
  const std::int64_t book_size = static_cast<std::int64_t>(ix.num_subspaces) * ix.dcent << ix.bits;
  const float* codebook = ix.codebooks + book * book_size;
  prefetch_to_l2(codebook, book_size * 4);
  // Codes of the first turns of the loop below, on their way while the tables are made.
  constexpr std::int32_t kTurn = kScanThreads * kKeys;
  constexpr std::int32_t kTurnsAhead = 4;
  const bool contiguous = kVector && table_row == nullptr;
  const auto prefetch = [&](std::int32_t from, std::int32_t to) {
    from = min(from, high) & ~31;
    to = min(to, high);
    if (contiguous && from < to) {
      prefetch_to_l2(ix.codes + code_offset(ix, st.slot, kv, from),
                     static_cast<std::int64_t>(to - from) * ix.code_bytes);
    }
  };
  prefetch(low, begin + kTurnsAhead * kTurn);

  load_queries<kHeads>(p.queries, b, t, head, live, d, sh.query);
  if (tid < kHeads) found_counts[tid] = passed[tid] = 0;
  __syncthreads();
  if (ix.rotated) {
    rotate_queries<kHeads>(place, ix.query_rotation + book * d * d, d, sh.query, sh.lut,
                           sh.rotated);
  } else {
    cluster_wait(place);
  }
  build_luts<kHeads, kStride>(ix, codebook, sh.rotated, sh.lut);
  const bool blocks = ix.block_size > 0 && low < high;
  const std::int32_t first_block = blocks ? low / ix.block_size : 0;
  const std::int32_t last_block = blocks ? (high - 1) / ix.block_size : -1;
  if (blocks) {
    block_biases<kHeads>(ix, table_row, st.slot, kv, first_block, last_block, sh.query, sh.bias);
  }
  __syncthreads();
  const Chunk chunk{ix, table_row, st.slot, kv, low, high, first_block, plan.block_shift};

  // The pivot, from a sample of the whole cluster's candidates.
  const bool samples = cluster_n > plan.capacity;
  if (samples) {
    for (std::int32_t i = tid; i < plan.samples; i += kScanThreads) {
      const std::int32_t position = cluster_low + scan_sample(cluster_n, plan.samples, i);
      if (position < low || position >= high) continue;
      float score[kHeads];
      chunk_scores<kHeads, kHeads, kStride>(chunk, sh.lut, sh.bias, position, score);
      for (std::int32_t rank = 0; rank < place.blocks; ++rank) {
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          store_to_block(place, reinterpret_cast<float*>(sh.samples) + h * plan.samples + i, rank,
                         bits_to_float(selection_key(score[h])));
        }
      }
    }
  }
  cluster_arrive(place);
  table_ranges<kHeads, kStride>(ix, sh.lut, sh.lows, sh.highs);
  __syncthreads();
  make_scales<kHeads>(ix, sh.lows, sh.highs, sh.bias, last_block - first_block + 1, scales,
                      bias_lows);
  cluster_wait(place);
  __syncthreads();
  pack_tables<kHeads, kStride>(ix, sh.lut, sh.lows, sh.bias, last_block - first_block + 1, scales,
                               bias_lows, sh.tables, sh.packed_bias);
  if (samples) {
    find_pivots<kHeads>(sh.samples, plan.samples, scan_rank(plan.select, plan.samples, cluster_n),
                        sh.bins, pivot);
  } else if (tid < kHeads) {
    pivot.pivot[tid] = bits_to_float(0x7fc00000u);
  }
  __syncthreads();

  std::uint32_t start[Packed<kHeads>::kWords] = {};
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    // A head past the group's last has no field that reaches bit 15.
    const std::uint32_t field = h < live ? 0x8000u - scan_threshold(scales[h], pivot.pivot[h]) : 0u;
    start[h / 2] |= field << (h % 2 * 16);
  }

#pragma unroll 1
  for (std::int32_t tile = begin; tile < high; tile += kTurn) {
    prefetch(tile + kTurnsAhead * kTurn, tile + (kTurnsAhead + 1) * kTurn);
    // Threads past the end repeat its last keys and pass nothing on: a warp stays together.
    const std::int32_t own = tile + tid * kKeys;
    const std::int32_t at = min(own, (high - 1) & ~(kKeys - 1));
    const CodeReader<kVector> read(ix, table_row, st.slot, kv, at, high - 1);
    std::uint32_t acc[kKeys][Packed<kHeads>::kWords];
#pragma unroll
    for (int k = 0; k < kKeys; ++k) {
#pragma unroll
      for (int w = 0; w < Packed<kHeads>::kWords; ++w) acc[k][w] = start[w];
      if (blocks) add(acc[k], sh.packed_bias[chunk.block_of(min(max(at + k, low), high - 1))]);
    }
    sum_packed<kHeads, kStride>(ix, sh.tables, read, acc);
    if (own < high) collect<kHeads>(acc, at, begin, chunk, plan.capacity, sh.found, found_counts);
  }
  __syncthreads();

  // Exact scores of what was found; what reaches the pivot goes on.
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    if (h >= live) break;
    const std::int32_t count = found_counts[h];
    if (count > plan.capacity) continue;
    Candidate* out = p.candidates + segment_of(h) * plan.capacity;
    const float least = pivot.pivot[h];
    const std::uint32_t least_key = selection_key(least);
    for (std::int32_t i = tid; i < count; i += kScanThreads) {
      const std::int32_t position = begin + sh.found[h * plan.capacity + i];
      float score[1];
      chunk_scores<1, kHeads, kStride>(chunk, sh.lut + h * kStride, sh.bias + h, position, score);
      const std::uint32_t key = selection_key(score[0]);
      if (key >= least_key) out[atomicAdd(passed + h, 1)] = {key, position};
    }
  }
  __syncthreads();
#pragma unroll 1
  for (std::int32_t h = 0; h < live; ++h) {
    if (found_counts[h] <= plan.capacity) continue;
    const std::int32_t more = select_chunk<kHeads, kStride>(
        chunk, sh.lut, sh.bias, h, plan.select, selection_key(pivot.pivot[h]), sh.storage,
        p.candidates + segment_of(h) * plan.capacity, passed + h);
    if (tid == 0) found_counts[h] = -more - 1;  // done, and how many reach the pivot
    __syncthreads();
  }

  // Did enough of the cluster's candidates reach the pivot?
  if (tid < kHeads) {
    const std::int32_t own = found_counts[tid] < 0 ? -found_counts[tid] - 1 : passed[tid];
    for (std::int32_t rank = 0; rank < place.blocks; ++rank) {
      store_to_block(place, reinterpret_cast<float*>(&reached[place.rank][tid]), rank,
                     __int_as_float(own));
    }
  }
  cluster_arrive(place);
  cluster_wait(place);
#pragma unroll 1
  for (std::int32_t h = 0; h < live; ++h) {
    std::int32_t total = 0;
    for (std::int32_t rank = 0; rank < place.blocks; ++rank) total += reached[rank][h];
    if (total < min(plan.select, cluster_n) && found_counts[h] >= 0) {
      select_chunk<kHeads, kStride>(chunk, sh.lut, sh.bias, h, plan.select, 0, sh.storage,
                                    p.candidates + segment_of(h) * plan.capacity, passed + h);
    }
  }
  __syncthreads();
  if (tid < live) p.counts[segment_of(tid)] = passed[tid];
}

}  // namespace quarry::cuda
