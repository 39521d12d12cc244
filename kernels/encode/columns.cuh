// SPDX-License-Identifier: Apache-2.0
//
// Bulk encoding of bfloat16 keys with a rotation on tensor cores, all tables in registers: a warp
// keeps the rotation's columns and the centroids of two subspaces (columns_table.cuh), multiplies
// one half of each tile's keys, as they are, by them and finds its nearest centroids from what that
// leaves in its registers; the mean's product is subtracted. bound.h proves most codes; near ties
// are gathered over a batch of tiles and encoded again in the contract's arithmetic, many at once.
//
// One barrier a tile. Between two, tile j is multiplied, of tile j + 1 means and norms are found,
// the copies of tile j + 2 are under way, and rows of tile j + 3 are looked up.
#pragma once

#include "common/launch.h"
#include "encode/columns_nearest.cuh"
#include "encode/ties.cuh"

namespace quarry::cuda {

/// What a batch of tiles needs to be settled and stored: which they are.
struct ColumnsBatch {
  const KeySource& source;
  const ColumnsShared& sh;
  const Tiling& tiling;
  std::int32_t begin, n;
  std::int32_t first, stride;  ///< its tiles: first, first + stride, ...
  int round;                   ///< how many tiles came before its first one
  std::uint16_t* rows;         ///< shared, [warps][4][d]: a place for keys of near ties

  __device__ __forceinline__ ColumnsTile tile(int i) const {
    return columns_tile(tiling, begin, n, first + i * stride);
  }
};

/// Keys of near ties, fetched anew.
template <int kSteps>
struct ColumnsKeys {
  static constexpr int kDim = 16 * kSteps, kWidth = 8;
  const ColumnsBatch& batch;

  __device__ __forceinline__ std::uint16_t* mine() const {
    return batch.rows + static_cast<int>(threadIdx.x) / kWidth * kDim;
  }
  __device__ __forceinline__ bool rotates() const { return true; }
  __device__ __forceinline__ float rotation(int at) const { return batch.sh.rotation[at]; }
  __device__ __forceinline__ void begin(int row) const {
    const std::int64_t at =
        find_columns_key(batch.source, batch.tile(row / kColumnsKeys), row % kColumnsKeys);
    auto* to = reinterpret_cast<uint4*>(mine());
#pragma unroll
    for (int i = 0; i < kDim / 8 / kWidth; ++i) {
      const int c = static_cast<int>(threadIdx.x) % kWidth + i * kWidth;
      uint4 v = make_uint4(0, 0, 0, 0);
      if (at != ColumnsShared::kNoRow) {
        const auto* from = static_cast<const std::uint16_t*>(batch.source.keys.data) + at;
        v = __ldg(reinterpret_cast<const uint4*>(from) + c);
      }
      to[c] = v;
    }
    __syncwarp();
  }
  __device__ __forceinline__ float4 residual(int row, int i) const {
    const uint2 k = *reinterpret_cast<const uint2*>(mine() + i);
    const int tile = (batch.round + row / kColumnsKeys) % kColumnsMeans;
    const int block = row % kColumnsKeys / kColumnsBlock;
    float4 m = make_float4(0, 0, 0, 0);
    if (batch.tiling.block_size > 0) {
      m = *reinterpret_cast<const float4*>(batch.sh.means + (tile * kColumnsBlocks + block) * kDim +
                                           i);
    }
    return make_float4(__uint_as_float(k.x << 16) - m.x, __uint_as_float(k.x & 0xffff0000u) - m.y,
                       __uint_as_float(k.y << 16) - m.z, __uint_as_float(k.y & 0xffff0000u) - m.w);
  }
  __device__ __forceinline__ void put(int item, std::uint8_t code) const {
    constexpr int kSubspaces = 2 * kSteps;
    batch.sh.codes[item % kSubspaces * (kColumnsBatch * kColumnsKeys) + item / kSubspaces] = code;
  }
};

/// The near ties of a batch of `count` tiles, and its codes into the index. Barriers before and
/// after are the caller's.
template <int kSteps>
__device__ __forceinline__ void finish_batch(const ColumnsBatch& batch, int count,
                                             const float* codebook) {
  constexpr int kThreads = 64 * kSteps, kPlane = kColumnsBatch * kColumnsKeys;
  const ColumnsShared& sh = batch.sh;
  const IndexView& ix = batch.source.ix;
  settle_ties<kSteps, 1, kThreads, 8>(16, codebook, NearTies{sh.ties, sh.num_ties, sh.subvectors},
                                      ColumnsKeys<kSteps>{batch});
  __syncthreads();
  if (threadIdx.x == 0) *sh.num_ties = 0;
  for (int key = static_cast<int>(threadIdx.x); key < count * kColumnsKeys; key += kThreads) {
    const ColumnsTile tile = batch.tile(key / kColumnsKeys);
    const std::int32_t position = tile.base + key % kColumnsKeys;
    if (position < tile.from || position >= tile.end) continue;
    const std::int64_t page = page_of(ix, batch.source.table, batch.source.slot, position);
    if (page < 0) continue;
    std::uint8_t* to = ix.codes + code_offset(ix, page, batch.source.head, position % ix.page_size);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const std::uint32_t low = sh.codes[2 * i * kPlane + key];
      const std::uint32_t high = sh.codes[(2 * i + 1) * kPlane + key];
      to[i * ix.tile] = static_cast<std::uint8_t>(low | high << 4);
    }
  }
}

/// Grid (B * Hkv * blocks), blocks innermost; each takes every blocks-th tile.
template <int kSteps>
__global__ void __launch_bounds__(64 * kSteps, 8 / kSteps)
    encode_columns_kernel(const __grid_constant__ EncodeParams p,
                          const __grid_constant__ Tiling tiling, std::int32_t blocks) {
  constexpr int kDim = 16 * kSteps, kSubspaces = 2 * kSteps, kThreads = 64 * kSteps;
  extern __shared__ __align__(128) unsigned char columns_memory[];
  wait_for_predecessor();
  let_successor_start();
  const IndexView& ix = p.index;
  const auto id = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t head = id / blocks % ix.num_kv_heads, b = id / blocks / ix.num_kv_heads;
  const SequenceState st = p.step.states[b];
  if (st.slot < 0 || st.built == 0) return;
  const ColumnsShared sh(columns_memory, kDim, kSubspaces);
  const KeySource source{ix, p.keys, block_table_row(p.step, b), st.slot, head, true};
  const std::int64_t book = std::int64_t{codebook_of(ix, st.slot)} * ix.num_kv_heads + head;
  const float* codebook = ix.codebooks + book * kDim * 16;
  const float* rotation = ix.rotation + book * kDim * kDim;
  const auto tid = static_cast<int>(threadIdx.x);
  const bool means = ix.block_size > 0;
  const std::int32_t tiles = tiling.tiles(st.begin, st.n);
  const std::int32_t first = id % blocks;
  const std::int32_t rounds = first < tiles ? (tiles - first - 1) / blocks + 1 : 0;

  const auto find = [&](int round) {
    const int k = tid - (kThreads - kColumnsKeys);
    if (k < 0 || round >= rounds) return;
    const ColumnsTile tile = columns_tile(tiling, st.begin, st.n, first + round * blocks);
    sh.key_at[round % 4 * kColumnsKeys + k] = find_columns_key(source, tile, k);
  };
  const auto keys_of = [&](int round) { return sh.keys + round % 3 * (kColumnsKeys * kDim); };
  const auto fetch = [&](int round) {
    if (tid < kThreads / 2 || round >= rounds) return;
    fetch_columns<kSteps>(p.keys.data, sh.key_at + round % 4 * kColumnsKeys, keys_of(round));
  };
  for (int i = 0; i < 2; ++i) find(i);
  for (int i = tid; i < 2 * 8 * kDim / 2; i += kThreads) {
    reinterpret_cast<std::uint32_t*>(sh.mean_parts)[i] = 0;
  }
  for (int i = tid; i < kDim * kDim / 4; i += kThreads) {
    copy_async<16>(sh.rotation + i * 4, rotation + i * 4);
  }
  if (tid == 0) *sh.num_ties = 0;
  __syncthreads();
  fetch(0);
  wait_for_copies();
  __syncthreads();
  ColumnsTable<kSteps> table;
  {
    const int pair = tid / 32 % kSteps;
    const bool first_half = tid / 32 < kSteps;
    const auto load = [&]<int u>() {
      const int s = 2 * pair + u;
      const ColumnsSubspace of =
          table.template load<u>(sh.rotation + s * 8, codebook + s * (8 * 16),
                                 first_half ? sh.centroid_norms + s * 16 : nullptr);
      if (first_half && tid % 32 == 0) sh.subspaces[s] = of;
    };
    load.template operator()<0>();
    load.template operator()<1>();
  }

  ColumnsBatch batch{source, sh, tiling, st.begin, st.n, first, blocks, 0, nullptr};
  bool crowded = false;
  for (int round = -1; round <= rounds; ++round) {
    wait_for_copies();
    crowded = __syncthreads_or(crowded) != 0;
    const int held = round - batch.round;  // tiles of the batch that have been multiplied
    if (held > 0 && (held == kColumnsBatch || round == rounds || crowded)) {
      crowded = false;
      batch.rows = keys_of(round + 2);  // nobody's until it is fetched
      finish_batch<kSteps>(batch, held, codebook);
      batch.round = round;
      batch.first = first + round * blocks;
      __syncthreads();
    }
    if (round == rounds) break;
    fetch(round + 2);
    find(round + 3);
    const int next = round + 1;
    if (next < rounds) {
      if (tid < kThreads / 2) {
        if (means) {
          const ColumnsTile tile = columns_tile(tiling, st.begin, st.n, first + next * blocks);
          mean_of_columns<kSteps>(source, tile, tid / kDim, tid % kDim, keys_of(next),
                                  sh.mean_parts + next % 2 * 8 * kDim,
                                  sh.means + next % kColumnsMeans * (kColumnsBlocks * kDim),
                                  sh.mean_squares + next % 2 * (kColumnsBlocks * kDim / 32));
        }
      } else {
        for (int i = tid - kThreads / 2; i < 2 * kColumnsKeys; i += kThreads / 2) {
          const int k = i / 2;
          const bool there = sh.key_at[next % 4 * kColumnsKeys + k] != ColumnsShared::kNoRow;
          const float norm = norm_of_columns<kSteps>(keys_of(next), k, there);
          if (i % 2 == 0) sh.norms[next % 2 * kColumnsKeys + k] = norm;
        }
      }
    }
    if (round >= 0) {
      crowded =
          nearest_of_tile<kSteps>(table, sh, keys_of(round), means, round % 2, round - batch.round);
    }
  }
}

/// True where `encode_columns_kernel` serves what the tensor cores serve: what
/// IndexerConfig::recommended() asks for.
inline bool columns_serves(const IndexView& ix, DType dtype, bool wide) {
  return ix.dsub == 8 && ix.bits == 4 && wide && dtype == DType::bfloat16 &&
         ix.rotation != nullptr && (ix.block_size == 0 || ix.block_size == kColumnsBlock);
}

}  // namespace quarry::cuda
