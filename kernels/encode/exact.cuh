// SPDX-License-Identifier: Apache-2.0
//
// A whole tile of keys in the contract's own arithmetic: bulk encoding of the shapes that the
// tensor cores do not serve.
#pragma once

#include "common/launch.h"
#include "encode/nearest.cuh"
#include "encode/tile.cuh"

namespace quarry::cuda {

constexpr int kExactThreads = 256;

/// Dynamic shared memory of a tile. The code that counts it carves it.
struct TileShared {
  float* xs;            ///< [keys][stride]
  float* ys;            ///< [keys][stride], rotated
  float* means;         ///< [blocks of a tile][d]
  float* extra;         ///< [keys][m]
  std::uint8_t* codes;  ///< [keys][m]
  std::size_t bytes = 0;

  __host__ __device__ TileShared(unsigned char* base, const IndexView& ix, const Tiling& tiling) {
    const auto take = [&](std::size_t size) {
      unsigned char* const here = base == nullptr ? nullptr : base + bytes;
      bytes += (size + 15) / 16 * 16;
      return here;
    };
    const auto keys = static_cast<std::size_t>(tiling.keys);
    const auto d = static_cast<std::size_t>(ix.head_dim);
    const auto m = static_cast<std::size_t>(ix.num_subspaces);
    const std::size_t tile = keys * static_cast<std::size_t>(tile_stride(ix.head_dim)) * 4;
    const bool blocks = ix.block_size > 0, ip = ix.metric == Metric::inner_product;
    xs = reinterpret_cast<float*>(take(tile));
    ys = reinterpret_cast<float*>(take(ix.rotation != nullptr ? tile : 0));
    means = reinterpret_cast<float*>(
        take(blocks ? static_cast<std::size_t>(tiling.blocks_per_tile()) * d * 4 : 0));
    extra = reinterpret_cast<float*>(take(ip ? keys * m * 4 : 0));
    codes = take(keys * m);
  }
};

/// The largest tile of at most `keys` that leaves room for two thread blocks on every
/// multiprocessor from 8.6 (100 KB) on.
inline Tiling exact_tiling(const IndexView& ix, std::int32_t keys) {
  constexpr std::size_t kMost = 96 * 1024;
  Tiling t{keys, ix.block_size, ix.encode_from};
  while (t.keys > 8 && TileShared(nullptr, ix, t).bytes > kMost) t.keys /= 2;
  return t;
}

/// One tile of keys to codes and means. All threads of the block call it, once a kernel.
/// kRows: keys a thread rotates at once.
template <typename E, int kRows>
__device__ void encode_tile(const KeySource& source, const Tiling& tiling, const Tile& tile,
                            const TileShared& sh) {
  const IndexView& ix = source.ix;
  const std::int64_t book =
      std::int64_t{codebook_of(ix, source.slot)} * ix.num_kv_heads + source.head;
  const int m = ix.num_subspaces, stride = tile_stride(ix.head_dim);
  const int rows = (tile.count + kRows - 1) / kRows * kRows;
  load_keys<E>(
      source, rows, [&](int k) { return k < tile.count ? tile.first + k : -1; }, sh.xs);
  __syncthreads();
  if (ix.block_size > 0) {
    subtract_means<E>(source, tiling, tile, sh.xs, sh.means, MeanStore{source});
    __syncthreads();
  }
  const float* xs = sh.xs;
  if (ix.rotation != nullptr) {
    rotate<kRows>(ix.rotation + book * ix.head_dim * ix.head_dim, ix.head_dim, rows, sh.xs, sh.ys);
    xs = sh.ys;
    __syncthreads();
  }
  const bool augmented = ix.metric == Metric::inner_product;
  if (augmented) {
    for (int item = static_cast<int>(threadIdx.x); item < tile.count * m;
         item += static_cast<int>(blockDim.x)) {
      const int k = item / m, s = item % m;
      sh.extra[item] =
          augmentation(ix.phi[book * m + s], squared_norm(xs + k * stride + s * ix.dsub, ix.dsub));
    }
    __syncthreads();
  }
  const NearestInput in{ix, ix.codebooks + book * m * ix.dcent * ix.ksub, xs,
                        augmented ? sh.extra : nullptr, tile.count};
  nearest_by_subvector(in, sh.codes);
  __syncthreads();
  store_codes(source, tile, sh.codes);
}

/// Grid (B * Hkv * tiles), tiles innermost.
template <typename E>
__global__ void __launch_bounds__(kExactThreads, 2)
    encode_exact_kernel(const __grid_constant__ EncodeParams p,
                        const __grid_constant__ Tiling tiling, std::int32_t tiles, bool wide) {
  extern __shared__ __align__(16) unsigned char memory[];
  wait_for_predecessor();
  let_successor_start();
  const IndexView& ix = p.index;
  const auto id = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t b = id / tiles / ix.num_kv_heads;
  const SequenceState st = p.step.states[b];
  if (st.slot < 0 || st.built == 0 || id % tiles >= tiling.tiles(st.begin, st.n)) return;
  const KeySource source{
      ix, p.keys, block_table_row(p.step, b), st.slot, id / tiles % ix.num_kv_heads, wide};
  const Tile tile = tiling.tile(st.begin, st.n, id % tiles);
  if (tile.count > 0) encode_tile<E, 8>(source, tiling, tile, TileShared(memory, ix, tiling));
}

}  // namespace quarry::cuda
