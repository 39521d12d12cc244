// SPDX-License-Identifier: Apache-2.0
//
// The pieces of a decode step's encoding. A step has few keys and a cold cache, so its time is
// latency: copies to shared memory are under way together, and few loads wait for another.
// The sums are tile.cuh's, bit for bit.
#pragma once

#include "common/copy.cuh"
#include "encode/step_shape.h"
#include "encode/tile.cuh"

namespace quarry::cuda {

/// What an item reads of its KV head's rotation and codebook.
struct StepTables {
  const float* rotation;  ///< column `first` of row 0; rows lie `rotation_stride` apart
  const float* codebook;  ///< of the first subspace: [subspaces][dcent][ksub]
  int first_column, columns;
  int rotation_stride;
  int codebook_size;

  __device__ StepTables(const IndexView& ix, std::int64_t book, const StepItem& it)
      : first_column(it.first_subspace * ix.dsub & ~3),
        columns(((it.end_subspace * ix.dsub + 3) & ~3) - first_column),
        rotation_stride(ix.head_dim),
        codebook_size((it.end_subspace - it.first_subspace) * ix.dcent * ix.ksub) {
    rotation = ix.rotation == nullptr
                   ? nullptr
                   : ix.rotation + book * ix.head_dim * ix.head_dim + first_column;
    codebook = ix.codebooks + (book * ix.num_subspaces + it.first_subspace) * ix.dcent * ix.ksub;
  }

  /// Towards the second level cache; reads nothing, so it needs not wait for who writes.
  __device__ void fetch_ahead(const IndexView& ix) const {
    const int threads = static_cast<int>(blockDim.x), tid = static_cast<int>(threadIdx.x);
    const int sectors = (columns + 7) / 8;
    for (int i = tid; rotation != nullptr && i < ix.head_dim * sectors; i += threads) {
      prefetch(rotation + i / sectors * ix.head_dim + i % sectors * 8);
    }
    for (int i = tid; i < (codebook_size + 7) / 8; i += threads) prefetch(codebook + i * 8);
  }

  /// Starts the copies to shared memory; wait_for_copies() and a barrier must follow.
  __device__ void stage(const IndexView& ix, const StepShape& shape, const StepShared& sh) const {
    const int threads = static_cast<int>(blockDim.x), tid = static_cast<int>(threadIdx.x);
    if (shape.stages_rotation) {
      const int quads = columns / 4;
      for (int i = tid; i < ix.head_dim * quads; i += threads) {
        copy_async<16>(sh.rotation + i * 4, rotation + i / quads * ix.head_dim + i % quads * 4);
      }
    }
    if (!shape.stages_codebook) return;
    if (ix.ksub >= 4) {
      for (int i = tid; i < codebook_size / 4; i += threads) {
        copy_async<16>(sh.codebook + i * 4, codebook + i * 4);
      }
    } else {
      for (int i = tid; i < codebook_size / 2; i += threads) {
        copy_async<8>(sh.codebook + i * 2, codebook + i * 2);
      }
    }
  }
  /// Reads the copies from here on.
  __device__ void use_staged(const StepShape& shape, const StepShared& sh) {
    if (shape.stages_rotation) rotation = sh.rotation, rotation_stride = columns;
    if (shape.stages_codebook) codebook = sh.codebook;
  }
};

/// An element of any type, widened and scaled. A step's code is not made once a type: it is
/// inlined into kernels that have other things to do.
__device__ __forceinline__ float load_any(const void* data, DType dtype, float scale,
                                          std::int64_t at) {
  if (dtype == DType::float32) return __ldg(static_cast<const float*>(data) + at);
  if (dtype == DType::float8_e4m3) {
    return Float8::widen(__ldg(static_cast<const std::uint8_t*>(data) + at)) * scale;
  }
  const std::uint16_t bits = __ldg(static_cast<const std::uint16_t*>(data) + at);
  return dtype == DType::float16 ? Float16::widen(bits) : BFloat16::widen(bits);
}

/// Columns [first, end), multiples of eight, of the tile's rows; zeros where a page is out of
/// range. Addresses, loads and conversions in turn, each for several pieces of 16 bytes (8 of
/// one-byte elements): one after the other, every piece would wait.
__device__ __forceinline__ void load_step_keys(const KeySource& source, const Tile& tile,
                                               int first_column, int end_column, float* xs) {
  constexpr int kBatch = 4;
  const IndexView& ix = source.ix;
  const DType dtype = source.keys.dtype;
  const bool four = dtype == DType::float32, one = dtype == DType::float8_e4m3;
  const float scale = one ? source.scale() : 1.0f;
  const int each = source.wide ? (four ? 4 : 8) : 1;  // elements
  const int size = four ? 4 : one ? 1 : 2;            // bytes
  const int pieces = (end_column - first_column) / each, total = tile.count * pieces;
  const int threads = static_cast<int>(blockDim.x), stride = tile_stride(ix.head_dim);
  for (int first = static_cast<int>(threadIdx.x); first < total; first += kBatch * threads) {
    // Not page_of(): its check would wait for each entry.
    std::int32_t page[kBatch];
#pragma unroll
    for (int l = 0; l < kBatch; ++l) {
      const int item = first + l * threads;
      const std::int32_t position = tile.first + (item < total ? item / pieces : 0);
      page[l] = source.slot;
      if (source.table != nullptr) page[l] = __ldg(source.table + position / ix.page_size);
    }
    const unsigned char* from[kBatch];
#pragma unroll
    for (int l = 0; l < kBatch; ++l) {
      const int item = first + l * threads;
      const std::int64_t at =
          key_offset(ix, source.keys, page[l], source.head, tile.first + item / pieces) +
          first_column + item % pieces * each;
      const bool there = item < total && page[l] >= 0 && page[l] < ix.num_pages;
      from[l] = there ? static_cast<const unsigned char*>(source.keys.data) + at * size : nullptr;
    }
    uint4 word[kBatch];
#pragma unroll
    for (int l = 0; l < kBatch; ++l) {
      word[l] = make_uint4(0, 0, 0, 0);
      if (from[l] == nullptr) continue;
      if (one) {
        if (source.wide) {
          const uint2 w = __ldg(reinterpret_cast<const uint2*>(from[l]));
          word[l].x = w.x, word[l].y = w.y;
        } else {
          word[l].x = __ldg(from[l]);
        }
      } else if (source.wide) {
        word[l] = __ldg(reinterpret_cast<const uint4*>(from[l]));
      } else if (four) {
        word[l].x = __ldg(reinterpret_cast<const std::uint32_t*>(from[l]));
      } else {
        word[l].x = __ldg(reinterpret_cast<const std::uint16_t*>(from[l]));
      }
    }
#pragma unroll
    for (int l = 0; l < kBatch; ++l) {
      const int item = first + l * threads;
      if (item >= total) break;
      float* to = xs + item / pieces * stride + first_column + item % pieces * each;
      const std::uint32_t w[4] = {word[l].x, word[l].y, word[l].z, word[l].w};
      float v[8];
      if (one) {
        widen8(w[0], w[1], v);
#pragma unroll
        for (float& x : v) x *= scale;
      } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const auto bits = static_cast<std::uint16_t>(w[i / 2] >> i % 2 * 16);
          v[i] = four                      ? __uint_as_float(w[i % 4])
                 : dtype == DType::float16 ? Float16::widen(bits)
                                           : BFloat16::widen(bits);
        }
      }
      if (!source.wide) {
        *to = v[0];
        continue;
      }
      *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
      if (!four) *reinterpret_cast<float4*>(to + 4) = make_float4(v[4], v[5], v[6], v[7]);
    }
  }
}

/// mean_from_cache() of tile.cuh.
__device__ __forceinline__ float step_mean_from_cache(const KeySource& source, std::int32_t first,
                                                      std::int32_t last, int j) {
  const IndexView& ix = source.ix;
  const float scale = source.scale();
  float sum = 0;
#pragma unroll 4
  for (std::int32_t p = first; p <= last; ++p) {
    const std::int64_t page = page_of(ix, source.table, source.slot, p);
    float v = 0;
    if (page >= 0) {
      v = load_any(source.keys.data, source.keys.dtype, scale,
                   key_offset(ix, source.keys, page, source.head, p) + j);
    }
    sum += v;
  }
  return rounded(sum / static_cast<float>(last - first + 1), ix.mean_dtype);
}

/// Columns [first, end) of the means of the tile's blocks, from its keys before any became a
/// residual.
__device__ inline void step_means(const KeySource& source, const Tiling& tiling, const Tile& tile,
                                  int first, int end, const float* xs, float* means) {
  const IndexView& ix = source.ix;
  const int bs = ix.block_size, stride = tile_stride(ix.head_dim), columns = end - first;
  const int blocks = (tile.first + tile.count - 1) / bs - tile.first_block + 1;
  for (int item = static_cast<int>(threadIdx.x); item < blocks * columns;
       item += static_cast<int>(blockDim.x)) {
    const int block = item / columns, j = first + item % columns;
    const std::int32_t start = (tile.first_block + block) * bs, last = start + bs - 1;
    const std::int32_t from = start < ix.encode_from ? ix.encode_from : start;
    float mean = 0;
    if (bs > tiling.keys) {
      mean = step_mean_from_cache(source, from, last, j);
    } else {
      const float* x = xs + (from - tile.first) * stride + j;
#pragma unroll 16
      for (std::int32_t p = from; p <= last; ++p, x += stride) mean += *x;
      mean = rounded(mean / static_cast<float>(last - from + 1), ix.mean_dtype);
    }
    means[block * ix.head_dim + j] = mean;
  }
}

/// Rows [first_row, end_row) of xs, columns [first, end), both multiples of four, become
/// residuals.
__device__ inline void step_residuals(const IndexView& ix, const Tile& tile, int first_row,
                                      int end_row, int first, int end, const float* means,
                                      float* xs) {
  const int stride = tile_stride(ix.head_dim), quads = (end - first) / 4;
#pragma unroll 4
  for (int item = static_cast<int>(threadIdx.x); item < (end_row - first_row) * quads;
       item += static_cast<int>(blockDim.x)) {
    const int k = first_row + item / quads, j = first + item % quads * 4;
    const int block = (tile.first + k) / ix.block_size - tile.first_block;
    float4& x = *reinterpret_cast<float4*>(xs + k * stride + j);
    const float4 mean = *reinterpret_cast<const float4*>(means + block * ix.head_dim + j);
    x = make_float4(x.x - mean.x, x.y - mean.y, x.z - mean.z, x.w - mean.w);
  }
}

/// Columns [first, end) of the means of the tile's blocks into the index.
__device__ inline void store_step_means(const KeySource& source, const Tile& tile, int first,
                                        int end, const float* means) {
  const IndexView& ix = source.ix;
  const int bs = ix.block_size, columns = end - first;
  const int blocks = (tile.first + tile.count - 1) / bs - tile.first_block + 1;
  for (int item = static_cast<int>(threadIdx.x); item < blocks * columns;
       item += static_cast<int>(blockDim.x)) {
    const int block = item / columns, j = first + item % columns;
    MeanStore{source}((tile.first_block + block + 1) * bs - 1, j, means[block * ix.head_dim + j]);
  }
}

/// ys[k] = columns of xs[k] . rotation for k < rows; kKeys rows and 4 columns a thread. What
/// the next kAhead dimensions need is loaded before these are added.
template <int kKeys, int kAhead>
__device__ void rotate_columns(const StepTables& tables, int d, int rows, const float* xs,
                               float* ys) {
  const int quads = tables.columns / 4, stride = tile_stride(d);
  const int to_stride = tile_stride(tables.columns), groups = (rows + kKeys - 1) / kKeys;
  struct Ahead {
    float4 row[kAhead];
    float x[kKeys][kAhead];
  };
  for (int item = static_cast<int>(threadIdx.x); item < groups * quads;
       item += static_cast<int>(blockDim.x)) {
    const int q = item % quads, k0 = item / quads;
    const float* r = tables.rotation + q * 4;
    const float* x[kKeys];  // rows `groups` apart; one that is not there repeats the first
    float4 acc[kKeys];
#pragma unroll
    for (int k = 0; k < kKeys; ++k) {
      x[k] = xs + (k0 + k * groups < rows ? k0 + k * groups : k0) * stride;
      acc[k] = make_float4(0, 0, 0, 0);
    }
    const auto load = [&](int i, Ahead& a) {
#pragma unroll
      for (int l = 0; l < kAhead; ++l) {
        a.row[l] = *reinterpret_cast<const float4*>(r + (i + l) * tables.rotation_stride);
      }
#pragma unroll
      for (int k = 0; k < kKeys; ++k) {
#pragma unroll
        for (int l = 0; l < kAhead; l += 4) {
          const float4 v = *reinterpret_cast<const float4*>(x[k] + i + l);
          a.x[k][l] = v.x, a.x[k][l + 1] = v.y, a.x[k][l + 2] = v.z, a.x[k][l + 3] = v.w;
        }
      }
    };
    const auto add = [&](const Ahead& a) {
#pragma unroll
      for (int l = 0; l < kAhead; ++l) {
#pragma unroll
        for (int k = 0; k < kKeys; ++k) {
          acc[k].x = fmaf(a.x[k][l], a.row[l].x, acc[k].x);
          acc[k].y = fmaf(a.x[k][l], a.row[l].y, acc[k].y);
          acc[k].z = fmaf(a.x[k][l], a.row[l].z, acc[k].z);
          acc[k].w = fmaf(a.x[k][l], a.row[l].w, acc[k].w);
        }
      }
    };
    Ahead one, two;
    load(0, one);
    // d is a multiple of eight.
#pragma unroll 1
    for (int i = 0; i < d; i += 2 * kAhead) {
      load(i + kAhead, two);
      add(one);
      load(i + 2 * kAhead < d ? i + 2 * kAhead : 0, one);
      add(two);
    }
#pragma unroll
    for (int k = 0; k < kKeys; ++k) {
      if (k0 + k * groups >= rows) break;
      *reinterpret_cast<float4*>(ys + (k0 + k * groups) * to_stride + q * 4) = acc[k];
    }
  }
}

}  // namespace quarry::cuda
