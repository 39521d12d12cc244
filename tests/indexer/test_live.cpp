// SPDX-License-Identifier: Apache-2.0
//
// What stats() says of a real trace: its live recall beside the replay's own, which is exact in
// float64, and the drift of right and wrong calibrations.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "calibration.h"
#include "exact.h"
#include "replay.h"
#include "report.h"
#include "support/backends.h"
#include "support/random.h"
#include "trace.h"

namespace quarry::test {
namespace {

using tools::Trace;

const Trace& trace() {
  static const Trace loaded =
      tools::load_trace(std::string(QUARRY_TRACE_DIR) + "/smollm2-l14-kjv.safetensors", false);
  return loaded;
}

tools::LayerCalibration calibration() {
  return tools::load_calibration(std::string(QUARRY_TRACE_DIR) +
                                 "/smollm2-l14-gpl3.calibration.safetensors");
}

tools::ReplayOptions options(Backend backend, const tools::LayerCalibration& c, int every) {
  tools::ReplayOptions o;
  o.config = c.config;
  o.config.sink_size = 16;
  o.config.encode_from = -1;
  o.config.window_size = 64;
  o.config.heavy_size = 128;
  o.device.backend = backend;
  o.model = &c.model;
  o.sample_every = every;
  return o;
}

class Live : public BackendTest {};

TEST_P(Live, RecallIsTheReplaysOwn) {
  const tools::LayerCalibration c = calibration();
  const tools::ReplayResult result =
      tools::replay(trace(), options(GetParam(), c, 7), [](auto, auto) {});
  const tools::ExactAttention attention(trace());
  const std::vector<float> keys = tools::widen(trace().k), queries = tools::widen(trace().q);
  const tools::ListBounds bounds{16, 128, 64};
  const auto d = static_cast<std::size_t>(trace().d), hkv = static_cast<std::size_t>(trace().hkv);
  std::vector<int> heads(static_cast<std::size_t>(trace().hq), 0);
  double live = 0, own = 0;
  std::int64_t differ = 0;
  for (const tools::LiveRow& row : result.live) {
    const std::int32_t t = row.t, h = row.recall.row;
    ASSERT_LT(h, trace().hq);
    ++heads[static_cast<std::size_t>(h)];
    const tools::ExactRow exact = attention.exact(t, h, bounds);
    const std::size_t at = static_cast<std::size_t>(t) * static_cast<std::size_t>(result.rows) +
                           static_cast<std::size_t>(h);
    const std::int32_t* list =
        result.indices.data() + at * static_cast<std::size_t>(result.max_list);
    int found = 0;
    for (const std::int32_t p : exact.top) {
      found += std::binary_search(list, list + result.lens[at], p) ? 1 : 0;
    }
    ASSERT_EQ(row.recall.exact, static_cast<std::int32_t>(exact.top.size()));
    ASSERT_EQ(row.recall.recall, static_cast<float>(row.recall.found) / 128.0f);
    live += row.recall.recall;
    own += found / 128.0;
    if (row.recall.found == found) continue;
    // The exact sets differ then: by keys whose scores float32 cannot tell from the K-th.
    ++differ;
    const float* q =
        queries.data() + (static_cast<std::size_t>(t) * static_cast<std::size_t>(trace().hq) +
                          static_cast<std::size_t>(h)) *
                             d;
    const auto score = [&](std::int32_t p, double* magnitude) {
      const float* k = keys.data() + (static_cast<std::size_t>(p) * hkv +
                                      static_cast<std::size_t>(h) / (heads.size() / hkv)) *
                                         d;
      double sum = 0;
      *magnitude = 0;
      for (std::size_t i = 0; i < d; ++i) {
        sum += double{q[i]} * double{k[i]};
        *magnitude += std::abs(double{q[i]} * double{k[i]});
      }
      return sum;
    };
    double least = INFINITY, ignored = 0;
    for (const std::int32_t p : exact.top) least = std::min(least, score(p, &ignored));
    int near = 0;
    for (std::int32_t p = 16; p < trace().q_pos[static_cast<std::size_t>(t)] + 1 - 64; ++p) {
      double magnitude = 0;
      const double s = score(p, &magnitude);
      near += std::abs(s - least) <= 4 * static_cast<double>(d) * 0x1p-24 * magnitude ? 1 : 0;
    }
    EXPECT_GT(near, 1);
    EXPECT_LE(std::abs(row.recall.found - found), near / 2);
  }
  ASSERT_GT(result.live.size(), 500u);
  for (const int count : heads) EXPECT_GT(count, 20);  // in turn
  EXPECT_LE(differ, static_cast<std::int64_t>(result.live.size()) / 50);
  const auto rows = static_cast<double>(result.live.size());
  EXPECT_NEAR(live / rows, own / rows, 1e-3);
  EXPECT_NEAR(live / rows, 0.63, 0.03);  // as all rows together
}

TEST_P(Live, AWrongCalibrationShows) {
  struct Seen {
    std::vector<double> drift;
    double recall = 0;
  };
  const auto see = [&](const tools::LayerCalibration& c) {
    const tools::ReplayResult result =
        tools::replay(trace(), options(GetParam(), c, 16), [](auto, auto) {});
    Seen seen;
    EXPECT_EQ(result.drift.size(), static_cast<std::size_t>(trace().hkv));
    for (const DriftStats& head : result.drift) {
      EXPECT_EQ(head.keys, 1024);
      EXPECT_GT(head.baseline, 0.0f);
      seen.drift.push_back(head.ratio);
    }
    for (const tools::LiveRow& row : result.live) seen.recall += row.recall.recall;
    seen.recall /= static_cast<double>(result.live.size());
    return seen;
  };
  const tools::LayerCalibration right = calibration();
  const Seen good = see(right);
  for (const double ratio : good.drift) {
    EXPECT_GT(ratio, 0.8);
    EXPECT_LT(ratio, 1.3);
  }
  tools::LayerCalibration random = right;
  Random source(5);
  double scale = 0;
  for (const float x : right.model.codebooks) scale += double{x} * double{x};
  scale = std::sqrt(scale / static_cast<double>(right.model.codebooks.size()));
  for (float& x : random.model.codebooks) x = static_cast<float>(source.normal() * scale);
  const Seen noise = see(random);
  for (std::size_t h = 0; h < good.drift.size(); ++h) {
    EXPECT_GT(noise.drift[h], 1.5 * good.drift[h]) << h;
  }
  EXPECT_LT(noise.recall, good.recall - 0.1);
  // Each KV head with another's codebooks, rotations and error: its rotation weighs errors by
  // other queries, so drift says little of it, and recall says it.
  tools::LayerCalibration other = right;
  for (std::vector<float>* part : {&other.model.codebooks, &other.model.rotation,
                                   &other.model.query_rotation, &other.model.quantization_error}) {
    std::rotate(part->begin(), part->begin() + static_cast<std::ptrdiff_t>(part->size() / 3),
                part->end());
  }
  EXPECT_LT(see(other).recall, good.recall - 0.1);
}

TEST_P(Live, ReportAndTableSayWhatWasMeasured) {
  tools::LayerCalibration c = calibration();
  tools::ReplayOptions o = options(GetParam(), c, 64);
  const tools::ReplayResult result = tools::replay(trace(), o, [](auto, auto) {});
  tools::ExactReference reference(trace(), result.config);
  const tools::Report report = tools::make_report(trace(), result, reference, 0, [](auto, auto) {});
  EXPECT_EQ(report.live_rows, static_cast<std::int64_t>(result.live.size()));
  double sum = 0, worst = 0;
  for (const DriftStats& head : result.drift) {
    sum += head.ratio;
    worst = std::max(worst, double{head.ratio});
  }
  EXPECT_NEAR(report.drift, sum / 3, 1e-9);
  EXPECT_EQ(report.drift_worst, worst);
  EXPECT_NEAR(report.live_recall, report.quality.recall, 0.05);
  // A calibration from before it held its error: recall alone.
  c.model.quantization_error.clear();
  const tools::ReplayResult old = tools::replay(trace(), o, [](auto, auto) {});
  EXPECT_EQ(old.indices, result.indices);
  EXPECT_TRUE(std::isnan(tools::make_report(trace(), old, reference, 0, [](auto, auto) {}).drift));
  EXPECT_EQ(old.drift[0].error, result.drift[0].error);
}

QUARRY_ON_EVERY_BACKEND(Live);

}  // namespace
}  // namespace quarry::test
