// SPDX-License-Identifier: Apache-2.0
//
// Lloyd's iterations for the shapes that step.cuh does not serve. The nearest centroid is found
// on tensor cores as the least of |c|^2 - 2 x.c, with samples and centroids split into two
// bfloat16 each (16 bits of mantissa): it steers training alone; final codes come from stage
// encode. Sums are float32 in an order that the sizes fix.
#pragma once

#include "common/launch.h"
#include "common/mma.cuh"
#include "philox.h"
#include "train/sample.cuh"

namespace quarry::cuda {

constexpr int kAssignThreads = 256;
constexpr int kTileSamples = 128;  // a warp takes 16
constexpr int kTilesPerBlock = 4;  // share one load of the centroids
constexpr int kChunkCentroids = 64;
constexpr int kChunkDims = 64;
constexpr int kRowHalves = kChunkDims + 8;  // rows 16 bytes off each other's banks

struct AssignShared {
  __nv_bfloat16 x[2][kTileSamples][kRowHalves];  // high and low part
  __nv_bfloat16 c[2][kChunkCentroids][kRowHalves];
  float norms[4][kChunkCentroids];
};

__device__ __forceinline__ void store8(__nv_bfloat16* to, const __nv_bfloat16 (&v)[8]) {
  *reinterpret_cast<uint4*>(to) =
      make_uint4(pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7]));
}

/// Dimensions [0, dims) of kTileSamples samples, zeros past them and past `count` samples.
template <typename S>
__device__ void load_samples(AssignShared& sh, const typename S::Bits* __restrict__ from, int dcent,
                             std::int32_t count, int dims) {
  const bool wide = dcent % 8 == 0;  // then rows and slices are aligned to 16 bytes
  const int eighths = (dims + 15) / 16 * 2;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < kTileSamples * eighths; i += kAssignThreads) {
    const int k = i / eighths, j = i % eighths * 8;
    const typename S::Bits* row = from + std::int64_t{k} * dcent + j;
    float v[8] = {};
    if (k < count && j + 8 <= dims) {
      load8<S>(row, wide, v);
    } else if (k < count) {
#pragma unroll
      for (int l = 0; l < 8; ++l) v[l] = j + l < dims ? S::widen(__ldg(row + l)) : 0.0f;
    }
    __nv_bfloat16 high[8], low[8];
#pragma unroll
    for (int l = 0; l < 8; ++l) split(v[l], high + l, low + l);
    store8(&sh.x[0][k][j], high);
    if constexpr (!std::is_same_v<S, BFloat16>) store8(&sh.x[1][k][j], low);
  }
}

/// Grid (blocks of max_samples, problems): assignment of every sample. S: storage type.
template <typename S>
__global__ void __launch_bounds__(kAssignThreads, 2)
    assign_kernel(const __grid_constant__ TrainArgs a) {
  extern __shared__ __align__(16) unsigned char memory[];
  AssignShared& sh = *reinterpret_cast<AssignShared*>(memory);
  constexpr bool kLow = !std::is_same_v<S, BFloat16>;  // the samples have a low part
  wait_for_predecessor();
  let_successor_start();
  const TrainParams& p = a.p;
  const IndexView& ix = p.index;
  const std::int64_t problem = blockIdx.y;
  const std::int32_t count =
      samples_of(p, static_cast<std::int32_t>(blockIdx.y) / ix.num_subspaces);
  const int dcent = ix.dcent, ksub = ix.ksub;
  const float* centroids = p.centroids + problem * dcent * ksub;
  const auto* samples =
      reinterpret_cast<const typename S::Bits*>(p.samples) + problem * p.max_samples * dcent;
  const int tid = static_cast<int>(threadIdx.x), lane = tid & 31, warp = tid >> 5;
  const int chunks = (ksub + kChunkCentroids - 1) / kChunkCentroids;
  const int slices = (dcent + kChunkDims - 1) / kChunkDims;

  for (int t = 0; t < kTilesPerBlock; ++t) {
    const std::int32_t first =
        (static_cast<std::int32_t>(blockIdx.x) * kTilesPerBlock + t) * kTileSamples;
    if (first >= count) return;
    float best[2] = {INFINITY, INFINITY};
    int best_id[2] = {0, 0};
    for (int chunk = 0; chunk < chunks; ++chunk) {
      float acc[kChunkCentroids / 8][4] = {};
      for (int slice = 0; slice < slices; ++slice) {
        const int j0 = slice * kChunkDims;
        const int dims = dcent - j0 < kChunkDims ? dcent - j0 : kChunkDims;
        const int padded = (dims + 15) / 16 * 16;
        const bool load_x = slices > 1 || chunk == 0;
        const bool load_c = t == 0 || chunks * slices > 1;
        __syncthreads();  // the last round has been read
        if (load_x) {
          load_samples<S>(sh, samples + std::int64_t{first} * dcent + j0, dcent, count - first,
                          dims);
        }
        if (load_c) {
          // Four threads a centroid, each every fourth dimension.
          const int c = tid % kChunkCentroids, quarter = tid / kChunkCentroids;
          const int id = chunk * kChunkCentroids + c;
          float norm = slice == 0 ? 0.0f : sh.norms[quarter][c];
          for (int j = quarter; j < padded; j += 4) {
            const float v = id < ksub && j < dims
                                ? centroids[static_cast<std::int64_t>(j0 + j) * ksub + id]
                                : 0.0f;
            split(v, &sh.c[0][c][j], &sh.c[1][c][j]);
            norm = fmaf(v, v, norm);
          }
          sh.norms[quarter][c] = norm;
        }
        __syncthreads();
        for (int j = 0; j < padded; j += 16) {
          // Rows lane % 16 and halves lane / 16 of the 16 x 16 tile of samples.
          const __nv_bfloat16* x = &sh.x[0][warp * 16 + lane % 16][j + lane / 16 * 8];
          std::uint32_t high[4], low[4];
          load_matrices(high, x);
          if constexpr (kLow) load_matrices(low, x + kTileSamples * kRowHalves);
#pragma unroll
          for (int n = 0; n < kChunkCentroids / 16; ++n) {
            // Two n-tiles of 8 centroids: matrices (n, k low), (n, k high), (n + 8, ...).
            const __nv_bfloat16* c =
                &sh.c[0][n * 16 + lane / 16 * 8 + lane % 8][j + lane / 8 % 2 * 8];
            std::uint32_t ch[4], cl[4];
            load_matrices(ch, c);
            load_matrices(cl, c + kChunkCentroids * kRowHalves);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              float(&to)[4] = acc[2 * n + half];
              multiply_add(to, high, ch[2 * half], ch[2 * half + 1]);
              multiply_add(to, high, cl[2 * half], cl[2 * half + 1]);
              if constexpr (kLow) multiply_add(to, low, ch[2 * half], ch[2 * half + 1]);
            }
          }
        }
      }
      // A thread holds rows lane / 4 and + 8, columns 2 * (lane % 4) and + 1 of each n-tile:
      // ascending ids, so the first least stays.
#pragma unroll
      for (int n = 0; n < kChunkCentroids / 8; ++n) {
#pragma unroll
        for (int col = 0; col < 2; ++col) {
          const int c = n * 8 + lane % 4 * 2 + col, id = chunk * kChunkCentroids + c;
          if (id >= ksub) continue;
          const float norm = (sh.norms[0][c] + sh.norms[1][c]) + (sh.norms[2][c] + sh.norms[3][c]);
#pragma unroll
          for (int row = 0; row < 2; ++row) {
            const float v = fmaf(-2.0f, acc[n][row * 2 + col], norm);
            if (v < best[row]) best[row] = v, best_id[row] = id;
          }
        }
      }
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
#pragma unroll
      for (int step = 1; step < 4; step *= 2) {
        const float v = __shfl_xor_sync(0xffffffffu, best[row], step);
        const int id = __shfl_xor_sync(0xffffffffu, best_id[row], step);
        if (v < best[row] || (v == best[row] && id < best_id[row])) {
          best[row] = v, best_id[row] = id;
        }
      }
      const std::int32_t k = first + warp * 16 + lane / 4 + row * 8;
      if (lane % 4 == 0 && k < count) {
        p.assignment[problem * p.max_samples + k] = static_cast<std::uint8_t>(best_id[row]);
      }
    }
  }
}

/// Warps of `sum_kernel`: each has a table of sums of its own.
__host__ __device__ constexpr int sum_warps(int ksub) {
  return ksub >= 256 ? 2 : ksub >= 128 ? 4 : 8;
}
constexpr std::size_t sum_shared_bytes(int ksub) {
  return static_cast<std::size_t>(sum_warps(ksub)) * static_cast<std::size_t>(ksub) * 33 * 4 +
         static_cast<std::size_t>(ksub) * 4;
}

/// Grid (parts, ceil(dcent / 32), problems), a lane a dimension: sums and counts of a part's
/// clusters.
template <typename S>
__global__ void __launch_bounds__(256) sum_kernel(const __grid_constant__ TrainArgs a) {
  extern __shared__ float sums[];  // [warps][ksub][33], then counts [ksub]
  wait_for_predecessor();
  let_successor_start();
  const TrainParams& p = a.p;
  const IndexView& ix = p.index;
  const int ksub = ix.ksub, dcent = ix.dcent, threads = static_cast<int>(blockDim.x);
  const std::int64_t problem = blockIdx.z, problems = gridDim.z;
  const std::int32_t count =
      samples_of(p, static_cast<std::int32_t>(blockIdx.z) / ix.num_subspaces);
  const std::int32_t part_first = static_cast<std::int32_t>(blockIdx.x) * kPartSamples;
  if (part_first >= count) return;
  const int tid = static_cast<int>(threadIdx.x), lane = tid & 31, warp = tid >> 5;
  const int warps = threads / 32, table = ksub * 33, dim = static_cast<int>(blockIdx.y) * 32 + lane;
  auto* const counts = reinterpret_cast<std::int32_t*>(sums + warps * table);
  for (int i = tid; i < warps * table; i += threads) sums[i] = 0;
  for (int i = tid; i < ksub; i += threads) counts[i] = 0;
  __syncthreads();

  const std::int32_t each = kPartSamples / warps, first = part_first + warp * each;
  const std::int32_t end = first + each < count ? first + each : count;
  const auto* samples = reinterpret_cast<const typename S::Bits*>(p.samples) +
                        problem * p.max_samples * dcent + (dim < dcent ? dim : dcent - 1);
  const std::uint8_t* assignment = p.assignment + problem * p.max_samples;
  float* mine = sums + warp * table + lane;
  for (std::int32_t i = first; i < end; i += 32) {
    const bool in = i + lane < end;
    const int id = in ? assignment[i + lane] : 0;
    if (in && blockIdx.y == 0) atomicAdd(counts + id, 1);
    const int n = end - i < 32 ? end - i : 32;
    if (n == 32) {
#pragma unroll
      for (int u = 0; u < 32; u += 16) {
        float v[16];
#pragma unroll
        for (int l = 0; l < 16; ++l) {
          v[l] = S::widen(__ldg(samples + std::int64_t{i + u + l} * dcent));
        }
#pragma unroll
        for (int l = 0; l < 16; ++l) mine[__shfl_sync(0xffffffffu, id, u + l) * 33] += v[l];
      }
    } else {
      for (int u = 0; u < n; ++u) {
        mine[__shfl_sync(0xffffffffu, id, u) * 33] +=
            S::widen(__ldg(samples + std::int64_t{i + u} * dcent));
      }
    }
  }
  __syncthreads();
  const std::int64_t out = std::int64_t{blockIdx.x} * problems + problem;
  for (int i = tid; i < 32 * ksub; i += threads) {
    const int l = i / ksub, c = i % ksub, j = static_cast<int>(blockIdx.y) * 32 + l;
    if (j >= dcent) break;
    float sum = 0;
    for (int w = 0; w < warps; ++w) sum += sums[w * table + c * 33 + l];
    a.part_sums[(out * dcent + j) * ksub + c] = sum;
  }
  if (blockIdx.y != 0) return;
  for (int i = tid; i < ksub; i += threads) a.part_counts[out * ksub + i] = counts[i];
}

}  // namespace quarry::cuda
