// SPDX-License-Identifier: Apache-2.0
//
// Stage score: LUT, block bias, gather and reduction in one kernel.
#include "score/score.h"

#include <algorithm>

#include "common/launch.h"
#include "score/bias.cuh"
#include "score/codes.cuh"
#include "score/lut.cuh"

namespace quarry::cuda {
namespace {

constexpr int kThreads = 512;

/// How the host splits the work. A thread block serves the query heads of one KV head (up to
/// 8 of them) for one chunk of positions.
struct ScorePlan {
  std::int32_t chunk;         ///< positions at most, a multiple of kChunkUnit
  std::int32_t chunks;        ///< as many of them as cover max_seq_len
  std::int32_t head_groups;   ///< thread blocks that share a KV head's query heads
  std::int32_t block_shift;   ///< log2(block_size), -1 where it is no power of two
  std::int32_t table_floats;  ///< shared memory of the tables; rotation works there before
};

/// A sequence may be far shorter than max_seq_len, which is all the host knows: its candidates
/// are dealt evenly to the chunks, but none gets fewer than pay for its tables.
constexpr std::int32_t kChunkUnit = 512;
constexpr std::int32_t kLeastChunk = 2048;

__host__ __device__ inline std::int32_t chunk_length(const ScorePlan& plan, std::int32_t range) {
  std::int32_t even = (range + plan.chunks - 1) / plan.chunks;
  even = (even + kChunkUnit - 1) / kChunkUnit * kChunkUnit;
  if (even < kLeastChunk) even = kLeastChunk;
  return even < plan.chunk ? even : plan.chunk;
}

/// Blocks of a cluster: those of one head group share the rotation of its queries.
constexpr std::int32_t kMostCluster = 8;

/// Shared memory: tables [m][kHeads][kStride], queries [kHeads][d] as given and rotated,
/// biases [blocks of a chunk][kHeads].
constexpr std::int64_t kMostTableBytes = 64 * 1024;
constexpr std::int64_t kMostQueryBytes = 8 * 1024;
constexpr std::int64_t kMostBiasBytes = 16 * 1024;

/// acc[k][h] += one subspace's table entries; `table` is its [kHeads][kStride]. Key k's code
/// is at bit 8k + kFrom of `word`.
template <int kHeads, int kStride, int kFrom>
__device__ __forceinline__ void add_entries(const float* table, std::uint32_t word,
                                            float (&acc)[kKeys][kHeads]) {
#pragma unroll
  for (int k = 0; k < kKeys; ++k) {
    // The code times 4, the entry's byte: one shift and one mask a lookup, whatever kHeads.
    const int shift = 8 * k + kFrom - 2;
    const std::uint32_t byte = (shift < 0 ? word << 2 : word >> shift) & (4u * kStride - 4u);
    const auto* entry = reinterpret_cast<const float*>(reinterpret_cast<const char*>(table) + byte);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) acc[k][h] += entry[h * kStride];
  }
}

template <int kHeads, int kStride, bool kVector>
__global__ void __launch_bounds__(kThreads, kHeads == 8 || !kVector ? 1 : 2)
    score_kernel(const __grid_constant__ ScoreParams p, const __grid_constant__ ScorePlan plan) {
  wait_for_predecessor();
  let_successor_start();
  constexpr bool kPacked = kStride == 16;
  const IndexView& ix = p.index;
  const std::int32_t chunk = static_cast<std::int32_t>(blockIdx.x) % plan.chunks;
  std::int32_t rest = static_cast<std::int32_t>(blockIdx.x) / plan.chunks;
  const std::int32_t first_head = rest % plan.head_groups * kHeads;  // within the group
  rest /= plan.head_groups;
  const std::int32_t kv = rest % ix.num_kv_heads;
  rest /= ix.num_kv_heads;
  const std::int32_t t = rest % p.step.query_tokens;
  const std::int32_t b = rest / p.step.query_tokens;

  const SequenceState state = p.step.states[b];
  std::uint32_t bits = 0;
  const RowState row = row_state(ix, p.step, state, b, t, &bits);
  if (row.kind != RowKind::sparse) return;
  const ClusterPlace place = cluster_place();
  const std::int32_t base = row.first & ~(kKeys - 1);
  const std::int32_t length = chunk_length(plan, row.end - base);
  const std::int64_t start = base + static_cast<std::int64_t>(chunk) * length;
  // Blocks past the row's end still rotate their part of the query for their cluster.
  const bool idle = start >= row.end;
  if (idle && place.blocks == 1) return;
  cluster_arrive(place);
  const auto begin = static_cast<std::int32_t>(idle ? base : start);
  const std::int32_t low = max(begin, row.first);
  const std::int32_t high = row.end - begin < length ? row.end : begin + length;
  const std::int32_t* table_row = block_table_row(p.step, b);

  extern __shared__ float4 shared4[];
  float* const lut = reinterpret_cast<float*>(shared4);
  float* const q = lut + plan.table_floats;
  const std::int32_t d = ix.head_dim;
  const bool rotated = ix.query_rotation != nullptr;
  float* const bias = q + (rotated ? 2 : 1) * kHeads * d;

  const std::int64_t book =
      static_cast<std::int64_t>(codebook_of(ix, state.slot)) * ix.num_kv_heads + kv;
  const std::int64_t book_size = static_cast<std::int64_t>(ix.num_subspaces) * ix.dcent << ix.bits;
  const float* codebook = ix.codebooks + book * book_size;
  prefetch_to_l2(codebook, book_size * 4);
  if (kVector && table_row == nullptr) {
    const std::int32_t from = low / ix.tile * ix.tile;
    prefetch_to_l2(ix.codes + code_offset(ix, state.slot, kv, from),
                   static_cast<std::int64_t>(high - from) * ix.code_bytes);
  }

  const std::int32_t head = kv * ix.group_size + first_head;
  const std::int32_t live = min(kHeads, ix.group_size - first_head);
  load_queries<kHeads>(p.queries, b, t, head, live, d, q);
  __syncthreads();
  const float* table_query = q;
  if (rotated) {
    rotate_queries<kHeads>(place, ix.query_rotation + book * d * d, d, q, lut, q + kHeads * d);
    table_query = q + kHeads * d;
    if (idle) return;
  }
  build_luts<kHeads, kStride>(ix, codebook, table_query, lut, [](int, int, float) {});
  const bool blocks = ix.block_size > 0;
  const std::int32_t first_block = blocks ? low / ix.block_size : 0;
  if (blocks) {
    block_biases<kHeads>(ix, table_row, state.slot, kv, first_block, (high - 1) / ix.block_size, q,
                         bias);
  }
  __syncthreads();

  float* const scores = p.scores + row_of(p.step, ix.num_query_heads, b, t, head) * p.score_stride;
#pragma unroll 1
  for (std::int32_t tile = begin; tile < high; tile += kThreads * kKeys) {
    // Threads past the end repeat its last keys and store nothing: the loops below stay
    // uniform over a warp.
    const std::int32_t own = tile + static_cast<std::int32_t>(threadIdx.x) * kKeys;
    const std::int32_t at = min(own, (high - 1) & ~(kKeys - 1));
    const CodeReader<kVector> read(ix, table_row, state.slot, kv, at, high - 1);
    float acc[kKeys][kHeads];
#pragma unroll
    for (int k = 0; k < kKeys; ++k) {
      const float* from = bias;
      if (blocks) {
        // Keys outside [low, high) take a bias that is there; their scores are not stored.
        const std::int32_t position = min(max(at + k, low), high - 1);
        const std::int32_t block =
            plan.block_shift >= 0 ? position >> plan.block_shift : position / ix.block_size;
        from += (block - first_block) * kHeads;
      }
      // -0 is the neutral element of addition: without blocks the sum starts at LUT[0].
#pragma unroll
      for (int h = 0; h < kHeads; ++h) acc[k][h] = blocks ? from[h] : -0.0f;
    }
    constexpr int kBatch = 4;  // code words in flight
#pragma unroll 1
    for (std::int32_t i = 0; i < ix.code_bytes; i += kBatch) {
      std::uint32_t word[kBatch];
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        if (i + u < ix.code_bytes) word[u] = read(i + u);
      }
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        if (i + u >= ix.code_bytes) break;
        const std::int32_t s = kPacked ? 2 * (i + u) : i + u;
        const float* table = lut + s * (kHeads * kStride);
        add_entries<kHeads, kStride, 0>(table, word[u], acc);
        if (kPacked && s + 1 < ix.num_subspaces) {
          add_entries<kHeads, kStride, 4>(table + kHeads * kStride, word[u], acc);
        }
      }
    }
    if (own >= high) continue;
    const bool whole = at >= low && at + kKeys <= high;
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      if (h >= live) break;
      float* out = scores + h * p.score_stride + at;
      if (whole) {
        *reinterpret_cast<float4*>(out) = {acc[0][h], acc[1][h], acc[2][h], acc[3][h]};
      } else {
#pragma unroll
        for (int k = 0; k < kKeys; ++k) {
          if (at + k >= low && at + k < high) out[k] = acc[k][h];
        }
      }
    }
  }
}

std::int64_t table_bytes(const IndexView& ix, std::int32_t heads, std::int32_t stride) {
  return std::int64_t{4} * ix.num_subspaces * heads * stride;
}

/// Query heads a thread block: the group, in powers of two up to 8, as far as tables and
/// queries fit shared memory on every architecture we build for.
std::int32_t heads_at_once(const IndexView& ix, std::int32_t stride) {
  std::int32_t heads = 1;
  while (heads < 8 && heads < ix.group_size &&
         table_bytes(ix, 2 * heads, stride) <= kMostTableBytes &&
         std::int64_t{4} * 2 * heads * ix.head_dim <= kMostQueryBytes) {
    heads *= 2;
  }
  return heads;
}

template <int kHeads, int kStride, bool kVector>
Status launch_score(const ScoreParams& p, const Launch& launch) {
  const IndexView& ix = p.index;
  ScorePlan plan{};
  plan.head_groups = (ix.group_size + kHeads - 1) / kHeads;
  const std::int64_t groups =
      std::int64_t{p.step.batch_size} * p.step.query_tokens * ix.num_kv_heads * plan.head_groups;
  // Two resident thread blocks a multiprocessor fill the device; beyond that, longer chunks
  // spread the cost of the tables, up to where it no longer shows.
  constexpr std::int64_t kMost = 16384;
  const std::int64_t wanted = std::max<std::int64_t>(2 * launch.num_multiprocessors / groups, 1);
  std::int64_t chunk = (ix.max_seq_len + wanted - 1) / wanted;
  chunk = (chunk + kChunkUnit - 1) / kChunkUnit * kChunkUnit;
  chunk = std::clamp<std::int64_t>(chunk, kLeastChunk, kMost);
  plan.block_shift = -1;
  std::int64_t bias_bytes = 0;
  if (ix.block_size > 0) {
    if ((ix.block_size & (ix.block_size - 1)) == 0) {
      plan.block_shift = 0;
      while (1 << plan.block_shift < ix.block_size) ++plan.block_shift;
    }
    // 512 positions or more: blocks of one position and 8 heads are the worst case.
    const std::int64_t most = kMostBiasBytes / (4 * kHeads) * ix.block_size;
    chunk = std::min(chunk, most / kChunkUnit * kChunkUnit);
    bias_bytes = 4 * kHeads * (chunk / ix.block_size + 2);
  }
  plan.chunk = static_cast<std::int32_t>(chunk);
  plan.chunks = static_cast<std::int32_t>((ix.max_seq_len + chunk - 1) / chunk);
  const bool rotated = ix.query_rotation != nullptr;
  std::int32_t cluster = 1;
  if (rotated && launch.compute_capability >= 90) {
    while (cluster < kMostCluster && cluster < plan.chunks) cluster *= 2;
    plan.chunks = (plan.chunks + cluster - 1) / cluster * cluster;
  }
  plan.table_floats = static_cast<std::int32_t>(table_bytes(ix, kHeads, kStride) / 4);
  if (rotated) plan.table_floats = std::max(plan.table_floats, kRotationFloats);
  const std::int64_t shared = std::int64_t{4} * plan.table_floats +
                              (rotated ? 2 : 1) * 4 * kHeads * ix.head_dim + bias_bytes;
  const std::int64_t grid = groups * plan.chunks;
  if (grid > 0x7fffffff) {
    return Status(StatusCode::unsupported, "score: %lld thread blocks, must be at most 2^31 - 1",
                  static_cast<long long>(grid));
  }
  return launch_clusters<score_kernel<kHeads, kStride, kVector>>(
      "score", launch, dim3(static_cast<unsigned>(grid)), static_cast<unsigned>(cluster), kThreads,
      static_cast<std::size_t>(shared), p, plan);
}

template <int kStride>
Status launch_stride(const ScoreParams& p, const Launch& launch) {
  const IndexView& ix = p.index;
  if (!reads_codes_by_four(ix)) return launch_score<1, kStride, false>(p, launch);
  switch (heads_at_once(ix, kStride)) {
    case 1:
      return launch_score<1, kStride, true>(p, launch);
    case 2:
      return launch_score<2, kStride, true>(p, launch);
    case 4:
      return launch_score<4, kStride, true>(p, launch);
    default:
      return launch_score<8, kStride, true>(p, launch);
  }
}

}  // namespace

Status score(const ScoreParams& p, const Launch& launch) noexcept {
  if (p.index.bits <= 4) return launch_stride<16>(p, launch);
  if (p.index.bits <= 6) return launch_stride<64>(p, launch);
  return launch_stride<256>(p, launch);
}

}  // namespace quarry::cuda
