// SPDX-License-Identifier: Apache-2.0
//
// The parts of a score that are computed once a query and thread block: the query in float32,
// its rotation, and the table of inner products with the centroids. One source for every
// kernel that scores, so that all of them add the same bits.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "half.h"
#include "params.h"

namespace quarry::cuda {

/// Asks for the lines of [data, data + bytes) without waiting for them.
__device__ __forceinline__ void prefetch_to_l2(const void* data, std::int64_t bytes) {
  constexpr int kLine = 128;
#pragma unroll 1
  for (std::int64_t i = static_cast<std::int64_t>(threadIdx.x) * kLine; i < bytes;
       i += static_cast<std::int64_t>(blockDim.x) * kLine) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const char*>(data) + i));
  }
}

/// q[h][d] of query heads head .. head + live - 1; zeros for the heads past `live`.
template <int kHeads>
__device__ __forceinline__ void load_queries(const QueryView& queries, std::int32_t b,
                                             std::int32_t t, std::int32_t head, std::int32_t live,
                                             std::int32_t d, float* q) {
  const std::int64_t base =
      b * queries.batch_stride + t * queries.token_stride + head * queries.head_stride;
#pragma unroll 1
  for (std::int32_t i = threadIdx.x; i < kHeads * d; i += blockDim.x) {
    const std::int32_t h = i / d;
    q[i] = h < live ? load_element(queries.data, queries.dtype,
                                   base + h * queries.head_stride + (i - h * d))
                    : 0.0f;
  }
}

/// acc[h] = fma chain over ascending i < count, acc[h] first, of x[h * x_stride + i] and
/// column[i * step]. The loads of kAhead steps are in flight together: the column comes from
/// L2 and its latency, not its bytes, is what this costs.
template <int kHeads, int kAhead>
__device__ __forceinline__ std::int32_t chain_steps(const float* __restrict__ column,
                                                    std::int32_t step, const float* x,
                                                    std::int32_t x_stride, std::int32_t from,
                                                    std::int32_t count, float (&acc)[kHeads]) {
#pragma unroll 1
  for (; from + kAhead <= count; from += kAhead) {
    float v[kAhead];
    const float* at = column + static_cast<std::int64_t>(from) * step;
#pragma unroll
    for (int u = 0; u < kAhead; ++u, at += step) v[u] = __ldg(at);
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
#pragma unroll
      for (int h = 0; h < kHeads; ++h) acc[h] = fmaf(x[h * x_stride + from + u], v[u], acc[h]);
    }
  }
  return from;
}

template <int kHeads>
__device__ __forceinline__ void dot_column(const float* __restrict__ column, std::int32_t step,
                                           const float* x, std::int32_t x_stride,
                                           std::int32_t count, float (&acc)[kHeads]) {
#pragma unroll
  for (int h = 0; h < kHeads; ++h) acc[h] = 0.0f;
  constexpr int kAhead = kHeads == 1 ? 32 : 16;
  std::int32_t i = chain_steps<kHeads, kAhead>(column, step, x, x_stride, 0, count, acc);
  i = chain_steps<kHeads, 8>(column, step, x, x_stride, i, count, acc);
  chain_steps<kHeads, 1>(column, step, x, x_stride, i, count, acc);
}

/// A thread block's place in its cluster. Clusters came with compute capability 9.0; without
/// them a block is a cluster of its own.
struct ClusterPlace {
  std::int32_t rank, blocks;
};

__device__ __forceinline__ ClusterPlace cluster_place() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const auto cluster = cooperative_groups::this_cluster();
  return {static_cast<std::int32_t>(cluster.block_rank()),
          static_cast<std::int32_t>(cluster.num_blocks())};
#else
  return {0, 1};
#endif
}

/// A barrier of the cluster's threads, in halves: what they wrote to shared memory before
/// arriving, each other's too, is seen after waiting.
__device__ __forceinline__ void cluster_arrive(const ClusterPlace& place) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (place.blocks > 1) cooperative_groups::this_cluster().barrier_arrive();
#endif
}

__device__ __forceinline__ void cluster_wait(const ClusterPlace& place) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (place.blocks > 1) {
    cooperative_groups::this_cluster().barrier_wait();
    return;
  }
#endif
  __syncthreads();
}

__device__ __forceinline__ void store_to_block(const ClusterPlace& place, float* p,
                                               std::int32_t rank, float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (place.blocks > 1) p = cooperative_groups::this_cluster().map_shared_rank(p, rank);
#endif
  *p = value;
}

__device__ __forceinline__ std::uint32_t load_from_block(const ClusterPlace& place,
                                                         const std::uint32_t* p,
                                                         std::int32_t rank) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (place.blocks > 1) p = cooperative_groups::this_cluster().map_shared_rank(p, rank);
#endif
  return *p;
}

/// Shared memory that rotate_queries() works in.
constexpr std::int32_t kRotationFloats = 4096;

/// out[h][j] = fma chain over ascending i of q[h][i] * rotation[i][j], in every thread block of
/// the cluster: each reads d / blocks columns and sends the others its results, since a matrix
/// read by every block would cost more than all else here. All threads of at least d; the
/// cluster arrived once before, to show that all its blocks are there, and `out` is to be read
/// after this returns. d is a multiple of 8, blocks a power of two up to 8.
template <int kHeads>
__device__ __forceinline__ void rotate_queries(const ClusterPlace& place,
                                               const float* __restrict__ rotation, std::int32_t d,
                                               const float* q, float* work, float* out) {
  const std::int32_t columns = d / place.blocks;
  const std::int32_t first = place.rank * columns;
  const std::int32_t rows = kRotationFloats / columns;
  const auto tid = static_cast<std::int32_t>(threadIdx.x);
  float acc[kHeads];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) acc[h] = 0.0f;
#pragma unroll 1
  for (std::int32_t from = 0; from < d; from += rows) {
    const std::int32_t stop = min(from + rows, d);
    if (from > 0) __syncthreads();  // the last rows are used up
#pragma unroll 4
    for (std::int32_t i = tid; i < (stop - from) * columns;
         i += static_cast<std::int32_t>(blockDim.x)) {
      const std::int32_t row = i / columns;
      work[i] = __ldg(rotation + (from + row) * d + first + (i - row * columns));
    }
    __syncthreads();
    if (tid < columns) {
#pragma unroll 8
      for (std::int32_t i = from; i < stop; ++i) {
        const float x = work[(i - from) * columns + tid];
#pragma unroll
        for (int h = 0; h < kHeads; ++h) acc[h] = fmaf(q[h * d + i], x, acc[h]);
      }
    }
  }
  cluster_wait(place);
  if (tid < columns) {
    for (std::int32_t rank = 0; rank < place.blocks; ++rank) {
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        store_to_block(place, out + h * d + first + tid, rank, acc[h]);
      }
    }
  }
  cluster_arrive(place);
  cluster_wait(place);
}

/// lut[(s * kHeads + h) * kStride + c] = q[h] . centroid c of subspace s, over its first dsub
/// coordinates. `codebook` is one KV head's [m][dcent][ksub]: neighbouring threads read
/// neighbouring centroids. kStride >= ksub keeps a head's table at a constant offset, and a
/// table of at most 32 entries free of bank conflicts whatever the codes.
template <int kHeads, int kStride>
__device__ __forceinline__ void build_luts(const IndexView& ix, const float* __restrict__ codebook,
                                           const float* q, float* lut) {
#pragma unroll 1
  for (std::int32_t e = threadIdx.x; e < ix.num_subspaces << ix.bits; e += blockDim.x) {
    const std::int32_t s = e >> ix.bits;
    const std::int32_t c = e & (ix.ksub - 1);
    float acc[kHeads];
    dot_column<kHeads>(codebook + static_cast<std::int64_t>(s) * ix.dcent * ix.ksub + c, ix.ksub,
                       q + s * ix.dsub, ix.head_dim, ix.dsub, acc);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) lut[(s * kHeads + h) * kStride + c] = acc[h];
  }
}

}  // namespace quarry::cuda
