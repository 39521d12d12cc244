// SPDX-License-Identifier: Apache-2.0
// What is counted of accesses: bank conflicts and sectors.
#include "statistics.h"

#include "ptx_test.h"

namespace quarry::emulator::testing {
namespace {

struct Strided {
  std::vector<std::byte> memory = std::vector<std::byte>(32 * 256 + 128);
  const std::byte* places[kLanes] = {};
  explicit Strided(size_t stride) {
    const auto at = reinterpret_cast<uintptr_t>(memory.data());
    for (size_t i = 0; i < kLanes; ++i) {
      places[i] = memory.data() + (128 - at % 128) % 128 + i * stride;
    }
  }
};

uint64_t wavefronts(size_t stride, size_t bytes, Mask lanes = kFull) {
  Counters c;
  count_shared(c, Strided(stride).places, lanes, bytes);
  EXPECT_EQ(c.shared_accesses, 1u);
  return c.shared_wavefronts;
}

TEST(PtxStatistics, BankConflicts) {
  EXPECT_EQ(wavefronts(4, 4), 1u);
  EXPECT_EQ(wavefronts(0, 4), 1u);  // one word for all
  EXPECT_EQ(wavefronts(8, 4), 2u);
  EXPECT_EQ(wavefronts(128, 4), 32u);
  EXPECT_EQ(wavefronts(132, 4), 1u);
  EXPECT_EQ(wavefronts(128, 4, 0xFFu), 8u);
  EXPECT_EQ(wavefronts(8, 8), 2u);
  EXPECT_EQ(wavefronts(16, 16), 4u);
  EXPECT_EQ(wavefronts(128, 16), 32u);
}

uint64_t sectors(size_t stride, size_t bytes, Mask lanes = kFull) {
  Counters c;
  count_global(c, Strided(stride).places, lanes, bytes, false);
  EXPECT_EQ(c.sectors_written, 0u);
  return c.sectors_read;
}

TEST(PtxStatistics, Sectors) {
  EXPECT_EQ(sectors(4, 4), 4u);
  EXPECT_EQ(sectors(16, 16), 16u);
  EXPECT_EQ(sectors(32, 4), 32u);
  EXPECT_EQ(sectors(0, 4), 1u);
  EXPECT_EQ(sectors(32, 4, 0x3u), 2u);
}

}  // namespace
}  // namespace quarry::emulator::testing
