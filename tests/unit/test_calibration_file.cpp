// SPDX-License-Identifier: Apache-2.0
//
// The calibration file: what is written comes back, and every way it can be wrong is named.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "calibration.h"
#include "error.h"
#include "safetensors.h"

namespace quarry::tools {
namespace {

using testing::HasSubstr;

LayerCalibration sample(Metric metric = Metric::euclidean, bool rotation = true) {
  LayerCalibration c;
  IndexerConfig config;
  config.num_query_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  config.num_subspaces = 2;
  config.bits = 3;
  config.metric = metric;
  config.block_size = 32;
  config.mean_dtype = DType::bfloat16;
  config.sink_size = 5;
  config.rotation = rotation;
  config.kmeans_iterations = 7;
  config.seed = 18446744073709551615u;
  EXPECT_TRUE(resolve(config, Backend::cpu, &c.config).ok());
  Model& m = c.model;
  m.subspaces = 2;
  m.ksub = 8;
  m.dcent = metric == Metric::inner_product ? 5 : 4;
  for (int i = 0; i < 2 * 2 * 8 * m.dcent; ++i) {
    m.codebooks.push_back(0.25f * static_cast<float>(i) - 3.0f);
  }
  if (metric == Metric::inner_product) m.phi = {1, 2, 3, 4};
  for (int i = 0; rotation && i < 2 * 8 * 8; ++i) {
    // Diagonal, its inverse beside it.
    const float value = 1.0f + static_cast<float>(i % 8);
    m.rotation.push_back(i / 8 % 8 == i % 8 ? value : 0.0f);
    m.query_rotation.push_back(i / 8 % 8 == i % 8 ? 1 / value : 0.0f);
  }
  m.quantization_error = {0.125f, 0.0f};
  c.layer = "14";
  c.source_model = "a model";
  c.text = "a text";
  c.traces = 2;
  c.keys = 4000;
  c.sampled_keys = 2048;
  c.queries = 600;
  c.train_error = 0.25;
  c.held_out_error = 0.5;
  return c;
}

class CalibrationFile : public testing::Test {
 protected:
  void SetUp() override {
    path_ = testing::TempDir() + "quarry_calibration_" + std::to_string(getpid()) + "_" +
            testing::UnitTest::GetInstance()->current_test_info()->name();
  }
  void TearDown() override { std::filesystem::remove(path_); }

  void expect_refused(const std::string& why) const {
    try {
      load_calibration(path_);
      FAIL() << "was taken, expected: " << why;
    } catch (const BadInput& e) {
      EXPECT_THAT(e.what(), HasSubstr(why));
      EXPECT_THAT(e.what(), HasSubstr(path_));
    }
  }

  /// A sound file's parts, changed and written again.
  struct Parts {
    std::vector<TensorInfo> infos;
    std::vector<std::vector<std::byte>> bytes;
    std::map<std::string, std::string> metadata;
    std::size_t at(const std::string& name) const {
      for (std::size_t i = 0; i < infos.size(); ++i) {
        if (infos[i].name == name) return i;
      }
      throw std::out_of_range(name);
    }
  };
  void rewrite(const LayerCalibration& from, const std::function<void(Parts&)>& change) const {
    save_calibration(path_, from);
    Parts parts;
    {
      SafetensorsFile file(path_);
      parts.infos = file.tensors();
      parts.metadata = file.metadata();
      for (const TensorInfo& info : parts.infos) parts.bytes.push_back(file.read(info));
    }
    change(parts);
    std::vector<TensorSource> tensors;
    for (std::size_t i = 0; i < parts.infos.size(); ++i) {
      tensors.push_back(
          {parts.infos[i].name, parts.infos[i].dtype, parts.infos[i].shape, parts.bytes[i].data()});
    }
    write_safetensors(path_, tensors, parts.metadata);
  }
  void refuse_metadata(const char* key, const char* value, const std::string& why) const {
    rewrite(sample(), [&](Parts& parts) { parts.metadata[key] = value; });
    expect_refused(why);
  }

  std::string path_;
};

TEST_F(CalibrationFile, QuantizationErrorMayBeMissingButNotWrong) {
  LayerCalibration out = sample();
  out.model.quantization_error.clear();
  save_calibration(path_, out);
  EXPECT_TRUE(load_calibration(path_).model.quantization_error.empty());
  out.model.quantization_error = {0.5f, -0.5f};
  save_calibration(path_, out);
  expect_refused("quantization_error: holds a negative value");
  out.model.quantization_error = {0.5f, NAN};
  save_calibration(path_, out);
  expect_refused("quantization_error: holds a value that is not finite");
  rewrite(sample(), [](Parts& parts) {
    parts.infos[parts.at("quantization_error")].shape = {2, 1};
  });
  expect_refused("quantization_error: is F32 [2, 1], expected F32 [2]");
}

TEST_F(CalibrationFile, RoundTrip) {
  for (const Metric metric : {Metric::euclidean, Metric::inner_product}) {
    for (const bool rotation : {false, true}) {
      const LayerCalibration out = sample(metric, rotation);
      save_calibration(path_, out);
      const LayerCalibration in = load_calibration(path_);
      EXPECT_EQ(in.model.codebooks, out.model.codebooks);
      EXPECT_EQ(in.model.phi, out.model.phi);
      EXPECT_EQ(in.model.rotation, out.model.rotation);
      EXPECT_EQ(in.model.query_rotation, out.model.query_rotation);
      EXPECT_EQ(in.model.quantization_error, out.model.quantization_error);
      EXPECT_EQ(in.model.subspaces, 2);
      EXPECT_EQ(in.model.ksub, 8);
      EXPECT_EQ(in.model.dcent, out.model.dcent);
      EXPECT_EQ(in.config.num_query_heads, 4);
      EXPECT_EQ(in.config.num_kv_heads, 2);
      EXPECT_EQ(in.config.head_dim, 8);
      EXPECT_EQ(in.config.num_subspaces, 2);
      EXPECT_EQ(in.config.bits, 3);
      EXPECT_EQ(in.config.metric, metric);
      EXPECT_EQ(in.config.block_size, 32);
      EXPECT_EQ(in.config.mean_dtype, DType::bfloat16);
      EXPECT_EQ(in.config.sink_size, 5);
      EXPECT_EQ(in.config.encode_from, 5);
      EXPECT_EQ(in.config.rotation, rotation);
      EXPECT_EQ(in.config.kmeans_iterations, 7);
      EXPECT_EQ(in.config.seed, 18446744073709551615u);
      EXPECT_EQ(in.layer, "14");
      EXPECT_EQ(in.source_model, "a model");
      EXPECT_EQ(in.text, "a text");
      EXPECT_EQ(in.traces, 2);
      EXPECT_EQ(in.keys, 4000);
      EXPECT_EQ(in.sampled_keys, 2048);
      EXPECT_EQ(in.queries, 600);
      EXPECT_EQ(in.train_error, 0.25);
      EXPECT_EQ(in.held_out_error, 0.5);
    }
  }
}

TEST_F(CalibrationFile, ALimitOfKeysComesBackAndMustBeWhole) {
  LayerCalibration out = sample();
  save_calibration(path_, out);
  EXPECT_EQ(SafetensorsFile(path_).metadata().count("max_keys"), 0u);
  EXPECT_EQ(load_calibration(path_).max_keys, 0);
  EXPECT_EQ(load_calibration(path_).trace_keys, 4000);
  out.max_keys = 4096;
  out.trace_keys = 90000;
  save_calibration(path_, out);
  EXPECT_EQ(load_calibration(path_).max_keys, 4096);
  EXPECT_EQ(load_calibration(path_).trace_keys, 90000);
  refuse_metadata("max_keys", "4096", "metadata 'trace_keys' is ''");
  refuse_metadata("max_keys", "many", "metadata 'max_keys' is 'many'");
}

TEST_F(CalibrationFile, WhatIsUnknownStaysUnknown) {
  LayerCalibration out = sample();
  out.layer = out.source_model = out.text = "";
  out.held_out_error = std::numeric_limits<double>::quiet_NaN();
  save_calibration(path_, out);
  const LayerCalibration in = load_calibration(path_);
  EXPECT_EQ(in.layer + in.source_model + in.text, "");
  EXPECT_TRUE(std::isnan(in.held_out_error));
}

TEST_F(CalibrationFile, AnotherFormatOrVersion) {
  refuse_metadata("version", "2", "'version' is '2', this program reads version 1");
  refuse_metadata("version", "", "'version' is ''");
  refuse_metadata("format", "other", "'format' is 'other', expected 'quarry-calibration'");
  rewrite(sample(), [](Parts& parts) { parts.metadata.clear(); });
  expect_refused("'format' is ''");
}

TEST_F(CalibrationFile, MetadataOutOfBounds) {
  refuse_metadata("bits", "9", "bits is 9");
  refuse_metadata("bits", "four", "'bits' is 'four', expected a non-negative integer");
  refuse_metadata("bits", "3 ", "'bits' is '3 '");
  refuse_metadata("bits", "99999999999", "'bits'");
  refuse_metadata("block_size", "-1", "'block_size' is '-1'");
  refuse_metadata("num_subspaces", "3", "num_subspaces is 3");
  refuse_metadata("num_kv_heads", "3", "num_query_heads");
  refuse_metadata("head_dim", "1000000", "head_dim");
  refuse_metadata("metric", "cosine", "'metric' is 'cosine', expected one of");
  refuse_metadata("mean", "int8", "'mean' is 'int8'");
  refuse_metadata("rotation", "yes", "'rotation' is 'yes'");
  refuse_metadata("encode_from", "6", "encode_from is 6");
  refuse_metadata("seed", "x", "'seed'");
  refuse_metadata("train_error", "nan", "'train_error'");
  refuse_metadata("train_error", "-1", "'train_error'");
  for (const char* key : {"bits", "metric", "keys", "held_out_error", "num_query_heads"}) {
    rewrite(sample(), [&](Parts& parts) { parts.metadata.erase(key); });
    expect_refused(std::string("'") + key + "' is ''");
  }
}

TEST_F(CalibrationFile, TensorsThatDoNotFit) {
  refuse_metadata("bits", "4", "codebooks: is F32 [2, 2, 8, 4], expected F32 [2, 2, 16, 4]");
  refuse_metadata("rotation", "none", "has a tensor 'rotation', but metadata 'rotation' is none");
  refuse_metadata("metric", "inner_product", "codebooks: is F32 [2, 2, 8, 4], expected");
}

TEST_F(CalibrationFile, TensorsMissingOrOfAnotherType) {
  const auto remove = [](const char* name) {
    return [name](Parts& parts) {
      const std::size_t i = parts.at(name);
      parts.infos.erase(parts.infos.begin() + static_cast<std::ptrdiff_t>(i));
      parts.bytes.erase(parts.bytes.begin() + static_cast<std::ptrdiff_t>(i));
    };
  };
  rewrite(sample(), remove("codebooks"));
  expect_refused("has no tensor 'codebooks'");
  rewrite(sample(), remove("query_rotation"));
  expect_refused("has no tensor 'query_rotation'");
  rewrite(sample(Metric::inner_product), remove("phi"));
  expect_refused("has no tensor 'phi'");
  rewrite(sample(), [](Parts& parts) { parts.infos[parts.at("rotation")].dtype = "I32"; });
  expect_refused("rotation: is I32");
  rewrite(sample(), [](Parts& parts) {
    parts.infos.push_back({"phi", "F32", {2, 2}, 0, 16});
    parts.bytes.emplace_back(16);
  });
  expect_refused("has a tensor 'phi', but its metric is euclidean");
}

TEST_F(CalibrationFile, ValuesThatAreNotFinite) {
  for (const char* name : {"codebooks", "rotation", "query_rotation", "phi"}) {
    LayerCalibration c = sample(Metric::inner_product);
    std::vector<float>* values = name == std::string("codebooks")  ? &c.model.codebooks
                                 : name == std::string("rotation") ? &c.model.rotation
                                 : name == std::string("phi")      ? &c.model.phi
                                                                   : &c.model.query_rotation;
    values->back() = std::numeric_limits<float>::infinity();
    save_calibration(path_, c);
    expect_refused(std::string(name) + ": holds a value that is not finite");
  }
}

TEST_F(CalibrationFile, RotationsThatAreNoPair) {
  LayerCalibration c = sample();
  c.model.query_rotation[64 + 8 * 3 + 5] = 0.5f;
  save_calibration(path_, c);
  expect_refused("query_rotation of KV head 1 is not the inverse transpose");
}

TEST_F(CalibrationFile, NoFileOrATruncatedOne) {
  expect_refused("no such file");
  save_calibration(path_, sample());
  std::filesystem::resize_file(path_, std::filesystem::file_size(path_) - 1);
  expect_refused("data_offsets");
}

TEST(CheckFits, NamesWhatDiffers) {
  Trace trace;
  trace.hq = 4;
  trace.hkv = 2;
  trace.d = 8;
  trace.metadata = {{"layer", "14"}};
  const LayerCalibration c = sample();
  EXPECT_NO_THROW(check_fits(c, "file", trace));
  const auto refused = [&](const Trace& t, const char* why) {
    try {
      check_fits(c, "file", t);
      FAIL() << why;
    } catch (const BadInput& e) {
      EXPECT_THAT(e.what(), HasSubstr(why));
    }
  };
  Trace other = trace;
  other.hq = 8;
  refused(other, "num_query_heads is 4, the trace's is 8");
  other = trace;
  other.hkv = 1;
  refused(other, "num_kv_heads is 2, the trace's is 1");
  other = trace;
  other.d = 16;
  refused(other, "head_dim is 8, the trace's is 16");
  other = trace;
  other.metadata["layer"] = "2";
  refused(other, "layer is 14, the trace's is 2");
  other.metadata.clear();
  EXPECT_NO_THROW(check_fits(c, "file", other));
}

}  // namespace
}  // namespace quarry::tools
