// SPDX-License-Identifier: Apache-2.0
//
// The scores of a run of neighbouring keys, exact: in the order and with the table entries of
// stage score.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "params.h"
#include "scan/plan.h"
#include "score/lut.cuh"

namespace quarry::cuda {

/// Table entries of heads side by side, at most two: with 16 centroids they take every bank of
/// shared memory once, so that no two codes are in each other's way. Four heads have two planes.
template <int kHeads>
using TableEntry = std::conditional_t<kHeads == 1, float, float2>;
template <int kHeads>
constexpr int kPlanes = kHeads == 4 ? 2 : 1;

/// Where head h's entry of centroid c lies in the tables [m][kPlanes][kStride] of entries, in
/// floats.
template <int kHeads, int kStride>
__device__ __forceinline__ std::int32_t table_place(std::int32_t s, std::int32_t h,
                                                    std::int32_t c) {
  constexpr int kWidth = kHeads / kPlanes<kHeads>;
  return ((s * kPlanes<kHeads> + h / kWidth) * kStride + c) * kWidth + h % kWidth;
}

/// LUT[s][c] of every head, from the codebook [m][dcent][ksub] where it lies or from its copy in
/// shared memory. x: [kHeads][d], aligned to 16 bytes.
template <int kHeads, int kStride>
__device__ __forceinline__ void make_tables(const IndexView& ix, const float* __restrict__ codebook,
                                            const float* copy, const float* x, float* tables) {
  const std::int32_t ksub = ix.ksub, dsub = ix.dsub, d = ix.head_dim;
#pragma unroll 1
  for (auto e = static_cast<std::int32_t>(threadIdx.x); e < ix.num_subspaces << ix.bits;
       e += kScanThreads) {
    const std::int32_t s = e >> ix.bits, c = e & (ksub - 1);
    const float* const own = x + s * dsub;
    float acc[kHeads];
    if (copy == nullptr) {
      dot_column<kHeads>(codebook + std::int64_t{s} * ix.dcent * ksub + c, ksub, own, d, dsub, acc);
    } else {
      const float* column = copy + s * ix.dcent * ksub + c;
#pragma unroll
      for (int h = 0; h < kHeads; ++h) acc[h] = 0.0f;
      constexpr int kAhead = kHeads == 1 ? 16 : 8;
      std::int32_t i = 0;
      if (dsub % 4 == 0) {
#pragma unroll 1
        for (; i + kAhead <= dsub; i += kAhead) {
          float w[kAhead];
#pragma unroll
          for (int u = 0; u < kAhead; ++u, column += ksub) w[u] = *column;
#pragma unroll
          for (int h = 0; h < kHeads; ++h) {
#pragma unroll
            for (int u = 0; u < kAhead; u += 4) {
              const float4 q = *reinterpret_cast<const float4*>(own + h * d + i + u);
              acc[h] = fmaf(q.x, w[u], acc[h]);
              acc[h] = fmaf(q.y, w[u + 1], acc[h]);
              acc[h] = fmaf(q.z, w[u + 2], acc[h]);
              acc[h] = fmaf(q.w, w[u + 3], acc[h]);
            }
          }
        }
      }
#pragma unroll 1
      for (; i < dsub; ++i, column += ksub) {
#pragma unroll
        for (int h = 0; h < kHeads; ++h) acc[h] = fmaf(own[h * d + i], *column, acc[h]);
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) tables[table_place<kHeads, kStride>(s, h, c)] = acc[h];
  }
}

/// out[h][j] = fma chain over ascending i of q[h][i] * rotation[i][j]: stage score's
/// rotate_queries(), without a cluster; `copy` is the matrix in shared memory, or null. By
/// `threads` threads, of which this is number `id`.
template <int kHeads>
__device__ __forceinline__ void rotate(const float* __restrict__ rotation, const float* copy,
                                       std::int32_t d, const float* q, float* out, std::int32_t id,
                                       std::int32_t threads) {
#pragma unroll 1
  for (std::int32_t j = id; j < d; j += threads) {
    float acc[kHeads];
    if (copy == nullptr) {
      dot_column<kHeads>(rotation + j, d, q, d, d, acc);
    } else {
#pragma unroll
      for (int h = 0; h < kHeads; ++h) acc[h] = 0.0f;
#pragma unroll 2
      for (std::int32_t i = 0; i < d; i += 8) {
        float w[8];
#pragma unroll
        for (int u = 0; u < 8; ++u) w[u] = copy[(i + u) * d + j];
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
#pragma unroll
          for (int u = 0; u < 8; u += 4) {
            const float4 x = *reinterpret_cast<const float4*>(q + h * d + i + u);
            acc[h] = fmaf(x.x, w[u], acc[h]);
            acc[h] = fmaf(x.y, w[u + 1], acc[h]);
            acc[h] = fmaf(x.z, w[u + 2], acc[h]);
            acc[h] = fmaf(x.w, w[u + 3], acc[h]);
          }
        }
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) out[h * d + j] = acc[h];
  }
}

/// Code bytes of kRun neighbouring keys: those of a run lie side by side where tiles hold whole
/// runs.
template <bool kVector>
struct RunCodes {
  const std::uint8_t* codes;
  std::int64_t offset[kVector ? 1 : kRun];
  std::int32_t tile;

  /// The run from position p on; positions past `most` are read as that one.
  __device__ __forceinline__ RunCodes(const IndexView& ix, const ScanPlan& plan,
                                      const std::int32_t* table_row, std::int32_t slot,
                                      std::int32_t kv, std::int32_t p, std::int32_t most)
      : codes(ix.codes), tile(ix.tile) {
#pragma unroll
    for (int k = 0; k < (kVector ? 1 : kRun); ++k) {
      std::int32_t in_page = min(p + k, most);
      std::int64_t page = slot;
      if (table_row != nullptr) {
        const std::int32_t at =
            plan.page_shift >= 0 ? in_page >> plan.page_shift : in_page / ix.page_size;
        page = table_row[at];
        if (page < 0 || page >= ix.num_pages) page = 0;
        in_page -= at * ix.page_size;
      }
      offset[k] = code_offset(ix, page, kv, in_page);
    }
    if (kVector) codes += offset[0];
  }

  __device__ __forceinline__ uint4 operator()(std::int32_t byte) const {
    if constexpr (kVector) {
      return __ldg(reinterpret_cast<const uint4*>(codes + byte * tile));
    } else {
      std::uint32_t word[4] = {};
#pragma unroll
      for (int k = 0; k < kRun; ++k) {
        const std::uint32_t of = __ldg(codes + offset[k] + byte * tile);
        word[k / 4] |= of << k % 4 * 8;
      }
      return make_uint4(word[0], word[1], word[2], word[3]);
    }
  }
};

/// Code words under way together.
template <bool kVector>
constexpr int kCodeBatch = kVector ? 4 : 1;

template <bool kVector>
__device__ __forceinline__ void load_codes(const IndexView& ix, const RunCodes<kVector>& read,
                                           std::int32_t from, uint4 (&word)[kCodeBatch<kVector>]) {
#pragma unroll
  for (int u = 0; u < kCodeBatch<kVector>; ++u) {
    if (from + u < ix.code_bytes) word[u] = read(from + u);
  }
}

/// An entry at an address in shared memory. As asm, since a pointer would cost the base's addition:
/// an entry's place in its table and an aligned base are one number by the mask's instruction.
__device__ __forceinline__ void load_entry(std::uint32_t address, float& e) {
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(e) : "r"(address));
}
__device__ __forceinline__ void load_entry(std::uint32_t address, float2& e) {
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(e.x), "=f"(e.y) : "r"(address));
}

/// What the tables, which are first in shared memory, are aligned to.
constexpr int kTableAlignment = 1024;

/// Adds to each key's sums the entries of a subspace that its code chooses, `from` bits up in its
/// byte of `word`. The tables begin at `base` of shared memory, the subspace's `offset` bytes on.
template <int kHeads, int kStride>
__device__ __forceinline__ void add_entries(std::uint32_t base, int offset, const uint4& word,
                                            int from, float (&acc)[kHeads][kRun]) {
  constexpr int kLog2 = kHeads == 1 ? 2 : 3;  // of an entry's bytes
  const std::uint32_t words[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
  for (int k = 0; k < kRun; ++k) {
    const int shift = 8 * (k % 4) + from - kLog2;
    const std::uint32_t w = words[k / 4];
    std::uint32_t at = (shift < 0 ? w << -shift : w >> shift) & ((kStride - 1u) << kLog2);
    at = (kStride << kLog2) <= kTableAlignment ? at | base : at + base;
#pragma unroll
    for (int plane = 0; plane < kPlanes<kHeads>; ++plane) {
      TableEntry<kHeads> e;
      load_entry(at + offset + plane * (kStride << kLog2), e);
      if constexpr (kHeads == 1) {
        acc[0][k] += e;
      } else {
        acc[2 * plane][k] += e.x;
        acc[2 * plane + 1][k] += e.y;
      }
    }
  }
}

/// Adds all subspaces' entries. `word`: the first code words, as load_codes() brings them; `read`
/// brings the others. The first kUnrolled bytes find their tables at distances the compiler knows.
template <int kHeads, int kStride, bool kVector>
__device__ __forceinline__ void add_tables(const IndexView& ix, const float* tables,
                                           const RunCodes<kVector>& read,
                                           uint4 (&word)[kCodeBatch<kVector>],
                                           float (&acc)[kHeads][kRun]) {
  constexpr int kBatch = kCodeBatch<kVector>, kUnrolled = kVector ? 2 * kBatch : kBatch;
  constexpr int kTable = kHeads * kStride * 4;                // bytes of a subspace's
  constexpr int kByte = kStride == 16 ? 2 * kTable : kTable;  // of those a code byte chooses from
  const auto base = static_cast<std::uint32_t>(__cvta_generic_to_shared(tables));
  const auto add_byte = [&](std::int32_t i, const uint4& w) {
    add_entries<kHeads, kStride>(base, i * kByte, w, 0, acc);
    if (kStride == 16 && 2 * i + 1 < ix.num_subspaces) {
      add_entries<kHeads, kStride>(base, i * kByte + kTable, w, 4, acc);
    }
  };
#pragma unroll
  for (int i = 0; i < kUnrolled; ++i) {
    if (i >= ix.code_bytes) return;
    if (i > 0 && i % kBatch == 0) load_codes<kVector>(ix, read, i, word);
    add_byte(i, word[i % kBatch]);
  }
#pragma unroll 1
  for (std::int32_t i = kUnrolled; i < ix.code_bytes; ++i) {
    add_byte(i, read(i));
  }
}

}  // namespace quarry::cuda
