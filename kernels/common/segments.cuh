// SPDX-License-Identifier: Apache-2.0
//
// Entries that many thread blocks left, a segment each, read as one sequence.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace quarry::cuda {

/// Entry i of `count` segments of `capacity` places each, of which segment s has those from
/// ends[s - 1] (0) to ends[s] in the whole; i < ends[count - 1].
template <typename Entry>
__device__ __forceinline__ const Entry& segment_entry(const Entry* segments,
                                                      const std::int32_t* ends, std::int32_t count,
                                                      std::int32_t capacity, std::int32_t i) {
  std::int32_t low = 0, high = count - 1;  // the first segment with i < ends
  while (low < high) {
    const std::int32_t middle = (low + high) / 2;
    if (i < ends[middle]) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  const std::int32_t begin = low == 0 ? 0 : ends[low - 1];
  return segments[static_cast<std::int64_t>(low) * capacity + (i - begin)];
}

}  // namespace quarry::cuda
