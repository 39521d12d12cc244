// SPDX-License-Identifier: Apache-2.0
//
// The goldens of tests/data, made by an implementation of its own: codes and lists through
// the API. (quarry-replay runs them too, tests of the tools.)
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "safetensors.h"
#include "support/backends.h"
#include "support/scenario.h"

namespace quarry::test {
namespace {

template <class T>
std::vector<T> read(tools::SafetensorsFile& file, const char* name) {
  const tools::TensorInfo* info = file.find(name);
  if (info == nullptr) return {};
  const std::vector<std::byte> bytes = file.read(*info);
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

class Golden : public AlgorithmTest {
 protected:
  void run(const std::string& name, bool exact) const {
    tools::SafetensorsFile file(std::string(QUARRY_TEST_DATA_DIR) + "/" + name + ".safetensors");
    const auto& meta = file.metadata();
    auto number = [&](const char* key, int missing) {
      const auto it = meta.find(key);
      return it == meta.end() ? missing : std::stoi(it->second);
    };
    const auto k_shape = file.find("k")->shape, q_shape = file.find("q")->shape;
    Scenario s;
    s.on(GetParam());
    s.check = false;
    IndexerConfig& c = s.config;
    c.num_kv_heads = static_cast<std::int32_t>(k_shape[1]);
    c.num_query_heads = static_cast<std::int32_t>(q_shape[1]);
    c.head_dim = static_cast<std::int32_t>(k_shape[2]);
    c.max_seq_len = static_cast<std::int32_t>(k_shape[0]);
    c.num_subspaces = number("num_subspaces", 0);
    c.bits = number("bits", 0);
    c.heavy_size = number("heavy", 0);
    c.sink_size = number("sink", 0);
    c.window_size = number("window", 0);
    c.encode_from = number("encode_from", 0);
    c.block_size = number("block_size", 0);
    c.refine_factor = number("refine", 1);
    c.metric = meta.at("metric") == "ip" ? Metric::inner_product : Metric::euclidean;
    c.rotation = file.find("rotation") != nullptr;

    Codebook cb;
    cb.centroids = read<float>(file, "codebooks");
    cb.phi = read<float>(file, "phi");
    cb.rotation = read<float>(file, "rotation");
    cb.query_rotation = read<float>(file, "query_rotation");
    World world(s);
    world.set_codebook(0, cb);
    world.cache().keys = read<float>(file, "k");
    const int n = read<std::int32_t>(file, "q_pos").at(0) + 1;
    ASSERT_EQ(n, c.max_seq_len);
    const std::vector<float> queries = read<float>(file, "q");
    world.use_queries(queries);
    const StepOutput out = world.next(lengths({n}));
    ASSERT_EQ(world.error(), "");

    // Codes: the oracle says which are near ties.
    const std::vector<std::uint8_t> want = read<std::uint8_t>(file, "expect_codes");
    const std::vector<std::uint8_t> got = world.codes(0, n);
    ASSERT_LE(got.size(), want.size());
    ASSERT_GT(got.size() + 64u * c.num_kv_heads * c.num_subspaces, want.size());
    std::size_t differ = 0;
    for (std::size_t i = 0; i < got.size(); ++i) differ += got[i] != want[i];
    EXPECT_EQ(differ, 0u) << "of " << got.size() << " codes";

    // Lists: equal, or up to keys float32 cannot tell apart.
    const auto lens = read<std::int32_t>(file, "expect_lens");
    const auto lists = read<std::int32_t>(file, "expect_indices");
    const std::size_t width = file.find("expect_indices")->shape[2];
    Oracle oracle(c);
    oracle.set_codebook(0, cb);
    HostBatch batch = lengths({n});
    std::vector<std::uint32_t> bits;
    const auto rows = oracle.next(world.cache(), {world.pages(0)}, batch, queries, &bits);
    EXPECT_EQ(oracle.defects(), "");
    ASSERT_EQ(out.lengths, lens);
    for (std::size_t h = 0; h < lens.size(); ++h) {
      const std::vector<std::int32_t> golden(lists.begin() + h * width,
                                             lists.begin() + h * width + lens[h]);
      const auto at = out.indices.begin() + h * world.oracle().max_list();
      const std::vector<std::int32_t> mine(at, at + lens[h]);
      if (exact) {
        EXPECT_TRUE(mine == golden) << "head " << h;
      }
      // The golden tells whether the oracle is right, the oracle whether the list is.
      EXPECT_EQ(compare(oracle.config(), rows[h], golden, exact), "") << "golden, head " << h;
      EXPECT_EQ(compare(oracle.config(), rows[h], mine, exact), "") << "list, head " << h;
    }
  }
};

TEST_P(Golden, Integers) { run("int-gqa-m2b6", true); }
TEST_P(Golden, Dense) { run("short-dense", true); }
TEST_P(Golden, Gaussian) { run("gauss-mha-m2b6", false); }
TEST_P(Golden, InnerProduct) { run("gauss-ip-m4b4", false); }
TEST_P(Golden, Blocks) { run("block-gqa-m4b4", false); }
TEST_P(Golden, RotationAndRefine) { run("block-rot-refine", false); }

QUARRY_ON_EVERY_ALGORITHM(Golden);

}  // namespace
}  // namespace quarry::test
