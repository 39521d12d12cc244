// SPDX-License-Identifier: Apache-2.0
//
// Offsets beyond 2^31: more scores (rows x positions) than an int32 can count. They take 9 GiB,
// so that this runs on a GPU alone.
#include <gtest/gtest.h>

#include <algorithm>

#include "support/backends.h"
#include "support/check.h"
#include "support/random.h"

namespace quarry::test {
namespace {

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Large);

class Large : public AlgorithmTest {};

TEST_P(Large, RowsTimesPositionsBeyondTwoToTheThirtyOne) {
  const Backend backend = GetParam().backend;
  IndexerConfig c;
  c.algorithm = GetParam().algorithm;
  c.num_query_heads = 32;
  c.num_kv_heads = 1;
  c.head_dim = 8;
  c.num_subspaces = 2;
  c.bits = 4;
  c.max_sequences = 70;
  c.max_seq_len = 1 << 20;
  c.page_size = 1024;
  c.num_pages = 1024;
  c.shared_codebook = true;
  const std::int64_t rows = std::int64_t{c.max_sequences} * c.num_query_heads;
  ASSERT_GT(rows * c.max_seq_len, std::int64_t{1} << 31);
  Indexer indexer;
  Status s = Indexer::create(c, Device{backend, 0}, Resources{}, &indexer);
  ASSERT_TRUE(s.ok()) << s.detail();
  StreamHandle stream(backend);
  Random random(8);
  auto normal = [&](std::size_t n) {
    std::vector<float> v(n);
    for (float& x : v) x = static_cast<float>(random.normal());
    return v;
  };
  DeviceBuffer<float> centroids(backend, normal(2 * 16 * 4));
  DeviceBuffer<float> keys(backend, normal(std::size_t{1024} * 1024 * 8));
  // Every sequence has the same queries and, page for page, the same keys: 70 equal results.
  const std::vector<float> one = normal(32 * 8);
  std::vector<float> all;
  for (int b = 0; b < c.max_sequences; ++b) all.insert(all.end(), one.begin(), one.end());
  DeviceBuffer<float> queries(backend, all);
  std::vector<std::int32_t> table;
  for (int b = 0; b < c.max_sequences; ++b) {
    for (int page = 0; page < 1024; ++page) table.push_back(1023 - page);
  }
  DeviceBuffer<std::int32_t> device_table(backend, table),
      lengths(backend, std::vector<std::int32_t>(c.max_sequences, c.max_seq_len));
  CodebookArgs codebook;
  codebook.codebooks = centroids.data();
  ASSERT_TRUE(indexer.set_codebook(codebook, stream.get()).ok());

  auto run = [&](int batch) {
    const int list = indexer.max_list_length();
    DeviceBytes workspace(backend, indexer.workspace_bytes(batch, 1));
    workspace.fill(0xff);
    DeviceBuffer<std::int32_t> indices(backend, static_cast<std::size_t>(batch) * 32 * list),
        list_lengths(backend, static_cast<std::size_t>(batch) * 32);
    NextArgs args;
    args.batch.batch_size = batch;
    args.batch.lengths = lengths.data();
    args.keys = {keys.data(), DType::float32, 1024 * 8, 8, 8, device_table.data(), 1024};
    args.queries = {queries.data(), DType::float32, 32 * 8, 32 * 8, 8};
    args.workspace = {workspace.data(), workspace.bytes()};
    args.indices = indices.data();
    args.index_stride = list;
    args.list_lengths = list_lengths.data();
    const Status status = indexer.next(args, stream.get());
    EXPECT_TRUE(status.ok()) << status.detail();
    stream.synchronize();
    return indices.download();
  };
  const std::vector<std::int32_t> alone = run(1), together = run(c.max_sequences);
  const IndexerConfig r = resolved(c);
  const std::size_t list = static_cast<std::size_t>(indexer.max_list_length());
  for (int h = 0; h < 32; ++h) {
    const std::vector<std::int32_t> row(alone.begin() + h * list, alone.begin() + (h + 1) * list);
    ASSERT_EQ(check_structure(r, row, static_cast<int>(list), c.max_seq_len, true), "");
  }
  for (int b = 0; b < c.max_sequences; ++b) {
    ASSERT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + b * 32 * list)) << b;
  }
}

INSTANTIATE_TEST_SUITE_P(Cuda, Large, testing::ValuesIn(targets(cuda_backend_if_present())),
                         [](const auto& i) { return to_string(i.param); });

}  // namespace
}  // namespace quarry::test
