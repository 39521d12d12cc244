// SPDX-License-Identifier: Apache-2.0
//
// A decode step's encoding as device functions, for stage encode's own kernel and for any
// other whose thread blocks take a share of it.
#pragma once

#include "encode/step_nearest.cuh"
#include "encode/step_shape.h"
#include "encode/step_tile.cuh"

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

/// Encodes, of sequence b (its state from plan_sequence()) and KV head `head`, every
/// shares-th item of the pending positions from item `share` on, as far as their tiles meet
/// positions [from, to): codes and block means into the index. shape.shares thread blocks
/// with shares = shape.shares do a usual step at once; any number does any step. Whole tiles
/// are encoded: two thread blocks may write the same bytes to the same place.
/// shared_memory: shape.shared_bytes of the kernel's shared memory, aligned to 16 bytes.
/// kRows: keys a thread rotates at once, where there are many; two take half the reads of shared
/// memory and 30 registers more.
/// Inlined, since it reads much of p and shape: let them be the kernel's own parameters.
/// All threads of the block call it with the same arguments; blockDim.x is a multiple of 32,
/// at most 1024. Needs no barrier before (shared_memory must not be in use); ends with one
/// where it has encoded anything: shared_memory is free again, and what was written to the
/// index is seen by the whole thread block (other thread blocks: a fence and a flag, or the
/// kernel's end). A sequence that is inactive or not built is left as it is.
template <int kRows = 1>
__device__ __forceinline__ void encode_share(const EncodeParams& p, const StepShape& shape,
                                             const SequenceState& st, std::int32_t b,
                                             std::int32_t head, std::int32_t share,
                                             std::int32_t shares, std::int32_t from,
                                             std::int32_t to, unsigned char* shared_memory) {
  if (st.slot < 0 || st.built == 0) return;
  const IndexView& ix = p.index;
  const StepShared sh(shared_memory, ix, shape);
  const KeySource source{ix, p.keys, block_table_row(p.step, b), st.slot, head, shape.wide};
  const std::int64_t book = std::int64_t{codebook_of(ix, st.slot)} * ix.num_kv_heads + head;
  const int d = ix.head_dim, stride = tile_stride(d);
  const bool rotates = ix.rotation != nullptr, blocks = ix.block_size > 0;
  const std::int32_t items = shape.items(st.begin, st.n);
  std::int32_t tile_id = -1, group = -1;  // what shared memory holds
  std::uint32_t residuals = 0;            // parts of the tile that are residuals already
  for (std::int32_t i = share; i < items; i += shares) {
    const StepItem it = shape.item(ix, st.begin, st.n, i);
    const Tile& tile = it.tile;
    const int rows = it.end_row - it.first_row;
    if (rows <= 0 || tile.first >= to || tile.first + tile.count <= from) continue;
    const int subspaces = it.end_subspace - it.first_subspace;
    const int own = it.first_subspace * ix.dsub, own_end = it.end_subspace * ix.dsub;
    const int first = rotates ? 0 : own & ~7, end = rotates ? d : (own_end + 7) & ~7;
    StepTables tables(ix, book, it);
    if (it.group != group) tables.stage(ix, shape, sh);
    tables.use_staged(shape, sh);
    if (it.tile_id != tile_id || (it.group != group && !rotates)) {
      load_step_keys(source, tile, first, end, sh.xs);
      if (blocks) {
        __syncthreads();
        step_means(source, shape.tiling, tile, first, end, sh.xs, sh.means);
        __syncthreads();
      }
      residuals = 0;
    }
    tile_id = it.tile_id, group = it.group;
    if (blocks) {
      const std::uint32_t part = 1u << (it.first_row / shape.part_keys);
      if ((residuals & part) == 0) {
        step_residuals(ix, tile, it.first_row, it.end_row, first, end, sh.means, sh.xs);
      }
      residuals |= part;
    }
    wait_for_copies();
    __syncthreads();
    StepNearest in{
        sh.xs + it.first_row * stride + own, stride, nullptr, tables.codebook, rows, subspaces};
    if (rotates) {
      const float* xs = sh.xs + it.first_row * stride;
      if (kRows > 1 && rows >= 16) {
        rotate_columns<kRows, 4>(tables, d, rows, xs, sh.ys);
      } else {
        rotate_columns<1, 4>(tables, d, rows, xs, sh.ys);
      }
      in.xs = sh.ys + (own - tables.first_column), in.stride = tile_stride(tables.columns);
      __syncthreads();
    }
    if (ix.metric == Metric::inner_product) {
      const float* phi = ix.phi + book * ix.num_subspaces + it.first_subspace;
      for (int l = static_cast<int>(threadIdx.x); l < rows * subspaces;
           l += static_cast<int>(blockDim.x)) {
        const int k = l / subspaces, s = l % subspaces;
        sh.extra[l] =
            augmentation(phi[s], squared_norm(in.xs + k * in.stride + s * ix.dsub, ix.dsub));
      }
      in.extra = sh.extra;
      __syncthreads();
    }
    step_nearest(ix, in, sh.codes);
    __syncthreads();
    store_step_codes(source, it, sh.codes);
    if (blocks && it.stores_means) store_step_means(source, tile, own, own_end, sh.means);
    __syncthreads();  // the next item overwrites what this one read
  }
}

/// A hint, to be given while the work before the kernel still runs: what share `share` will
/// read of rotation and codebook, towards the second level cache. Needs no barrier, reads and
/// writes nothing; does nothing where sequences have codebooks of their own.
__device__ inline void fetch_share_ahead(const EncodeParams& p, const StepShape& shape,
                                         std::int32_t head, std::int32_t share) {
  const IndexView& ix = p.index;
  if (ix.codebook_slots != 1) return;
  StepTables(ix, head, shape.item(ix, 0, shape.tiling.keys, share)).fetch_ahead(ix);
}

}  // namespace quarry::cuda
