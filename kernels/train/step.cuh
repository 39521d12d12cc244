// SPDX-License-Identifier: Apache-2.0
//
// One of Lloyd's iterations over samples of 16 bits, read once: the nearest centroids and the
// clusters' sums, both on tensor cores.
//
// The nearest is the least of |c|^2 / 2 - x.c with c rounded to the samples' own type. A
// sample is a key that was rounded to that type before, so the search sees a centroid moved by
// no more than the keys were; the means themselves stay float32, and final codes come from
// stage encode. Sums are products of samples with a matrix of ones and zeros, exact, added up in
// float32 in an order that the sizes fix.
#pragma once

#include "common/launch.h"
#include "common/mma.cuh"
#include "train/sample.cuh"

namespace quarry::cuda {

constexpr int kStepThreads = 256;
constexpr int kStepWarps = kStepThreads / 32;

/// Cuts of the work that the padded shape decides. kDims: 16, 32, 64 or 128; kCents: 16 or 64.
template <int kDims, int kCents>
struct StepShape {
  // Row tiles of 16 samples that a warp assigns at once: two share a load of the centroids.
  static constexpr int kRowTiles = kDims > 64 ? 1 : 2;
  static constexpr int kSamples = kStepWarps * 16 * kRowTiles;
  // Sums: a warp has 16 centroids, kUnits * 16 dimensions and every kSplit-th 16 samples.
  static constexpr int kCentWarps = kCents / 16;
  static constexpr int kDimWarps =
      kDims / 16 < kStepWarps / kCentWarps ? kDims / 16 : kStepWarps / kCentWarps;
  static constexpr int kSplit = kStepWarps / (kCentWarps * kDimWarps);
  static constexpr int kUnits = kDims / 16 / kDimWarps;
  static constexpr int kRow = kDims + 8;  // eight rows fall into distinct banks
};

template <int kDims, int kCents>
struct StepShared {
  using Shape = StepShape<kDims, kCents>;
  union {
    alignas(16) std::uint16_t x[2][Shape::kSamples][Shape::kRow];
    float sums[Shape::kSplit][kDims][kCents + 1];  // after the last tile
  };
  alignas(16) std::uint16_t c[kCents][Shape::kRow];  // -c
  alignas(16) float norms[kCents];                   // |c|^2 / 2
  // Of 16 samples: 0, 1, 8, 9, 2, 3, 10, 11, ...: what a lane needs is side by side. As
  // float16, in which a comparison gives ones and zeros; infinity where there is no sample.
  alignas(16) std::uint16_t ids[Shape::kSamples];
  std::int32_t counts[kCents];
};

template <typename S>
__device__ __forceinline__ void multiply_add_as(float (&d)[4], const std::uint32_t (&a)[4],
                                                std::uint32_t b0, std::uint32_t b1) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    multiply_add(d, a, b0, b1);
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

/// load_matrices of the transposed matrices.
__device__ __forceinline__ void load_transposed(std::uint32_t (&r)[4], const void* row) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/// 16 bytes to shared memory, or zeros; done after wait_for_copies().
__device__ __forceinline__ void copy16(void* to, const void* from, bool there) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

/// Two float16: 1 where the halves of a and b are equal, else 0.
__device__ __forceinline__ std::uint32_t equal2(std::uint32_t a, std::uint32_t b) {
  std::uint32_t r;
  asm("set.eq.f16x2.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}

/// The bits of a small integer as float16.
__device__ __forceinline__ std::uint32_t half_of(int i) {
  std::uint16_t r;
  asm("cvt.rn.f16.s32 %0, %1;" : "=h"(r) : "r"(i));
  return r;
}

/// -c and |c|^2 / 2 of the rounded centroids; a barrier must follow.
template <typename S, int kDims, int kCents>
__device__ void load_centroids(StepShared<kDims, kCents>& sh, const float* __restrict__ centroids,
                               int dcent, int ksub) {
  const auto tid = static_cast<int>(threadIdx.x);
#pragma unroll 8
  for (int i = tid; i < kCents * kDims; i += kStepThreads) {
    const int c = i % kCents, j = i / kCents;
    const float v = c < ksub && j < dcent ? centroids[j * ksub + c] : 0.0f;
    sh.c[c][j] = static_cast<std::uint16_t>(narrow<S>(v) ^ 0x8000u);
  }
  __syncthreads();
  // Four lanes a centroid.
  const int c = tid / 4 % kCents, quarter = tid % 4;
  float norm = 0;
#pragma unroll
  for (int j = 0; j < kDims / 4; ++j) {
    const float v = S::widen(sh.c[c][j * 4 + quarter]);
    norm = fmaf(v, v, norm);
  }
  norm += __shfl_xor_sync(0xffffffffu, norm, 1);
  norm += __shfl_xor_sync(0xffffffffu, norm, 2);
  if (quarter == 0 && tid / 4 < kCents) sh.norms[c] = c < ksub ? 0.5f * norm : INFINITY;
}

/// best[2 * r + i]: the centroid nearest to sample lane / 4 + 8 * i of the warp's row tile r.
template <typename S, int kDims, int kCents>
__device__ __forceinline__ void assign_rows(const StepShared<kDims, kCents>& sh, int buffer,
                                            int warp, int lane,
                                            int (&best)[2 * StepShape<kDims, kCents>::kRowTiles]) {
  constexpr int kRowTiles = StepShape<kDims, kCents>::kRowTiles;
  float acc[kRowTiles][kCents / 8][4];
#pragma unroll
  for (int n = 0; n < kCents / 8; ++n) {
    const float2 norm = *reinterpret_cast<const float2*>(&sh.norms[n * 8 + lane % 4 * 2]);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      acc[r][n][0] = acc[r][n][2] = norm.x;
      acc[r][n][1] = acc[r][n][3] = norm.y;
    }
  }
#pragma unroll(kDims > 64 ? 2 : 4)  // more would spill
  for (int j = 0; j < kDims; j += 16) {
    std::uint32_t x[kRowTiles][4];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      load_matrices(x[r],
                    &sh.x[buffer][(warp * kRowTiles + r) * 16 + lane % 16][j + lane / 16 * 8]);
    }
#pragma unroll
    for (int n = 0; n < kCents / 16; ++n) {
      // Two n-tiles of 8 centroids: matrices (n, k low), (n, k high), (n + 8, ...).
      std::uint32_t c[4];
      load_matrices(c, &sh.c[n * 16 + lane / 16 * 8 + lane % 8][j + lane / 8 % 2 * 8]);
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        multiply_add_as<S>(acc[r][2 * n], x[r], c[0], c[1]);
        multiply_add_as<S>(acc[r][2 * n + 1], x[r], c[2], c[3]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2 * kRowTiles; ++i) {
    // Ascending ids, so the first least stays; all NaN or infinite gives 0.
    float least = INFINITY;
    int code = 0;
#pragma unroll
    for (int l = 0; l < kCents / 4; ++l) {
      const float v = acc[i / 2][l / 2][i % 2 * 2 + l % 2];
      if (v < least) least = v, code = l / 2 * 8 + l % 2;
    }
    int id = code + lane % 4 * 2;
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      const float v = __shfl_xor_sync(0xffffffffu, least, step);
      const int other = __shfl_xor_sync(0xffffffffu, id, step);
      if (v < least || (v == least && other < id)) least = v, id = other;
    }
    best[i] = id;
  }
}

/// Grid (parts, problems): assignment of every sample, sums and counts of a part's clusters.
/// dcent is a multiple of 8, at most kDims; ksub is at most kCents.
template <typename S, int kDims, int kCents>
__global__ void __launch_bounds__(kStepThreads, 2)
    step_kernel(const __grid_constant__ TrainArgs a) {
  using Shape = StepShape<kDims, kCents>;
  constexpr int kSamples = Shape::kSamples, kUnits = Shape::kUnits;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& sh = *reinterpret_cast<StepShared<kDims, kCents>*>(memory);
  wait_for_predecessor();
  let_successor_start();
  const TrainParams& p = a.p;
  const int dcent = p.index.dcent, ksub = p.index.ksub;
  const std::int64_t problem = blockIdx.y, problems = gridDim.y;
  const std::int32_t count =
      samples_of(p, static_cast<std::int32_t>(blockIdx.y) / p.index.num_subspaces);
  const std::int32_t part = static_cast<std::int32_t>(blockIdx.x) * kPartSamples;
  if (part >= count) return;
  const std::int32_t end = part + kPartSamples < count ? part + kPartSamples : count;
  const auto* samples =
      reinterpret_cast<const typename S::Bits*>(p.samples) + problem * p.max_samples * dcent;
  const int tid = static_cast<int>(threadIdx.x), lane = tid & 31, warp = tid >> 5;

  const auto load = [&](int buffer, std::int32_t first) {
    constexpr int kChunks = kDims / 8;
#pragma unroll(kDims > 64 ? 2 : 4)
    for (int i = tid; i < kSamples * kChunks; i += kStepThreads) {
      const int k = i / kChunks, j = i % kChunks * 8;
      const bool there = first + k < end && j < dcent;
      copy16(&sh.x[buffer][k][j], there ? samples + (first + k) * std::int64_t{dcent} + j : samples,
             there);
    }
  };
  load(0, part);
  for (int i = tid; i < kCents; i += kStepThreads) sh.counts[i] = 0;
  load_centroids<S, kDims, kCents>(sh, p.centroids + problem * dcent * ksub, dcent, ksub);

  const int cent = warp % Shape::kCentWarps * 16;
  const int dim = warp / Shape::kCentWarps % Shape::kDimWarps * kUnits * 16;
  const int split = warp / (Shape::kCentWarps * Shape::kDimWarps);
  const std::uint32_t low = half_of(cent + lane / 4) * 0x10001u;
  const std::uint32_t high = half_of(cent + 8 + lane / 4) * 0x10001u;
  float sums[kUnits][2][4] = {};
  for (std::int32_t first = part; first < end; first += kSamples) {
    const int buffer = (first - part) / kSamples % 2;
    wait_for_copies();
    __syncthreads();  // the tile is there, the other buffer and the ids have been read
    if (first + kSamples < end) load(buffer ^ 1, first + kSamples);

    int best[2 * Shape::kRowTiles];
    assign_rows<S, kDims, kCents>(sh, buffer, warp, lane, best);
    // All four lanes of a quad know all of its samples' centroids: each stores one.
    int mine = best[0];
#pragma unroll
    for (int i = 1; i < 2 * Shape::kRowTiles; ++i) mine = lane % 4 == i ? best[i] : mine;
    if (lane % 4 < 2 * Shape::kRowTiles) {
      const int g = lane / 4, row = lane % 2;  // row: + 8
      const int tile = (warp * Shape::kRowTiles + lane % 4 / 2) * 16;
      const std::int32_t k = first + tile + g + row * 8;
      sh.ids[tile + g / 2 * 4 + g % 2 + row * 2] =
          static_cast<std::uint16_t>(k < end ? half_of(mine) : 0x7c00u);
      if (k < end) {
        p.assignment[problem * p.max_samples + k] = static_cast<std::uint8_t>(mine);
        atomicAdd(&sh.counts[mine], 1);
      }
    }
    __syncthreads();
#pragma unroll(kUnits > 2 ? 2 : 4)
    for (int g = split; g < kSamples / 16; g += Shape::kSplit) {
      const uint2 ids = *reinterpret_cast<const uint2*>(&sh.ids[g * 16 + lane % 4 * 4]);
      const std::uint32_t ones[4] = {equal2(ids.x, low), equal2(ids.x, high), equal2(ids.y, low),
                                     equal2(ids.y, high)};
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        std::uint32_t x[4];
        load_transposed(x, &sh.x[buffer][g * 16 + lane % 16][dim + u * 16 + lane / 16 * 8]);
        multiply_add_as<S>(sums[u][0], ones, x[0], x[1]);
        multiply_add_as<S>(sums[u][1], ones, x[2], x[3]);
      }
    }
  }
  __syncthreads();  // sh.sums takes the place of sh.x
#pragma unroll
  for (int i = 0; i < kUnits * 8; ++i) {
    const int u = i / 8, n = i / 4 % 2, row = i / 2 % 2, col = i % 2;
    sh.sums[split][dim + u * 16 + n * 8 + lane % 4 * 2 + col][cent + lane / 4 + row * 8] =
        sums[u][n][row * 2 + col];
  }
  __syncthreads();
  // The bits of 1 as float16 are those of 2^-7 as bfloat16.
  constexpr float kScale = std::is_same_v<S, BFloat16> ? 128.0f : 1.0f;
  const std::int64_t out = std::int64_t{blockIdx.x} * problems + problem;
  for (int i = tid; i < ksub * dcent; i += kStepThreads) {
    const int c = i % ksub, j = i / ksub;
    float sum = 0;
#pragma unroll
    for (int l = 0; l < Shape::kSplit; ++l) sum += sh.sums[l][j][c];
    a.part_sums[out * dcent * ksub + i] = sum * kScale;
  }
  for (int i = tid; i < ksub; i += kStepThreads) a.part_counts[out * ksub + i] = sh.counts[i];
}

/// Whether `step_kernel` serves a shape of 16-bit samples.
inline bool step_serves(const IndexView& ix) {
  return ix.dcent % 8 == 0 && ix.dcent <= 128 && ix.ksub <= 64;
}

}  // namespace quarry::cuda
