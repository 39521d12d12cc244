// SPDX-License-Identifier: Apache-2.0
//
// quarry-calibrate, and quarry-replay with what it wrote; --sweep.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "calibration.h"
#include "safetensors.h"
#include "support/tool_cli.h"
#include "sweep.h"

namespace quarry::tools {
namespace {

using testing::HasSubstr;

class CalibrateCli : public ToolCli {
 protected:
  void SetUp() override {
    ToolCli::SetUp();
    file_ = folder_ + "/layer.safetensors";
    json_ = folder_ + "/j";
    parts_.tensors.push_back({"q_train", "F32", {3, 4, 16}, parts_.q.data()});
    write(parts_, {{"layer", "14"}, {"text", "noise"}, {"model", "none"}});
  }

  Outcome calibrate(const std::string& arguments) const {
    return run_program(QUARRY_CALIBRATE, arguments);
  }
  Outcome replay(const std::string& arguments) const {
    return run_program(QUARRY_REPLAY, arguments);
  }
  void calibrate_refused(const std::string& arguments, const std::string& why) const {
    expect_refused_by(QUARRY_CALIBRATE, arguments, why);
    EXPECT_FALSE(std::filesystem::exists(file_)) << arguments;
  }
  void replay_refused(const std::string& arguments, const std::string& why) const {
    expect_refused_by(QUARRY_REPLAY, arguments, why);
  }
  nlohmann::json json() const { return nlohmann::json::parse(slurp(json_)); }

  /// Writes the trace under another name, its metadata as given.
  std::string other(const std::map<std::string, std::string>& metadata,
                    const TraceParts& parts) const {
    const std::string path = folder_ + "/other.safetensors";
    write_safetensors(path, parts.tensors, metadata);
    return path;
  }

  TraceParts parts_;
  std::string file_, json_;
};

const char* const kQuantizer = " --subspaces 4 --bits 3 --block-size 8 --sink 4";
const char* const kList = " --sink 4 --window 8 --heavy 8";

TEST_F(CalibrateCli, WritesWhatItWasAskedFor) {
  const Outcome outcome = calibrate(trace_ + kQuantizer + " --out " + file_ +
                                    " --mean bfloat16 --seed 5 --iterations 3 --threads 1");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.error;
  EXPECT_EQ(outcome.error, "");
  EXPECT_THAT(outcome.out, HasSubstr("m=4 b=3, block 8 (bfloat16 means), rotation"));
  EXPECT_THAT(outcome.out, HasSubstr("quantization error, held out"));
  const LayerCalibration c = load_calibration(file_);
  EXPECT_EQ(c.config.num_subspaces, 4);
  EXPECT_EQ(c.config.bits, 3);
  EXPECT_EQ(c.config.block_size, 8);
  EXPECT_EQ(c.config.encode_from, 4);
  EXPECT_EQ(c.config.seed, 5u);
  EXPECT_EQ(c.config.kmeans_iterations, 3);
  EXPECT_EQ(c.config.mean_dtype, DType::bfloat16);
  EXPECT_TRUE(c.config.rotation);
  EXPECT_EQ(c.layer, "14");
  EXPECT_EQ(c.text, "noise");
  EXPECT_EQ(c.traces, 1);
  EXPECT_EQ(c.keys, 96 - 4);
  EXPECT_EQ(c.queries, (3 + 3) * 2);  // q_train and q, two query heads a KV head
  EXPECT_GT(c.train_error, 0);
  EXPECT_LT(c.train_error, 1);
}

TEST_F(CalibrateCli, Float8MeansTakeAByteAnElement) {
  for (const auto& [mean, bytes] : {std::pair{"float16", 2 + 4}, {"float8_e4m3", 2 + 2}}) {
    ASSERT_EQ(calibrate(trace_ + kQuantizer + " --mean " + mean + " --out " + file_).exit_code, 0);
    EXPECT_STREQ(to_string(load_calibration(file_).config.mean_dtype), mean);
    const std::string with = " --calibration " + file_ + kList + " --json " + json_;
    ASSERT_EQ(replay(trace_ + with).exit_code, 0);
    EXPECT_EQ(json()["mean"], mean);
    EXPECT_EQ(json()["index_bytes_per_key"],
              bytes);  // 4 codes of 3 bits, a mean of 16 a block of 8
  }
}

TEST_F(CalibrateCli, DefaultsAreTheRecommendedOnes) {
  // 16 centroids of a subspace need as many keys of whole blocks of 64 past the sink.
  const Outcome outcome = calibrate(trace_ + " --out " + file_);
  ASSERT_EQ(outcome.exit_code, 0) << outcome.error;
  const IndexerConfig c = load_calibration(file_).config;
  EXPECT_EQ(c.num_subspaces, 16 / 8);
  EXPECT_EQ(c.bits, 4);
  EXPECT_EQ(c.block_size, 64);
  EXPECT_EQ(c.mean_dtype, DType::float16);
  EXPECT_EQ(c.sink_size, 16);
  EXPECT_EQ(c.metric, Metric::euclidean);
  EXPECT_EQ(c.kmeans_iterations, 30);
  EXPECT_TRUE(c.rotation);
  EXPECT_THAT(outcome.out, HasSubstr("- (no block is held out)"));
}

TEST_F(CalibrateCli, EqualInputGivesEqualBytes) {
  const std::string again = folder_ + "/again";
  ASSERT_EQ(calibrate(trace_ + kQuantizer + " --threads 1 --out " + file_).exit_code, 0);
  ASSERT_EQ(calibrate(trace_ + kQuantizer + " --threads 3 --out " + again).exit_code, 0);
  EXPECT_EQ(slurp(file_), slurp(again));
}

TEST_F(CalibrateCli, Float8KeysGiveTheCalibrationOfTheirValues) {
  for (const char* held : {"", " --max-keys 40"}) {
    std::string bytes[2];
    for (const bool narrow : {true, false}) {
      TraceParts one, two;
      const Float8Keys keys_one(one, 2), keys_two(two, 1);
      if (narrow) {
        keys_one.put(&one), keys_two.put(&two);
      } else {
        one.at("k").data = keys_one.values.data();
        two.at("k").data = keys_two.values.data();
      }
      std::string traces;
      for (const TraceParts* parts : {&one, &two}) {
        const std::string path = folder_ + (parts == &one ? "/one" : "/two");
        write_safetensors(path, parts->tensors, {{"layer", "14"}});
        traces += path + " ";
      }
      ASSERT_EQ(calibrate(traces + kQuantizer + held + " --out " + file_).exit_code, 0);
      bytes[narrow ? 0 : 1] = slurp(file_);
    }
    EXPECT_EQ(bytes[0], bytes[1]) << held;
  }
}

TEST_F(CalibrateCli, SeveralTracesOfOneLayer) {
  const std::string second = other({{"layer", "14"}, {"text", "more"}}, parts_);
  ASSERT_EQ(calibrate(trace_ + " " + second + kQuantizer + " --out " + file_).exit_code, 0);
  const LayerCalibration c = load_calibration(file_);
  EXPECT_EQ(c.traces, 2);
  EXPECT_EQ(c.keys, 2 * (96 - 4));
  EXPECT_EQ(c.text, "noise; more");
}

TEST_F(CalibrateCli, TracesThatDoNotBelongTogether) {
  const std::string out = kQuantizer + std::string(" --out ") + file_;
  const std::string second = other({{"layer", "2"}}, parts_);
  calibrate_refused(trace_ + " " + second + out, "has layer 2, ");
  other({}, parts_);
  calibrate_refused(trace_ + " " + second + out, "has no 'layer' in its metadata, ");
  TraceParts wide;
  wide.at("q").shape = {1, 12, 16};
  wide.at("q_pos").shape = {1};
  other({{"layer", "14"}}, wide);
  calibrate_refused(trace_ + " " + second + out, "has 12 query heads, 2 KV heads, d=16, ");
}

TEST_F(CalibrateCli, BadArguments) {
  const std::string out = " --out " + file_;
  calibrate_refused("--out " + file_, "TRACE is required");
  calibrate_refused(trace_, "--out is required");
  calibrate_refused(trace_ + out + " --subspaces 3", "num_subspaces is 3");
  calibrate_refused(trace_ + out + " --subspaces 0", "--subspaces");
  calibrate_refused(trace_ + out + " --bits 9", "bits is 9");
  calibrate_refused(trace_ + out + " --bits 8", "too_few_keys");
  calibrate_refused(trace_ + out + " --block-size -1", "block_size is -1");
  calibrate_refused(trace_ + out + " --sink -1", "sink_size is -1");
  calibrate_refused(trace_ + out + " --metric cosine", "'cosine' is not one of");
  calibrate_refused(trace_ + out + " --mean int8", "'int8' is not one of");
  calibrate_refused(trace_ + out + " --rotation prompt", "--rotation");
  calibrate_refused(trace_ + out + " --no-such-option", "--no-such-option");
  calibrate_refused(folder_ + "/missing" + out, "no such file");
  calibrate_refused(folder_ + out, "is a directory");
  std::ofstream(trace_) << "no trace";
  calibrate_refused(trace_ + out, "trace.safetensors");
}

TEST_F(CalibrateCli, UnwritableOutputIsNoBadInput) {
  EXPECT_EQ(calibrate(trace_ + kQuantizer + " --out " + folder_ + "/no/such/file").exit_code, 1);
}

TEST_F(CalibrateCli, HelpAndVersion) {
  EXPECT_THAT(calibrate("--help").out, HasSubstr("--block-size"));
  EXPECT_EQ(calibrate("--version").exit_code, 0);
}

TEST_F(CalibrateCli, ReplayTakesItsParameters) {
  ASSERT_EQ(calibrate(trace_ + kQuantizer + " --out " + file_).exit_code, 0);
  const std::string with = " --calibration " + file_ + kList + " --json " + json_;
  const Outcome outcome = replay(trace_ + with);
  ASSERT_EQ(outcome.exit_code, 0) << outcome.error;
  EXPECT_THAT(outcome.out, HasSubstr("codebook calibrated"));
  const auto j = json();
  EXPECT_EQ(j["subspaces"], 4);
  EXPECT_EQ(j["bits"], 3);
  EXPECT_EQ(j["block_size"], 8);
  EXPECT_EQ(j["mean"], "float16");
  EXPECT_EQ(j["rotation"], true);
  EXPECT_EQ(j["codebook"], "calibrated");
  EXPECT_EQ(j["model_bytes"], 2 * 4 * 8 * 4 * 4 + 2 * 2 * 16 * 16 * 4);
  // What agrees may be said again.
  EXPECT_EQ(replay(trace_ + with +
                   " --subspaces 4 --bits 3 --block-size 8 --mean float16 "
                   "--metric euclidean --rotation query")
                .exit_code,
            0);
  // The codes are the calibration's, not those of codebooks trained on the prompt.
  ASSERT_EQ(replay(trace_ + with + " --out " + folder_ + "/a").exit_code, 0);
  ASSERT_EQ(
      replay(trace_ + kQuantizer + " --mean float16 --window 8 --heavy 8 --out " + folder_ + "/b")
          .exit_code,
      0);
  EXPECT_NE(slurp(folder_ + "/a"), slurp(folder_ + "/b"));
}

TEST_F(CalibrateCli, ReplayIsThatOfTheSameModelInTheTrace) {
  for (const std::string metric : {"euclidean", "inner_product"}) {
    ASSERT_EQ(calibrate(trace_ + kQuantizer + " --metric " + metric + " --out " + file_).exit_code,
              0);
    const Model model = load_calibration(file_).model;
    TraceParts parts;
    parts.tensors.push_back({"codebooks", "F32", {2, 4, 8, model.dcent}, model.codebooks.data()});
    parts.tensors.push_back({"rotation", "F32", {2, 16, 16}, model.rotation.data()});
    parts.tensors.push_back({"query_rotation", "F32", {2, 16, 16}, model.query_rotation.data()});
    if (!model.phi.empty()) parts.tensors.push_back({"phi", "F32", {2, 4}, model.phi.data()});
    const std::string inside = other({}, parts);
    ASSERT_EQ(
        replay(trace_ + kList + " --calibration " + file_ + " --out " + folder_ + "/a").exit_code,
        0);
    ASSERT_EQ(replay(inside + kList + " --subspaces 4 --bits 3 --block-size 8 --mean float16 " +
                     "--metric " + metric + " --out " + folder_ + "/b")
                  .exit_code,
              0);
    EXPECT_EQ(slurp(folder_ + "/a"), slurp(folder_ + "/b")) << metric;
    replay_refused(inside + kList + " --calibration " + file_, "brings its own codebooks");
  }
}

TEST_F(CalibrateCli, ReplayRefusesWhatDoesNotFit) {
  ASSERT_EQ(calibrate(trace_ + kQuantizer + " --out " + file_).exit_code, 0);
  const std::string with = kList + std::string(" --calibration ") + file_;
  replay_refused(trace_ + with + " --subspaces 2",
                 "is calibrated for --subspaces 4, --subspaces 2 is given");
  replay_refused(trace_ + with + " --bits 4", "is calibrated for --bits 3");
  replay_refused(trace_ + with + " --block-size 0", "is calibrated for --block-size 8");
  replay_refused(trace_ + with + " --metric inner_product", "--metric euclidean");
  replay_refused(trace_ + with + " --mean float32", "is calibrated for --mean float16");
  replay_refused(trace_ + with + " --rotation none", "is calibrated for --rotation query");
  replay_refused(other({{"layer", "2"}}, parts_) + with, "layer is 14, the trace's is 2");
  TraceParts wide;
  wide.at("q").shape = {1, 12, 16};
  wide.at("q_pos").shape = {1};
  replay_refused(other({{"layer", "14"}}, wide) + with, "num_query_heads is 4, the trace's is 12");
  replay_refused(trace_ + kList + " --calibration " + folder_ + "/missing", "no such file");
  replay_refused(trace_ + kList + " --calibration " + trace_, "expected 'quarry-calibration'");
}

TEST_F(CalibrateCli, Sweep) {
  const std::string plot = folder_ + "/p";
  const std::string on = other({{"layer", "14"}}, parts_);
  const TraceParts longer(320);  // lists are dense up to heavy + sink + 1 + 256
  write(longer, {{"layer", "14"}});
  const Outcome outcome = replay(trace_ + kList + " --block-size 8 --sweep --calibrate-on " + on +
                                 " --json " + json_ + " --plot " + plot);
  ASSERT_EQ(outcome.exit_code, 0) << outcome.error;
  EXPECT_EQ(outcome.error, "");
  const auto j = json();
  bool exact = false;
  int calibrated = 0, prompt = 0, best_for_bytes = 0, best_for_time = 0;
  for (const auto& p : j["points"]) {
    (p["codebook"] == "calibrated" ? calibrated : prompt) += 1;
    best_for_bytes += p["best_for_bytes"].get<bool>() ? 1 : 0;
    best_for_time += p["best_for_time"].get<bool>() ? 1 : 0;
    exact = exact || p["recall"].get<double>() > 0.9;
    EXPECT_GT(p["index_bytes_per_key"].get<double>(), 0);
    EXPECT_EQ(p["raw_keys_per_row"].get<double>() > 0, p["refine"].get<int>() > 1);
  }
  // m=2 b=6, and m=4 and m=8 with b=4 and b=8; with blocks and without; refine 1, 2 and 4.
  EXPECT_EQ(prompt, 5 * 2 * 3) << outcome.out;
  // b=8 needs 256 keys, the other trace has 92.
  EXPECT_EQ(calibrated, 3 * 2 * 3) << outcome.out;
  EXPECT_EQ(j["skipped"].size(), 2 * 2u) << outcome.out;
  EXPECT_TRUE(exact);
  EXPECT_GE(best_for_bytes, 1);
  EXPECT_GE(best_for_time, 1);
  EXPECT_THAT(outcome.out, HasSubstr("skipped: calibrated, block 8, m=4 b=8: "));
  for (const char* end : {"-bytes.svg", "-time.svg"}) {
    const std::string svg = slurp(plot + end);
    EXPECT_EQ(svg.rfind("<svg ", 0), 0u);
    EXPECT_THAT(svg, HasSubstr("Pareto front"));
    EXPECT_EQ(svg.find("nan"), std::string::npos);
  }
}

TEST_F(CalibrateCli, ASweepsPointIsTheReplayOfIt) {
  const std::string on = other({{"layer", "14"}}, parts_);
  const TraceParts longer(320);
  write(longer, {{"layer", "14"}});
  ASSERT_EQ(
      replay(trace_ + kList + " --block-size 8 --sweep --calibrate-on " + on + " --json " + json_)
          .exit_code,
      0);
  const auto points = json()["points"];
  ASSERT_EQ(
      calibrate(on + " --subspaces 4 --bits 4 --block-size 8 --sink 4 --out " + file_).exit_code,
      0);
  ASSERT_EQ(
      replay(trace_ + kList + " --refine 2 --calibration " + file_ + " --json " + json_).exit_code,
      0);
  const auto single = json();
  int found = 0;
  for (const auto& p : points) {
    if (p["codebook"] != "calibrated" || p["block_size"] != 8 || p["subspaces"] != 4 ||
        p["bits"] != 4 || p["refine"] != 2) {
      continue;
    }
    ++found;
    for (const char* key :
         {"recall", "recall_first_quarter", "recall_last_quarter", "mass", "output_error",
          "index_bytes_per_key", "raw_keys_per_row", "model_bytes", "rotation"}) {
      EXPECT_EQ(p[key], single[key]) << key;
    }
  }
  EXPECT_EQ(found, 1);
}

TEST_F(CalibrateCli, ASweepNeedsSparseLists) {
  replay_refused(trace_ + kList + " --sweep --block-size 8",
                 "no configuration can be run: no list leaves the dense range");
}

TEST_F(CalibrateCli, SweepRefusesWhatItSetsItself) {
  for (const char* option : {"--subspaces 4", "--bits 4", "--refine 2", "--calibration x"}) {
    replay_refused(trace_ + kList + " --sweep " + option, "a --sweep sets it itself");
  }
  replay_refused(trace_ + kList + " --sweep --out x", "a --sweep writes no lists");
  replay_refused(trace_ + kList + " --calibrate-on " + trace_, "--calibrate-on needs --sweep");
  const std::string second = other({{"layer", "2"}}, parts_);
  replay_refused(trace_ + kList + " --sweep --calibrate-on " + second, "has layer 2");
  replay_refused(trace_ + " --heavy 0 --sweep", "no configuration can be run: ");
}

TEST(MarkBest, LeavesNothingWorseAndDearer) {
  const auto point = [](double bytes, double us, double recall) {
    SweepPoint p;
    p.index_bytes_per_key = bytes;
    p.next_us_p50 = us;
    p.quality.recall = recall;
    return p;
  };
  std::vector<SweepPoint> points = {point(2, 10, 0.5), point(4, 10, 0.5), point(4, 20, 0.7),
                                    point(6, 30, 0.7), point(8, 5, 0.9)};
  mark_best(&points);
  const std::vector<bool> bytes = {true, false, true, false, true};
  for (std::size_t i = 0; i < points.size(); ++i) {
    EXPECT_EQ(points[i].best_for_bytes, bytes[i]) << i;
    EXPECT_EQ(points[i].best_for_time, i == 4) << i;
  }
}

TEST(CodeSizes, FitTheHeadDimension) {
  for (const std::int32_t d : {8, 16, 64, 80, 128, 512}) {
    for (const CodeSize size : code_sizes(d)) EXPECT_EQ(d % size.subspaces, 0) << d;
    EXPECT_GE(code_sizes(d).size(), 3u) << d;
  }
}

}  // namespace
}  // namespace quarry::tools
