// SPDX-License-Identifier: Apache-2.0
//
// A decode step's encoding as device functions, for stage encode's own kernel and for any
// other whose thread blocks take a share of it.
#pragma once

#include "encode/nearest.cuh"
#include "encode/step_shape.h"
#include "encode/tile.cuh"

namespace quarry::cuda {

/// Host: the cut and shared memory of a step.
inline StepShape step_shape(const EncodeParams& p) {
  return step_shape(p, is_wide(p.keys.data, p.keys.dtype,
                               {p.keys.page_stride, p.keys.slot_stride, p.keys.head_stride}));
}

/// The state of sequence b, its pages checked: every page that its rows can touch, since the
/// later stages read codes, and refine reads keys, by the same table. All threads of the
/// block call it, whatever their number, and all get it; contains a barrier. Writes nothing:
/// states[b], seen and device_status are the caller's to write, and none may move `seen`
/// while another thread block may still be in here.
__device__ inline SequenceState plan_sequence(const EncodeParams& p, std::int32_t b) {
  const IndexView& ix = p.index;
  SequenceState st = sequence_state(ix, p.step, b);
  bool bad = false;
  const std::int32_t* table = block_table_row(p.step, b);
  if (st.slot >= 0 && table != nullptr) {
    std::int32_t most = st.n;
    for (std::int32_t t = 1; t < st.count && p.step.lengths != nullptr; ++t) {
      std::uint32_t ignored = 0;
      const std::int32_t n = row_state(ix, p.step, st, b, t, &ignored).n;
      most = n > most ? n : most;
    }
    const std::int32_t pages = most / ix.page_size + (most % ix.page_size != 0 ? 1 : 0);
#pragma unroll 4
    for (auto i = static_cast<std::int32_t>(threadIdx.x); i < pages;
         i += static_cast<std::int32_t>(blockDim.x)) {
      const std::int32_t page = table[i];
      bad |= page < 0 || page >= ix.num_pages;
    }
  }
  if (__syncthreads_or(bad) != 0) {
    st.bits |= kPageOutOfRange;
    st.slot = -1;
  }
  return st;
}

/// One tile of keys to codes and means. All threads of the block call it, after a barrier
/// behind the last use of `sh`; ends with one. kRows: keys a thread rotates at once.
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
  if (tile.count * m >= kManySubvectors) {
    nearest_by_subvector(in, sh.codes);
  } else if (tile.count == 1) {
    nearest_by_centroid<1>(in, sh.best, sh.codes);
  } else {
    nearest_by_centroid<4>(in, sh.best, sh.codes);
  }
  __syncthreads();
  store_codes(source, tile, sh.codes);
  __syncthreads();  // the next tile overwrites what this one read
}

template <typename E>
__device__ __forceinline__ void encode_share_of(const EncodeParams& p, const StepShape& shape,
                                             const SequenceState& st, std::int32_t b,
                                             std::int32_t head, std::int32_t share,
                                             std::int32_t shares, std::int32_t from,
                                             std::int32_t to, unsigned char* shared_memory) {
  const IndexView& ix = p.index;
  const TileShared sh(shared_memory, ix, shape.tiling);
  const KeySource source{ix, p.keys, block_table_row(p.step, b), st.slot, head, shape.wide};
  const std::int32_t items = shape.items(st.begin, st.n);
  for (std::int32_t i = share; i < items; i += shares) {
    const Tile tile = shape.tiling.tile(st.begin, st.n, i);
    if (tile.count == 0 || tile.first >= to || tile.first + tile.count <= from) continue;
    encode_tile<E, 2>(source, shape.tiling, tile, sh);
  }
}

/// Encodes, of sequence b (its state from plan_sequence()) and KV head `head`, every
/// shares-th item of the pending positions from item `share` on, as far as their tiles meet
/// positions [from, to): codes and block means into the index. shape.shares thread blocks
/// with shares = shape.shares do a usual step at once; any number does any step. Whole tiles
/// are encoded: two thread blocks may write the same bytes to the same place.
/// shared_memory: shape.shared_bytes of the kernel's shared memory, aligned to 16 bytes.
/// All threads of the block call it with the same arguments; blockDim.x is a multiple of 32,
/// at most 1024. Needs no barrier before (shared_memory must not be in use); ends with one
/// where it has encoded anything: shared_memory is free again, and what was written to the
/// index is seen by the whole thread block (other thread blocks: a fence and a flag, or the
/// kernel's end). A sequence that is inactive or not built is left as it is.
__device__ __forceinline__ void encode_share(const EncodeParams& p, const StepShape& shape,
                                             const SequenceState& st, std::int32_t b,
                                             std::int32_t head, std::int32_t share,
                                             std::int32_t shares, std::int32_t from,
                                             std::int32_t to, unsigned char* shared_memory) {
  if (st.slot < 0 || st.built == 0) return;
  for_dtype(p.keys.dtype, [&](auto element) {
    encode_share_of<decltype(element)>(p, shape, st, b, head, share, shares, from, to,
                                       shared_memory);
  });
}

}  // namespace quarry::cuda
