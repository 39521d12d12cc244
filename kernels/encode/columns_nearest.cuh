// SPDX-License-Identifier: Apache-2.0
//
// Keys times a warp's columns of the rotation, and the nearest of its two subspaces' 16 centroids
// each. Keys are the rows of an mma, columns and centroids its columns; a warp takes the keys of
// one half of a tile, which is a block.
#pragma once

#include "encode/columns_keys.cuh"
#include "encode/columns_table.cuh"
#include "encode/tensor_nearest.cuh"

namespace quarry::cuda {

/// Where a lane points ldmatrix within a tile: row l % 16, of step 0 the half l / 16. Later steps
/// are 32 bytes on, in the order of the swizzle. Rows are aligned to 128 bytes.
__device__ __forceinline__ std::uint32_t place_of_rows(const std::uint16_t* rows, int dim) {
  const std::uint32_t lane = threadIdx.x % 32;
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(rows)) +
         lane % 16 * static_cast<std::uint32_t>(dim) * 2 + (lane / 16 ^ lane % 8) * 16;
}

__device__ __forceinline__ void load_matrices_at(std::uint32_t (&a)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(address)
               : "memory");
}

/// x~ of 16 rows under way: [u] of dimensions 2t, 2t + 1; rows g, g + 8.
struct ColumnsSums {
  float low[2][4], high[2][4];

  template <int kSteps>
  __device__ __forceinline__ void add(const ColumnsTable<kSteps>& table, int step,
                                      const std::uint32_t (&a)[4]) {
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      multiply_add(low[u], a, table.low[u][step][0], table.low[u][step][1]);
    }
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      multiply_add(high[u], a, table.high[u][step][0], table.high[u][step][1]);
    }
  }
};

/// -mean . R_j of the block, to start from: [u] of dimensions 2t, 2t + 1. The two warps of a pair
/// find one subspace's each, of both blocks. rotated: the pair's [2][8][8].
template <int kSteps>
__device__ __forceinline__ void rotate_means(const ColumnsTable<kSteps>& table,
                                             const std::uint16_t* parts, int pair, int half,
                                             float* rotated, float (&start)[2][2]) {
  constexpr std::uint32_t kDim = 16 * kSteps;
  const std::uint32_t lane = threadIdx.x % 32;
  // Eight rows; a load brings two steps.
  const std::uint32_t place = static_cast<std::uint32_t>(__cvta_generic_to_shared(parts)) +
                              lane % 8 * kDim * 2 + (lane / 8 ^ lane % 8) * 16;
  float low[4] = {}, high[4] = {};
  const auto multiply = [&]<int u>() {
#pragma unroll
    for (int p = 0; p < kSteps / 2; ++p) {
      std::uint32_t two[4];
      load_matrices_at(two, (place ^ (p % 2 * 64)) + p / 2 * 128);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const std::uint32_t a[4] = {two[2 * h], 0, two[2 * h + 1], 0};
        const std::uint32_t(&l)[2] = table.low[u][2 * p + h], (&b)[2] = table.high[u][2 * p + h];
        multiply_add(low, a, l[0], l[1]);
        multiply_add(high, a, b[0], b[1]);
      }
    }
  };
  if (half == 0) {
    multiply.template operator()<0>();
  } else {
    multiply.template operator()<1>();
  }
  *reinterpret_cast<float2*>(rotated + (half * 8 + static_cast<int>(lane / 4)) * 8 + lane % 4 * 2) =
      make_float2(high[0] + low[0], high[1] + low[1]);
  asm volatile("bar.sync %0, 64;" ::"r"(pair + 1) : "memory");
  // Rows 0 .. 2 are the first block's parts, 3 .. 5 the second's.
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    const float* of = rotated + (u * 8 + half * 3) * 8 + lane % 4 * 2;
#pragma unroll
    for (int e = 0; e < 2; ++e) start[u][e] = -(of[e] + of[8 + e] + of[16 + e]);
  }
}

/// Of two subvectors, merged with what the lane `step` away has of them, the one that is this
/// lane's: the second where its bit of `step` is set.
__device__ __forceinline__ TwoLeast halve(const TwoLeast& a, const TwoLeast& b, bool second,
                                          int step) {
  TwoLeast own = pick(second, b, a);
  own.merge(pick(second, a, b).of_neighbour(step));
  return own;
}

/// The two least distances of the 16 keys at `place`: the lane's are those of key g + 8 (t % 2) in
/// subspace t / 2. norms: of subspace 0, and 16 on of 1, at 2t. ids: the lane's four centroids'.
template <int kSteps>
__device__ __forceinline__ TwoLeast nearest_of_16(const ColumnsTable<kSteps>& table,
                                                  std::uint32_t place, const float (&start)[2][2],
                                                  const float* norms,
                                                  const std::uint32_t (&ids)[2][2]) {
  ColumnsSums sums{};
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    sums.low[u][0] = sums.low[u][2] = start[u][0];
    sums.low[u][1] = sums.low[u][3] = start[u][1];
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    std::uint32_t a[4];
    load_matrices_at(a, (place ^ (step % 4 * 32)) + step / 4 * 128);
    sums.add(table, step, a);
  }
  TwoLeast of[2];
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    // What an mma leaves in d is laid out as the next one's a; the halves of x side by side.
    std::uint32_t x[4];
    split2(sums.low[u][0] + sums.high[u][0], sums.low[u][1] + sums.high[u][1], &x[0], &x[2]);
    split2(sums.low[u][2] + sums.high[u][2], sums.low[u][3] + sums.high[u][3], &x[1], &x[3]);
    const std::uint32_t high[2] = {x[0], x[1]};
    TwoLeast row[2];  // g and g + 8
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float2 norm = *reinterpret_cast<const float2*>(norms + u * 16 + r * 8);
      float v[4] = {norm.x, norm.y, norm.x, norm.y};
      multiply_add(v, x, table.centroid_high[u][r], table.centroid_high[u][r]);
      multiply_add(v, high, table.centroid_low[u][r]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        v[i] = __uint_as_float((__float_as_uint(v[i]) & ~15u) | ids[r][i % 2]);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const TwoLeast two{fminf(v[2 * i], v[2 * i + 1]), fmaxf(v[2 * i], v[2 * i + 1])};
        if (r == 0) {
          row[i] = two;
        } else {
          row[i].merge(two);
        }
      }
    }
    of[u] = halve(row[0], row[1], threadIdx.x % 2 != 0, 1);
  }
  return halve(of[0], of[1], threadIdx.x / 2 % 2 != 0, 2);
}

/// One tile's codes in the warp's subspaces and half, and its near ties. Whether ties of another
/// tile might not fit.
template <int kSteps>
__device__ __forceinline__ bool nearest_of_tile(const ColumnsTable<kSteps>& table,
                                                const ColumnsShared& sh, const std::uint16_t* keys,
                                                bool means, int parity, int tile) {
  constexpr int kDim = 16 * kSteps, kSubspaces = 2 * kSteps, kPairs = kSteps;
  constexpr int kRoom = kColumnsTieRoom - kColumnsKeys * kSubspaces;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4, pair = warp % kPairs, half = warp / kPairs;
  float start[2][2] = {};
  float square = 0;
  if (means) {
    rotate_means<kSteps>(table, sh.mean_parts + parity * 8 * kDim, pair, half,
                         sh.rotated_means + pair * (2 * 8 * 8), start);
#pragma unroll
    for (int i = 0; i < kDim / 32; ++i) {
      square += sh.mean_squares[(parity * kColumnsBlocks + half) * (kDim / 32) + i];
    }
  }
  const int s = pair * 2 + t / 2;  // the lane's
  const ColumnsGap gap =
      columns_gap(kDim, sh.subspaces[s], means ? 1.0001f * sqrtf(square) + kColumnsLeast : 0.0f);
  std::uint32_t ids[2][2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      ids[r][e] = static_cast<std::uint32_t>(8 * r + 2 * t + e);
      asm("" : "+r"(ids[r][e]));  // else each is made anew of the first, for every distance
    }
  }
  const float* norms = sh.centroid_norms + pair * 32 + t * 2;
  int row = half * kColumnsBlock + t % 2 * 8 + g;  // the lane's key of each 16
  std::uint32_t place = place_of_rows(keys + half * kColumnsBlock * kDim, kDim);
  bool crowded = false;
#pragma unroll 1
  for (int unit = 0; unit < kColumnsBlock / 16; ++unit, place += 16 * kDim * 2, row += 16) {
    const TwoLeast result = nearest_of_16(table, place, start, norms, ids);
    const float norm = sh.norms[parity * kColumnsKeys + row];
    const int key = tile * kColumnsKeys + row;
    sh.codes[s * (kColumnsBatch * kColumnsKeys) + key] =
        static_cast<std::uint8_t>(__float_as_uint(result.least) & 15u);
    const float needed = fmaf(id_loss(4), fabsf(result.least) + fabsf(result.second), gap(norm));
    // Not above, rather than below: NaN anywhere goes the exact way.
    if (!(result.second - result.least > needed) && !(norm < 0)) {
      const int at = atomicAdd(sh.num_ties, 1);
      sh.ties[at] = static_cast<std::uint16_t>(key * kSubspaces + s);
      crowded |= at >= kRoom;
    }
  }
  return crowded;
}

}  // namespace quarry::cuda
