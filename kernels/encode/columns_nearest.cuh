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

/// The mean's parts as b of mmas whose a is what b is of a subspace's columns in two steps: there
/// rows g have dimensions 0 .. 7 of either step, rows g + 8 dimensions 8 .. 15. Columns of b are
/// (part, which of those).
template <int kSteps>
__device__ __forceinline__ void load_parts(const std::uint16_t* parts,
                                           std::uint32_t (&b)[kSteps / 2][2]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int part = g < 6 ? g / 2 : 0;
  const auto* row =
      reinterpret_cast<const std::uint32_t*>(parts + part * (16 * kSteps + 8) + g % 2 * 8) + t;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) b[step / 2][step % 2] = g < 6 ? row[step * 8] : 0;
}

/// Sums under way of a subspace: rows g, g + 8 of each sixteen, dimensions 2t and 2t + 1; and the
/// mean's.
template <int kSteps, bool kMeans>
struct ColumnsSums {
  float x[4][4], of_mean[4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
#pragma unroll
      for (int tile = 0; tile < 4; ++tile) x[tile][e] = 0;
      of_mean[e] = 0;
    }
  }
  /// One of kSteps parts of the product, low halves first: while sums are small, so is what they
  /// lose. rotation: the subspace's, of this lane.
  __device__ __forceinline__ void add(const uint4* rotation, int part,
                                      const ColumnsRows<kSteps>& rows,
                                      const std::uint32_t (&mean)[kSteps / 2][2]) {
    const uint4 b = rotation[part * 32];
    const int step = part % (kSteps / 2) * 2;
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) multiply_add(x[tile], rows.a[tile][step], b.x, b.y);
#pragma unroll
    for (int tile = 0; tile < 4; ++tile) multiply_add(x[tile], rows.a[tile][step + 1], b.z, b.w);
    if constexpr (kMeans) {
      const std::uint32_t a[4] = {b.x, b.y, b.z, b.w};
      multiply_add(of_mean, a, mean[step / 2][0], mean[step / 2][1]);
    }
  }
  /// The mean's dimensions 2t and 2t + 1.
  __device__ __forceinline__ void gather_mean(float (&mean)[2]) const {
    // Column 2t has the first eight of each step in rows g, column 2t + 1 the others in g + 8.
    const float v = sum_of_four(of_mean[0] + of_mean[3]);
    const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int e = 0; e < 2; ++e) mean[e] = __shfl_sync(0xffffffffu, v, (2 * t + e) * 4);
  }
};

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

/// Finds codes from finished sums, sixteen keys at a time.
template <int kSteps, bool kMeans>
struct ColumnsSearch {
  const ColumnsTable& table;
  const float (&n)[2];  ///< of the lane's keys, as columns_gap() wants it
  std::uint32_t ids[2][2];
  uint4 centroids[2];
  float norms[2][4];
  ColumnsGap gap;
  float mean[2];
  TwoLeast even;

  __device__ __forceinline__ ColumnsSearch(const ColumnsTable& t, const float (&keys)[2])
      : table(t), n(keys) {
    const uint4 v = table.ids[threadIdx.x % 4];
    ids[0][0] = v.x, ids[0][1] = v.y, ids[1][0] = v.z, ids[1][1] = v.w;
  }
  __device__ __forceinline__ void begin(int s, const ColumnsSums<kSteps, kMeans>& sums) {
    const int lane = static_cast<int>(threadIdx.x) % 32, t = lane % 4;
    if constexpr (kMeans) sums.gather_mean(mean);
    gap = table.gaps[s];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      centroids[r] = table.centroids[(s * 2 + r) * 32 + lane];
      const float4 v = table.norms[(s * 2 + r) * 4 + t];
      norms[r][0] = v.x, norms[r][1] = v.y, norms[r][2] = v.z, norms[r][3] = v.w;
    }
  }
  __device__ __forceinline__ void search(int s, int tile, const ColumnsSums<kSteps, kMeans>& sums,
                                         ColumnsCodes<kSteps>& codes) {
    const bool odd = threadIdx.x % 2 != 0, upper = threadIdx.x / 2 % 2 != 0;
    float x[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      x[e] = sums.x[tile][e];
      if constexpr (kMeans) x[e] -= mean[e % 2];
    }
    TwoLeast row[2];
    nearest_of_lane(x, centroids, norms, ids, row);
    const TwoLeast own = halve(row[0], row[1], odd, 1);
    if (tile % 2 == 0) {
      even = own;
      return;
    }
    const int p = tile / 2;
    const TwoLeast result = halve(even, own, upper, 2);
    codes.push(p, __float_as_uint(result.least));
    const float needed = fmaf(id_loss(4), fabsf(result.least) + fabsf(result.second), gap(n[p]));
    // Not above, rather than below: NaN anywhere goes the exact way.
    if (!(result.second - result.least > needed)) codes.ties |= 1u << 16 * p << s;
  }
};

/// All codes of a warp's tile: a subspace is searched while the next one's sums are under way. One
/// subspace a turn and no more, for the instruction caches. The last turn multiplies the first
/// subspace again, for nothing: a branch would part what is to be mixed.
template <int kSteps, bool kMeans>
__device__ __forceinline__ ColumnsCodes<kSteps> nearest_of_rows(const ColumnsTable& table,
                                                                const ColumnsRows<kSteps>& rows,
                                                                const std::uint16_t* parts,
                                                                const float (&n)[2]) {
  constexpr int kSubspaces = 2 * kSteps;
  std::uint32_t mean[kSteps / 2][2];
  if constexpr (kMeans) load_parts<kSteps>(parts, mean);
  ColumnsCodes<kSteps> codes{};
  ColumnsSearch<kSteps, kMeans> search(table, n);
  const uint4* const rotation = table.rotation + threadIdx.x % 32;
  ColumnsSums<kSteps, kMeans> sums;
  sums.clear();
#pragma unroll
  for (int part = 0; part < kSteps; ++part) sums.add(rotation, part, rows, mean);
#pragma unroll 1
  for (int s = 0; s < kSubspaces; ++s) {
    const uint4* const ahead = rotation + (s + 1) % kSubspaces * (kSteps * 32);
    ColumnsSums<kSteps, kMeans> next;
    next.clear();
    search.begin(s, sums);
#pragma unroll
    for (int part = 0; part < kSteps; ++part) {
      next.add(ahead, part, rows, mean);
      constexpr int kEach = kSteps / 4;  // parts a search of sixteen keys
      if (part % kEach == kEach - 1) search.search(s, part / kEach, sums, codes);
    }
    sums = next;
  }
  return codes;
}

}  // namespace quarry::cuda
