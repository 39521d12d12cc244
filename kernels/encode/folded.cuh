// SPDX-License-Identifier: Apache-2.0
//
// Bulk encoding of bfloat16 keys on tensor cores, with the codebook multiplied into the rotation:
// one product of the keys, as they are, gives the distances to all centroids of all subspaces
// (folded_table.cuh), 256 columns of d = 128 in two halves of bfloat16. A warp keeps a subspace's
// 16 columns in registers and reads every key of its thread block's tiles. bound.h proves most
// codes; near ties are gathered over a batch of tiles and encoded again in the contract's
// arithmetic, many at once.
//
// One barrier a tile. Between two, tile j is multiplied, of tile j + 1 means and norms are found,
// the copies of tile j + 2 are under way, and rows of tile j + 3 are looked up.
#pragma once

#include "common/launch.h"
#include "encode/folded_nearest.cuh"
#include "encode/ties.cuh"

namespace quarry::cuda {

/// What a batch of tiles needs to be settled and stored: which they are.
struct FoldedBatch {
  const KeySource& source;
  const FoldedShared& sh;
  const Tiling& tiling;
  std::int32_t begin, n;
  std::int32_t first, stride;  ///< its tiles: first, first + stride, ...
  int round;                   ///< how many tiles came before its first one
  std::uint16_t* rows;         ///< shared, [warps][4][d]: a place for keys of near ties

  __device__ __forceinline__ FoldedTile tile(int i) const {
    return folded_tile(tiling, begin, n, first + i * stride);
  }
};

/// Keys of near ties, fetched anew.
template <int kSteps>
struct FoldedKeys {
  static constexpr int kDim = 16 * kSteps, kWidth = 8;
  const FoldedBatch& batch;

  __device__ __forceinline__ std::uint16_t* mine() const {
    return batch.rows + static_cast<int>(threadIdx.x) / kWidth * kDim;
  }
  __device__ __forceinline__ void begin(int row) const {
    const std::int64_t at =
        find_folded_key(batch.source, batch.tile(row / kFoldedKeys), row % kFoldedKeys);
    auto* to = reinterpret_cast<uint4*>(mine());
#pragma unroll
    for (int i = 0; i < kDim / 8 / kWidth; ++i) {
      const int c = static_cast<int>(threadIdx.x) % kWidth + i * kWidth;
      uint4 v = make_uint4(0, 0, 0, 0);
      if (at != FoldedShared::kNoRow) {
        const auto* from = static_cast<const std::uint16_t*>(batch.source.keys.data) + at;
        v = __ldg(reinterpret_cast<const uint4*>(from) + c);
      }
      to[c] = v;
    }
    __syncwarp();
  }
  __device__ __forceinline__ float4 residual(int row, int i) const {
    const uint2 k = *reinterpret_cast<const uint2*>(mine() + i);
    const int tile = (batch.round + row / kFoldedKeys) % kFoldedMeans;
    const int block = row % kFoldedKeys / kFoldedBlock;
    float4 m = make_float4(0, 0, 0, 0);
    if (batch.tiling.block_size > 0) {
      m = *reinterpret_cast<const float4*>(batch.sh.means + (tile * kFoldedBlocks + block) * kDim +
                                           i);
    }
    return make_float4(__uint_as_float(k.x << 16) - m.x, __uint_as_float(k.x & 0xffff0000u) - m.y,
                       __uint_as_float(k.y << 16) - m.z, __uint_as_float(k.y & 0xffff0000u) - m.w);
  }
  __device__ __forceinline__ void put(int item, std::uint8_t code) const {
    constexpr int kSubspaces = 2 * kSteps;
    batch.sh.codes[item % kSubspaces * (kFoldedBatch * kFoldedKeys) + item / kSubspaces] = code;
  }
};

/// The near ties of a batch of `count` tiles, and its codes into the index. Barriers before and
/// after are the caller's.
template <int kSteps>
__device__ __forceinline__ void finish_batch(const FoldedBatch& batch, int count,
                                             const float* rotation, const float* codebook) {
  constexpr int kThreads = 64 * kSteps, kPlane = kFoldedBatch * kFoldedKeys;
  const FoldedShared& sh = batch.sh;
  const IndexView& ix = batch.source.ix;
  settle_ties<kSteps, 1, kThreads, 8>(16, rotation, codebook,
                                      NearTies{sh.ties, sh.num_ties, sh.subvectors},
                                      FoldedKeys<kSteps>{batch});
  __syncthreads();
  if (threadIdx.x == 0) *sh.num_ties = 0;
  for (int key = static_cast<int>(threadIdx.x); key < count * kFoldedKeys; key += kThreads) {
    const FoldedTile tile = batch.tile(key / kFoldedKeys);
    const std::int32_t position = tile.base + key % kFoldedKeys;
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
    encode_folded_kernel(const __grid_constant__ EncodeParams p,
                         const __grid_constant__ Tiling tiling, std::int32_t blocks) {
  constexpr int kDim = 16 * kSteps, kSubspaces = 2 * kSteps, kThreads = 64 * kSteps;
  extern __shared__ __align__(128) unsigned char folded_memory[];
  wait_for_predecessor();
  let_successor_start();
  const IndexView& ix = p.index;
  const auto id = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t head = id / blocks % ix.num_kv_heads, b = id / blocks / ix.num_kv_heads;
  const SequenceState st = p.step.states[b];
  if (st.slot < 0 || st.built == 0) return;
  const FoldedShared sh(folded_memory, kDim, kSubspaces);
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
    const int k = tid - (kThreads - kFoldedKeys);
    if (k < 0 || round >= rounds) return;
    const FoldedTile tile = folded_tile(tiling, st.begin, st.n, first + round * blocks);
    sh.key_at[round % 4 * kFoldedKeys + k] = find_folded_key(source, tile, k);
  };
  const auto keys_of = [&](int round) { return sh.keys + round % 3 * (kFoldedKeys * kDim); };
  const auto fetch = [&](int round) {
    if (round >= rounds) return;
    fetch_folded<kSteps>(p.keys.data, sh.key_at + round % 4 * kFoldedKeys, keys_of(round));
  };
  for (int i = 0; i < 2; ++i) find(i);
  for (int i = tid; i < 2 * 8 * kDim / 2; i += kThreads) {
    reinterpret_cast<std::uint32_t*>(sh.mean_parts)[i] = 0;
  }
  if (tid == 0) *sh.num_ties = 0;
  __syncthreads();
  fetch(0);
  FoldedTable<kSteps> table;
  {
    const int s = tid / 32;
    const FoldedSubspace of = table.load(rotation + s * 8, codebook + s * (8 * 16));
    if (tid % 32 == 0) sh.subspaces[s] = of;
  }

  FoldedBatch batch{source, sh, tiling, st.begin, st.n, first, blocks, 0, nullptr};
  bool crowded = false;
  for (int round = -1; round <= rounds; ++round) {
    wait_for_copies();
    crowded = __syncthreads_or(crowded) != 0;
    const int held = round - batch.round;  // tiles of the batch that have been multiplied
    if (held > 0 && (held == kFoldedBatch || round == rounds || crowded)) {
      crowded = false;
      batch.rows = keys_of(round + 2);  // nobody's until it is fetched
      finish_batch<kSteps>(batch, held, rotation, codebook);
      batch.round = round;
      batch.first = first + round * blocks;
      __syncthreads();
    }
    if (round == rounds) break;
    fetch(round + 2);
    find(round + 3);
    const int next = round + 1;
    if (next < rounds) {
      if (tid < kDim) {
        if (means) {
          const FoldedTile tile = folded_tile(tiling, st.begin, st.n, first + next * blocks);
          mean_of_folded<kSteps>(source, tile, tid / (kDim / 2), tid % (kDim / 2), keys_of(next),
                                 sh.mean_parts + next % 2 * 8 * kDim,
                                 sh.means + next % kFoldedMeans * (kFoldedBlocks * kDim),
                                 sh.mean_squares + next % 2 * (kFoldedBlocks * kDim / 64));
        }
      } else if (tid < kDim + kFoldedKeys) {
        const int k = tid - kDim;
        const bool there = sh.key_at[next % 4 * kFoldedKeys + k] != FoldedShared::kNoRow;
        sh.norms[next % 2 * kFoldedKeys + k] = norm_of_folded<kSteps>(keys_of(next), k, there);
      }
    }
    if (round >= 0) {
      crowded =
          nearest_of_tile<kSteps>(table, sh, keys_of(round), means, round % 2, round - batch.round);
    }
  }
}

/// True where `encode_folded_kernel` serves what the tensor cores serve: what
/// IndexerConfig::recommended() asks for.
inline bool folded_serves(const IndexView& ix, DType dtype, bool wide) {
  return ix.dsub == 8 && ix.bits == 4 && wide && dtype == DType::bfloat16 &&
         ix.rotation != nullptr && (ix.block_size == 0 || ix.block_size == kFoldedBlock);
}

}  // namespace quarry::cuda
