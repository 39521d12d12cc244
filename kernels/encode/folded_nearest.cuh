// SPDX-License-Identifier: Apache-2.0
//
// Keys times the folded codebook, and the nearest of a subspace's 16 centroids. A warp has one
// subspace: centroids are the rows of an mma, eight keys its columns.
#pragma once

#include "encode/folded_keys.cuh"
#include "encode/folded_table.cuh"
#include "encode/tensor_nearest.cuh"

namespace quarry::cuda {

/// Where a lane points ldmatrix within rows of eight keys: at steps 4p and 4p + 2 of 16 bytes.
struct FoldedPlace {
  std::uint32_t even, odd;

  __device__ __forceinline__ FoldedPlace(const std::uint16_t* rows, int dim) {
    const std::uint32_t lane = threadIdx.x % 32, row = lane % 8, chunk = lane / 8;
    const auto base = static_cast<std::uint32_t>(__cvta_generic_to_shared(rows));
    even = base + row * static_cast<std::uint32_t>(dim) * 2 + (chunk ^ row) * 16;
    odd = even ^ 64u;  // rows are a multiple of 128 bytes apart, and aligned to as much
  }
};

__device__ __forceinline__ void load_keys_b(std::uint32_t (&b)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
               : "r"(address)
               : "memory");
}

/// v = start + P . kCount groups of eight keys, rows centroids g and g + 8, columns 2t, 2t + 1.
template <int kSteps, int kCount>
__device__ __forceinline__ void multiply_folded(const FoldedTable<kSteps>& table,
                                                const FoldedPlace& place, int first,
                                                const float (&start)[2], float (&v)[kCount][4]) {
  constexpr std::uint32_t kGroup = 8 * 16 * kSteps * 2;  // bytes
  float high[kCount][4] = {};
#pragma unroll
  for (int q = 0; q < kCount; ++q) {
    v[q][0] = v[q][1] = start[0];
    v[q][2] = v[q][3] = start[1];
  }
#pragma unroll
  for (int p = 0; p < kSteps / 2; ++p) {
    std::uint32_t b[kCount][4];
#pragma unroll
    for (int q = 0; q < kCount; ++q) {
      load_keys_b(b[q], (p % 2 != 0 ? place.odd : place.even) +
                            static_cast<std::uint32_t>(p / 2) * 128 +
                            static_cast<std::uint32_t>(first + q) * kGroup);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int step = 2 * p + h;
#pragma unroll
      for (int q = 0; q < kCount; ++q) {
        multiply_add(v[q], table.low[step], b[q][2 * h], b[q][2 * h + 1]);
      }
#pragma unroll
      for (int q = 0; q < kCount; ++q) {
        multiply_add(high[q], table.high[step], b[q][2 * h], b[q][2 * h + 1]);
      }
    }
  }
#pragma unroll
  for (int q = 0; q < kCount; ++q) {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[q][i] += high[q][i];
  }
}

/// mean . P of both blocks of a tile: of centroids g and g + 8, in every lane.
template <int kSteps>
__device__ __forceinline__ void multiply_means(const FoldedTable<kSteps>& table,
                                               const std::uint16_t* parts,
                                               float (&product)[kFoldedBlocks][2]) {
  const int t = static_cast<int>(threadIdx.x) % 4;
  float v[1][4];
  const float zero[2] = {0, 0};
  multiply_folded<kSteps, 1>(table, FoldedPlace(parts, 16 * kSteps), 0, zero, v);
  // Columns 0 .. 2 are the first block's parts, 3 .. 5 the second's.
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float a = v[0][2 * r], b = v[0][2 * r + 1];
    product[0][r] = sum_of_quad(t == 0 ? a + b : t == 1 ? a : 0.0f);
    product[1][r] = sum_of_quad(t == 1 ? b : t == 2 ? a + b : 0.0f);
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

/// The two least of 16 keys from row 8 * first of the tile on: the lane's key is
/// 8 (first + (g / 2) % 2) + 2t + g % 2, of the 16 keys alike in the lanes of g and g ^ 4, which
/// have seen half of the centroids each.
template <int kSteps>
__device__ __forceinline__ TwoLeast nearest_of_16(const FoldedTable<kSteps>& table,
                                                  const FoldedPlace& place, int first,
                                                  const float (&start)[2]) {
  const std::uint32_t g = threadIdx.x % 32 / 4;
  float v[2][4];
  multiply_folded<kSteps, 2>(table, place, first, start, v);
  TwoLeast least[2];
#pragma unroll
  for (int q = 0; q < 2; ++q) {
    TwoLeast of[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float a = __uint_as_float((__float_as_uint(v[q][e]) & ~15u) | g);
      const float b = __uint_as_float((__float_as_uint(v[q][2 + e]) & ~15u) | g | 8u);
      of[e] = {fminf(a, b), fmaxf(a, b)};
    }
    least[q] = halve(of[0], of[1], g % 2 != 0, 4);
  }
  return halve(least[0], least[1], g / 2 % 2 != 0, 8);
}

/// One tile's codes in the warp's subspace, and its near ties. Whether ties of another tile might
/// not fit.
template <int kSteps>
__device__ __forceinline__ bool nearest_of_tile(const FoldedTable<kSteps>& table,
                                                const FoldedShared& sh, const std::uint16_t* keys,
                                                bool means, int parity, int tile) {
  constexpr int kDim = 16 * kSteps, kSubspaces = 2 * kSteps;
  constexpr int kRoom = kFoldedTieRoom - kFoldedKeys * kSubspaces;
  bool crowded = false;
  const int lane = static_cast<int>(threadIdx.x) % 32, s = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4;
  float product[kFoldedBlocks][2] = {};
  if (means) multiply_means<kSteps>(table, sh.mean_parts + parity * 8 * kDim, product);
  const FoldedPlace place(keys, kDim);
#pragma unroll 1
  for (int block = 0; block < kFoldedBlocks; ++block) {
    float square = 0;
    if (means) {
#pragma unroll
      for (int i = 0; i < kDim / 32; ++i) {
        square += sh.mean_squares[(parity * kFoldedBlocks + block) * (kDim / 32) + i];
      }
    }
    const FoldedGap gap =
        folded_gap(kDim, sh.subspaces[s], means ? 1.0001f * sqrtf(square) + kFoldedLeast : 0.0f);
    const float start[2] = {table.norm[0] - (block == 0 ? product[0][0] : product[1][0]),
                            table.norm[1] - (block == 0 ? product[0][1] : product[1][1])};
#pragma unroll 1
    for (int group = 0; group < 2; ++group) {
      const int first = block * 8 + group * 4;
      const TwoLeast one = nearest_of_16(table, place, first, start);
      const TwoLeast two = nearest_of_16(table, place, first + 2, start);
      const TwoLeast result = halve(one, two, g / 4 != 0, 16);
      const int row = first * 8 + g / 4 * 16 + g / 2 % 2 * 8 + t * 2 + g % 2;
      const float norm = sh.norms[parity * kFoldedKeys + row];
      const int key = tile * kFoldedKeys + row;
      sh.codes[s * (kFoldedBatch * kFoldedKeys) + key] =
          static_cast<std::uint8_t>(__float_as_uint(result.least) & 15u);
      const float needed =
          fmaf(folded_id_loss(4), fabsf(result.least) + fabsf(result.second), gap(norm));
      // Not above, rather than below: NaN anywhere goes the exact way.
      if (!(result.second - result.least > needed) && !(norm < 0)) {
        const int at = atomicAdd(sh.num_ties, 1);
        sh.ties[at] = static_cast<std::uint16_t>(key * kSubspaces + s);
        crowded |= at >= kRoom;
      }
    }
  }
  return crowded;
}

}  // namespace quarry::cuda
