// SPDX-License-Identifier: Apache-2.0
//
// Philox4x32-10, a counter-based random generator (Salmon et al., "Parallel random numbers:
// as easy as 1, 2, 3", SC 2011): the same words on every backend, in any order of draws.
#pragma once

#include <cstdint>

#include "params.h"

namespace quarry {

struct Philox4x32 {
  std::uint32_t word[4];
};

QUARRY_HD inline Philox4x32 philox4x32_10(Philox4x32 counter, std::uint32_t key0,
                                          std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53u} * counter.word[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57u} * counter.word[2];
    counter = {{static_cast<std::uint32_t>(b >> 32) ^ counter.word[1] ^ key0,
                static_cast<std::uint32_t>(b),
                static_cast<std::uint32_t>(a >> 32) ^ counter.word[3] ^ key1,
                static_cast<std::uint32_t>(a)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

/// Draw `draw` of k-means' seeds for a subspace and KV head: an index below `count`.
QUARRY_HD inline std::int32_t philox_index(std::uint64_t seed, std::uint32_t draw,
                                           std::int32_t subspace, std::int32_t head,
                                           std::int32_t count) {
  const Philox4x32 out = philox4x32_10(
      {{draw, static_cast<std::uint32_t>(subspace), static_cast<std::uint32_t>(head), 0u}},
      static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32));
  return static_cast<std::int32_t>(std::uint64_t{out.word[0]} * static_cast<std::uint32_t>(count) >>
                                   32);
}

}  // namespace quarry
