// SPDX-License-Identifier: Apache-2.0
//
// The CUDA backend's plain arithmetic, which decides what is encoded and trained on, checked
// where there is no GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "encode/step_shape.h"
#include "encode/tiling.h"
#include "train/scratch.h"

namespace quarry::cuda {
namespace {

// Every position that is due is in one tile, no other is in any, and every due block's mean
// is stored once.
TEST(CudaTiling, CoversWhatIsDueOnce) {
  std::mt19937 random(1);
  const auto below = [&](std::uint32_t n) { return static_cast<std::int32_t>(random() % n); };
  for (int trial = 0; trial < 20000; ++trial) {
    const std::int32_t shapes[] = {0, 1 + below(300), 1 << below(9)};
    const Tiling tiling{8 << below(5), shapes[below(3)], below(200)};
    const std::int32_t n = below(1500), bs = tiling.block_size;
    const std::int32_t begin = std::max(std::min(below(1500), n - 1), tiling.encode_from);
    std::vector<int> tiles_of(static_cast<std::size_t>(n)), means(static_cast<std::size_t>(n + 1));
    for (std::int32_t i = 0; i < tiling.tiles(begin, n); ++i) {
      const Tile tile = tiling.tile(begin, n, i);
      ASSERT_LE(tile.count, tiling.keys);
      if (bs == 0 || tiling.keys % bs == 0) {
        const ColumnsTile rows = ColumnsTiles(tiling, begin, n).tile(i);
        ASSERT_EQ(rows.from, tile.first);
        ASSERT_EQ(rows.end, tile.first + tile.count);
        ASSERT_LE(rows.base, rows.from);
        ASSERT_LE(rows.end - rows.base, tiling.keys);
        if (bs > 0) {
          ASSERT_EQ(rows.base % bs, 0);
          ASSERT_LT(rows.from - rows.base, bs);
        }
      }
      for (std::int32_t k = 0; k < tile.count; ++k) {
        ASSERT_LT(tile.first + k, n);
        ++tiles_of[static_cast<std::size_t>(tile.first + k)];
      }
      if (bs == 0 || tile.count == 0) continue;
      const std::int32_t last = (tile.first + tile.count - 1) / bs;
      ASSERT_EQ(tile.first / bs, tile.first_block);
      ASSERT_LE(last - tile.first_block + 1, tiling.blocks_per_tile());
      if (bs > tiling.keys) {
        ASSERT_EQ(last, tile.first_block);
      }
      for (std::int32_t block = tile.first_block; tile.stores_means && block <= last; ++block) {
        ++means[static_cast<std::size_t>(block)];
      }
    }
    for (std::int32_t p = 0; p < n; ++p) {
      const std::int32_t end = bs == 0 ? 0 : (p / bs + 1) * bs;
      const bool due = bs == 0 ? p >= begin : p >= tiling.encode_from && end > begin && end <= n;
      ASSERT_EQ(tiles_of[static_cast<std::size_t>(p)], due ? 1 : 0) << "position " << p;
    }
    for (std::int32_t block = 0; bs > 0 && block < n / bs; ++block) {
      const bool due = begin < n && (block + 1) * bs > begin;
      ASSERT_EQ(means[static_cast<std::size_t>(block)], due ? 1 : 0) << "block " << block;
    }
  }
}

// A step's items: each code byte of each due position in one of them, each column of each due
// block's mean stored once, and what an item needs within what it is given.
TEST(CudaStepShape, ItemsCoverEachByteOnce) {
  std::mt19937 random(4);
  const auto below = [&](std::uint32_t n) { return static_cast<std::int32_t>(random() % n); };
  for (int trial = 0; trial < 3000; ++trial) {
    EncodeParams p{};
    IndexView& ix = p.index;
    ix.head_dim = 8 * (1 + below(64));
    do {
      ix.num_subspaces = 1 + below(64);
    } while (ix.head_dim % ix.num_subspaces != 0);
    ix.bits = 1 + below(8);
    ix.ksub = 1 << ix.bits;
    ix.dsub = ix.head_dim / ix.num_subspaces;
    ix.metric = below(4) == 0 ? Metric::inner_product : Metric::euclidean;
    ix.dcent = ix.dsub + (ix.metric == Metric::inner_product ? 1 : 0);
    ix.code_bytes = ix.bits <= 4 ? (ix.num_subspaces + 1) / 2 : ix.num_subspaces;
    ix.num_kv_heads = 1 + below(32);
    const std::int32_t blocks[] = {0, 64, 1 + below(200)};
    ix.block_size = blocks[below(3)];
    ix.encode_from = below(100);
    float rotation = 0;
    if (below(2) == 0) ix.rotation = &rotation;
    p.step.batch_size = 1 + below(8);
    p.step.query_tokens = 1 + below(5);
    const StepShape shape = step_shape(p, true);
    ASSERT_LE(shape.shared_bytes, kMostStepShared);
    ASSERT_EQ(StepShared(nullptr, ix, shape).bytes, shape.shared_bytes);
    ASSERT_GE(shape.shares, 1);

    const std::int32_t n = below(700);
    const std::int32_t begin = std::max(n - 1 - below(90), ix.encode_from);
    const auto key_bytes = static_cast<std::size_t>(ix.code_bytes);
    const auto dims = static_cast<std::size_t>(ix.head_dim);
    std::vector<int> written(static_cast<std::size_t>(n) * key_bytes);
    std::vector<int> means(static_cast<std::size_t>(n + 1) * dims);
    const std::int32_t items = shape.items(begin, n);
    for (std::int32_t i = 0; i < items; ++i) {
      const StepItem it = shape.item(ix, begin, n, i);
      ASSERT_LE(it.end_row - it.first_row, shape.part_keys);
      ASSERT_LE(it.end_subspace - it.first_subspace, shape.group_subspaces(ix));
      const std::int32_t own = it.first_subspace * ix.dsub, own_end = it.end_subspace * ix.dsub;
      ASSERT_LT(own, own_end);
      ASSERT_LE(((own_end + 3) & ~3) - (own & ~3), shape.group_columns(ix));
      for (std::int32_t k = it.first_row; k < it.end_row; ++k) {
        for (std::int32_t byte = it.first_byte; byte < it.end_byte; ++byte) {
          const auto at = static_cast<std::size_t>(it.tile.first + k) * key_bytes;
          ASSERT_LT(it.tile.first + k, n);
          ++written[at + static_cast<std::size_t>(byte)];
        }
      }
      if (it.tile.count == 0 || !it.stores_means || ix.block_size == 0) continue;
      ASSERT_LT(it.first_row, it.end_row);  // an item without rows is skipped
      const std::int32_t last = (it.tile.first + it.tile.count - 1) / ix.block_size;
      for (std::int32_t block = it.tile.first_block; block <= last; ++block) {
        for (std::int32_t j = own; j < own_end; ++j) {
          ++means[static_cast<std::size_t>(block) * dims + static_cast<std::size_t>(j)];
        }
      }
    }
    for (std::int32_t q = 0; q < n; ++q) {
      const std::int32_t bs = ix.block_size, end = bs == 0 ? 0 : (q / bs + 1) * bs;
      const bool due = bs == 0 ? q >= begin : q >= ix.encode_from && end > begin && end <= n;
      for (std::size_t byte = 0; byte < key_bytes; ++byte) {
        ASSERT_EQ(written[static_cast<std::size_t>(q) * key_bytes + byte], due ? 1 : 0);
      }
    }
    for (std::int32_t block = 0; ix.block_size > 0 && block < n / ix.block_size; ++block) {
      const bool due = begin < n && (block + 1) * ix.block_size > begin;
      for (std::size_t j = 0; j < dims; ++j) {
        ASSERT_EQ(means[static_cast<std::size_t>(block) * dims + j], due ? 1 : 0);
      }
    }
  }
}

TEST(CudaTraining, SamplesAreFloorOfEvenSteps) {
  std::mt19937 random(2);
  for (int trial = 0; trial < 500; ++trial) {
    const auto count = static_cast<std::int32_t>(1 + random() % 5000);
    const auto kept = static_cast<std::int32_t>(1 + random() % static_cast<std::uint32_t>(count));
    std::int64_t next = 0;
    for (std::int32_t rank = 0; rank < count; ++rank) {
      const std::int32_t sample = sample_of_rank(rank, count, kept);
      const bool due = next < kept && next * count / kept == rank;
      ASSERT_EQ(sample, due ? next : -1) << rank << " of " << count << ", kept " << kept;
      if (due) ++next;
    }
    ASSERT_EQ(next, kept);
  }
}

}  // namespace
}  // namespace quarry::cuda
