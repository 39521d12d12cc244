// SPDX-License-Identifier: Apache-2.0
//
// A warp's 64 keys times the rotation, two subspaces (16 columns) at a time, and the nearest of
// their centroids. Keys are the rows of an mma, columns and centroids its columns, so that what
// one leaves is the next one's input.
#pragma once

#include "encode/columns_keys.cuh"
#include "encode/tensor_nearest.cuh"

namespace quarry::cuda {

/// Of two subvectors, merged with what the lane `step` away has of them, the one that is this
/// lane's: the second where its bit of `step` is set.
__device__ __forceinline__ TwoLeast halve(const TwoLeast& a, const TwoLeast& b, bool second,
                                          int step) {
  TwoLeast own = pick(second, b, a);
  own.merge(pick(second, a, b).of_neighbour(step));
  return own;
}

/// The mean's halves as b of mmas whose a is what b is of two subspaces' columns: there rows
/// g have those of the first subspace and rows 0 .. 7 of a step in their first half, of the second
/// one's in their second, rows g + 8 the same of rows 8 .. 15. Columns of b are (half of the mean,
/// subspace, rows of the step), and in the subspace's half alone not zero.
template <int kSteps>
__device__ __forceinline__ void load_parts(const std::uint16_t* parts,
                                           std::uint32_t (&b)[kSteps][2]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const auto* row =
      reinterpret_cast<const std::uint32_t*>(parts + g / 4 * (16 * kSteps + 8) + g % 2 * 8) + t;
  const bool second = g / 2 % 2 != 0;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const std::uint32_t v = row[step * 8];
    b[step][0] = second ? 0 : v;
    b[step][1] = second ? v : 0;
  }
}

/// Of two subspaces the rotated mean's dimensions 2t and 2t + 1, of what load_parts() led to.
__device__ __forceinline__ void gather_mean(const float (&sums)[4], float (&mean)[2][2]) {
  // Rows 0 .. 7 and 8 .. 15 of the steps; the mean's halves; lanes t = 0 have the first subspace.
  float v = sums[0] + sums[3];
  v += __shfl_xor_sync(0xffffffffu, v, 2);
  const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int u = 0; u < 2; ++u) {
#pragma unroll
    for (int e = 0; e < 2; ++e) mean[u][e] = __shfl_sync(0xffffffffu, v, (2 * t + e) * 4 + u);
  }
}

/// The two least distances of rows g and g + 8, of this lane's four centroids. x: the rows'
/// subvectors, of dimensions 2t, 2t + 1. centroids, norms: as the table has them, for this lane.
__device__ __forceinline__ void nearest_of_lane(const float (&x)[4], const uint4 (&centroids)[2],
                                                const float (&norms)[2][4],
                                                const std::uint32_t (&ids)[2][2],
                                                TwoLeast (&row)[2]) {
  // The halves of x side by side.
  std::uint32_t a[4];
  split2(x[0], x[1], &a[0], &a[2]);
  split2(x[2], x[3], &a[1], &a[3]);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float v[4];
    multiply_add(v, a, centroids[r].x, centroids[r].y, norms[r]);
    multiply_add(v, a, centroids[r].z, centroids[r].w);
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
}

/// The codes of a lane's two keys, 32 p + columns_row(lane), subspace s in bits 4 s, and which of
/// them are near ties: bit 16 p + s.
template <int kSteps>
struct ColumnsCodes {
  static constexpr int kWords = kSteps / 4;
  std::uint32_t word[2][kWords];
  std::uint32_t ties;

  /// Appends a code, the low four bits of `id`, to those of key p.
  __device__ __forceinline__ void push(int p, std::uint32_t id) {
#pragma unroll
    for (int w = 0; w < kWords - 1; ++w) {
      word[p][w] = __funnelshift_r(word[p][w], word[p][w + 1], 4);
    }
    word[p][kWords - 1] = __funnelshift_r(word[p][kWords - 1], id, 4);
  }
  __device__ __forceinline__ void replace(int p, int s, std::uint32_t id) {
#pragma unroll
    for (int q = 0; q < 2; ++q) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        const int shift = s % 8 * 4;
        if (q == p && w == s / 8) word[q][w] = (word[q][w] & ~(15u << shift)) | id << shift;
      }
    }
  }
};

/// All codes of a warp's tile. n: of the lane's keys, as columns_gap() wants it.
template <int kSteps, bool kMeans>
__device__ __forceinline__ ColumnsCodes<kSteps> nearest_of_rows(const ColumnsTable& table,
                                                                const ColumnsRows<kSteps>& rows,
                                                                const std::uint16_t* parts,
                                                                const float (&n)[2]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, t = lane % 4;
  const bool odd = t % 2 != 0, upper = t / 2 != 0;
  std::uint32_t ids[2][2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      ids[r][e] = static_cast<std::uint32_t>(8 * r + 2 * t + e);
      asm("" : "+r"(ids[r][e]));  // else each is made anew of the first, for every distance
    }
  }
  std::uint32_t mean[kSteps][2];
  if constexpr (kMeans) load_parts<kSteps>(parts, mean);
  ColumnsCodes<kSteps> codes{};
  const uint4* rotation = table.rotation + lane;
  const uint4* centroids = table.centroids + lane;
  const float4* norms = table.norms + t;
  const ColumnsGap* gaps = table.gaps;
  std::uint32_t bit = 1;
#pragma unroll 1
  for (int pair = 0; pair < kSteps; ++pair) {
    float x[4][2][4] = {}, of_mean[4] = {};
    // The low halves first: while sums are small, so is what they lose.
#pragma unroll
    for (int i = 0; i < 2 * kSteps; ++i) {
      const uint4 b = rotation[i * 32];
#pragma unroll
      for (int tile = 0; tile < 4; ++tile) {
        multiply_add(x[tile][0], rows.a[tile][i % kSteps], b.x, b.y);
        multiply_add(x[tile][1], rows.a[tile][i % kSteps], b.z, b.w);
      }
      if constexpr (kMeans) {
        const std::uint32_t a[4] = {b.x, b.y, b.z, b.w};
        multiply_add(of_mean, a, mean[i % kSteps][0], mean[i % kSteps][1]);
      }
    }
    rotation += 2 * kSteps * 32;
    float own_mean[2][2];
    if constexpr (kMeans) gather_mean(of_mean, own_mean);
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      if constexpr (kMeans) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
#pragma unroll
          for (int tile = 0; tile < 4; ++tile) x[tile][u][e] -= own_mean[u][e % 2];
        }
      }
      const uint4 c[2] = {centroids[0], centroids[32]};
      const float4 n0 = norms[0], n1 = norms[4];
      const float start[2][4] = {{n0.x, n0.y, n0.z, n0.w}, {n1.x, n1.y, n1.z, n1.w}};
      const ColumnsGap gap = *gaps;
      centroids += 64, norms += 8, ++gaps;
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        TwoLeast of_tile[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          TwoLeast row[2];
          nearest_of_lane(x[2 * p + h][u], c, start, ids, row);
          of_tile[h] = halve(row[0], row[1], odd, 1);
        }
        const TwoLeast result = halve(of_tile[0], of_tile[1], upper, 2);
        codes.push(p, __float_as_uint(result.least));
        const float needed =
            fmaf(id_loss(4), fabsf(result.least) + fabsf(result.second), gap(n[p]));
        // Not above, rather than below: NaN anywhere goes the exact way.
        if (!(result.second - result.least > needed)) codes.ties |= bit << 16 * p;
      }
      bit <<= 1;
    }
  }
  return codes;
}

}  // namespace quarry::cuda
