// SPDX-License-Identifier: Apache-2.0
//
// `survey` and `gather` for keys that are taken as they are (no block mean, rotation or
// augmentation) and lie 16 bytes aligned: what counts is bytes in flight, so no key passes
// through shared memory or is widened.
#pragma once

#include "common/launch.h"
#include "train/sample.cuh"

namespace quarry::cuda {

constexpr int kCopyThreads = 256;
constexpr int kCopyKeys = 128;  // a thread block's
constexpr int kCopyBatch = 8;   // loads in flight a thread

/// Calls use(k, chunk, 16 bytes) for all chunks of the rows whose offsets are not negative.
/// 16 / sizeof(E::Bits) elements a chunk; a row has at most kCopyThreads chunks.
template <typename E, typename Use>
__device__ __forceinline__ void for_each_chunk(const KeyView& keys, int chunks, int count,
                                               const std::int64_t* offsets, Use use) {
  const auto tid = static_cast<int>(threadIdx.x);
  const int at_once = kCopyThreads / chunks, chunk = tid % chunks;
  if (tid >= at_once * chunks) return;
  const auto* from = static_cast<const typename E::Bits*>(keys.data) +
                     chunk * static_cast<int>(16 / sizeof(typename E::Bits));
  for (int k0 = tid / chunks; k0 < count; k0 += at_once * kCopyBatch) {
    uint4 v[kCopyBatch];
    bool there[kCopyBatch];
#pragma unroll
    for (int i = 0; i < kCopyBatch; ++i) {
      const int k = k0 + i * at_once;
      const std::int64_t offset = k < count ? offsets[k] : -1;
      there[i] = offset >= 0;
      if (there[i]) v[i] = __ldg(reinterpret_cast<const uint4*>(from + offset));
    }
#pragma unroll
    for (int i = 0; i < kCopyBatch; ++i) {
      if (there[i]) use(k0 + i * at_once, chunk, v[i]);
    }
  }
}

/// Offset of a key's row in elements, or -1 where its page is out of range.
__device__ inline std::int64_t row_offset(const TrainParams& p, const std::int32_t* table,
                                          std::int32_t head, std::int32_t position) {
  const std::int64_t page = page_of(p.index, table, p.step.fixed_slot, position);
  return page < 0 ? -1 : key_offset(p.index, p.keys, page, head, position);
}

/// Whether one of a word's elements is infinite or NaN: its exponent is all ones.
template <typename E>
__device__ __forceinline__ bool not_finite(std::uint32_t word) {
  constexpr bool kWhole = sizeof(typename E::Bits) == 4;
  constexpr std::uint32_t kExponent = kWhole                       ? 0x7f800000u
                                      : std::is_same_v<E, Float16> ? 0x7c00u
                                                                   : 0x7f80u;
  const bool first = (word & kExponent) == kExponent;
  return kWhole ? first : first || (word >> 16 & kExponent) == kExponent;
}

/// Grid (tiles of kCopyKeys encoded positions * Hkv), heads innermost, since they may lie side by
/// side in the cache: which positions' vectors are finite.
template <typename E>
__global__ void __launch_bounds__(kCopyThreads)
    survey_copy_kernel(const __grid_constant__ TrainArgs a) {
  __shared__ std::int64_t offsets[kCopyKeys];
  __shared__ std::uint8_t finite[kCopyKeys];
  wait_for_predecessor();
  let_successor_start();
  const TrainParams& p = a.p;
  if (keeps_codebook(p)) return;
  const auto heads = static_cast<unsigned>(p.index.num_kv_heads);
  const auto head = static_cast<std::int32_t>(blockIdx.x % heads);
  const std::int32_t first = static_cast<std::int32_t>(blockIdx.x / heads) * kCopyKeys;
  const std::int32_t left = p.num_positions - first;
  const int count = left < kCopyKeys ? left : kCopyKeys;
  const std::int32_t* table = block_table_row(p.step, 0);
  const auto tid = static_cast<int>(threadIdx.x);
  if (tid < count) {
    offsets[tid] = row_offset(p, table, head, p.index.encode_from + first + tid);
    finite[tid] = offsets[tid] >= 0;
  }
  __syncthreads();
  constexpr int kElements = static_cast<int>(16 / sizeof(typename E::Bits));
  for_each_chunk<E>(
      p.keys, p.index.head_dim / kElements, count, offsets, [&](int k, int, const uint4& v) {
        // Threads that write here write the same.
        if (not_finite<E>(v.x) || not_finite<E>(v.y) || not_finite<E>(v.z) || not_finite<E>(v.w)) {
          finite[k] = 0;
        }
      });
  __syncthreads();
  if (tid < count) a.finite[std::int64_t{head} * p.index.max_seq_len + first + tid] = finite[tid];
}

/// Grid (tiles of kCopyKeys samples * Hkv), heads innermost: samples [problem][max_samples][dsub].
/// A chunk lies in one subspace.
template <typename E>
__global__ void __launch_bounds__(kCopyThreads)
    gather_copy_kernel(const __grid_constant__ TrainArgs a) {
  __shared__ std::int64_t offsets[kCopyKeys];
  wait_for_predecessor();
  let_successor_start();
  const TrainParams& p = a.p;
  const IndexView& ix = p.index;
  const auto heads = static_cast<unsigned>(p.index.num_kv_heads);
  const auto head = static_cast<std::int32_t>(blockIdx.x % heads);
  const std::int32_t first = static_cast<std::int32_t>(blockIdx.x / heads) * kCopyKeys;
  const std::int32_t left = samples_of(p, head) - first;
  const int count = left < kCopyKeys ? left : kCopyKeys;
  if (count <= 0) return;
  const auto tid = static_cast<int>(threadIdx.x);
  if (tid < count) {
    const std::int32_t position =
        p.sample_positions[std::int64_t{head} * p.max_samples + first + tid];
    offsets[tid] = row_offset(p, block_table_row(p.step, 0), head, position);
  }
  __syncthreads();
  constexpr int kElements = static_cast<int>(16 / sizeof(typename E::Bits));
  const int per_subspace = ix.dsub / kElements;
  auto* const out = reinterpret_cast<typename E::Bits*>(p.samples);
  for_each_chunk<E>(
      p.keys, ix.head_dim / kElements, count, offsets, [&](int k, int chunk, const uint4& v) {
        const int s = chunk / per_subspace, j = chunk % per_subspace * kElements;
        const std::int64_t problem = std::int64_t{head} * ix.num_subspaces + s;
        *reinterpret_cast<uint4*>(out + (problem * p.max_samples + first + k) * ix.dsub + j) = v;
      });
}

/// Whether the two serve keys that are taken as they are: subvectors are whole chunks.
inline bool copies_serve(const TrainParams& p, bool wide) {
  return wide && p.index.dsub % (16 / dtype_size(p.keys.dtype)) == 0;
}

}  // namespace quarry::cuda
