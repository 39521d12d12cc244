// SPDX-License-Identifier: Apache-2.0
//
// Bulk encoding of bfloat16 keys with a rotation: the keys are multiplied as they are, which
// takes two passes of the tensor cores instead of three, no split and half the shared memory;
// their mean's product is subtracted after. One tile is a block of 64, or there are no blocks.
// As tensor.cuh otherwise: bound.h proves most codes, the rest is encoded again, exactly.
#pragma once

#include "common/copy.cuh"
#include "common/launch.h"
#include "encode/tensor_keys.cuh"
#include "encode/tensor_nearest.cuh"
#include "encode/ties.cuh"

namespace quarry::cuda {

/// Chunk c (of eight elements) of row k lies at c ^ raw_swizzle(k): what half a warp reads
/// together, 32 bytes of each of four rows, then falls into distinct banks.
__device__ __forceinline__ int raw_swizzle(int row) { return (row & 3) << 1; }

/// Starts the copies of a tile's rows; zeros for rows that are not there.
template <int kTiles>
__device__ __forceinline__ void fetch_raw(const void* keys, const std::int64_t* key_at,
                                          std::uint16_t* raw) {
  constexpr int kChunks = 2 * kTiles;
#pragma unroll
  for (int i = 0; i < kTensorKeys * kChunks / kTensorThreads; ++i) {
    const int item = static_cast<int>(threadIdx.x) + i * kTensorThreads;
    const int k = item / kChunks, c = item % kChunks;
    const std::int64_t at = key_at[k];
    const bool there = at != TensorShared::kNoRow;
    const auto* from = static_cast<const std::uint16_t*>(keys) + (there ? at : 0) + c * 8;
    copy_async_or_zero(raw + (k * kChunks + (c ^ raw_swizzle(k))) * 8, from, there);
  }
}

/// The mean of the tile's rows, a block, to sh.means, in parts, and into the index; d / 2 threads
/// work.
template <int kTiles>
__device__ __forceinline__ void mean_of_raw(const KeySource& source, const Tile& tile,
                                            const std::uint16_t* raw, const TensorShared& sh) {
  constexpr int kWords = 8 * kTiles;  // a row's, of two elements
  const auto w = static_cast<int>(threadIdx.x);
  if (w >= kWords) return;
  const auto* words = reinterpret_cast<const std::uint32_t*>(raw);
  const auto at = [&](int k) { return k * kWords + ((w / 4) ^ raw_swizzle(k)) * 4 + w % 4; };
  float sum[2] = {0, 0};
  const auto add = [&](std::uint32_t word) {
    sum[0] += __uint_as_float(word << 16);
    sum[1] += __uint_as_float(word & 0xffff0000u);
  };
  const int column[4] = {at(0), at(1), at(2), at(3)};
  int k = 0;
#pragma unroll 2
  for (; k + 16 <= tile.count; k += 16) {
    std::uint32_t v[16];
#pragma unroll
    for (int l = 0; l < 16; ++l) v[l] = words[column[l % 4] + (k + l / 4 * 4) * kWords];
#pragma unroll
    for (int l = 0; l < 16; ++l) add(v[l]);
  }
  for (; k < tile.count; ++k) add(words[at(k)]);
  const IndexView& ix = source.ix;
  const std::int32_t last = tile.first + tile.count - 1;
  float mean[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    mean[i] = rounded(sum[i] / static_cast<float>(tile.count), ix.mean_dtype);
  }
  *reinterpret_cast<float2*>(sh.means + 2 * w) = make_float2(mean[0], mean[1]);
  std::uint32_t high, middle, low, ignored;
  split2(mean[0], mean[1], &high, &middle);
  split2(mean[0] - __uint_as_float(high << 16) - __uint_as_float(middle << 16),
         mean[1] - __uint_as_float(high & 0xffff0000u) - __uint_as_float(middle & 0xffff0000u),
         &low, &ignored);
  auto* parts = reinterpret_cast<std::uint32_t*>(sh.mean_parts) + w;
  parts[0] = high, parts[kWords] = middle, parts[2 * kWords] = low;
  MeanStore{source}(last, 2 * w, mean[0]);
  MeanStore{source}(last, 2 * w + 1, mean[1]);
}

/// acc = rows row and row + 8 times the half's columns of the rotation; norm: at least the
/// rows' |k|.
template <int kTiles>
__device__ __forceinline__ void rotate_raw(const std::uint16_t* raw, const TensorShared& sh,
                                           int row, int half, int t, float (&acc)[kTiles][4],
                                           float (&norm)[2]) {
  constexpr int kDim = 16 * kTiles, kPairs = kTiles / 2;
  const std::uint16_t* x = raw + row * kDim + t % 2 * 4;
  const int twist = raw_swizzle(row);  // of row + 8 too
  __nv_bfloat162 square[2] = {__floats2bfloat162_rn(0, 0), __floats2bfloat162_rn(0, 0)};
  const auto add_square = [](std::uint32_t word, __nv_bfloat162& sum) {
    const auto v = *reinterpret_cast<const __nv_bfloat162*>(&word);
    sum = __hfma2(v, v, sum);
  };
  // The low halves first: while sums are small, so is what they lose.
#pragma unroll
  for (int pass = 1; pass >= 0; --pass) {
    const uint4* b = sh.rotation + (pass * kTiles + half * kPairs) * 32 + threadIdx.x % 32;
#pragma unroll 2
    for (int step = 0; step < kTiles; ++step, b += 2 * kTiles * 32) {
      // The table's depth order: a lane's four neighbours are dimensions 4 t .. 4 t + 3.
      const int at = ((2 * step + t / 2) ^ twist) * 8;
      const uint2 u = *reinterpret_cast<const uint2*>(x + at);
      const uint2 v = *reinterpret_cast<const uint2*>(x + 8 * kDim + at);
      const std::uint32_t a[4] = {u.x, v.x, u.y, v.y};
      uint4 r[kPairs];
#pragma unroll
      for (int n = 0; n < kPairs; ++n) r[n] = b[n * 32];
#pragma unroll
      for (int n = 0; n < kPairs; ++n) {
        multiply_add(acc[2 * n], a, r[n].x, r[n].y);
        multiply_add(acc[2 * n + 1], a, r[n].z, r[n].w);
      }
      if (pass == 0) {
        add_square(u.x, square[0]), add_square(u.y, square[0]);
        add_square(v.x, square[1]), add_square(v.y, square[1]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float2 two = __bfloat1622float2(square[i]);
    norm[i] = kRawNorm * approximate_sqrt(sum_of_four(two.x + two.y));
  }
}

/// A warp's share of the columns of mean . rotation, to sh.rotated_mean; |mean|. The mean's
/// parts are three rows of a.
template <int kTiles>
__device__ __forceinline__ float rotate_mean(const TensorShared& sh, int half, int part, int g,
                                             int t) {
  constexpr int kDim = 16 * kTiles, kShare = kTiles / 4, kEach = kDim / 32;
  const auto lane = static_cast<int>(threadIdx.x) % 32;
  const int first = half * kTiles + part * kShare;
  const uint4* b = sh.rotation + first / 2 * 32 + lane;
  const std::uint16_t* x = sh.mean_parts + (g < 3 ? g : 0) * kDim + t * 4;
  float high[kShare][4] = {}, low[kShare][4] = {};
#pragma unroll 2
  for (int step = 0; step < kTiles; ++step, b += 2 * kTiles * 32) {
    uint2 u = *reinterpret_cast<const uint2*>(x + step * 16);
    if (g >= 3) u = make_uint2(0, 0);
    const std::uint32_t a[4] = {u.x, 0, u.y, 0};
    const uint4 r = b[0], l = b[kTiles * 32];
    if constexpr (kShare == 2) {
      multiply_add(high[0], a, r.x, r.y);
      multiply_add(high[1], a, r.z, r.w);
      multiply_add(low[0], a, l.x, l.y);
      multiply_add(low[1], a, l.z, l.w);
    } else {
      const bool odd = first % 2 != 0;
      multiply_add(high[0], a, odd ? r.z : r.x, odd ? r.w : r.y);
      multiply_add(low[0], a, odd ? l.z : l.x, odd ? l.w : l.y);
    }
  }
#pragma unroll
  for (int n = 0; n < kShare; ++n) {
    float v[2] = {high[n][0] + low[n][0], high[n][1] + low[n][1]};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      v[i] += __shfl_xor_sync(0xffffffffu, v[i], 4);
      v[i] += __shfl_xor_sync(0xffffffffu, v[i], 8);
    }
    if (g == 0) {
      *reinterpret_cast<float2*>(sh.rotated_mean + (first + n) * 8 + t * 2) =
          make_float2(v[0], v[1]);
    }
  }
  float norm = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const float m = sh.means[i * 32 + lane];
    norm = fmaf(m, m, norm);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) norm += __shfl_xor_sync(0xffffffffu, norm, step);
  return approximate_sqrt(norm);
}

/// Grid (B * Hkv * blocks), blocks innermost; each takes every blocks-th tile.
template <int kTiles, int kUnits, int kBits>
__global__ void __launch_bounds__(kTensorThreads, 2)
    encode_raw_kernel(const __grid_constant__ EncodeParams p, const __grid_constant__ Tiling tiling,
                      std::int32_t blocks) {
  constexpr int kDim = 16 * kTiles;
  extern __shared__ __align__(16) unsigned char memory[];
  wait_for_predecessor();
  let_successor_start();
  const IndexView& ix = p.index;
  const auto id = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t head = id / blocks % ix.num_kv_heads, b = id / blocks / ix.num_kv_heads;
  const SequenceState st = p.step.states[b];
  if (st.slot < 0 || st.built == 0) return;
  const TensorShared sh(memory, ix, tiling);
  const KeySource source{ix, p.keys, block_table_row(p.step, b), st.slot, head, true};
  const std::int64_t book = std::int64_t{codebook_of(ix, st.slot)} * ix.num_kv_heads + head;
  const float* codebook = ix.codebooks + book * kDim * ix.ksub;
  const float* rotation = ix.rotation + book * kDim * kDim;
  load_tables<true>(ix, rotation, codebook, sh);

  const std::int32_t tiles = tiling.tiles(st.begin, st.n);
  const auto tid = static_cast<int>(threadIdx.x);
  const int lane = tid % 32, g = lane / 4, t = lane % 4, part = tid / 32 % 4, half = tid / 128;
  const int row = part * 16 + g;
  const bool means = ix.block_size > 0;
  // Tiles and rows are found one tile ahead, by warps that do not sum the mean.
  const auto find = [&](std::int32_t of, int slot) {
    const int k = tid - kTensorThreads / 2;
    if (k < 0 || k >= kTensorKeys || of >= tiles) return;
    const Tile tile = tiling.tile(st.begin, st.n, of);
    if (k == 0) sh.tiles[slot] = tile;
    find_keys(source, tile, k, sh.key_at);
  };
  const auto rows_of = [&](int slot) {
    return reinterpret_cast<std::uint16_t*>(sh.xs) + slot * kTensorKeys * kDim;
  };
  std::int32_t i = id % blocks;
  find(i, 0);
  __syncthreads();  // and the tables no longer need sh.xs
  if (i < tiles) fetch_raw<kTiles>(p.keys.data, sh.key_at, rows_of(0));
  for (int slot = 0; i < tiles; i += blocks, slot ^= 1) {
    wait_for_copies();
    __syncthreads();  // the rows are there, their addresses used, the last tile is stored
    const Tile tile = sh.tiles[slot];
    const std::uint16_t* raw = rows_of(slot);
    if (tid == 0) *sh.num_ties = 0;
    find(i + blocks, slot ^ 1);
    if (tid >= kTensorThreads - kTensorKeys) {
      find_codes(source, tile, tid - (kTensorThreads - kTensorKeys), sh.code_at);
    }
    if (means) mean_of_raw<kTiles>(source, tile, raw, sh);
    float acc[kTiles][4] = {}, norm[2];
    rotate_raw<kTiles>(raw, sh, row, half, t, acc, norm);
    __syncthreads();
    if (i + blocks < tiles) fetch_raw<kTiles>(p.keys.data, sh.key_at, rows_of(slot ^ 1));
    if (means) {
      const float mean_norm = rotate_mean<kTiles>(sh, half, part, g, t);
      norm[0] += mean_norm, norm[1] += mean_norm;
      __syncthreads();
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const float2 mean =
            *reinterpret_cast<const float2*>(sh.rotated_mean + (half * kTiles + n) * 8 + t * 2);
        acc[n][0] -= mean.x, acc[n][1] -= mean.y;
        acc[n][2] -= mean.x, acc[n][3] -= mean.y;
      }
    }
    const float loss[2] = {raw_rotation_loss(kDim) * norm[0], raw_rotation_loss(kDim) * norm[1]};
    nearest_centroids<kTiles, kUnits, kBits>(ix, tile.count, row, half, acc, loss, sh);
    __syncthreads();
    const auto residual = [&](int of, int j) {
      const uint2 k = *reinterpret_cast<const uint2*>(raw + of * kDim +
                                                      ((j / 8) ^ raw_swizzle(of)) * 8 + j % 8);
      float4 m = make_float4(0, 0, 0, 0);
      if (means) m = *reinterpret_cast<const float4*>(sh.means + j);
      return make_float4(__uint_as_float(k.x << 16) - m.x, __uint_as_float(k.x & 0xffff0000u) - m.y,
                         __uint_as_float(k.y << 16) - m.z,
                         __uint_as_float(k.y & 0xffff0000u) - m.w);
    };
    settle_ties<kTiles, kUnits, kTensorThreads, kUnits <= 2 ? 32 : 16>(
        ix.ksub, codebook, NearTies{sh.ties, sh.num_ties, sh.subvectors},
        TileKeys{residual, rotation, sh.codes});
    __syncthreads();
    store_tile_codes(ix, sh);
  }
}

/// True where `encode_raw_kernel` serves what the tensor cores serve: d = 128 with twice the dsub
/// that IndexerConfig::recommended() asks for, or with that one where shared memory is too small
/// for columns.cuh.
inline bool raw_keys_serve(const IndexView& ix, DType dtype, bool wide) {
  return ix.head_dim == 128 && (ix.dsub == 16 || (ix.dsub == 8 && ix.bits == 4)) && wide &&
         dtype == DType::bfloat16 && ix.rotation != nullptr &&
         (ix.block_size == 0 || ix.block_size == kTensorKeys);
}

}  // namespace quarry::cuda
