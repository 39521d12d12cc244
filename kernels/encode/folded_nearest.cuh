// SPDX-License-Identifier: Apache-2.0
//
// Keys times the folded codebook, and the nearest of a subspace's 16 centroids. A warp has one
// subspace: keys are the rows of an mma, centroids the columns of two.
#pragma once

#include "encode/folded_keys.cuh"
#include "encode/folded_table.cuh"
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

/// Sums under way of 16 rows with both halves of a subspace's centroids: [r] of centroids
/// 8 r + 2t, 8 r + 2t + 1; rows g, g + 8.
struct FoldedSums {
  float low[2][4], high[2][4];

  template <int kSteps>
  __device__ __forceinline__ void add(const FoldedTable<kSteps>& table, int step,
                                      const std::uint32_t (&a)[4]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      multiply_add(low[r], a, table.low[step][r], table.low[step][2 + r]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      multiply_add(high[r], a, table.high[step][r], table.high[step][2 + r]);
    }
  }
};

/// What the distances of a tile start from, |c|^2 - mean . P_c, to rows 6 (first block) and 7 of
/// `starts`, [8][16], the warp's own.
template <int kSteps>
__device__ __forceinline__ void start_distances(const FoldedTable<kSteps>& table, bool means,
                                                const std::uint16_t* parts, float* starts) {
  constexpr std::uint32_t kDim = 16 * kSteps;
  const std::uint32_t lane = threadIdx.x % 32;
  float start = table.norm;
  if (means) {
    // Eight rows; a load brings two steps.
    const std::uint32_t place = static_cast<std::uint32_t>(__cvta_generic_to_shared(parts)) +
                                lane % 8 * kDim * 2 + (lane / 8 ^ lane % 8) * 16;
    FoldedSums sums{};
#pragma unroll
    for (int p = 0; p < kSteps / 2; ++p) {
      std::uint32_t two[4];
      load_matrices_at(two, (place ^ (p % 2 * 64)) + p / 2 * 128);
      const std::uint32_t a[4] = {two[0], 0, two[1], 0}, b[4] = {two[2], 0, two[3], 0};
      sums.add(table, 2 * p, a);
      sums.add(table, 2 * p + 1, b);
    }
    if (lane / 4 < 6) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        *reinterpret_cast<float2*>(starts + lane / 4 * 16 + r * 8 + lane % 4 * 2) =
            make_float2(sums.high[r][0] + sums.low[r][0], sums.high[r][1] + sums.low[r][1]);
      }
    }
    __syncwarp();
    // Rows 0 .. 2 are the first block's parts, 3 .. 5 the second's.
    const float* of = starts + lane / 16 * (3 * 16) + lane % 16;
    start -= of[0] + of[16] + of[32];
  }
  starts[6 * 16 + lane] = start;
  __syncwarp();
}

/// Of two subvectors, merged with what the lane `step` away has of them, the one that is this
/// lane's: the second where its bit of `step` is set.
__device__ __forceinline__ TwoLeast halve(const TwoLeast& a, const TwoLeast& b, bool second,
                                          int step) {
  TwoLeast own = pick(second, b, a);
  own.merge(pick(second, a, b).of_neighbour(step));
  return own;
}

/// The two least of the 16 keys at `place`, of key g (even lanes) or g + 8 (odd ones); merged over
/// two of a quad's lanes. ids: the lane's four centroids'.
template <int kSteps>
__device__ __forceinline__ TwoLeast nearest_of_16(const FoldedTable<kSteps>& table,
                                                  std::uint32_t place, const float (&start)[2][2],
                                                  const std::uint32_t (&ids)[2][2]) {
  FoldedSums sums{};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sums.low[r][0] = sums.low[r][2] = start[r][0];
    sums.low[r][1] = sums.low[r][3] = start[r][1];
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    std::uint32_t a[4];
    load_matrices_at(a, (place ^ (step % 4 * 32)) + step / 4 * 128);
    sums.add(table, step, a);
  }
  TwoLeast of[2];  // of rows g and g + 8
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    TwoLeast pair[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float v[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float sum = sums.low[r][2 * row + e] + sums.high[r][2 * row + e];
        v[e] = __uint_as_float((__float_as_uint(sum) & ~15u) | ids[r][e]);
      }
      pair[r] = {fminf(v[0], v[1]), fmaxf(v[0], v[1])};
    }
    pair[0].merge(pair[1]);
    of[row] = pair[0];
  }
  return halve(of[0], of[1], threadIdx.x % 2 != 0, 1);
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
  float* const starts = sh.starts + s * (8 * 16);
  start_distances<kSteps>(table, means, sh.mean_parts + parity * 8 * kDim, starts);
  // Of block t % 2, to be had from the first two lanes.
  float square = 0;
  if (means) {
#pragma unroll
    for (int i = 0; i < kDim / 64; ++i) {
      square += sh.mean_squares[(parity * kFoldedBlocks + t % 2) * (kDim / 64) + i];
    }
  }
  const FoldedGap gaps =
      folded_gap(kDim, sh.subspaces[s], means ? 1.0001f * sqrtf(square) + kFoldedLeast : 0.0f);
  std::uint32_t ids[2][2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      ids[r][e] = static_cast<std::uint32_t>(8 * r + 2 * t + e);
      asm("" : "+r"(ids[r][e]));  // else each is made anew of the first, for every distance
    }
  }
  std::uint32_t place = place_of_rows(keys, kDim);
  constexpr std::uint32_t kRows16 = 16 * kDim * 2;  // bytes
  int row = t * 8 + g;                              // the lane's key of each 32
#pragma unroll 1
  for (int block = 0; block < kFoldedBlocks; ++block) {
    const FoldedGap gap{__shfl_sync(0xffffffffu, gaps.slope, block),
                        __shfl_sync(0xffffffffu, gaps.fixed, block), gaps.stretch,
                        __shfl_sync(0xffffffffu, gaps.shift, block)};
    float start[2][2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float2 two =
          *reinterpret_cast<const float2*>(starts + (6 + block) * 16 + r * 8 + t * 2);
      start[r][0] = two.x, start[r][1] = two.y;
    }
#pragma unroll 1
    for (int group = 0; group < 2; ++group, place += 2 * kRows16, row += 32) {
      const TwoLeast one = nearest_of_16(table, place, start, ids);
      const TwoLeast two = nearest_of_16(table, place + kRows16, start, ids);
      const TwoLeast result = halve(one, two, t / 2 != 0, 2);
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
