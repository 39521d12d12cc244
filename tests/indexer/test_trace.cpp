// SPDX-License-Identifier: Apache-2.0
//
// Real codes: the bundled trace of a model's keys and queries, with its calibration and with
// codebooks trained on the prompt. staged and scan list the same positions.
#include <gtest/gtest.h>

#include <algorithm>

#include "calibration.h"
#include "support/backends.h"
#include "support/scenario.h"
#include "trace.h"

namespace quarry::test {
namespace {

class BundledTrace : public BackendTest {
 protected:
  void SetUp() override {
    if (!has_scan(GetParam())) GTEST_SKIP() << "this backend has staged alone";
  }
};

TEST_P(BundledTrace, BothAlgorithmsListTheSame) {
  const std::string folder = QUARRY_TRACE_DIR;
  const tools::Trace trace = tools::load_trace(folder + "/smollm2-l14-kjv.safetensors", false);
  const tools::LayerCalibration calibration =
      tools::load_calibration(folder + "/smollm2-l14-gpl3.calibration.safetensors");
  const std::vector<float> keys = tools::widen(trace.k), queries = tools::widen(trace.q);
  Codebook calibrated;
  calibrated.centroids = calibration.model.codebooks;
  calibrated.phi = calibration.model.phi;
  calibrated.rotation = calibration.model.rotation;
  calibrated.query_rotation = calibration.model.query_rotation;

  struct Setting {
    bool calibrated;
    int m, b, block, heavy, refine;
  };
  const Setting settings[] = {{true, 8, 4, 64, 128, 1},  {true, 8, 4, 64, 128, 4},
                              {false, 2, 6, 0, 128, 1},  {false, 2, 6, 64, 256, 2},
                              {false, 16, 4, 0, 64, 1},  {false, 4, 8, 64, 100, 1},
                              {false, 8, 4, 0, 4000, 1}, {false, 1, 1, 0, 128, 1}};
  for (const Setting& setting : settings) {
    Scenario s;
    s.check = false;
    s.key_dtype = s.query_dtype = DType::float16;
    IndexerConfig& c = s.config;
    if (setting.calibrated) c = calibration.config;
    c.num_query_heads = trace.hq;
    c.num_kv_heads = trace.hkv;
    c.head_dim = trace.d;
    c.max_seq_len = trace.n;
    c.num_subspaces = setting.m;
    c.bits = setting.b;
    c.block_size = setting.block;
    c.heavy_size = setting.heavy;
    c.refine_factor = setting.refine;
    c.sink_size = 16;
    c.encode_from = -1;
    c.window_size = 64;
    c.shared_codebook = setting.calibrated;
    c.kmeans_iterations = 4;
    std::vector<StepOutput> out[2];
    for (int a = 0; a < 2; ++a) {
      s.on({GetParam(), a == 0 ? Algorithm::staged : Algorithm::scan});
      World world(s);
      world.cache().keys = keys;
      if (setting.calibrated) {
        world.set_codebook(-1, calibrated);
      } else {
        ASSERT_TRUE(world.build(0, 4096).ok());
      }
      for (std::int32_t i = 0; i < trace.queries; i += 127) {
        const auto from = queries.begin() + static_cast<std::ptrdiff_t>(i) * trace.hq * trace.d;
        world.use_queries(std::vector<float>(from, from + trace.hq * trace.d));
        out[a].push_back(world.next(lengths({trace.q_pos[static_cast<std::size_t>(i)] + 1})));
      }
      ASSERT_EQ(world.error(), "");
    }
    for (std::size_t i = 0; i < out[0].size(); ++i) {
      EXPECT_TRUE(out[0][i] == out[1][i])
          << "m " << setting.m << " b " << setting.b << " block " << setting.block << " step " << i;
    }
  }
}

QUARRY_ON_EVERY_BACKEND(BundledTrace);

}  // namespace
}  // namespace quarry::test
