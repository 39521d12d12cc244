// SPDX-License-Identifier: Apache-2.0
//
// calibrate(): what the rotation must be, checked from its definition, and what is refused.
#include "quarry/calibrate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "half.h"

namespace quarry {
namespace {

/// Correlated keys that drift, and correlated queries of another covariance.
struct Data {
  static constexpr std::int32_t kHkv = 2, kHq = 4, kD = 16;
  std::vector<float> keys, queries;

  explicit Data(std::int32_t n = 2100, std::int32_t num_queries = 300) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    keys.resize(static_cast<std::size_t>(n * kHkv * kD));
    queries.resize(static_cast<std::size_t>(num_queries * kHq * kD));
    fill(&keys, 0.7f, &normal, &random);
    fill(&queries, 1.3f, &normal, &random);
    for (std::size_t i = 0; i < keys.size(); ++i) {
      keys[i] += 3.0f * std::sin(static_cast<float>(i / (kHkv * kD)) * 1e-3f);
    }
  }

  static void fill(std::vector<float>* out, float power, std::normal_distribution<float>* normal,
                   std::mt19937* random) {
    for (std::size_t i = 0; i < out->size(); i += kD) {
      float shared = (*normal)(*random);
      for (std::int32_t j = 0; j < kD; ++j) {
        const float scale = std::pow(static_cast<float>(j + 1), -power);
        (*out)[i + static_cast<std::size_t>(j)] = scale * (*normal)(*random) + 0.2f * shared;
      }
    }
  }

  CalibrationTrace trace() const {
    CalibrationTrace t;
    t.keys = {keys.data(), DType::float32, static_cast<std::int64_t>(keys.size()) / (kHkv * kD),
              kHkv * kD, kD};
    t.queries.push_back({queries.data(), DType::float32,
                         static_cast<std::int64_t>(queries.size()) / (kHq * kD), kHq * kD, kD});
    return t;
  }

  static IndexerConfig config() {
    IndexerConfig c;
    c.num_query_heads = kHq;
    c.num_kv_heads = kHkv;
    c.head_dim = kD;
    c.num_subspaces = 4;
    c.bits = 4;
    c.block_size = 16;
    c.sink_size = 8;
    c.window_size = 16;
    c.heavy_size = 16;
    c.rotation = true;
    return c;
  }
};

Calibration must(const IndexerConfig& c, const std::vector<CalibrationTrace>& traces,
                 std::int32_t threads = 2) {
  Calibration out;
  CalibrationOptions options;
  options.num_threads = threads;
  const Status s = calibrate(c, traces, options, &out);
  EXPECT_TRUE(s.ok()) << s.detail();
  return out;
}

double at(const std::vector<float>& m, std::int32_t head, std::int32_t i, std::int32_t j) {
  return m[static_cast<std::size_t>((head * Data::kD + i) * Data::kD + j)];
}

TEST(Calibrate, QueryRotationIsTheInverseTranspose) {
  const Data data;
  const Calibration c = must(Data::config(), {data.trace()});
  for (std::int32_t h = 0; h < Data::kHkv; ++h) {
    for (std::int32_t i = 0; i < Data::kD; ++i) {
      for (std::int32_t j = 0; j < Data::kD; ++j) {
        double product = 0;  // (R . Q^T)_ij, so that x' . q' = x . q
        for (std::int32_t k = 0; k < Data::kD; ++k) {
          product += at(c.rotation, h, i, k) * at(c.query_rotation, h, j, k);
        }
        EXPECT_NEAR(product, i == j ? 1.0 : 0.0, 2e-5) << h << " " << i << " " << j;
      }
    }
  }
}

TEST(Calibrate, RotatedQueriesAreWhite) {
  // Then the squared error of a rotated residual is the expected squared error of q.k.
  const Data data;
  const Calibration c = must(Data::config(), {data.trace()});
  constexpr std::int32_t kGroup = Data::kHq / Data::kHkv;
  for (std::int32_t h = 0; h < Data::kHkv; ++h) {
    std::vector<double> moment(Data::kD * Data::kD);
    const std::size_t rows = data.queries.size() / (Data::kHq * Data::kD);
    for (std::size_t r = 0; r < rows * kGroup; ++r) {
      const std::size_t head = static_cast<std::size_t>(h) * kGroup + r % kGroup;
      const float* q = data.queries.data() + (r / kGroup * Data::kHq + head) * Data::kD;
      double rotated[Data::kD] = {};
      for (std::int32_t j = 0; j < Data::kD; ++j) {
        for (std::int32_t i = 0; i < Data::kD; ++i) {
          rotated[j] += q[i] * at(c.query_rotation, h, i, j);
        }
      }
      for (std::size_t i = 0; i < Data::kD; ++i) {
        for (std::size_t j = 0; j < Data::kD; ++j) {
          moment[i * Data::kD + j] += rotated[i] * rotated[j] / static_cast<double>(rows * kGroup);
        }
      }
    }
    for (std::size_t i = 0; i < Data::kD; ++i) {
      for (std::size_t j = 0; j < Data::kD; ++j) {
        EXPECT_NEAR(moment[i * Data::kD + j], i == j ? 1.0 : 0.0, 1e-3) << i << " " << j;
      }
    }
  }
}

TEST(Calibrate, ThreadsAndRepetitionLeaveTheBytes) {
  const Data data;
  const Calibration one = must(Data::config(), {data.trace()}, 1);
  for (const std::int32_t threads : {1, 2, 5}) {
    const Calibration other = must(Data::config(), {data.trace()}, threads);
    ASSERT_EQ(one.codebooks.size(), other.codebooks.size());
    EXPECT_EQ(0, std::memcmp(one.codebooks.data(), other.codebooks.data(),
                             one.codebooks.size() * sizeof(float)));
    EXPECT_EQ(0, std::memcmp(one.rotation.data(), other.rotation.data(),
                             one.rotation.size() * sizeof(float)));
  }
}

TEST(Calibrate, HeldOutErrorIsNearTheTrainedOne) {
  const Data data(8000);
  const Calibration c = must(Data::config(), {data.trace()});
  EXPECT_GT(c.train_error, 0.0);
  EXPECT_LT(c.train_error, 0.5);
  EXPECT_NEAR(c.held_out_error, c.train_error, 0.05);
  // train_error is a mean of the heads' own.
  ASSERT_EQ(c.quantization_error.size(), static_cast<std::size_t>(Data::kHkv));
  const auto [least, most] =
      std::minmax_element(c.quantization_error.begin(), c.quantization_error.end());
  EXPECT_LT(*least, c.train_error);
  EXPECT_GT(*most, c.train_error);
  EXPECT_GT(*least, 0.5 * c.train_error);
  EXPECT_EQ(c.keys, 8000 / 16 * 16 - 8);
  EXPECT_EQ(c.queries, 600);
}

TEST(Calibrate, SeveralTracesCountTogether) {
  const Data a(900), b(1300);
  const Calibration c = must(Data::config(), {a.trace(), b.trace()});
  EXPECT_EQ(c.keys, 900 / 16 * 16 - 8 + 1300 / 16 * 16 - 8);
  EXPECT_EQ(c.queries, 2 * 600);
}

TEST(Calibrate, WholeChunksOfVectors) {
  // Second moments are summed 512 vectors at a time; here nothing remains after the last: 256
  // queries of two heads, and 2192 keys less 16 of the sink and 8 held-out blocks of 16.
  const Data data(2192, 256);
  IndexerConfig config = Data::config();
  config.sink_size = 16;
  const Calibration c = must(config, {data.trace()});
  EXPECT_EQ(c.queries, 512);
  EXPECT_EQ(c.keys - 8 * 16, 4 * 512);
  EXPECT_EQ(c.rotation.size(), std::size_t{2 * 16 * 16});
}

TEST(Calibrate, KeysBelowEncodeFromAndOfTheLastBlockStayOut) {
  Data data(2100);
  const Calibration clean = must(Data::config(), {data.trace()});
  const std::size_t row = Data::kHkv * Data::kD;
  for (std::size_t i = 0; i < 8 * row; ++i) data.keys[i] = 1e6f;
  for (std::size_t i = 2096 * row; i < data.keys.size(); ++i) data.keys[i] = -1e6f;
  const Calibration other = must(Data::config(), {data.trace()});
  EXPECT_EQ(clean.codebooks, other.codebooks);
  EXPECT_EQ(clean.rotation, other.rotation);
}

TEST(Calibrate, NonFiniteKeysAndQueriesStayOut) {
  Data data(3000);
  const std::size_t row = Data::kHkv * Data::kD;
  data.keys[100 * row + 3] = std::numeric_limits<float>::quiet_NaN();
  data.keys[700 * row + 20] = std::numeric_limits<float>::infinity();
  data.queries[5] = std::numeric_limits<float>::quiet_NaN();
  const Calibration c = must(Data::config(), {data.trace()});
  for (const std::vector<float>* values : {&c.codebooks, &c.rotation, &c.query_rotation}) {
    for (const float value : *values) ASSERT_TRUE(std::isfinite(value));
  }
}

TEST(Calibrate, InnerProductBringsPhi) {
  const Data data;
  IndexerConfig config = Data::config();
  config.metric = Metric::inner_product;
  const Calibration c = must(config, {data.trace()});
  EXPECT_EQ(c.phi.size(), 8u);
  EXPECT_EQ(c.codebooks.size(), std::size_t{2 * 4 * 16 * 5});
  for (const float phi : c.phi) EXPECT_GT(phi, 0.0f);
}

TEST(Calibrate, WithoutRotationNeedsNoQueries) {
  const Data data;
  IndexerConfig config = Data::config();
  config.rotation = false;
  CalibrationTrace trace = data.trace();
  trace.queries.clear();
  const Calibration c = must(config, {trace});
  EXPECT_TRUE(c.rotation.empty());
  EXPECT_TRUE(c.query_rotation.empty());
}

QueryMoments moments_of(const IndexerConfig& config) {
  QueryMoments out;
  EXPECT_TRUE(QueryMoments::create(config, &out).ok());
  return out;
}

TEST(Calibrate, QueriesInPartsGiveTheSameBytes) {
  Data data(2100, 1500);
  data.queries[70 * Data::kHq * Data::kD] = std::numeric_limits<float>::infinity();
  const CalibrationTrace trace = data.trace();
  const Calibration whole = must(Data::config(), {trace, trace});
  CalibrationTrace keys = trace;
  keys.queries.clear();
  const HostVectors all = trace.queries[0];
  for (const std::int64_t part : {1, 100, 256, 1499, 1500}) {
    QueryMoments moments = moments_of(Data::config());
    for (int array = 0; array < 2; ++array) {
      for (std::int64_t first = 0; first < all.count; first += part) {
        HostVectors some = all;
        some.data = data.queries.data() + first * all.row_stride;
        some.count = std::min(part, all.count - first);
        ASSERT_TRUE(moments.add(some, first + some.count == all.count).ok());
      }
    }
    CalibrationOptions options;
    options.query_moments = &moments;
    Calibration out;
    ASSERT_TRUE(calibrate(Data::config(), {keys, keys}, options, &out).ok());
    EXPECT_EQ(out.rotation, whole.rotation) << part;
    EXPECT_EQ(out.query_rotation, whole.query_rotation) << part;
    EXPECT_EQ(out.codebooks, whole.codebooks) << part;
    EXPECT_EQ(out.queries, whole.queries);
    EXPECT_EQ(moments.count(0), 2 * (2 * 1500 - 1));  // the infinite one is of head 0
    EXPECT_EQ(moments.count(1), 2 * 2 * 1500);
  }
}

TEST(Calibrate, ASecondMomentIsTheMeanOfItsQueries) {
  const Data data;
  QueryMoments moments = moments_of(Data::config());
  const HostVectors all = data.trace().queries[0];
  ASSERT_TRUE(moments.add(all, /*ends_array=*/false).ok());
  EXPECT_EQ(moments.count(1), 0);  // until the array ends
  ASSERT_TRUE(moments.add({all.data, all.dtype, 0, all.row_stride, all.head_stride}).ok());
  EXPECT_EQ(moments.count(1), 600);
  std::vector<double> got(Data::kD * Data::kD);
  ASSERT_TRUE(moments.second_moment(1, got.data()).ok());
  for (std::size_t i = 0; i < Data::kD; ++i) {
    for (std::size_t j = 0; j < Data::kD; ++j) {
      double sum = 0;
      for (std::size_t r = 0; r < 300; ++r) {
        for (std::size_t h = 2; h < 4; ++h) {
          const float* q = data.queries.data() + (r * Data::kHq + h) * Data::kD;
          sum += double{q[i]} * q[j];
        }
      }
      EXPECT_NEAR(got[i * Data::kD + j], sum / 600, 1e-9) << i << " " << j;
    }
  }
}

TEST(Calibrate, MomentsThatDoNotFit) {
  const Data data;
  const CalibrationTrace trace = data.trace();
  const auto refused = [](const Status& s, const char* word) {
    EXPECT_EQ(s.code(), StatusCode::invalid_argument);
    EXPECT_NE(std::string(s.detail()).find(word), std::string::npos) << s.detail();
  };
  QueryMoments none, empty = moments_of(Data::config());
  refused(none.add(trace.queries[0]), "not created");
  refused(QueryMoments::create(Data::config(), nullptr), "out is null");
  IndexerConfig wrong = Data::config();
  wrong.head_dim = 12;
  refused(QueryMoments::create(wrong, &none), "head_dim");
  HostVectors narrow = trace.queries[0];
  narrow.row_stride = 8;
  refused(empty.add(narrow), "row_stride 8");
  double out[Data::kD * Data::kD];
  refused(empty.second_moment(2, out), "kv_head is 2, must be 0..1");
  refused(empty.second_moment(0, nullptr), "out is null");
  EXPECT_EQ(none.count(0) + empty.count(-1) + empty.count(2), 0);

  Calibration made;
  CalibrationOptions options;
  options.query_moments = &empty;
  refused(calibrate(Data::config(), {trace}, options, &made), "no finite query of KV head 0");
  IndexerConfig wide = Data::config();
  wide.num_kv_heads = 4;
  QueryMoments other = moments_of(wide);
  ASSERT_TRUE(other.add(trace.queries[0]).ok());
  options.query_moments = &other;
  refused(calibrate(Data::config(), {trace}, options, &made), "of 4 KV heads of 16");
  EXPECT_TRUE(made.codebooks.empty());
}

TEST(Calibrate, Float8KeysGiveTheCalibrationOfTheirValues) {
  const Data data;
  for (const std::int32_t scales : {0, 1, 2}) {
    const float scale[] = {0.0171f, 0.053f};
    std::vector<std::uint8_t> bytes;
    std::vector<float> values;
    for (std::size_t i = 0; i < data.keys.size(); ++i) {
      const std::size_t head = i / Data::kD % Data::kHkv;
      const float s = scales == 0 ? 1.0f : scale[scales == 1 ? 0 : head];
      bytes.push_back(float_to_float8(data.keys[i] / s));
      values.push_back(float8_to_float(bytes.back()) * s);
    }
    CalibrationTrace narrow = data.trace(), wide = data.trace();
    wide.keys.data = values.data();
    narrow.keys.data = bytes.data();
    narrow.keys.dtype = DType::float8_e4m3;
    if (scales > 0) narrow.keys.scales = scale, narrow.keys.num_scales = scales;
    const Calibration a = must(Data::config(), {narrow}), b = must(Data::config(), {wide});
    EXPECT_TRUE(a.codebooks == b.codebooks) << scales;
    EXPECT_TRUE(a.rotation == b.rotation) << scales;
    EXPECT_EQ(a.held_out_error, b.held_out_error) << scales;
  }
}

TEST(Calibrate, ScalesThatFitNoKeysAreRefused) {
  const Data data;
  const float scale[] = {1, 1, 1};
  Calibration out;
  const auto refused = [&](DType dtype, std::int32_t scales, bool given) {
    CalibrationTrace trace = data.trace();
    trace.keys.dtype = dtype;
    trace.keys.scales = given ? scale : nullptr;
    trace.keys.num_scales = scales;
    const Status s = calibrate(Data::config(), {trace}, {}, &out);
    EXPECT_EQ(s.code(), StatusCode::invalid_argument) << scales;
    EXPECT_NE(std::string(s.detail()).find("traces[0].keys: scales"), std::string::npos)
        << s.detail();
  };
  refused(DType::float32, 1, true);
  refused(DType::float8_e4m3, 3, true);
  refused(DType::float8_e4m3, 0, true);
  refused(DType::float8_e4m3, 2, false);
  CalibrationTrace trace = data.trace();
  trace.queries[0].dtype = DType::float8_e4m3;
  EXPECT_NE(std::string(calibrate(Data::config(), {trace}, {}, &out).detail()).find("dtype 3"),
            std::string::npos);
}

TEST(Calibrate, RefusesByName) {
  const Data data;
  Calibration out;
  const auto refused = [&](const IndexerConfig& c, const std::vector<CalibrationTrace>& traces,
                           StatusCode code, const char* word) {
    const Status s = calibrate(c, traces, {}, &out);
    EXPECT_EQ(s.code(), code) << s.detail();
    EXPECT_NE(std::string(s.detail()).find(word), std::string::npos) << s.detail();
    EXPECT_TRUE(out.codebooks.empty());
  };
  CalibrationTrace trace = data.trace();
  refused(Data::config(), {}, StatusCode::invalid_argument, "traces");
  trace.queries.clear();
  refused(Data::config(), {trace}, StatusCode::invalid_argument, "queries");
  trace = data.trace();
  trace.keys.row_stride = 8;
  refused(Data::config(), {trace}, StatusCode::invalid_argument, "keys");
  trace = data.trace();
  trace.keys.data = nullptr;
  refused(Data::config(), {trace}, StatusCode::invalid_argument, "keys");
  trace = data.trace();
  trace.keys.count = 20;
  refused(Data::config(), {trace}, StatusCode::too_few_keys, "ksub");
  IndexerConfig config = Data::config();
  config.bits = 9;
  refused(config, {data.trace()}, StatusCode::invalid_argument, "bits");
  EXPECT_EQ(calibrate(Data::config(), {data.trace()}, {}, nullptr).code(),
            StatusCode::invalid_argument);
}

}  // namespace
}  // namespace quarry
