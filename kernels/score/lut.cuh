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
/// L2 and its latency, not its bytes, is what this costs. kFours: x is read four at a time.
template <int kHeads, int kAhead, bool kFours>
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
    for (int u = 0; u < kAhead; u += kFours ? 4 : 1) {
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        if constexpr (kFours) {
          const float4 q = *reinterpret_cast<const float4*>(x + h * x_stride + from + u);
          acc[h] = fmaf(q.x, v[u], acc[h]);
          acc[h] = fmaf(q.y, v[u + 1], acc[h]);
          acc[h] = fmaf(q.z, v[u + 2], acc[h]);
          acc[h] = fmaf(q.w, v[u + 3], acc[h]);
        } else {
          acc[h] = fmaf(x[h * x_stride + from + u], v[u], acc[h]);
        }
      }
    }
  }
  return from;
}

/// x_stride is a multiple of four, x aligned to as much where count is one.
template <int kHeads>
__device__ __forceinline__ void dot_column(const float* __restrict__ column, std::int32_t step,
                                           const float* x, std::int32_t x_stride,
                                           std::int32_t count, float (&acc)[kHeads]) {
#pragma unroll
  for (int h = 0; h < kHeads; ++h) acc[h] = 0.0f;
  constexpr int kAhead = kHeads == 1 ? 32 : 16;
  if (count % 4 == 0) {
    std::int32_t i = chain_steps<kHeads, kAhead, true>(column, step, x, x_stride, 0, count, acc);
    i = chain_steps<kHeads, 8, true>(column, step, x, x_stride, i, count, acc);
    chain_steps<kHeads, 4, true>(column, step, x, x_stride, i, count, acc);
  } else {
    const std::int32_t i = chain_steps<kHeads, 8, false>(column, step, x, x_stride, 0, count, acc);
    chain_steps<kHeads, 1, false>(column, step, x, x_stride, i, count, acc);
  }
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

/// The same where there is nothing to be seen of what this block wrote: it does not wait for its
/// own memory operations first. Threads of a warp may come one by one.
__device__ __forceinline__ void cluster_arrive_relaxed(const ClusterPlace& place) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (place.blocks > 1) asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
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
  const std::int32_t rows = kRotationFloats / columns & ~3;
  const auto tid = static_cast<std::int32_t>(threadIdx.x);
  const auto threads = static_cast<std::int32_t>(blockDim.x);
  // A thread a head and column; all heads at once, unless there are too many columns.
  const std::int32_t at_once = min(kHeads, threads / columns);
  const std::int32_t own = tid / columns, column = tid - own * columns;
#pragma unroll 1
  for (std::int32_t head = 0; head < kHeads; head += at_once) {
    const std::int32_t h = head + own;
    const bool works = own < at_once && h < kHeads;
    const float* const x = q + (works ? h : 0) * d;
    float acc = 0.0f;
#pragma unroll 1
    for (std::int32_t from = 0; from < d; from += rows) {
      const std::int32_t stop = min(from + rows, d);
      if (head + from > 0) __syncthreads();  // the last rows are used up
      const float* const part = rotation + std::int64_t{from} * d + first;
      if (columns % 4 == 0) {
        const std::int32_t quads = columns / 4;
#pragma unroll 2
        for (std::int32_t i = tid; i < (stop - from) * quads; i += threads) {
          const std::int32_t row = i / quads;
          reinterpret_cast<float4*>(work)[i] =
              __ldg(reinterpret_cast<const float4*>(part + row * d) + (i - row * quads));
        }
      } else {
#pragma unroll 1
        for (std::int32_t i = tid; i < (stop - from) * columns; i += threads) {
          const std::int32_t row = i / columns;
          work[i] = __ldg(part + row * d + (i - row * columns));
        }
      }
      __syncthreads();
      if (!works) continue;
        // `from`, `stop` and d are multiples of four.
#pragma unroll 4
      for (std::int32_t i = from; i < stop; i += 4) {
        const float4 v = *reinterpret_cast<const float4*>(x + i);
        const float* const w = work + (i - from) * columns + column;
        acc = fmaf(v.x, w[0], acc);
        acc = fmaf(v.y, w[columns], acc);
        acc = fmaf(v.z, w[2 * columns], acc);
        acc = fmaf(v.w, w[3 * columns], acc);
      }
    }
    if (head == 0) cluster_wait(place);
    if (!works) continue;
    for (std::int32_t rank = 0; rank < place.blocks; ++rank) {
      store_to_block(place, out + h * d + first + column, rank, acc);
    }
  }
  cluster_arrive(place);
  cluster_wait(place);
}

/// lut[(s * kHeads + h) * kStride + c] = q[h] . centroid c of subspace s, over its first dsub
/// coordinates. `codebook` is one KV head's [m][dcent][ksub]: neighbouring threads read
/// neighbouring centroids. kStride >= ksub keeps a head's table at a constant offset, and a
/// table of at most 32 entries free of bank conflicts whatever the codes. made(s, h, entry) is
/// called for every entry, by all threads of a warp that make entries of subspace s at once.
template <int kHeads, int kStride, typename Made>
__device__ __forceinline__ void build_luts(const IndexView& ix, const float* __restrict__ codebook,
                                           const float* q, float* lut, Made made) {
#pragma unroll 1
  for (std::int32_t e = threadIdx.x; e < ix.num_subspaces << ix.bits; e += blockDim.x) {
    const std::int32_t s = e >> ix.bits;
    const std::int32_t c = e & (ix.ksub - 1);
    float acc[kHeads];
    dot_column<kHeads>(codebook + static_cast<std::int64_t>(s) * ix.dcent * ix.ksub + c, ix.ksub,
                       q + s * ix.dsub, ix.head_dim, ix.dsub, acc);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      lut[(s * kHeads + h) * kStride + c] = acc[h];
      made(s, h, acc[h]);
    }
  }
}

/// The same from a copy of the codebook in shared memory, bit for bit.
template <int kHeads, int kStride, typename Made>
__device__ __forceinline__ void build_luts_staged(const IndexView& ix, const float* codebook,
                                                  const float* q, float* lut, Made made) {
  const std::int32_t ksub = ix.ksub;
#pragma unroll 1
  for (std::int32_t e = threadIdx.x; e < ix.num_subspaces << ix.bits; e += blockDim.x) {
    const std::int32_t s = e >> ix.bits, c = e & (ksub - 1);
    const float* column = codebook + s * ix.dcent * ksub + c;
    const float* const x = q + s * ix.dsub;
    float acc[kHeads] = {};
    if (ix.dsub % 4 == 0) {
#pragma unroll 4
      for (std::int32_t i = 0; i < ix.dsub; i += 4, column += 4 * ksub) {
        const float v[4] = {column[0], column[ksub], column[2 * ksub], column[3 * ksub]};
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          const float4 u = *reinterpret_cast<const float4*>(x + h * ix.head_dim + i);
          acc[h] = fmaf(u.x, v[0], acc[h]);
          acc[h] = fmaf(u.y, v[1], acc[h]);
          acc[h] = fmaf(u.z, v[2], acc[h]);
          acc[h] = fmaf(u.w, v[3], acc[h]);
        }
      }
    } else {
#pragma unroll 1
      for (std::int32_t i = 0; i < ix.dsub; ++i, column += ksub) {
#pragma unroll
        for (int h = 0; h < kHeads; ++h) acc[h] = fmaf(x[h * ix.head_dim + i], *column, acc[h]);
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      lut[(s * kHeads + h) * kStride + c] = acc[h];
      made(s, h, acc[h]);
    }
  }
}

}  // namespace quarry::cuda
