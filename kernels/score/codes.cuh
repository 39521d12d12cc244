// SPDX-License-Identifier: Apache-2.0
//
// Codes of neighbouring keys, for every kernel that scores.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "params.h"

namespace quarry::cuda {

constexpr int kKeys = 4;  // consecutive keys a thread: one 4-byte load brings a byte of each

/// Whether four aligned positions lie in one tile of codes, and so in one page: tiles are as
/// wide as pages allow.
inline bool reads_codes_by_four(const IndexView& ix) { return ix.tile >= kKeys; }

/// The code bytes of kKeys consecutive keys, key k in bits 8k .. 8k+7.
template <bool kVector>
struct CodeReader {
  const std::uint8_t* codes;
  std::int64_t offset[kVector ? 1 : kKeys];
  std::int32_t tile;

  __device__ __forceinline__ CodeReader(const IndexView& ix, const std::int32_t* table_row,
                                        std::int32_t slot, std::int32_t head, std::int32_t p,
                                        std::int32_t most)
      : codes(ix.codes), tile(ix.tile) {
#pragma unroll
    for (int k = 0; k < (kVector ? 1 : kKeys); ++k) {
      const std::int32_t position = min(p + k, most);
      const std::int64_t page = page_of(ix, table_row, slot, position);
      const std::int32_t in_page = table_row == nullptr ? position : position % ix.page_size;
      offset[k] = code_offset(ix, page < 0 ? 0 : page, head, in_page);
    }
  }

  __device__ __forceinline__ std::uint32_t operator()(std::int32_t byte) const {
    const std::int64_t at = static_cast<std::int64_t>(byte) * tile;
    if constexpr (kVector) {
      return __ldg(reinterpret_cast<const std::uint32_t*>(codes + offset[0] + at));
    } else {
      std::uint32_t word = 0;
#pragma unroll
      for (int k = 0; k < kKeys; ++k) {
        word |= static_cast<std::uint32_t>(__ldg(codes + offset[k] + at)) << 8 * k;
      }
      return word;
    }
  }
};

/// The same for four keys whose codes begin at `codes`, in one tile.
struct CodeRun {
  const std::uint8_t* codes;
  std::int32_t tile;

  __device__ __forceinline__ std::uint32_t operator()(std::int32_t byte) const {
    return __ldg(
        reinterpret_cast<const std::uint32_t*>(codes + static_cast<std::int64_t>(byte) * tile));
  }
};

}  // namespace quarry::cuda
