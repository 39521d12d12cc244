// SPDX-License-Identifier: Apache-2.0
//
// Stage drift: quantization error of what is encoded. One thread block a sequence and KV head,
// so that sums have one order: a warp's keys ascending, then warps in turn.
#include <cstddef>

#include "common/launch.h"
#include "encode/tile.cuh"
#include "stats/stats.h"
#include "stats_math.h"

namespace quarry::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kKeys = 16;  // of a tile
constexpr int kRows = 2;   // keys a thread rotates at once

struct Sums {
  double error, norm;
  std::int32_t keys;
};

/// Bytes of the keys of a tile, as they are or rotated.
std::size_t tile_bytes(const IndexView& ix) {
  return static_cast<std::size_t>(kKeys * tile_stride(ix.head_dim)) * sizeof(float);
}

/// Adds key `position`, of which `x` is what is encoded. A warp's lanes call it together.
__device__ void add_key(const KeySource& source, std::int32_t position, std::int64_t book,
                        const float* x, Sums* sums) {
  const IndexView& ix = source.ix;
  const std::int64_t page = page_of(ix, source.table, source.slot, position);
  if (page < 0) return;  // stage sample or encode left no such sequence
  double error = 0, norm = 0;
  for (auto i = static_cast<std::int32_t>(threadIdx.x % 32); i < ix.head_dim; i += 32) {
    const std::int32_t s = i / ix.dsub, j = i % ix.dsub;
    const std::int32_t code = stored_code(ix, page, source.head, position % ix.page_size, s);
    const std::int64_t centroid = ((book * ix.num_subspaces + s) * ix.dcent + j) * ix.ksub + code;
    const double v = x[i];
    const double difference = v - static_cast<double>(ix.codebooks[centroid]);
    error = fma(difference, difference, error);
    norm = fma(v, v, norm);
  }
  for (int apart = 16; apart > 0; apart /= 2) {
    error += __shfl_xor_sync(0xffffffffu, error, apart);
    norm += __shfl_xor_sync(0xffffffffu, norm, apart);
  }
  if (!isfinite(norm)) return;  // of float32 values: one of them is not
  sums->error += error;
  sums->norm += norm;
  ++sums->keys;
}

// Grid (B * Hkv). Dynamic shared memory: a tile, and with a rotation another.
template <typename E>
__global__ void __launch_bounds__(kThreads)
    drift_kernel(const __grid_constant__ DriftParams p, bool wide) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ Sums warp_sums[kWarps];
  wait_for_predecessor();
  let_successor_start();
  const IndexView& ix = p.index;
  const auto b = static_cast<std::int32_t>(blockIdx.x) / ix.num_kv_heads;
  const auto head = static_cast<std::int32_t>(blockIdx.x) % ix.num_kv_heads;
  const SequenceState st = p.step.states[b];
  const KeySpan span = measured_keys(p, st);
  float* baseline = span.count == 0 ? nullptr : baseline_of(ix, st.slot, head);
  const float known = baseline == nullptr ? 0.0f : *baseline;
  if (p.drift == nullptr && (baseline == nullptr || known >= 0.0f)) return;

  const int d = ix.head_dim, stride = tile_stride(d);
  float* const xs = reinterpret_cast<float*>(memory);
  float* const ys = ix.rotation == nullptr ? xs : xs + kKeys * stride;
  const KeySource source{ix, p.keys, block_table_row(p.step, b), st.slot, head, wide};
  const std::int64_t book =
      span.count == 0 ? 0 : std::int64_t{codebook_of(ix, st.slot)} * ix.num_kv_heads + head;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  Sums sums{0, 0, 0};
  for (std::int32_t first = 0; first < span.count; first += kKeys) {
    const int count = span.count - first < kKeys ? span.count - first : kKeys;
    load_keys<E>(
        source, kKeys, [&](int k) { return k < count ? span.position(first + k) : -1; }, xs);
    __syncthreads();
    if (ix.block_size > 0) {
      for (int item = static_cast<int>(threadIdx.x); item < count * d; item += kThreads) {
        const int k = item / d, j = item % d;
        const std::int32_t block = span.position(first + k) / ix.block_size;
        const std::int32_t last = block * ix.block_size + ix.block_size - 1;
        const std::int64_t page = page_of(ix, source.table, st.slot, last);
        if (page < 0) continue;
        xs[k * stride + j] -=
            load_element(ix.means, ix.mean_dtype, mean_offset(ix, page, head, last) + j);
      }
      __syncthreads();
    }
    if (ix.rotation != nullptr) {
      rotate<kRows>(ix.rotation + book * d * d, d, kKeys, xs, ys);
      __syncthreads();
    }
    for (int k = warp; k < count; k += kWarps) {
      add_key(source, span.position(first + k), book, ys + k * stride, &sums);
    }
    __syncthreads();  // the next tile overwrites what this one read
  }
  if (threadIdx.x % 32 == 0) warp_sums[warp] = sums;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kWarps; ++w) {
    sums.error += warp_sums[w].error;
    sums.norm += warp_sums[w].norm;
    sums.keys += warp_sums[w].keys;
  }
  const DriftStats result = drift_stats(sums.error, sums.norm, sums.keys, known);
  if (p.drift != nullptr) {
    p.drift[blockIdx.x] = result;
  } else {
    *baseline = known_baseline(result.error);
  }
}

}  // namespace

Status drift(const DriftParams& p, const Launch& launch) noexcept {
  return with_dtype(p.keys.dtype, [&]<typename E>(E) {
    const KeyView& k = p.keys;
    const bool wide = is_wide(k.data, k.dtype, {k.page_stride, k.slot_stride, k.head_stride});
    const dim3 grid(static_cast<unsigned>(p.step.batch_size) *
                    static_cast<unsigned>(p.index.num_kv_heads));
    const std::size_t bytes = tile_bytes(p.index) * (p.index.rotation == nullptr ? 1 : 2);
    return launch_kernel<drift_kernel<E>>("drift", launch, grid, kThreads, bytes, p, wide);
  });
}

}  // namespace quarry::cuda
