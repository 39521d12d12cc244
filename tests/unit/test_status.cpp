// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <string>

#include "backend.h"
#include "quarry/quarry.h"

namespace quarry::test {
namespace {

TEST(Status, HoldsCodeAndText) {
  const Status ok;
  EXPECT_TRUE(ok.ok());
  EXPECT_EQ(ok.code(), StatusCode::ok);
  EXPECT_STREQ(ok.detail(), "");
  const Status bad(StatusCode::out_of_range, "%s is %d", "slot", 7);
  EXPECT_FALSE(bad.ok());
  EXPECT_EQ(bad.code(), StatusCode::out_of_range);
  EXPECT_STREQ(bad.detail(), "slot is 7");
  const Status copy = bad;
  EXPECT_STREQ(copy.detail(), "slot is 7");
}

TEST(Status, CutsLongText) {
  const std::string text(1000, 'x');
  const Status s(StatusCode::device_error, "%s", text.c_str());
  EXPECT_EQ(std::strlen(s.detail()), static_cast<std::size_t>(Status::capacity() - 1));
}

TEST(Names, EveryValueHasOneOfItsOwn) {
  std::set<std::string> codes;
  for (int i = 0; i <= 8; ++i) codes.insert(to_string(static_cast<StatusCode>(i)));
  EXPECT_EQ(codes.size(), 9u);
  EXPECT_EQ(codes.count(""), 0u);
  EXPECT_STREQ(to_string(StatusCode::too_few_keys), "too_few_keys");
  EXPECT_NE(to_string(static_cast<StatusCode>(99)), nullptr);
  EXPECT_STREQ(to_string(DType::bfloat16), "bfloat16");
  EXPECT_STREQ(to_string(DType::float8_e4m3), "float8_e4m3");
  EXPECT_STREQ(to_string(Metric::inner_product), "inner_product");
  EXPECT_STREQ(to_string(Algorithm::scan), "scan");
  EXPECT_STREQ(to_string(GqaReduction::softmax_sum), "softmax_sum");
  EXPECT_STREQ(to_string(Backend::cuda), "cuda");
}

TEST(Config, DefaultsAreTheOriginalWorkload) {
  const IndexerConfig c;
  IndexerConfig r;
  ASSERT_TRUE(resolve(c, Backend::cpu, &r).ok());
  EXPECT_EQ(r.num_subspaces, 2);
  EXPECT_EQ(r.bits, 6);
  EXPECT_EQ(r.sink_size, 128);
  EXPECT_EQ(r.heavy_size, 128);
  EXPECT_EQ(r.window_size, 128);
  EXPECT_EQ(r.encode_from, 128);
  EXPECT_EQ(r.dense_threshold, 128 + 128 + 1 + 64);
  EXPECT_EQ(r.block_size, 0);
  EXPECT_EQ(r.refine_factor, 1);
  EXPECT_EQ(r.kmeans_iterations, 10);
  EXPECT_EQ(r.algorithm, Algorithm::scan);
  EXPECT_EQ(max_list_length(r), 384);
}

TEST(Config, AutomaticIsDecidedByTheConfigurationAlone) {
  const auto chosen = [](auto&& change) {
    IndexerConfig c, r;
    change(c);
    EXPECT_TRUE(resolve(c, Backend::cpu, &r).ok());
    return r.algorithm;
  };
  using C = IndexerConfig&;
  EXPECT_EQ(chosen([](C c) { c.algorithm = Algorithm::staged; }), Algorithm::staged);
  EXPECT_EQ(chosen([](C c) { c.heavy_size = 4096; }), Algorithm::scan);
  EXPECT_EQ(chosen([](C c) { c.heavy_size = 4097; }), Algorithm::staged);
  EXPECT_EQ(chosen([](C c) { c.heavy_size = 2049, c.refine_factor = 2; }), Algorithm::staged);
  const auto paged = [&](int page) {
    return chosen([page](C c) { c.page_size = page, c.num_pages = 5000; });
  };
  EXPECT_EQ(paged(16), Algorithm::scan);
  EXPECT_EQ(paged(48), Algorithm::scan);
  EXPECT_EQ(paged(8), Algorithm::staged);
  EXPECT_EQ(paged(100), Algorithm::staged);
  EXPECT_EQ(chosen([](C c) { c.gqa_reduction = GqaReduction::sum; }), Algorithm::scan);
  EXPECT_EQ(chosen([](C c) { c.gqa_reduction = GqaReduction::max; }), Algorithm::scan);
  EXPECT_EQ(chosen([](C c) { c.gqa_reduction = GqaReduction::softmax_sum; }), Algorithm::staged);
}

// The same where the backend is built, a device or not; its scan serves no reductions yet.
TEST(Config, AutomaticIsDecidedByTheConfigurationAloneOnCudaToo) {
  if (stages_of(Backend::cuda) == nullptr) GTEST_SKIP() << "no cuda backend is built";
  IndexerConfig c, r;
  const Status s = resolve(c, Backend::cuda, &r);
  ASSERT_TRUE(s.ok()) << s.detail();
  EXPECT_EQ(r.algorithm, Algorithm::scan);
  c.heavy_size = 4097;
  ASSERT_TRUE(resolve(c, Backend::cuda, &r).ok());
  EXPECT_EQ(r.algorithm, Algorithm::staged);
  c = IndexerConfig{};
  c.gqa_reduction = GqaReduction::sum;
  ASSERT_TRUE(resolve(c, Backend::cuda, &r).ok());
  EXPECT_EQ(r.algorithm, Algorithm::staged);
  c = IndexerConfig::recommended(128);
  ASSERT_TRUE(resolve(c, Backend::cuda, &r).ok());
  EXPECT_EQ(r.algorithm, Algorithm::scan);
}

TEST(Config, RecommendedIsAccepted) {
  for (const int d : {8, 64, 80, 128, 256, 512}) {
    IndexerConfig c = IndexerConfig::recommended(d);
    EXPECT_EQ(c.head_dim, d);
    EXPECT_EQ(c.head_dim / c.num_subspaces, 8);
    EXPECT_EQ(c.bits, 4);
    EXPECT_EQ(c.block_size, 64);
    EXPECT_EQ(c.refine_factor, 4);
    EXPECT_EQ(c.sink_size, 16);
    EXPECT_EQ(c.window_size, 64);
    EXPECT_TRUE(c.rotation);
    MemoryRequirements need;
    EXPECT_TRUE(memory_requirements(c, Backend::cpu, &need).ok()) << d;
  }
}

}  // namespace
}  // namespace quarry::test
