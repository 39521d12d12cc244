// SPDX-License-Identifier: Apache-2.0
//
// Training's samples: which encoded vectors are finite, which of them are kept, and the kept
// ones, transformed as encode transforms them.
#pragma once

#include <cub/block/block_scan.cuh>

#include "common/launch.h"
#include "encode/tile.cuh"
#include "encode/tiling.h"
#include "train/scratch.h"

namespace quarry::cuda {

constexpr int kSampleThreads = 256;

/// Dynamic shared memory of `survey` and `gather`.
struct SampleShared {
  float *xs, *ys;  ///< [keys][stride]
  float* means;    ///< [blocks of a tile][d]
  std::size_t bytes = 0;

  __host__ __device__ SampleShared(unsigned char* base, const IndexView& ix, const Tiling& tiling) {
    const auto take = [&](std::size_t size) {
      unsigned char* const here = base == nullptr ? nullptr : base + bytes;
      bytes += (size + 15) / 16 * 16;
      return reinterpret_cast<float*>(here);
    };
    const auto d = static_cast<std::size_t>(ix.head_dim);
    const std::size_t tile = static_cast<std::size_t>(tiling.keys) *
                             static_cast<std::size_t>(tile_stride(ix.head_dim)) * 4;
    xs = take(tile);
    ys = take(ix.rotation != nullptr ? tile : 0);
    means =
        take(ix.block_size > 0 ? static_cast<std::size_t>(tiling.blocks_per_tile()) * d * 4 : 0);
  }
};

/// Rotates the tile where there are rotations; the rows to go on with.
template <int kRows>
__device__ const float* rotated(const IndexView& ix, std::int32_t slot, std::int32_t head, int rows,
                                const SampleShared& sh) {
  if (ix.rotation == nullptr) return sh.xs;
  const std::int64_t book = std::int64_t{codebook_of(ix, slot)} * ix.num_kv_heads + head;
  rotate<kRows>(ix.rotation + book * ix.head_dim * ix.head_dim, ix.head_dim, rows, sh.xs, sh.ys);
  __syncthreads();
  return sh.ys;
}

/// Whether the slot has a codebook that training must leave. Nothing before `choose` changes
/// the answer; later kernels ask finite_counts.
__device__ inline bool keeps_codebook(const TrainParams& p) {
  return p.keep_codebook && p.index.has_codebook[p.step.fixed_slot] != 0;
}

/// Grid (1): the least of all |x|^2, for survey's maxima.
static __global__ void clear_phi_kernel(const __grid_constant__ TrainArgs a) {
  wait_for_predecessor();
  let_successor_start();
  const int problems = a.p.index.num_kv_heads * a.p.index.num_subspaces;
  for (int i = static_cast<int>(threadIdx.x); i < problems; i += static_cast<int>(blockDim.x)) {
    a.p.trained_phi[i] = 0;
  }
}

/// Grid (tiles, Hkv): which positions' vectors are finite, block means, and phi. A vector on
/// a page that is out of range is not finite, and `commit` will refuse.
template <typename E>
__global__ void __launch_bounds__(kSampleThreads)
    survey_kernel(const __grid_constant__ TrainArgs a, const __grid_constant__ Tiling tiling,
                  bool wide) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ int finite[64];
  wait_for_predecessor();
  let_successor_start();
  if (keeps_codebook(a.p)) return;
  const IndexView& ix = a.p.index;
  const auto head = static_cast<std::int32_t>(blockIdx.y);
  const std::int32_t slot = a.p.step.fixed_slot;
  const KeySource source{ix, a.p.keys, block_table_row(a.p.step, 0), slot, head, wide};
  const SampleShared sh(memory, ix, tiling);
  const int d = ix.head_dim, m = ix.num_subspaces, stride = tile_stride(d), quads = d / 4;
  const Tile tile =
      tiling.tile(ix.encode_from, a.p.step.fixed_length, static_cast<std::int32_t>(blockIdx.x));
  if (tile.count == 0) return;
  const auto tid = static_cast<int>(threadIdx.x);
  const int rows = (tile.count + 7) / 8 * 8;
  if (tid < rows) {
    finite[tid] = tid < tile.count && page_of(ix, source.table, slot, tile.first + tid) >= 0;
  }
  load_keys<E>(
      source, rows, [&](int k) { return k < tile.count ? tile.first + k : -1; }, sh.xs);
  __syncthreads();
  if (ix.block_size > 0) {
    const std::int64_t blocks = ix.max_seq_len / ix.block_size;
    subtract_means<E>(source, tiling, tile, sh.xs, sh.means,
                      [&](std::int32_t last, int j, float mean) {
                        a.means[(head * blocks + last / ix.block_size) * d + j] = mean;
                      });
    __syncthreads();
  }
  const float* xs = rotated<8>(ix, slot, head, rows, sh);
  for (int item = tid; item < tile.count * quads; item += kSampleThreads) {
    const int k = item / quads;
    const float4 v = *reinterpret_cast<const float4*>(xs + k * stride + item % quads * 4);
    // x - x is 0, or NaN where x is not finite.
    const float zero = (v.x - v.x) + (v.y - v.y) + (v.z - v.z) + (v.w - v.w);
    if (zero != 0.0f) atomicAnd(finite + k, 0);  // NaN != 0
  }
  __syncthreads();
  if (tid < tile.count) {
    a.finite[std::int64_t{head} * ix.max_seq_len + tile.first + tid - ix.encode_from] =
        static_cast<std::uint8_t>(finite[tid]);
  }
  if (ix.metric != Metric::inner_product) return;
  for (int item = tid; item < tile.count * m; item += kSampleThreads) {
    const int k = item / m, s = item % m;
    if (finite[k] == 0) continue;
    const float norm = squared_norm(xs + k * stride + s * ix.dsub, ix.dsub);
    // Non-negative floats order as integers, and a maximum knows no order of arrival.
    atomicMax(reinterpret_cast<int*>(a.p.trained_phi + head * m + s), __float_as_int(norm));
  }
}

constexpr int kChooseThreads = 1024;

/// Flags [i, i + 16) of a row, a byte each, 0 from `end` on. `wide`: aligned to 16 bytes.
__device__ inline void load_flags(const std::uint8_t* row, std::int64_t i, std::int64_t end,
                                  bool wide, std::uint32_t (&words)[4]) {
  if (wide && i + 16 <= end) {
    const uint4 v = *reinterpret_cast<const uint4*>(row + i);
    words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
    return;
  }
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    words[w] = 0;
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      const std::int64_t at = i + w * 4 + b;
      if (at < end) words[w] |= std::uint32_t{row[at]} << b * 8;
    }
  }
}

/// Grid (Hkv): finite_counts, and the positions that are kept, ascending: of the finite ones
/// those of rank floor(i * count / kept). A count of -1: the slot's codebook stays.
static __global__ void __launch_bounds__(kChooseThreads)
    choose_kernel(const __grid_constant__ TrainArgs a) {
  using Scan = cub::BlockScan<std::int32_t, kChooseThreads>;
  __shared__ typename Scan::TempStorage temp;
  wait_for_predecessor();
  let_successor_start();
  const TrainParams& p = a.p;
  const auto head = static_cast<std::int32_t>(blockIdx.x);
  if (keeps_codebook(p)) {
    if (threadIdx.x == 0) p.finite_counts[head] = -1;
    return;
  }
  const std::uint8_t* finite = a.finite + std::int64_t{head} * p.index.max_seq_len;
  const bool wide = p.index.max_seq_len % 16 == 0;
  constexpr std::int32_t kStep = kChooseThreads * 16;
  const std::int64_t each = (std::int64_t{p.num_positions} + kStep - 1) / kStep * 16;
  const std::int64_t first = each * threadIdx.x;
  const std::int64_t end = first + each < p.num_positions ? first + each : p.num_positions;
  std::int32_t mine = 0, rank = 0, count = 0;
  std::uint32_t words[4];
  for (std::int64_t i = first; i < end; i += 16) {
    load_flags(finite, i, end, wide, words);
    mine += __popc(words[0]) + __popc(words[1]) + __popc(words[2]) + __popc(words[3]);
  }
  Scan(temp).ExclusiveSum(mine, rank, count);
  if (threadIdx.x == 0) p.finite_counts[head] = count;
  const std::int32_t kept = count < p.max_samples ? count : p.max_samples;
  if (mine == 0) return;
  SampleWalk walk(rank, count, kept);
  std::int32_t* positions = p.sample_positions + std::int64_t{head} * p.max_samples;
  for (std::int64_t i = first; i < end; i += 16) {
    load_flags(finite, i, end, wide, words);
#pragma unroll
    for (int b = 0; b < 16; ++b) {
      if ((words[b / 4] >> b % 4 * 8 & 1u) == 0) continue;
      const std::int32_t sample = walk.take(rank++);
      if (sample >= 0) positions[sample] = p.index.encode_from + static_cast<std::int32_t>(i) + b;
    }
  }
}

/// Samples of a head: 0 where there are too few to train on.
__device__ inline std::int32_t samples_of(const TrainParams& p, std::int32_t head) {
  const std::int32_t count = p.finite_counts[head];
  if (count < p.index.ksub) return 0;
  return count < p.max_samples ? count : p.max_samples;
}

/// Narrows v, which a storage type S holds exactly.
template <typename S>
__device__ typename S::Bits narrow(float v) {
  if constexpr (sizeof(typename S::Bits) == 4) {
    return v;
  } else if constexpr (std::is_same_v<S, Float16>) {
    return float_to_half(v);
  } else {
    return float_to_bfloat16(v);
  }
}

/// Grid (tiles of max_samples, Hkv): samples [problem][max_samples][dcent].
template <typename E, typename S>
__global__ void __launch_bounds__(kSampleThreads)
    gather_kernel(const __grid_constant__ TrainArgs a, const __grid_constant__ Tiling tiling,
                  bool wide) {
  extern __shared__ __align__(16) unsigned char memory[];
  wait_for_predecessor();
  let_successor_start();
  const TrainParams& p = a.p;
  const IndexView& ix = p.index;
  const auto head = static_cast<std::int32_t>(blockIdx.y);
  const std::int32_t first = static_cast<std::int32_t>(blockIdx.x) * tiling.keys;
  const std::int32_t left = samples_of(p, head) - first;
  const std::int32_t count = left < tiling.keys ? left : tiling.keys;
  if (count <= 0) return;
  const std::int32_t* positions = p.sample_positions + std::int64_t{head} * p.max_samples + first;
  const KeySource source{ix, p.keys, block_table_row(p.step, 0), p.step.fixed_slot, head, wide};
  const SampleShared sh(memory, ix, tiling);
  const int d = ix.head_dim, m = ix.num_subspaces, stride = tile_stride(d);
  const int rows = (count + 7) / 8 * 8;
  const auto tid = static_cast<int>(threadIdx.x);
  load_keys<E>(
      source, rows, [&](int k) { return k < count ? positions[k] : -1; }, sh.xs);
  __syncthreads();
  if (ix.block_size > 0) {
    const std::int64_t blocks = ix.max_seq_len / ix.block_size;
    for (int item = tid; item < count * d; item += kSampleThreads) {
      const int k = item / d, j = item % d;
      sh.xs[k * stride + j] -= a.means[(head * blocks + positions[k] / ix.block_size) * d + j];
    }
    __syncthreads();
  }
  const float* xs = rotated<8>(ix, p.step.fixed_slot, head, rows, sh);
  auto* const out = reinterpret_cast<typename S::Bits*>(p.samples);
  for (int item = tid; item < count * d; item += kSampleThreads) {
    const int k = item / d, j = item % d, s = j / ix.dsub;
    const std::int64_t row = (std::int64_t{head} * m + s) * p.max_samples + first + k;
    out[row * ix.dcent + j % ix.dsub] = narrow<S>(xs[k * stride + j]);
  }
  if (ix.metric != Metric::inner_product) return;
  for (int item = tid; item < count * m; item += kSampleThreads) {
    const int k = item / m, s = item % m;
    const std::int64_t row = (std::int64_t{head} * m + s) * p.max_samples + first + k;
    const float norm = squared_norm(xs + k * stride + s * ix.dsub, ix.dsub);
    out[row * ix.dcent + ix.dsub] = narrow<S>(augmentation(p.trained_phi[head * m + s], norm));
  }
}

}  // namespace quarry::cuda
