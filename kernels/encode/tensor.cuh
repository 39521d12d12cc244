// SPDX-License-Identifier: Apache-2.0
//
// Bulk encoding on tensor cores: a prefill's tiles of 64 keys, rotated and compared with
// centroids in split bfloat16. bound.h proves most codes; near ties are encoded again in the
// contract's arithmetic, so the bytes are those of one-by-one encoding. Keys are read once;
// a thread block stays with one KV head and keeps its rotation and codebook in shared memory.
#pragma once

#include "common/launch.h"
#include "encode/tensor_keys.cuh"
#include "encode/tensor_nearest.cuh"
#include "encode/ties.cuh"

namespace quarry::cuda {

/// Grid (B * Hkv * blocks), blocks innermost; each takes every blocks-th tile.
template <int kTiles, int kUnits>
__global__ void __launch_bounds__(kTensorThreads, 2)
    encode_tensor_kernel(const __grid_constant__ EncodeParams p,
                         const __grid_constant__ Tiling tiling, std::int32_t blocks, bool wide) {
  extern __shared__ __align__(16) unsigned char memory[];
  wait_for_predecessor();
  let_successor_start();
  // Small subspaces have near ties to hide a fetch behind, and a use for its registers before.
  constexpr bool kLate = kUnits <= 4;
  const IndexView& ix = p.index;
  const auto id = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t head = id / blocks % ix.num_kv_heads, b = id / blocks / ix.num_kv_heads;
  const SequenceState st = p.step.states[b];
  if (st.slot < 0 || st.built == 0) return;
  const TensorShared sh(memory, ix, tiling);
  const KeySource source{ix, p.keys, block_table_row(p.step, b), st.slot, head, wide};
  const std::int64_t book = std::int64_t{codebook_of(ix, st.slot)} * ix.num_kv_heads + head;
  const float* codebook = ix.codebooks + book * ix.head_dim * ix.ksub;
  const float* rotation =
      ix.rotation == nullptr ? nullptr : ix.rotation + book * ix.head_dim * ix.head_dim;
  load_tables<false>(ix, rotation, codebook, sh);

  const std::int32_t tiles = tiling.tiles(st.begin, st.n);
  const auto tid = static_cast<int>(threadIdx.x);
  // Tiles and rows are found by a few threads, one tile ahead: that takes divisions.
  const auto find = [&](std::int32_t of, int slot, bool keys) {
    if (tid >= kTensorKeys || of >= tiles) return;
    const Tile tile = tiling.tile(st.begin, st.n, of);
    if (tid == 0) sh.tiles[slot] = tile;
    if (keys) find_keys(source, tile, tid, sh.key_at);
  };
  const bool ahead = wide && p.keys.dtype != DType::float32;
  Ahead<kTiles> next;
  std::int32_t i = id % blocks;
  int slot = 0;
  find(i, slot, ahead);
  __syncthreads();
  if (ahead && i < tiles) next.fetch(p.keys, sh.key_at);
  for (; i < tiles; i += blocks, slot ^= 1) {
    __syncthreads();  // the last tile has been stored
    const Tile tile = sh.tiles[slot];
    if (tid == 0) *sh.num_ties = 0;
    find(i + blocks, slot ^ 1, ahead);
    if (tid >= kTensorKeys && tid < 2 * kTensorKeys) {
      find_codes(source, tile, tid - kTensorKeys, sh.code_at);
    } else if (!ahead && tid < kTensorKeys) {
      find_keys(source, tile, tid, sh.key_at);
    }
    if (ahead) {
      if (p.keys.dtype == DType::float16) {
        next.template store<Float16>(1.0f, sh.xs);
      } else if (p.keys.dtype == DType::float8_e4m3) {
        next.template store<Float8>(source.scale(), sh.xs);
      } else {
        next.template store<BFloat16>(1.0f, sh.xs);
      }
    } else {
      __syncthreads();
      for_dtype(p.keys.dtype, [&](auto element) {
        load_rows<decltype(element), kTiles>(source, sh.key_at, sh.xs);
      });
    }
    __syncthreads();
    const bool fetches = ahead && i + blocks < tiles;
    if (fetches && (!kLate || tile.count == 0)) next.fetch(p.keys, sh.key_at);
    if (tile.count == 0) continue;  // a chunk of keys below encode_from
    if (ix.block_size > 0) {
      subtract_tile_means<kTiles>(source, tile, sh);
      __syncthreads();
    }
    nearest_on_tensor_cores<kTiles, kUnits>(ix, rotation != nullptr, tile.count, sh);
    __syncthreads();
    if (fetches && kLate) next.fetch(p.keys, sh.key_at);
    const auto residual = [&](int row, int i) {
      return *reinterpret_cast<const float4*>(sh.xs + row * (16 * kTiles) +
                                              ((i / 4) ^ swizzle(row)) * 4);
    };
    settle_ties<kTiles, kUnits, kTensorThreads, kUnits <= 2 ? 32 : 16>(
        ix.ksub, codebook, NearTies{sh.ties, sh.num_ties, sh.subvectors},
        TileKeys{residual, rotation, sh.codes});
    __syncthreads();
    store_tile_codes(ix, sh);
  }
}

/// True where `encode_tensor_kernel` serves: else the exact kernel does all.
inline bool tensor_cores_serve(const IndexView& ix) {
  const bool dims = ix.head_dim == 64 || ix.head_dim == 128;
  const bool subspaces = ix.dsub == 8 || ix.dsub == 16 || ix.dsub == 32 || ix.dsub == 64;
  return dims && subspaces && ix.dsub * 2 <= ix.head_dim && ix.ksub >= 8 &&
         ix.metric == Metric::euclidean;
}

}  // namespace quarry::cuda
