// SPDX-License-Identifier: Apache-2.0
//
// Second of scan's two kernels: of the candidates that a row's chunks passed on the exact best
// r * K, their exact re-rank, and the list. A cluster of thread blocks a row where there is much
// to gather or to write: each selects for itself, scores its share of the keys for all, and
// writes its share of the list.
#pragma once

#include "common/launch.h"
#include "emit/list.cuh"
#include "refine/dots.cuh"
#include "scan/ascending.cuh"
#include "score/lut.cuh"

namespace quarry::cuda {

struct FinishParams {
  EmitParams emit;  ///< its rows, heavy and heavy_counts are not used
  KeyView keys;
  QueryView queries;
  std::int32_t chunks, capacity, select;  ///< as in ScanPlan
  std::int32_t lanes;                     ///< that share a key in refine
  bool wide;
  const std::int32_t* counts;
  const Candidate* candidates;
};

/// Candidates of a row that are kept in shared memory; a row with more reads them where they are.
constexpr std::int32_t kCachedCandidates = 6144;

/// Dynamic shared memory. The code that counts it carves it.
struct FinishShared {
  std::int32_t* ends;       ///< [chunks]: candidates up to a chunk's end
  std::int32_t* shortlist;  ///< [select]
  std::uint32_t* exact;     ///< [select]: selection keys of exact scores; only with refine
  std::int32_t* heavy;      ///< [heavy_size]; the shortlist itself without refine
  float* query;             ///< [d]; only with refine
  std::uint32_t* marks;     ///< bits
  std::uint32_t* keys;      ///< [kCachedCandidates]
  std::int32_t* positions;  ///< [kCachedCandidates]
  std::int64_t bytes = 0;

  __host__ __device__ FinishShared(unsigned char* base, const IndexView& ix, std::int32_t chunks,
                                   std::int32_t select) {
    const auto take = [&](std::int64_t count) {
      unsigned char* const here = base == nullptr ? nullptr : base + bytes;
      bytes += (count * 4 + 15) / 16 * 16;
      return here;
    };
    const bool refines = ix.refine_factor > 1;
    const std::int32_t range = ix.max_seq_len < kMarkedPlaces ? ix.max_seq_len : kMarkedPlaces;
    ends = reinterpret_cast<std::int32_t*>(take(chunks));
    shortlist = reinterpret_cast<std::int32_t*>(take(select));
    exact = reinterpret_cast<std::uint32_t*>(take(refines ? select : 0));
    heavy = refines ? reinterpret_cast<std::int32_t*>(take(ix.heavy_size)) : shortlist;
    query = reinterpret_cast<float*>(take(refines ? ix.head_dim : 0));
    marks = reinterpret_cast<std::uint32_t*>(take(range / 32 + 1));
    keys = reinterpret_cast<std::uint32_t*>(take(kCachedCandidates));
    positions = reinterpret_cast<std::int32_t*>(take(kCachedCandidates));
  }
};

/// A row's candidates: in shared memory, or in their segments.
struct RowCandidates {
  const std::uint32_t* keys;  ///< null: in their segments
  const std::int32_t* positions;
  const Candidate* segments;
  const std::int32_t* ends;
  std::int32_t chunks, capacity;

  __device__ __noinline__ Candidate at(std::int32_t i) const {
    std::int32_t low = 0, high = chunks - 1;  // the first chunk with i < ends
    while (low < high) {
      const std::int32_t middle = (low + high) / 2;
      if (i < ends[middle]) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    const std::int32_t begin = low == 0 ? 0 : ends[low - 1];
    return segments[static_cast<std::int64_t>(low) * capacity + (i - begin)];
  }
  __device__ __forceinline__ std::uint32_t key(std::int32_t i) const {
    return keys != nullptr ? keys[i] : at(i).key;
  }
  __device__ __forceinline__ std::int32_t position(std::int32_t i) const {
    return keys != nullptr ? positions[i] : at(i).position;
  }
};

/// ends[] of a row's chunks; returns how many candidates there are.
__device__ __forceinline__ std::int32_t count_candidates(AscendingStorage& storage,
                                                         const std::int32_t* counts,
                                                         std::int32_t chunks, std::int32_t* ends) {
  std::int32_t all = 0;
  for (std::int32_t first = 0; first < chunks; first += kFinishThreads) {
    const std::int32_t i = first + static_cast<std::int32_t>(threadIdx.x);
    std::int32_t end = i < chunks ? counts[i] : 0, total = 0;
    AscendingStorage::Scan(storage.scan).InclusiveSum(end, end, total);
    if (i < chunks) ends[i] = all + end;
    all += total;
    __syncthreads();
  }
  return all;
}

/// Copies a row's candidates to shared memory: as many threads a chunk as there are to share.
__device__ __forceinline__ void cache_candidates(const Candidate* segments,
                                                 const std::int32_t* ends, std::int32_t chunks,
                                                 std::int32_t capacity, std::uint32_t* keys,
                                                 std::int32_t* positions) {
  std::int32_t team = kFinishThreads;
  while (team > 32 && team * chunks > kFinishThreads) team /= 2;
  const auto tid = static_cast<std::int32_t>(threadIdx.x);
  for (std::int32_t c = tid / team; c < chunks; c += kFinishThreads / team) {
    const std::int32_t begin = c == 0 ? 0 : ends[c - 1], count = ends[c] - begin;
    const Candidate* from = segments + static_cast<std::int64_t>(c) * capacity;
#pragma unroll 4
    for (std::int32_t i = tid % team; i < count; i += team) {
      const Candidate candidate = from[i];
      keys[begin + i] = candidate.key;
      positions[begin + i] = candidate.position;
    }
  }
}

/// kPieces 0: no refine. Grid (rows * cluster).
template <typename E, int kPieces>
__global__ void __launch_bounds__(kFinishThreads)
    finish_kernel(const __grid_constant__ FinishParams p) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ AscendingStorage storage;
  wait_for_predecessor();
  let_successor_start();
  const EmitParams& emit = p.emit;
  const IndexView& ix = emit.index;
  const StepView& step = emit.step;
  const ClusterPlace place = cluster_place();
  const std::int64_t row = blockIdx.x / static_cast<unsigned>(place.blocks);
  const auto head = static_cast<std::int32_t>(row % ix.num_query_heads);
  const std::int64_t query = row / ix.num_query_heads;
  const auto t = static_cast<std::int32_t>(query % step.query_tokens);
  const auto b = static_cast<std::int32_t>(query / step.query_tokens);
  const auto tid = static_cast<std::int32_t>(threadIdx.x);
  const SequenceState st = step.states[b];
  std::uint32_t bits = 0;
  const RowState state = row_state(ix, step, st, b, t, &bits);
  if (head == 0 && place.rank == 0 && tid == 0) {
    if (bits != 0 && step.device_status != nullptr) atomicOr(step.device_status + b, bits);
    // What the chunks' kernel read; nothing after this in the call does.
    if (t == 0 && st.slot >= 0 && st.built != 0) ix.seen[st.slot] = st.n;
  }

  const FinishShared sh(memory, ix, p.chunks, p.select);
  if constexpr (kPieces > 0) {  // barriers follow before it is read
    load_queries<1>(p.queries, b, t, head, 1, ix.head_dim, sh.query);
  }
  std::int32_t heavy_count = 0;
  if (state.kind == RowKind::sparse) {  // the same for the whole cluster
    const std::int32_t* counts = p.counts + row * p.chunks;
    const std::int32_t total = count_candidates(storage, counts, p.chunks, sh.ends);
    RowCandidates items{nullptr, nullptr,  p.candidates + row * p.chunks * p.capacity,
                        sh.ends, p.chunks, p.capacity};
    if (total <= kCachedCandidates) {
      cache_candidates(items.segments, sh.ends, p.chunks, p.capacity, sh.keys, sh.positions);
      items.keys = sh.keys;
      items.positions = sh.positions;
    }
    __syncthreads();
    const std::int32_t range = state.end - state.first;
    std::int32_t count = min(p.select, total);
    best_ascending(
        storage, sh.marks, [&](std::int32_t i) { return items.key(i); },
        [&](std::int32_t i) { return items.position(i) - state.first; }, total, count, range,
        sh.shortlist);
    if constexpr (kPieces > 0) {
      const std::int32_t share = (count + place.blocks - 1) / place.blocks;
      const std::int32_t from = min(place.rank * share, count), to = min(from + share, count);
      const std::int32_t groups = kFinishThreads / p.lanes;
      cluster_arrive(place);  // the others' shared memory is there to write to
      cluster_wait(place);
      for (std::int32_t first = from; first < to; first += groups * kKeysAtOnce) {
        exact_scores<E, kPieces>(
            ix, p.keys, [&](std::int32_t i) { return sh.query[i]; }, block_table_row(step, b),
            st.slot, head / ix.group_size, p.wide, p.lanes, groups, tid / p.lanes, first, to,
            [&](std::int32_t i) { return state.first + sh.shortlist[i]; },
            [&](std::int32_t i, float score) {
              const float key = bits_to_float(selection_key(score));
              for (std::int32_t rank = 0; rank < place.blocks; ++rank) {
                store_to_block(place, reinterpret_cast<float*>(sh.exact) + i, rank, key);
              }
            });
      }
      cluster_arrive(place);
      cluster_wait(place);
      heavy_count = min(ix.heavy_size, count);
      best_ascending(
          storage, sh.marks, [&](std::int32_t i) { return sh.exact[i]; },
          [](std::int32_t i) { return i; }, count, heavy_count, count, sh.heavy);
      for (std::int32_t i = tid; i < heavy_count; i += kFinishThreads) {
        sh.heavy[i] = state.first + sh.shortlist[sh.heavy[i]];
      }
    } else {
      heavy_count = count;
      for (std::int32_t i = tid; i < count; i += kFinishThreads) sh.heavy[i] += state.first;
    }
    __syncthreads();
  }

  const List list = list_of(ix, state, heavy_count);
  const std::int32_t entries = (emit.max_list + place.blocks - 1) / place.blocks;
  const std::int32_t start = place.rank * entries;
  emit_list(emit, list, sh.heavy, row, start, min(start + entries, emit.max_list));
  if (emit.dense_weights != nullptr) {
    const std::int32_t share = (ix.max_seq_len + place.blocks - 1) / place.blocks;
    const std::int64_t first = static_cast<std::int64_t>(place.rank) * share;
    const std::int64_t most = ix.max_seq_len;
    emit_dense(emit, list, sh.heavy, row, static_cast<std::int32_t>(min(first, most)),
               static_cast<std::int32_t>(min(first + share, most)));
  }
}

}  // namespace quarry::cuda
