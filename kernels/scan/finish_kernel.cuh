// SPDX-License-Identifier: Apache-2.0
//
// Second of scan's two kernels: of the candidates that a row's chunks passed on the exact best
// r * K, their exact re-rank, and the list; beside that the step's encoding, which this step's
// lists do not need. A cluster of thread blocks a row where there is much to gather or to write:
// each selects for itself, scores its share of the keys for all, and writes its share of the list.
#pragma once

#include "common/launch.h"
#include "emit/list.cuh"
#include "encode/few.cuh"
#include "encode/step.cuh"
#include "refine/dots.cuh"
#include "scan/ascending.cuh"
#include "scan/candidates.cuh"
#include "score/lut.cuh"

namespace quarry::cuda {

struct FinishParams {
  FinishLayout layout;
  EncodeParams encode;
  StepShape step_shape;
  std::int32_t encode_blocks;  ///< the first thread blocks: they encode, a share each
  EmitParams emit;             ///< its rows, heavy and heavy_counts are not used
  QueryView queries;
  std::int32_t chunks, capacity, select;  ///< as in ScanPlan
  std::int32_t lanes;                     ///< that share a key in refine
  bool wide;
  std::uint32_t* encoded;  ///< [B], 0 when the first kernel has ended
  const std::int32_t* counts;
  const Candidate* candidates;
};

/// What is new, while the first kernel still runs: that one's blocks have all waited for what came
/// before it, or this block would not run, and they read no position that is encoded here, unless
/// there are more new ones than the window holds. `seen` is moved by the last of a sequence's
/// blocks, when no other block of the call has it still to read.
__device__ __forceinline__ void encode_role(const FinishParams& p, unsigned char* memory) {
  const IndexView& ix = p.encode.index;
  const StepView& step = p.encode.step;
  const auto id = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t shares = p.step_shape.shares, heads = ix.num_kv_heads;
  const std::int32_t share = id % shares, head = id / shares % heads, b = id / shares / heads;
  if (b >= step.batch_size) {  // the last cluster may have blocks to spare
    wait_for_predecessor();
    return;
  }
  const SequenceState st =
      step.block_table == nullptr ? sequence_state(ix, step, b) : plan_sequence(p.encode, b);
  const std::int32_t pending =
      ix.block_size > 0 ? st.begin / ix.block_size * ix.block_size : st.begin;
  if (pending < st.n + step.query_tokens - 1 - ix.window_size) wait_for_predecessor();
  if (few_serve(ix, st)) {
    encode_few(p.encode, st, b, head, share, shares);
  } else {
    encode_share(p.encode, p.step_shape, st, b, head, share, shares, 0, INT32_MAX, memory);
  }
  __syncthreads();  // what the other threads have encoded comes before this block's arrival
  wait_for_predecessor();
  if (threadIdx.x != 0 || st.slot < 0 || st.built == 0) return;
  const auto all = static_cast<std::uint32_t>(shares * heads);
  if (atomicAdd(p.encoded + b, 1u) == all - 1) ix.seen[st.slot] = st.n;
}

/// kPieces 0: no refine. Grid (encode_blocks + rows * cluster).
template <typename E, int kPieces>
__global__ void __launch_bounds__(kFinishThreads, 2)
    finish_kernel(const __grid_constant__ FinishParams p) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ BestStorage storage;
  let_successor_start();
  if (static_cast<std::int32_t>(blockIdx.x) < p.encode_blocks) {
    encode_role(p, memory);
    return;
  }
  const EmitParams& emit = p.emit;
  const IndexView& ix = emit.index;
  const ClusterPlace place = cluster_place();
  const std::int64_t row = (blockIdx.x - p.encode_blocks) / static_cast<unsigned>(place.blocks);
  const auto head = static_cast<std::int32_t>(row % ix.num_query_heads);
  const std::int64_t query = row / ix.num_query_heads;
  const auto t = static_cast<std::int32_t>(query % emit.step.query_tokens);
  const auto b = static_cast<std::int32_t>(query / emit.step.query_tokens);
  const auto tid = static_cast<std::int32_t>(threadIdx.x);
  const FinishShared sh{memory, p.layout};
  // The chunks' blocks have all waited for what came before their kernel, or this block would not
  // run: lengths and queries can be read beside them. What only they know is whether the pages
  // are in range. `seen` is not read, since this kernel moves it.
  StepView step = emit.step;
  step.restart = true;
  SequenceState st = sequence_state(ix, step, b);
  std::uint32_t bits = 0;
  RowState state = row_state(ix, step, st, b, t, &bits);
  if constexpr (kPieces > 0) {  // barriers follow before it is read
    load_queries<1>(p.queries, b, t, head, 1, ix.head_dim, sh.query());
  }
  wait_for_predecessor();
  if (step.states[b].slot < 0) {
    st.slot = -1;
    bits = 0;
    state = row_state(ix, step, st, b, t, &bits);
  }
  if (head == 0 && place.rank == 0 && tid == 0 && bits != 0 && step.device_status != nullptr) {
    atomicOr(step.device_status + b, bits);
  }
  std::int32_t heavy_count = 0;
  if (state.kind == RowKind::sparse) {  // the same for the whole cluster
    if constexpr (kPieces > 0) {        // from here on the others may write to this shared memory
      cluster_arrive_relaxed(place);
    }
    std::int32_t total = 0;
    const RowCandidates items = read_candidates(storage, p.counts + row * p.chunks,
                                                p.candidates + row * p.chunks * p.capacity,
                                                p.chunks, p.capacity, sh, &total);
    __syncthreads();
    const std::int32_t count = min(p.select, total);
    if (count > 0) {
      best_ascending(
          storage, [&](std::int32_t i) { return items.key(i); }, total, count,
          [&](std::int32_t i, std::int32_t item) { sh.shortlist()[i] = items.position(item); });
    }
    if constexpr (kPieces > 0) {
      const std::int32_t share = (count + place.blocks - 1) / place.blocks;
      const std::int32_t from = min(place.rank * share, count), to = min(from + share, count);
      const std::int32_t groups = kFinishThreads / p.lanes;
      cluster_wait(place);  // the others' shared memory is there to write to
      // Where the keys lie takes divisions: a thread a key, rather than all lanes of each.
      auto* const places = reinterpret_cast<std::int64_t*>(storage.listed);
      const std::int32_t kv = head / ix.group_size;
#pragma unroll 1
      for (std::int32_t batch = from; batch < to; batch += kFinishThreads) {
        const std::int32_t stop = min(batch + kFinishThreads, to);
        if (batch + tid < stop) {
          places[tid] = key_place(ix, p.encode.keys, block_table_row(step, b), st.slot, kv,
                                  sh.shortlist()[batch + tid]);
        }
        __syncthreads();
#pragma unroll 1
        for (std::int32_t first = batch; first < stop; first += groups * kKeysAtOnce) {
          exact_scores<E, kPieces>(
              ix, p.encode.keys, [&](std::int32_t i) { return sh.query()[i]; }, kv, p.wide, p.lanes,
              groups, tid / p.lanes, first, stop, [&](std::int32_t i) { return places[i - batch]; },
              [&](std::int32_t i, float score) {
                const float key = bits_to_float(selection_key(score));
                for (std::int32_t rank = 0; rank < place.blocks; ++rank) {
                  store_to_block(place, reinterpret_cast<float*>(sh.exact()) + i, rank, key);
                }
              });
        }
        __syncthreads();  // the next batch's places
      }
      cluster_arrive(place);
      cluster_wait(place);
      heavy_count = min(ix.heavy_size, count);
      if (heavy_count > 0) {
        best_ascending(
            storage, [&](std::int32_t i) { return sh.exact()[i]; }, count, heavy_count,
            [&](std::int32_t i, std::int32_t item) { sh.heavy()[i] = sh.shortlist()[item]; });
      }
    } else {
      heavy_count = count;
    }
  }

  const List list = list_of(ix, state, heavy_count);
  const std::int32_t entries = (emit.max_list + place.blocks - 1) / place.blocks;
  const std::int32_t start = place.rank * entries;
  emit_list(emit, list, sh.heavy(), row, start, min(start + entries, emit.max_list));
  if (emit.dense_weights != nullptr) {
    const std::int32_t share = (ix.max_seq_len + place.blocks - 1) / place.blocks;
    const std::int64_t first = static_cast<std::int64_t>(place.rank) * share;
    const std::int64_t most = ix.max_seq_len;
    emit_dense(emit, list, sh.heavy(), row, static_cast<std::int32_t>(min(first, most)),
               static_cast<std::int32_t>(min(first + share, most)));
  }
}

}  // namespace quarry::cuda
