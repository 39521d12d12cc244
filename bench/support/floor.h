// SPDX-License-Identifier: Apache-2.0
//
// What no implementation can beat on the device of this run: an empty kernel, a copy, and a
// kernel that reads just what a call must. CUDA alone.
#pragma once

#include <cstdint>

#include "quarry/indexer.h"

namespace quarry::bench {

/// One kernel that does nothing.
Status launch_empty(Stream stream);

/// Device-to-device copy.
Status launch_copy(void* target, const void* source, std::size_t bytes, Stream stream);

/// Memory that a call reads, as plain arrays.
struct FloorParams {
  const void* streamed[3];  ///< packed codes, block means, codebooks
  std::int64_t streamed_bytes[3];
  const void* keys;        ///< refine: base of the raw keys, or null
  std::int64_t key_bytes;  ///< a key's, a multiple of 16
  std::int64_t num_keys;   ///< keys there are
  std::int64_t gathered;   ///< keys to read, at pseudo-random places
  std::uint32_t* sink;     ///< one word that is written only if the data says so
};
Status launch_floor(const FloorParams& params, Stream stream);

}  // namespace quarry::bench
