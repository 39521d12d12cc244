// SPDX-License-Identifier: Apache-2.0
//
// Bulk encoding of bfloat16 keys with a rotation on tensor cores, a warp a tile of 64 keys, from
// the cache to codes, without a barrier: its keys stay in registers as they are, the rotation and
// the centroids pass by from shared memory (columns_table.cuh), and the mean's product is
// subtracted. bound.h proves most codes; the rest are encoded again in the contract's arithmetic.
// While a tile is multiplied, the copies of the warp's next one are under way.
#pragma once

#include "common/launch.h"
#include "encode/columns_ties.cuh"

namespace quarry::cuda {

/// The lane's codes into the index.
template <int kSteps>
__device__ __forceinline__ void store_columns(const KeySource& source, const ColumnsTile& tile,
                                              const ColumnsCodes<kSteps>& codes) {
  const IndexView& ix = source.ix;
#pragma unroll
  for (int p = 0; p < 2; ++p) {
    const std::int32_t position =
        tile.base + 32 * p + columns_row(static_cast<int>(threadIdx.x) % 32);
    if (position < tile.from || position >= tile.end) continue;
    const ColumnsPlace place(source, position);
    if (place.page < 0) continue;
    std::uint8_t* to = ix.codes + code_offset(ix, place.page, source.head, place.in_page);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      to[i * ix.tile] = static_cast<std::uint8_t>(codes.word[p][i / 4] >> i % 4 * 8);
    }
  }
}

/// Grid (B * Hkv * blocks), blocks innermost; a warp takes each tile whose number is its thread
/// block's modulo `blocks` and its own beyond.
template <int kSteps, bool kMeans>
__global__ void __launch_bounds__(32 * kColumnsMostWarps, 1)
    encode_columns_kernel(const __grid_constant__ EncodeParams p,
                          const __grid_constant__ Tiling tiling, std::int32_t blocks) {
  constexpr int kDim = 16 * kSteps, kSubspaces = 2 * kSteps;
  extern __shared__ __align__(128) unsigned char columns_memory[];
  wait_for_predecessor();
  let_successor_start();
  const IndexView& ix = p.index;
  const auto id = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t head = id / blocks % ix.num_kv_heads, b = id / blocks / ix.num_kv_heads;
  const SequenceState st = p.step.states[b];
  if (st.slot < 0 || st.built == 0) return;
  const int warp = static_cast<int>(threadIdx.x) / 32, warps = static_cast<int>(blockDim.x) / 32;
  const ColumnsShared sh(columns_memory, kDim, kSubspaces, warps);
  const KeySource source{ix, p.keys, block_table_row(p.step, b), st.slot, head, true};
  const std::int64_t book = std::int64_t{codebook_of(ix, st.slot)} * ix.num_kv_heads + head;
  const float* codebook = ix.codebooks + book * kDim * kColumnsCentroids;
  const float* rotation = ix.rotation + book * kDim * kDim;
  load_columns<kSteps>(rotation, codebook, reinterpret_cast<float*>(sh.keys), sh.table);
  __syncthreads();

  float most = kMostReach;  // no gap is finite above it
#pragma unroll 1
  for (int s = 0; s < kSubspaces; ++s) most = fminf(most, sh.table.gaps[s].most);
  std::uint16_t* const keys = sh.keys + warp * (kColumnsKeys * kDim);
  float* const means = sh.means + warp * kDim;
  std::uint16_t* const parts = sh.parts + warp * (4 * (kDim + 8));
  const int row = columns_row(static_cast<int>(threadIdx.x) % 32);
  const ColumnsTiles tiles(tiling, st.begin, st.n);
  std::int64_t at[2];  // where the lane's two rows lie
  const auto find = [&](const ColumnsTile& tile) {
    at[0] = find_columns_key(source, tile, row);
    at[1] = find_columns_key(source, tile, row + 32);
  };
  std::int32_t i = id % blocks + warp * blocks;
  if (i >= tiles.count) return;
  ColumnsTile tile = tiles.tile(i);
  find(tile);
  fetch_columns<kSteps>(p.keys, at, keys);
  while (true) {
    // Of rows that are not there, no code is a tie.
    const std::uint32_t there =
        (at[0] != kColumnsNoRow ? 0xffffu : 0u) | (at[1] != kColumnsNoRow ? 0xffff0000u : 0u);
    i += blocks * warps;
    ColumnsTile next{};
    if (i < tiles.count) {
      next = tiles.tile(i);
      find(next);
    }
    wait_for_copies();
    __syncwarp();
    float mean = 0;
    if constexpr (kMeans) mean = mean_of_columns<kSteps>(source, tile, keys, means, parts);
    ColumnsRows<kSteps> rows;
    rows.load(keys);
    __syncwarp();  // all have read the keys, and the mean is there for all
    if (i < tiles.count) fetch_columns<kSteps>(p.keys, at, keys);
    float n[2];
    rows.norms(n);
#pragma unroll
    for (float& v : n) v = v + mean < most ? v + mean : INFINITY;
    ColumnsCodes<kSteps> codes = nearest_of_rows<kSteps, kMeans>(sh.table, rows, parts, n);
    codes.ties &= there;
    settle_columns<kSteps, kMeans>(source, tile, rotation, codebook, means, parts, codes);
    store_columns<kSteps>(source, tile, codes);
    if (i >= tiles.count) return;
    tile = next;
  }
}

/// True where `encode_columns_kernel` serves what the tensor cores serve: what
/// IndexerConfig::recommended() asks for.
inline bool columns_serves(const IndexView& ix, DType dtype, bool wide) {
  return ix.dsub == 8 && ix.bits == 4 && wide && dtype == DType::bfloat16 &&
         ix.rotation != nullptr && (ix.block_size == 0 || ix.block_size == kColumnsKeys);
}

}  // namespace quarry::cuda
