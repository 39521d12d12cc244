// SPDX-License-Identifier: Apache-2.0
//
// Stage refine: exact float32 q.k of the shortlist, keys gathered 16 bytes a lane.
#include "refine/refine.h"

#include <algorithm>

#include "common/launch.h"
#include "common/vec.cuh"

namespace quarry::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kAtOnce = 4;  // keys in flight a lane

/// Elements of 16 bytes: a lane's piece of a key.
template <typename E>
constexpr int kPiece = 16 / static_cast<int>(sizeof(typename E::Bits));

/// Lanes that share a key.
std::int32_t lanes_of(std::int32_t head_dim, std::int32_t piece) {
  std::int32_t lanes = 1;
  while (lanes < 32 && lanes * piece < head_dim) lanes *= 2;
  return lanes;
}

template <typename E>
__device__ __forceinline__ void load_piece(const typename E::Bits* __restrict__ p, bool wide,
                                           float (&v)[kPiece<E>]) {
  if constexpr (kPiece<E> == 8) {
    load8<E>(p, wide, v);
  } else if (wide) {
    const float4 x = __ldg(reinterpret_cast<const float4*>(p));
    v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = __ldg(p + i);
  }
}

/// A thread block takes kThreads / lanes * kAtOnce entries of one row. The order of a key's sum
/// is fixed by head_dim and dtype alone: lane l takes elements l * piece .. + piece - 1, then
/// those lanes * piece further (kPieces times at most), by fma; then lanes lanes/2, .., 1 apart
/// are added.
template <typename E, int kPieces>
__global__ void __launch_bounds__(kThreads)
    refine_kernel(const __grid_constant__ RefineParams p, std::int32_t lanes, std::int32_t chunks,
                  bool wide) {
  wait_for_predecessor();
  let_successor_start();
  constexpr unsigned kAll = 0xffffffffu;
  constexpr int kSize = kPiece<E>;
  const IndexView& ix = p.index;
  const std::int64_t row = blockIdx.x / chunks;
  const std::int32_t chunk = static_cast<std::int32_t>(blockIdx.x) % chunks;
  const std::int32_t groups = kThreads / lanes;
  const std::int32_t first = chunk * groups * kAtOnce;
  const auto head = static_cast<std::int32_t>(row % ix.num_query_heads);
  const std::int64_t query = row / ix.num_query_heads;
  const auto t = static_cast<std::int32_t>(query % p.step.query_tokens);
  const auto b = static_cast<std::int32_t>(query / p.step.query_tokens);
  const std::int32_t count = p.shortlist_counts[row];
  const std::int32_t slot = p.step.states[b].slot;
  if (first >= count || slot < 0) return;  // a row without a slot has no shortlist
  const std::int32_t kv = head / ix.group_size;
  const std::int32_t* table_row = block_table_row(p.step, b);
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x) % lanes;
  const std::int32_t group = static_cast<std::int32_t>(threadIdx.x) / lanes;

  // Entry u of this group is first + u * groups + group: neighbouring groups, neighbouring
  // entries.
  const typename E::Bits* key[kAtOnce];
#pragma unroll
  for (int u = 0; u < kAtOnce; ++u) {
    const std::int32_t entry = min(first + u * groups + group, count - 1);
    const std::int32_t position = p.shortlist[row * p.shortlist_stride + entry];
    const std::int64_t page = page_of(ix, table_row, slot, position);
    key[u] = static_cast<const typename E::Bits*>(p.keys.data) +
             key_offset(ix, p.keys, page < 0 ? 0 : page, kv, position);
  }
  const std::int64_t query_base =
      b * p.queries.batch_stride + t * p.queries.token_stride + head * p.queries.head_stride;
  float acc[kAtOnce] = {};
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const std::int32_t at = (i * lanes + lane) * kSize;
    if (at >= ix.head_dim) break;
    float x[kAtOnce][kSize];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) load_piece<E>(key[u] + at, wide, x[u]);
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      const float q = load_element(p.queries.data, p.queries.dtype, query_base + at + e);
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) acc[u] = fmaf(q, x[u][e], acc[u]);
    }
  }
#pragma unroll
  for (int u = 0; u < kAtOnce; ++u) {
    for (std::int32_t apart = lanes / 2; apart > 0; apart /= 2) {
      acc[u] += __shfl_xor_sync(kAll, acc[u], apart);
    }
    const std::int32_t entry = first + u * groups + group;
    if (lane == 0 && entry < count) p.scores[row * p.shortlist_stride + entry] = acc[u];
  }
}

template <typename E, int kPieces>
Status launch_refine(const RefineParams& p, const Launch& launch) {
  const std::int32_t lanes = lanes_of(p.index.head_dim, kPiece<E>);
  const std::int64_t per_block = kThreads / lanes * kAtOnce;
  const std::int64_t chunks = (p.shortlist_stride + per_block - 1) / per_block;
  const std::int64_t rows =
      std::int64_t{p.step.batch_size} * p.step.query_tokens * p.index.num_query_heads;
  if (rows * chunks > 0x7fffffff) {
    return Status(StatusCode::unsupported, "refine: %lld thread blocks, must be at most 2^31 - 1",
                  static_cast<long long>(rows * chunks));
  }
  const KeyView& k = p.keys;
  const bool wide = is_wide(k.data, k.dtype, {k.page_stride, k.slot_stride, k.head_stride});
  return launch_kernel<refine_kernel<E, kPieces>>(
      "refine", launch, dim3(static_cast<unsigned>(rows * chunks)), kThreads, 0, p, lanes,
      static_cast<std::int32_t>(chunks), wide);
}

}  // namespace

Status refine(const RefineParams& p, const Launch& launch) noexcept {
  return with_dtype(p.keys.dtype, [&]<typename E>(E) {
    const std::int32_t per_pass = 32 * kPiece<E>;  // elements of all lanes
    if (p.index.head_dim <= per_pass) return launch_refine<E, 1>(p, launch);
    if constexpr (kPiece<E> == 4) {
      if (p.index.head_dim > 2 * per_pass) return launch_refine<E, 4>(p, launch);
    }
    return launch_refine<E, 2>(p, launch);
  });
}

}  // namespace quarry::cuda
