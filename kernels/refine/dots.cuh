// SPDX-License-Identifier: Apache-2.0
//
// Exact float32 q.k of gathered keys, 16 bytes a lane (8 of one-byte elements). One source for
// every kernel that refines, so that all of them add in one order.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/vec.cuh"
#include "half.h"
#include "params.h"

namespace quarry::cuda {

constexpr int kKeysAtOnce = 4;  // in flight a lane

/// Elements of a lane's piece of a key, which a load brings.
template <typename E>
constexpr int kPiece = sizeof(typename E::Bits) == 4 ? 4 : 8;

/// Lanes that share a key.
QUARRY_HD inline std::int32_t lanes_of(std::int32_t head_dim, std::int32_t piece) {
  std::int32_t lanes = 1;
  while (lanes < 32 && lanes * piece < head_dim) lanes *= 2;
  return lanes;
}

template <typename E>
__device__ __forceinline__ void load_piece(const typename E::Bits* __restrict__ p, bool wide,
                                           float (&v)[kPiece<E>]) {
  if constexpr (kPiece<E> == 8) {
    load8<E>(p, wide, v);
  } else if (wide) {
    const float4 x = __ldg(reinterpret_cast<const float4*>(p));
    v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = __ldg(p + i);
  }
}

/// Element offset of the key at `position`; of one that is there where its page is out of range.
__device__ __forceinline__ std::int64_t key_place(const IndexView& ix, const KeyView& keys,
                                                  const std::int32_t* table_row, std::int32_t slot,
                                                  std::int32_t kv, std::int32_t position) {
  const std::int64_t page = page_of(ix, table_row, slot, position);
  return key_offset(ix, keys, page < 0 ? 0 : page, kv, position);
}

/// Scores of entries first + u * groups + group, u < kKeysAtOnce, of one row, below `count`:
/// `lanes` neighbouring threads share a key, `group` tells which. query_at(i) is element i of the
/// query, place_of(entry) is the key's key_place(), store(entry, score) takes its score. The order
/// of a key's sum is fixed by head_dim and dtype alone: lane l takes elements l * piece .. + piece
/// - 1, then those lanes * piece further (kPieces times at most), by fma; then lanes lanes/2, .., 1
/// apart are added. All lanes of a warp call it.
template <typename E, int kPieces, typename QueryAt, typename PlaceOf, typename Store>
__device__ __forceinline__ void exact_scores(const IndexView& ix, const KeyView& keys,
                                             QueryAt query_at, std::int32_t kv, bool wide,
                                             std::int32_t lanes, std::int32_t groups,
                                             std::int32_t group, std::int32_t first,
                                             std::int32_t count, PlaceOf place_of, Store store) {
  constexpr unsigned kAll = 0xffffffffu;
  constexpr int kSize = kPiece<E>;
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x) % lanes;
  const float scale = key_scale(keys, kv);
  const typename E::Bits* key[kKeysAtOnce];
#pragma unroll
  for (int u = 0; u < kKeysAtOnce; ++u) {
    key[u] = static_cast<const typename E::Bits*>(keys.data) +
             place_of(min(first + u * groups + group, count - 1));
  }
  float acc[kKeysAtOnce] = {};
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const std::int32_t at = (i * lanes + lane) * kSize;
    if (at >= ix.head_dim) break;
    float x[kKeysAtOnce][kSize];
#pragma unroll
    for (int u = 0; u < kKeysAtOnce; ++u) load_piece<E>(key[u] + at, wide, x[u]);
    if constexpr (std::is_same_v<E, Float8>) {
#pragma unroll
      for (int u = 0; u < kKeysAtOnce; ++u) {
#pragma unroll
        for (float& v : x[u]) v *= scale;
      }
    }
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      const float q = query_at(at + e);
#pragma unroll
      for (int u = 0; u < kKeysAtOnce; ++u) acc[u] = fmaf(q, x[u][e], acc[u]);
    }
  }
#pragma unroll
  for (int u = 0; u < kKeysAtOnce; ++u) {
    for (std::int32_t apart = lanes / 2; apart > 0; apart /= 2) {
      acc[u] += __shfl_xor_sync(kAll, acc[u], apart);
    }
    const std::int32_t entry = first + u * groups + group;
    if (lane == 0 && entry < count) store(entry, acc[u]);
  }
}

/// f(E{}, std::integral_constant<int, kPieces>{}) with exact_scores()'s parameters for keys of
/// `dtype` and `head_dim` elements.
template <typename F>
auto with_pieces(DType dtype, std::int32_t head_dim, F&& f) {
  if (dtype == DType::float32) {
    if (head_dim > 256) return f(Float32{}, std::integral_constant<int, 4>{});
    if (head_dim > 128) return f(Float32{}, std::integral_constant<int, 2>{});
    return f(Float32{}, std::integral_constant<int, 1>{});
  }
  if (dtype == DType::float16) {
    if (head_dim > 256) return f(Float16{}, std::integral_constant<int, 2>{});
    return f(Float16{}, std::integral_constant<int, 1>{});
  }
  if (dtype == DType::float8_e4m3) {
    if (head_dim > 256) return f(Float8{}, std::integral_constant<int, 2>{});
    return f(Float8{}, std::integral_constant<int, 1>{});
  }
  if (head_dim > 256) return f(BFloat16{}, std::integral_constant<int, 2>{});
  return f(BFloat16{}, std::integral_constant<int, 1>{});
}

}  // namespace quarry::cuda
