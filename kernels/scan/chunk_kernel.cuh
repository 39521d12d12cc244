// SPDX-License-Identifier: Apache-2.0
//
// First of scan's two kernels: of every chunk of every row, the candidates that could be among
// the row's best r * K.
//
// A thread block serves up to four query heads of one KV head, for one chunk of positions, and
// reads its codes once. Scores stay in registers, a run of neighbouring keys a thread, a stretch
// of 8192 keys a turn. What r * K of a stretch's scores, or of the largest of as many runs, reach
// is a bound that nothing below can be among the best of; it is searched for by counting
// (best.cuh). A chunk of several stretches keeps what reaches the bound in shared memory, and
// raises it by pruning that. Where so many tie that there is no room for them, the exact best,
// ties by position, take their place.
#pragma once

#include "common/launch.h"
#include "encode/step.cuh"
#include "scan/ahead.cuh"
#include "scan/chunk.cuh"
#include "scan/run.cuh"
#include "score/bias.cuh"

namespace quarry::cuda {

/// Encodes the pending positions of a chunk. A call, since it is needed off the usual path alone.
static __device__ __noinline__ void encode_backlog(const EncodeParams& p, const StepShape& shape,
                                                   std::int32_t b, std::int32_t kv,
                                                   std::int32_t low, std::int32_t high,
                                                   unsigned char* memory) {
  encode_share(p, shape, plan_sequence(p, b), b, kv, 0, 1, low, high, memory);
  __syncthreads();
}

/// What a thread block is to do; slot -1: nothing.
struct Work {
  std::int32_t slot, begin, low, high;
  bool backlog;  ///< some of it is still to be encoded
};

/// What the second kernel is told of a sequence. A warp calls it.
__device__ __forceinline__ void tell_rows(const StepView& step, std::uint32_t* encoded,
                                          std::int32_t b, const SequenceState& st) {
  if (threadIdx.x != 0) return;
  step.states[b] = st;
  encoded[b] = 0;
  if (st.bits != 0 && step.device_status != nullptr) atomicOr(step.device_status + b, st.bits);
}

__device__ __forceinline__ std::int64_t codebook_size(const IndexView& ix) {
  return static_cast<std::int64_t>(ix.num_subspaces) * ix.dcent << ix.bits;
}

/// Starts the copies of a KV head's codebook and rotation, by thread `id` of those that copy.
__device__ __forceinline__ void bring_books(const IndexView& ix, const ChunkShared& sh,
                                            std::int64_t book, std::int32_t id) {
  if (sh.codebook() != nullptr) {
    const std::int64_t size = codebook_size(ix);
    const float* const from = ix.codebooks + book * size;
    for (std::int32_t i = id * 4; i < size; i += (kScanThreads - 32) * 4) {
      copy_async<16>(sh.codebook() + i, from + i);
    }
  }
  if (sh.rotation() != nullptr) {
    const std::int32_t size = ix.head_dim * ix.head_dim;
    const float* const from = ix.query_rotation + book * size;
    for (std::int32_t i = id * 4; i < size; i += (kScanThreads - 32) * 4) {
      copy_async<16>(sh.rotation() + i, from + i);
    }
  }
}

/// load_queries(), by thread `id` of those that load.
template <int kHeads>
__device__ __forceinline__ void load_queries_by(const QueryView& queries, std::int32_t b,
                                                std::int32_t t, std::int32_t head,
                                                std::int32_t live, std::int32_t d, float* q,
                                                std::int32_t id) {
  const std::int64_t base =
      b * queries.batch_stride + t * queries.token_stride + head * queries.head_stride;
#pragma unroll 1
  for (std::int32_t i = id; i < d; i += kScanThreads - 32) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      q[h * d + i] =
          h < live ? load_element(queries.data, queries.dtype, base + h * queries.head_stride + i)
                   : 0.0f;
    }
  }
}

/// Biases of the blocks of a stretch, in shared memory, by position.
template <int kHeads>
struct RunBias {
  const IndexView& ix;
  const float* bias;
  std::int32_t first_block, shift;

  __device__ __forceinline__ std::int32_t block_of(std::int32_t position) const {
    return shift >= 0 ? position >> shift : position / ix.block_size;
  }
  /// What the sums of the run of keys [p, p + kRun) begin with; those outside [low, high) with
  /// that of the nearest inside.
  __device__ __forceinline__ void begin(std::int32_t p, std::int32_t low, std::int32_t high,
                                        float (&acc)[kHeads][kRun]) const {
    std::int32_t block = block_of(min(max(p, low), high - 1));
    const float* from = bias + (block - first_block) * kHeads;
    if (ix.block_size % kRun == 0) {
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        const float first = from[h];
#pragma unroll
        for (int k = 0; k < kRun; ++k) acc[h][k] = first;
      }
      return;
    }
    std::int32_t end = min((block + 1) * ix.block_size, high);
#pragma unroll
    for (int k = 0; k < kRun; ++k) {
      if (p + k >= end && end < high) {
        from += kHeads;
        end = min(end + ix.block_size, high);
      }
#pragma unroll
      for (int h = 0; h < kHeads; ++h) acc[h][k] = from[h];
    }
  }
};

/// The largest of each of kGroups neighbouring parts of a run; fmaxf passes NaN over.
template <int kHeads, int kGroups>
__device__ __forceinline__ void largest(const float (&acc)[kHeads][kRun],
                                        float (&most)[kHeads][kGroups]) {
  constexpr int kEach = kRun / kGroups;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      most[h][g] = acc[h][g * kEach];
#pragma unroll
      for (int k = 1; k < kEach; ++k) most[h][g] = fmaxf(most[h][g], acc[h][g * kEach + k]);
    }
  }
}

template <int kHeads, int kStride, bool kVector>
__global__ void __launch_bounds__(kScanThreads, 1)
    chunk_kernel(const __grid_constant__ ChunkParams p) {
  extern __shared__ __align__(kTableAlignment) unsigned char memory[];
  __shared__ union {
    Exchange<kHeads, kScanThreads> all;
    Exchange<1, kScanThreads> one;
  } exchange;
  __shared__ Work work;
  const IndexView& ix = p.encode.index;
  const StepView& step = p.encode.step;
  const ScanPlan& plan = p.plan;
  const auto tid = static_cast<std::int32_t>(threadIdx.x);
  const auto chunk_id = static_cast<std::int32_t>(blockIdx.z);
  const auto query = static_cast<std::int32_t>(blockIdx.x);
  const auto group = static_cast<std::int32_t>(blockIdx.y);
  const std::int32_t kv = plan.head_groups == 1 ? group : group / plan.head_groups;
  const std::int32_t first_head =
      (group - kv * plan.head_groups) * kHeads;  // in the KV head's group
  const std::int32_t b = step.query_tokens == 1 ? query : query / step.query_tokens;
  const std::int32_t t = query - b * step.query_tokens;
  const std::int32_t head = kv * ix.group_size + first_head;
  const std::int32_t live = min(kHeads, ix.group_size - first_head);
  fetch_chunk_ahead(p, b, t, kv, head, live, chunk_id);
  wait_for_predecessor();
  let_successor_start();

  // One warp finds out what there is to do, while the others bring what does not depend on it.
  const std::int32_t* const table_row = block_table_row(step, b);
  const ChunkShared sh{memory, p.layout};
  const std::int32_t d = ix.head_dim;
  const auto book_of = [&](std::int32_t slot) {
    return static_cast<std::int64_t>(codebook_of(ix, slot)) * ix.num_kv_heads + kv;
  };
  if (tid < 32) {
    const SequenceState st = sequence_state(ix, step, b);
    std::uint32_t ignored = 0;
    const RowState row = row_state(ix, step, st, b, t, &ignored);
    Work found{-1, 0, 0, 0, false};
    if (row.kind == RowKind::sparse) {
      const ChunkSpan span(plan, row.first, row.end, chunk_id);
      // The second kernel encodes what is new, which is in the window: unless more of it came at
      // once. Then every block encodes those of its own chunk first, and none waits for another.
      const std::int32_t pending =
          ix.block_size > 0 ? st.begin / ix.block_size * ix.block_size : st.begin;
      found = {st.slot, span.begin, span.low, span.high, pending < row.end};
    }
    if (tid == 0) work = found;
    if (chunk_id == 0 && group == 0 && t == 0 && table_row == nullptr) {
      tell_rows(step, p.encoded, b, st);
    }
  } else {
    {
      const std::int32_t slot = step.slots == nullptr ? b : step.slots[b];
      if (slot >= 0 && slot < ix.max_sequences) bring_books(ix, sh, book_of(slot), tid - 32);
    }
    load_queries_by<kHeads>(p.queries, b, t, head, live, d, sh.query(), tid - 32);
  }
  wait_for_copies();
  __syncthreads();
  if (chunk_id == 0 && group == 0 && t == 0 && table_row != nullptr) {
    // One block a sequence tells the rows of the second kernel, which check no pages.
    const SequenceState checked = plan_sequence(p.encode, b);
    if (tid < 32) tell_rows(step, p.encoded, b, checked);
  }
  const std::int32_t slot = work.slot, low = work.low, high = work.high;
  if (slot < 0) return;
  const std::int64_t first_row = row_of(step, ix.num_query_heads, b, t, head);
  const auto segment_of = [&](std::int32_t h) { return (first_row + h) * plan.chunks + chunk_id; };
  if (low >= high) {
    if (tid < live) p.counts[segment_of(tid)] = 0;
    return;
  }
  if (work.backlog) {
    encode_backlog(p.encode, p.step_shape, b, kv, low, high, memory);
    bring_books(ix, sh, book_of(slot), tid);
    load_queries_by<kHeads>(p.queries, b, t, head, live, d, sh.query(), tid);
    wait_for_copies();
    __syncthreads();
  }

  // The first code words are on their way while the tables are made.
  const bool has_blocks = ix.block_size > 0;
  std::int32_t at = work.begin + tid * kRun;  // this thread's run
  uint4 word[kCodeBatch<kVector>];
  RunCodes<kVector> read(ix, plan, table_row, slot, kv, min(at, high - 1), high - 1);
  if (at < high) load_codes<kVector>(ix, read, 0, word);
  const std::int64_t book = book_of(slot);
  if (ix.rotated) {
    rotate<kHeads>(ix.query_rotation + book * d * d, sh.rotation(), d, sh.query(), sh.rotated(),
                   tid, kScanThreads);
    __syncthreads();
  }
  float* const tables = reinterpret_cast<float*>(memory);
  make_tables<kHeads, kStride>(ix, ix.codebooks + book * codebook_size(ix), sh.codebook(),
                               sh.rotated(), tables);

  Place place;
  float least[kHeads];      // what `select` keys reach that were seen already
  bool known[kHeads] = {};  // whether there is such a bound
  std::int32_t kept[kHeads] = {};
  RunBias<kHeads> bias{ix, sh.bias(), 0, plan.block_shift};
#pragma unroll 1
  for (std::int32_t stretch = work.begin; stretch < high; stretch += kStretch) {
    const std::int32_t first = max(stretch, low), end = min(stretch + kStretch, high);
    if (has_blocks && (stretch == work.begin || !plan.biased_once)) {
      const std::int32_t upto = plan.biased_once ? high : end;
      bias.first_block = first / ix.block_size;
      if (stretch > work.begin) __syncthreads();  // the last stretch's are used up
      block_biases<kHeads>(ix, table_row, slot, kv, bias.first_block, (upto - 1) / ix.block_size,
                           sh.query(), sh.bias());
      if (stretch > work.begin) __syncthreads();
    }
    if (stretch == work.begin) __syncthreads();
    float acc[kHeads][kRun];
    std::uint32_t there[kHeads] = {};
    if (at < end) {
      if (has_blocks) {
        bias.begin(at, first, end, acc);
      } else {
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
#pragma unroll
          for (int k = 0; k < kRun; ++k) acc[h][k] = -0.0f;
        }
      }
      add_tables<kHeads, kStride, kVector>(ix, tables, read, word, acc);
      std::uint32_t inside = 0xffffu;
      if (at < first) inside &= 0xffffu << (first - at);
      if (at + kRun > end) inside &= 0xffffu >> (at + kRun - end);
#pragma unroll
      for (int h = 0; h < kHeads; ++h) there[h] = h < live ? inside : 0;
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      if (there[h] == 0xffffu) continue;
#pragma unroll
      for (int k = 0; k < kRun; ++k) {
        if ((there[h] >> k & 1u) == 0) acc[h][k] = __uint_as_float(0x7fc00000u);
      }
    }
    const std::int32_t next = at + kStretch;
    if (next < high) {
      read = RunCodes<kVector>(ix, plan, table_row, slot, kv, next, high - 1);
      load_codes<kVector>(ix, read, 0, word);
    }

    // Whatever passes, as long as there is room for it: else what reaches a bound from the
    // largest of runs or of parts of them, else the best. Not a loop, out of which the compiler
    // would hoist what is hardly ever needed.
    std::uint32_t taken[kHeads];
    Counts<kHeads> before, total;
    const std::int32_t want = plan.select, runs = (end - first) / kRun;
    const auto fits = [&] {
#pragma unroll
      for (int w = 0; w < kCountWords<kHeads>; ++w) before[w] = 0;
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        before[h / 2] += static_cast<std::uint32_t>(__popc(taken[h])) << h % 2 * 16;
      }
      count_before<kHeads, kScanThreads>(exchange.all, place, before, total);
      bool all = true;
#pragma unroll
      for (int h = 0; h < kHeads; ++h) all &= count_of<kHeads>(total, h) <= plan.capacity;
      return all;
    };
    const auto learn = [&](int h, float bound) {
      least[h] = known[h] ? fmaxf(least[h], bound) : bound;
      known[h] = true;
    };
    bool settled = false;
    if (known[0] || end - first <= plan.capacity) {
#pragma unroll
      for (int h = 0; h < kHeads; ++h) taken[h] = known[h] ? above(acc[h], least[h]) : there[h];
      settled = fits();
    }
    if (!settled && 2 * want <= 4 * runs) {
      const std::int32_t enough = want + want / 8;
      float bound[kHeads];
      bool found[kHeads];
      if (2 * want <= runs) {
        float most[kHeads][1];
        largest<kHeads, 1>(acc, most);
        find_bounds<kHeads, kScanThreads, 1>(exchange.all, place, most, kRun, want, enough, bound,
                                             found);
      } else {
        float most[kHeads][4];
        largest<kHeads, 4>(acc, most);
        find_bounds<kHeads, kScanThreads, 4>(exchange.all, place, most, kRun, want, enough, bound,
                                             found);
      }
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        taken[h] = found[h] ? reaching(acc[h], bound[h]) : there[h];
      }
      settled = fits();
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        if (settled && found[h]) learn(h, bound[h]);
      }
    }
    if (!settled) {
      float used[kHeads][kRun];
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
#pragma unroll
        for (int k = 0; k < kRun; ++k) used[h][k] = acc[h][k];
      }
      take_best<kHeads, kScanThreads, kRun>(exchange.all, place, used, kRun, there, want, taken);
      fits();
    }

#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const std::int32_t to = count_of<kHeads>(before, h);
      if (plan.buffer > 0) {
        put_taken(acc[h], taken[h], at, sh.buffer(plan, h) + kept[h] + to);
      } else {
        put_taken_far(acc[h], taken[h], at, p.candidates + segment_of(h) * plan.capacity + to);
      }
      kept[h] += count_of<kHeads>(total, h);
    }
    at = next;
    const bool last = stretch + kStretch >= high;
    const std::int32_t room = last ? plan.capacity : plan.capacity + plan.select / 2;
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      if (kept[h] <= room) continue;
      const Pruned left =
          prune(exchange.one, sh.buffer(plan, h), kept[h], plan.select, plan.capacity);
      kept[h] = left.count;
      if (!left.known) continue;
      least[h] = known[h] ? fmaxf(least[h], left.least) : left.least;
      known[h] = true;
    }
  }
  __syncthreads();
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    if (h >= live || plan.buffer == 0) break;
    const Candidate* from = sh.buffer(plan, h);
    Candidate* to = p.candidates + segment_of(h) * plan.capacity;
#pragma unroll 1
    for (std::int32_t i = tid; i < kept[h]; i += kScanThreads) to[i] = from[i];
  }
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    if (tid == h && h < live) p.counts[segment_of(h)] = kept[h];
  }
}

}  // namespace quarry::cuda
