// SPDX-License-Identifier: Apache-2.0
//
// What encode_columns_kernel keeps of a KV head in shared memory: the rotation and the centroids
// as b of mmas, in halves of bfloat16, and what bound.h needs to know of each subspace.
#pragma once

#include "common/copy.cuh"
#include "common/mma.cuh"
#include "encode/bound.h"

namespace quarry::cuda {

constexpr int kColumnsCentroids = 16;

/// Pointers into shared memory. A lane's g = lane / 4, t = lane % 4.
struct ColumnsTable {
  uint4* rotation;   ///< [m][low, high][d / 32][lane]: of column 8 s + g rows 2t, 2t + 1 and rows
                     ///< 2t + 8, 2t + 9, then the same 16 rows on
  uint4* centroids;  ///< [m][2][lane]: of -2 c, centroid g (+ 8), dimensions 2t, 2t + 1: the high
                     ///< half twice, the low half twice
  float4* norms;     ///< [m][2][4]: |c|^2 of centroids 2t, 2t + 1 (+ 8), twice
  ColumnsGap* gaps;  ///< [m]
  uint4* ids;        ///< [4]: 2t, 2t + 1, 2t + 8, 2t + 9; from memory, since they would be made
                     ///< anew of each other for every distance
};

/// The larger of two that are not negative, NaN more than any.
__device__ __forceinline__ float larger(float a, float b) {
  const std::uint32_t x = __float_as_uint(a), y = __float_as_uint(b);
  return __uint_as_float(x > y ? x : y);
}

/// The largest over sixteen lanes, likewise.
__device__ __forceinline__ float largest_of_sixteen(float v) {
#pragma unroll
  for (int step = 8; step > 0; step /= 2) v = larger(v, __shfl_xor_sync(0xffffffffu, v, step));
  return v;
}

/// What two values' halves leave of them.
__device__ __forceinline__ float2 rest_of_halves(float a, float b) {
  std::uint32_t high, low;
  split2(a, b, &high, &low);
  return make_float2(a - __uint_as_float(high << 16) - __uint_as_float(low << 16),
                     b - __uint_as_float(high & 0xffff0000u) - __uint_as_float(low & 0xffff0000u));
}

/// At least |x . R_s| / |x|: the root of the largest eigenvalue of R_s' R_s, which neither its
/// trace nor its largest row of absolute values is below. Sixteen lanes a subspace: a row of the
/// product and one half of the dimensions each. columns: shared, the subspace's first column.
template <int kDim>
__device__ __forceinline__ float stretch_of(const float* columns) {
  const int j = static_cast<int>(threadIdx.x) % 8, half = static_cast<int>(threadIdx.x) / 8 % 2;
  float gram[8] = {};
#pragma unroll 8
  for (int i = half; i < kDim; i += 2) {
    const auto* row = reinterpret_cast<const float4*>(columns + i * kDim);
    const float own = columns[i * kDim + j];
    const float4 a = row[0], b = row[1];
    const float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int l = 0; l < 8; ++l) gram[l] = fmaf(own, v[l], gram[l]);
  }
  float across = 0, trace = 0;
#pragma unroll
  for (int l = 0; l < 8; ++l) {
    const float entry = fabsf(gram[l] + __shfl_xor_sync(0xffffffffu, gram[l], 8));
    across += entry;
    trace = l == j ? entry : trace;
  }
#pragma unroll
  for (int step = 1; step < 8; step *= 2) trace += __shfl_xor_sync(0xffffffffu, trace, step);
  across = largest_of_sixteen(across);
  // fminf would drop a NaN.
  return sqrtf(across < trace ? across : trace);
}

/// Fills the table. All threads of the block call it, an even number of warps; a barrier must
/// follow. rotation [d][d], codebook [m][8][16]: the KV head's. scratch:
/// shared, [d][d].
template <int kSteps>
__device__ __forceinline__ void load_columns(const float* __restrict__ rotation,
                                             const float* __restrict__ codebook, float* scratch,
                                             const ColumnsTable& table) {
  constexpr int kDim = 16 * kSteps, kSubspaces = 2 * kSteps;
  const auto tid = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
#pragma unroll 4
  for (int i = tid; i < kDim * kDim / 4; i += threads) {
    copy_async<16>(scratch + i * 4, rotation + i * 4);
  }
#pragma unroll 4
  for (int item = tid; item < kSubspaces * 64; item += threads) {
    const int s = item / 64, id = item / 4 % 16, t = item % 4;
    const float* c = codebook + (s * 8 + t * 2) * kColumnsCentroids + id;
    std::uint32_t high, low;
    split2(-2 * __ldg(c), -2 * __ldg(c + kColumnsCentroids), &high, &low);
    table.centroids[item] = make_uint4(high, high, low, low);
  }
  if (tid < 4) {
    const auto id = static_cast<std::uint32_t>(2 * tid);
    table.ids[tid] = make_uint4(id, id + 1, id + 8, id + 9);
  }
  wait_for_copies();
  __syncthreads();
#pragma unroll 2
  for (int item = tid; item < kSteps * kSteps * 32; item += threads) {
    const int lane = item % 32, two = item / 32 % (kSteps / 2), s = item / 32 / (kSteps / 2);
    const float* at = scratch + (two * 32 + lane % 4 * 2) * kDim + s * 8 + lane / 4;
    uint4 high, low;
    split2(at[0], at[kDim], &high.x, &low.x);
    split2(at[8 * kDim], at[9 * kDim], &high.y, &low.y);
    split2(at[16 * kDim], at[17 * kDim], &high.z, &low.z);
    split2(at[24 * kDim], at[25 * kDim], &high.w, &low.w);
    uint4* to = table.rotation + (s * kSteps + two) * 32 + lane;
    to[0] = low;
    to[kSteps / 2 * 32] = high;
  }
  // Sixteen lanes a subspace, a centroid each.
  const int c = tid % 16;
  for (int s = tid / 16; s < kSubspaces; s += threads / 16) {
    const float stretch = stretch_of<kDim>(scratch + s * 8);
    if (c == 0) table.gaps[s].most = stretch;
  }
  __syncthreads();
#pragma unroll 4
  for (int i = tid; i < kDim * kDim / 2; i += threads) {
    float2& v = reinterpret_cast<float2*>(scratch)[i];
    const float2 rest = rest_of_halves(v.x, v.y);
    const float weight = columns_weight(kDim, i / (kDim / 2));
    v = make_float2(fmaf(weight, fabsf(v.x), fabsf(rest.x)),
                    fmaf(weight, fabsf(v.y), fabsf(rest.y)));
  }
  __syncthreads();
  for (int s = tid / 16; s < kSubspaces; s += threads / 16) {
    float v[8], norm = 0, lever = 0, lost = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      v[j] = fabsf(__ldg(codebook + (s * 8 + j) * kColumnsCentroids + c));
      norm = fmaf(v[j], v[j], norm);
    }
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      const float2 rest = rest_of_halves(2 * v[j], 2 * v[j + 1]);
      lost = fmaf(rest.x, rest.x, fmaf(rest.y, rest.y, lost));
    }
#pragma unroll 8
    for (int i = 0; i < kDim; ++i) {
      const auto* row = reinterpret_cast<const float4*>(scratch + i * kDim + s * 8);
      const float4 a = row[0], b = row[1];
      const float sum = fmaf(a.x, v[0], fmaf(a.y, v[1], fmaf(a.z, v[2], a.w * v[3]))) +
                        fmaf(b.x, v[4], fmaf(b.y, v[5], fmaf(b.z, v[6], b.w * v[7])));
      lever = fmaf(sum, sum, lever);
    }
    auto* norms = reinterpret_cast<float*>(table.norms + s * 8 + c / 2);
    norms[c % 2] = norms[c % 2 + 2] = norm;
    const float reach = sqrtf(largest_of_sixteen(norm));
    lever = sqrtf(largest_of_sixteen(lever));
    lost = sqrtf(largest_of_sixteen(lost));
    if (c == 0) table.gaps[s] = columns_gap({lever, lost, reach, table.gaps[s].most});
  }
}

}  // namespace quarry::cuda
