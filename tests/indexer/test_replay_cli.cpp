// SPDX-License-Identifier: Apache-2.0
//
// The quarry-replay program itself: what it writes, and that bad input is one line on stderr
// and exit code 2.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "backend.h"
#include "safetensors.h"
#include "support/tool_cli.h"

namespace quarry::tools {
namespace {

using testing::HasSubstr;

const std::vector<double>& zeros() {
  static const std::vector<double> values(10000);
  return values;
}

const char* const kSmall = " --sink 4 --window 8 --heavy 8 --bits 3";

class ReplayCli : public ToolCli {
 protected:
  Outcome run(const std::string& arguments) const { return run_program(QUARRY_REPLAY, arguments); }
  void expect_refused(const std::string& arguments, const std::string& why) const {
    expect_refused_by(QUARRY_REPLAY, arguments, why);
  }
};

TEST_F(ReplayCli, SmallTrace) {
  TraceParts parts;
  write(parts);
  const std::string files =
      " --out " + folder_ + "/o --json " + folder_ + "/j --plot " + folder_ + "/p.svg";
  const Outcome outcome = run(trace_ + kSmall + files);
  ASSERT_EQ(outcome.exit_code, 0) << outcome.error;
  EXPECT_EQ(outcome.error, "");
  EXPECT_THAT(outcome.out, HasSubstr("recall of the exact top-K"));

  SafetensorsFile lists(folder_ + "/o");
  // dense_threshold = heavy + encode_from + 1 + ksub = 21, sink + heavy + window = 20.
  EXPECT_EQ(describe(*lists.find("indices")), "I32 [3, 4, 21]");
  EXPECT_EQ(describe(*lists.find("lens")), "I32 [3, 4]");
  EXPECT_EQ(describe(*lists.find("codes")), "U8 [92, 2, 2]");
  EXPECT_EQ(lists.tensors().size(), 3u);

  const auto json = nlohmann::json::parse(slurp(folder_ + "/j"));
  for (const char* key :
       {"recall", "recall_first_quarter", "recall_last_quarter", "mass", "output_error",
        "oracle_mass", "oracle_output_error", "sparse_rows", "index_bytes_per_key", "model_bytes",
        "raw_keys_per_row", "next_us_p50", "next_us_p99", "build_ms"}) {
    ASSERT_TRUE(json.contains(key)) << key;
    EXPECT_TRUE(json[key].is_number()) << key;
  }
  for (const auto& [key, value] : json.items()) {
    EXPECT_FALSE(value.is_structured()) << key << ": the file is flat";
  }
  EXPECT_EQ(json["sparse_rows"], 12);
  EXPECT_EQ(json["index_bytes_per_key"], 1);  // two codes of 3 bits in one byte
  EXPECT_EQ(json["model_bytes"], 2 * 2 * 8 * 8 * 4);
  EXPECT_EQ(json["raw_keys_per_row"], 0);
  EXPECT_GE(json["oracle_mass"].get<double>(), json["mass"].get<double>());
  // One row in 16, of 4 a query: the first query's row 0, the second's 1, the third's 2.
  EXPECT_EQ(json["live_rows"], 3);
  EXPECT_TRUE(json["live_recall"].is_number());
  EXPECT_GT(json["drift"].get<double>(), 0.5);
  EXPECT_GE(json["drift_worst"].get<double>(), json["drift"].get<double>());

  const std::string svg = slurp(folder_ + "/p.svg");
  EXPECT_EQ(svg.rfind("<svg ", 0), 0u);
  EXPECT_EQ(svg.substr(svg.size() - 7), "</svg>\n");
  EXPECT_EQ(svg.find("nan"), std::string::npos);
}

TEST_F(ReplayCli, RefineOfEverythingIsExact) {
  TraceParts parts;
  write(parts);
  const Outcome outcome = run(trace_ + kSmall + " --refine 100 --json " + folder_ + "/j");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.error;
  const auto json = nlohmann::json::parse(slurp(folder_ + "/j"));
  EXPECT_EQ(json["recall"], 1);
  EXPECT_EQ(json["mass"], json["oracle_mass"]);
  EXPECT_EQ(json["output_error"], json["oracle_output_error"]);
  // All candidates of n = 61, 71 and 96: n - window - sink.
  EXPECT_EQ(json["raw_keys_per_row"], (49 + 59 + 84) / 3.0);
}

/// q.k of query head h of query t with the key at `position`, in float64.
double product(const TraceParts& parts, std::int64_t t, std::int64_t h, std::int64_t position) {
  const std::int64_t kv = h / (parts.hq / parts.hkv);
  double sum = 0;
  for (std::int64_t i = 0; i < parts.d; ++i) {
    sum +=
        static_cast<double>(parts.q[static_cast<std::size_t>((t * parts.hq + h) * parts.d + i)]) *
        static_cast<double>(
            parts.k[static_cast<std::size_t>((position * parts.hkv + kv) * parts.d + i)]);
  }
  return sum;
}

/// The 8 best of kSmall's candidates of query t, by `score(position)`, ascending.
template <class Score>
std::vector<std::int32_t> best_of(const TraceParts& parts, std::size_t t, Score&& score) {
  std::vector<std::int32_t> order;
  for (std::int32_t p = 4; p < parts.q_pos[t] + 1 - 8; ++p) order.push_back(p);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int32_t a, std::int32_t b) { return score(a) > score(b); });
  order.resize(8);
  std::sort(order.begin(), order.end());
  return order;
}

TEST_F(ReplayCli, AReductionGivesAListAKvHead) {
  TraceParts parts;
  write(parts);
  // The exact top-K of every query head by itself, which recall counts.
  std::vector<std::vector<std::int32_t>> own;
  for (std::int64_t t = 0; t < 3; ++t) {
    for (std::int64_t h = 0; h < parts.hq; ++h) {
      own.push_back(best_of(parts, static_cast<std::size_t>(t),
                            [&](std::int32_t p) { return product(parts, t, h, p); }));
    }
  }
  for (const std::string reduction : {"sum", "softmax_sum", "max"}) {
    const std::string to = folder_ + "/" + reduction;
    // Everything is re-ranked, so lists follow from the exact products alone, but for the
    // denominators of a softmax.
    const Outcome outcome = run(trace_ + kSmall + " --refine 100 --gqa " + reduction + " --out " +
                                to + " --json " + to + ".json --plot " + to + ".svg");
    ASSERT_EQ(outcome.exit_code, 0) << outcome.error;
    EXPECT_THAT(outcome.out, HasSubstr(reduction + " over a group"));
    const std::string scanned = " --algorithm scan --out " + to + ".scan";
    ASSERT_EQ(run(trace_ + kSmall + " --refine 100 --gqa " + reduction + scanned).exit_code, 0);
    EXPECT_EQ(slurp(to), slurp(to + ".scan")) << reduction;
    SafetensorsFile file(to);
    ASSERT_EQ(describe(*file.find("indices")), "I32 [3, 2, 21]");
    ASSERT_EQ(describe(*file.find("lens")), "I32 [3, 2]");
    const std::vector<std::byte> bytes = file.read(*file.find("indices"));
    std::vector<std::int32_t> indices(bytes.size() / 4);
    std::memcpy(indices.data(), bytes.data(), bytes.size());
    double hits = 0;
    for (std::int64_t t = 0; t < 3; ++t) {
      for (std::int64_t kv = 0; kv < 2; ++kv) {
        const auto list = indices.begin() + (t * 2 + kv) * 21;
        const std::vector<std::int32_t> heavy(list + 4, list + 12);
        if (reduction != "softmax_sum") {
          const auto want = best_of(parts, static_cast<std::size_t>(t), [&](std::int32_t p) {
            const double a = product(parts, t, 2 * kv, p), b = product(parts, t, 2 * kv + 1, p);
            return reduction == "sum" ? a + b : std::max(a, b);
          });
          EXPECT_EQ(heavy, want) << reduction << " query " << t << " KV head " << kv;
        }
        for (std::int64_t h = 2 * kv; h < 2 * kv + 2; ++h) {
          for (const std::int32_t p : own[static_cast<std::size_t>(t * 4 + h)]) {
            hits += std::binary_search(heavy.begin(), heavy.end(), p) ? 1 : 0;
          }
        }
      }
    }
    const auto json = nlohmann::json::parse(slurp(to + ".json"));
    EXPECT_EQ(json["gqa"], reduction);
    EXPECT_EQ(json["algorithm"], "staged");
    EXPECT_NEAR(json["recall"].get<double>(), hits / (12 * 8), 1e-12);
    EXPECT_LT(json["recall"].get<double>(), 1);
    EXPECT_GT(json["recall"].get<double>(), 0.4);
    EXPECT_LT(json["mass"].get<double>(), json["oracle_mass"].get<double>());
    EXPECT_EQ(json["sparse_rows"], 6);
    // A list's keys are read once, for all of its heads.
    EXPECT_EQ(json["raw_keys_per_row"], (49 + 59 + 84) / 3.0);
  }
  EXPECT_NE(slurp(folder_ + "/sum"), slurp(folder_ + "/max"));
  expect_refused(trace_ + kSmall + " --gqa mean", "'mean' is not one of");
}

TEST_F(ReplayCli, EverySampledRowIsEveryRow) {
  TraceParts parts;
  write(parts);
  const std::string json = folder_ + "/j";
  ASSERT_EQ(run(trace_ + kSmall + " --sample-every 1 --json " + json).exit_code, 0);
  const auto all = nlohmann::json::parse(slurp(json));
  EXPECT_EQ(all["live_rows"], 12);
  EXPECT_NEAR(all["live_recall"].get<double>(), all["recall"].get<double>(), 1e-6);
  ASSERT_EQ(run(trace_ + kSmall + " --sample-every 0 --json " + json).exit_code, 0);
  const auto none = nlohmann::json::parse(slurp(json));
  EXPECT_EQ(none["live_rows"], 0);
  EXPECT_TRUE(none["live_recall"].is_null());
  EXPECT_TRUE(none["drift"].is_null());
  EXPECT_EQ(none["recall"], all["recall"]);
  expect_refused(trace_ + kSmall + " --sample-every -1", "--sample-every");
}

TEST_F(ReplayCli, OutDependsOnTheResultAlone) {
  TraceParts parts;
  write(parts);
  const std::string other = folder_ + "/renamed";
  std::filesystem::copy_file(trace_, other);
  ASSERT_EQ(run(trace_ + kSmall + " --threads 1 --out " + folder_ + "/a").exit_code, 0);
  ASSERT_EQ(
      run(other + kSmall + " --threads 3 --algorithm staged --out " + folder_ + "/b").exit_code, 0);
  EXPECT_EQ(slurp(folder_ + "/a"), slurp(folder_ + "/b"));
  if (stages_of(Backend::cpu)->scan != nullptr) {
    ASSERT_EQ(
        run(other + kSmall + " --threads 2 --algorithm scan --out " + folder_ + "/d").exit_code, 0);
    EXPECT_EQ(slurp(folder_ + "/a"), slurp(folder_ + "/d"));
  }
  ASSERT_EQ(run(trace_ + kSmall + " --seed 7 --out " + folder_ + "/c").exit_code, 0);
  EXPECT_NE(slurp(folder_ + "/a"), slurp(folder_ + "/c"));
}

TEST_F(ReplayCli, Float8KeysGiveTheListsOfTheirValues) {
  const std::string options =
      kSmall + std::string(" --block-size 8 --refine 3 --rotation query --json ") + folder_ + "/j";
  for (const int scales : {0, 1, 2}) {
    std::string lists[2];
    nlohmann::json json[2];
    for (const bool narrow : {true, false}) {
      TraceParts parts;
      const Float8Keys keys(parts, scales);
      if (narrow) {
        keys.put(&parts);
      } else {
        parts.at("k").data = keys.values.data();
      }
      parts.tensors.push_back({"q_train", "F32", {3, 4, 16}, parts.q.data()});
      write(parts);
      const Outcome outcome = run(trace_ + options + " --out " + folder_ + "/o");
      ASSERT_EQ(outcome.exit_code, 0) << outcome.error;
      lists[narrow ? 0 : 1] = slurp(folder_ + "/o");
      json[narrow ? 0 : 1] = nlohmann::json::parse(slurp(folder_ + "/j"));
    }
    EXPECT_EQ(lists[0], lists[1]) << scales;
    EXPECT_EQ(json[0]["key_dtype"], "float8_e4m3");
    EXPECT_EQ(json[1]["key_dtype"], "float32");
    for (const char* key : {"recall", "mass", "output_error", "oracle_mass", "drift"}) {
      EXPECT_EQ(json[0][key], json[1][key]) << key << " " << scales;
    }
  }
}

TEST_F(ReplayCli, KeyScalesBelongToFloat8Keys) {
  TraceParts parts;
  const Float8Keys keys(parts, 2);
  const TensorSource plain = parts.at("k");
  keys.put(&parts);
  const auto refused = [&](const std::string& why) {
    write(parts);
    expect_refused(trace_ + kSmall, why);
  };
  parts.at("k_scale").dtype = "BF16";
  refused("k_scale: is BF16 [2], expected F32 [1] or [2]");
  parts.at("k_scale") = {"k_scale", "F32", {2, 1}, keys.scale.data()};
  refused("k_scale: is F32 [2, 1]");
  parts.at("k_scale").shape = {0};
  refused("k_scale: is F32 [0]");
  const std::vector<float> three(3, 1.0f);
  parts.at("k_scale") = {"k_scale", "F32", {3}, three.data()};
  refused("k_scale: is F32 [3]");
  parts.at("k_scale") = {"k_scale", "F32", {}, keys.scale.data()};  // a scalar: one of all keys
  write(parts);
  EXPECT_EQ(run(trace_ + kSmall).exit_code, 0);
  parts.at("k") = plain;
  refused("k_scale: k is F32 [96, 2, 16], only F8_E4M3 has a scale");
  parts.remove("k_scale");
  for (const char* name : {"q", "v"}) {
    const TensorSource before = parts.at(name);
    parts.at(name).dtype = "F8_E4M3";
    refused(std::string(name) + ": is F8_E4M3");
    parts.at(name) = before;
  }
}

TEST_F(ReplayCli, WithoutValuesThereIsNoOutputError) {
  TraceParts parts;
  parts.remove("v");
  write(parts);
  ASSERT_EQ(run(trace_ + kSmall + " --json " + folder_ + "/j").exit_code, 0);
  const auto json = nlohmann::json::parse(slurp(folder_ + "/j"));
  EXPECT_TRUE(json["output_error"].is_null());
  EXPECT_TRUE(json["mass"].is_number());
}

TEST_F(ReplayCli, DenseTrace) {
  TraceParts parts;
  write(parts);
  const Outcome outcome = run(trace_ + " --json " + folder_ + "/j --plot " + folder_ + "/p.svg");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.error;
  const auto json = nlohmann::json::parse(slurp(folder_ + "/j"));
  EXPECT_EQ(json["sparse_rows"], 0);
  EXPECT_TRUE(json["recall"].is_null());
  EXPECT_THAT(slurp(folder_ + "/p.svg"), HasSubstr("every list was dense"));
}

TEST_F(ReplayCli, TrainsLateWhereThePromptWasShort) {
  TraceParts parts;
  write(parts);
  const Outcome outcome = run(trace_ + kSmall + " --prefill 6 --json " + folder_ + "/j");
  ASSERT_EQ(outcome.exit_code, 0) << outcome.error;
  const auto json = nlohmann::json::parse(slurp(folder_ + "/j"));
  EXPECT_EQ(json["unbuilt_rows"], 0);
  EXPECT_EQ(json["encoded"], 92);
}

TEST_F(ReplayCli, RotationOfThePrompt) {
  TraceParts parts;
  write(parts);
  expect_refused(trace_ + kSmall + " --rotation query", "the trace has no q_train");
  parts.tensors.push_back({"q_train", "F32", {3, 4, 16}, parts.q.data()});
  write(parts);
  const std::string json = folder_ + "/j";
  const Outcome outcome = run(trace_ + kSmall + " --rotation query --json " + json);
  ASSERT_EQ(outcome.exit_code, 0) << outcome.error;
  EXPECT_EQ(nlohmann::json::parse(slurp(json))["rotation"], true);
  EXPECT_THAT(outcome.out, HasSubstr("codebook and rotation trained on the prompt"));
  // Scores are exact where everything is re-ranked, rotated or not.
  ASSERT_EQ(run(trace_ + kSmall + " --rotation query --refine 100 --json " + json).exit_code, 0);
  EXPECT_EQ(nlohmann::json::parse(slurp(json))["recall"], 1);
  expect_refused(trace_ + kSmall + " --rotation query --prefill 6", "too_few_keys");
}

TEST_F(ReplayCli, RotationOfTheTraceIsNotOverridden) {
  TraceParts parts;
  parts.tensors.push_back({"codebooks", "F32", {2, 2, 8, 8}, zeros().data()});
  write(parts);
  expect_refused(trace_ + kSmall + " --rotation query", "brings its own codebooks");
}

TEST_F(ReplayCli, HelpAndVersion) {
  const Outcome help = run("--help");
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.out, HasSubstr("--block-size"));
  EXPECT_EQ(run("--version").exit_code, 0);
}

TEST_F(ReplayCli, BadArguments) {
  TraceParts parts;
  write(parts);
  expect_refused("", "TRACE is required");
  expect_refused(trace_ + " --no-such-option", "--no-such-option");
  expect_refused(trace_ + " --subspaces x", "--subspaces");
  expect_refused(trace_ + " --subspaces 3", "num_subspaces is 3");
  expect_refused(trace_ + " --bits 9", "bits is 9");
  expect_refused(trace_ + " --heavy 0", "heavy_size is 0");
  expect_refused(trace_ + " --sink -1", "sink_size is -1");
  expect_refused(trace_ + " --metric cosine", "'cosine' is not one of");
  expect_refused(trace_ + " --device gpu", "'gpu' is not one of");
  expect_refused(trace_ + " --prefill 61", "--prefill 61 is past the first query");
  expect_refused(trace_ + " --prefill -1", "--prefill");
  expect_refused(trace_ + " --encode-from 200", "encode_from is 200");
  expect_refused(trace_ + " --block-size 64 --window 8", "window_size is 8");
  expect_refused(trace_ + " --refine 8192 --heavy 2", "refine_factor");
}

TEST_F(ReplayCli, WhatIsNotBuiltSaysSo) {
  TraceParts parts;
  write(parts);
  if (stages_of(Backend::cpu)->scan == nullptr) {
    expect_refused(trace_ + kSmall + " --algorithm scan", "not built");
  }
#if QUARRY_HAS_CUDA
  for (const char* reduction : {"sum", "softmax_sum", "max"}) {
    if (!backend_available(Backend::cuda)) break;
    expect_refused(trace_ + kSmall + " --device cuda --algorithm scan --gqa " + reduction,
                   "algorithm scan");
  }
#else
  expect_refused(trace_ + kSmall + " --device cuda", "not built: --device cuda");
#endif
}

TEST_F(ReplayCli, UnwritableOutputIsNoBadInput) {
  TraceParts parts;
  write(parts);
  EXPECT_EQ(run(trace_ + kSmall + " --out " + folder_ + "/no/such/file").exit_code, 1);
}

TEST_F(ReplayCli, FilesThatAreNoTraces) {
  expect_refused(folder_ + "/missing", "no such file");
  expect_refused(folder_, "is a directory");
  std::ofstream(trace_).close();
  expect_refused(trace_, "0 bytes");
  std::ofstream(trace_) << 'x';
  expect_refused(trace_, "1 bytes");
  TraceParts parts;
  write(parts);
  std::filesystem::resize_file(trace_, 50);
  expect_refused(trace_, "truncated");
  write(parts);
  std::filesystem::resize_file(trace_, std::filesystem::file_size(trace_) - 1);
  expect_refused(trace_, "data_offsets");
}

/// Replaces text of a sound trace's header by text of the same length.
class SpoiledHeader : public ReplayCli {
 protected:
  void spoil(const std::string& from, const std::string& to) {
    ASSERT_EQ(from.size(), to.size());
    TraceParts parts;
    write(parts);
    std::string bytes = slurp(trace_);
    const auto at = bytes.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    bytes.replace(at, from.size(), to);
    std::ofstream(trace_, std::ios::binary) << bytes;
  }
};

TEST_F(SpoiledHeader, LyingAndOverlappingOffsets) {
  // k is [0, 12288], q [12288, 13056], q_pos [13056, 13068], v [13068, 25356].
  spoil("[13056,13068]", "[13055,13067]");
  expect_refused(trace_, "overlap");
  spoil("[13056,13068]", "[13056,13056]");
  expect_refused(trace_, "span 0");
  spoil("[13068,25356]", "[13068,95356]");
  expect_refused(trace_, "data_offsets");
  spoil("[0,12288]", "[0,12284]");
  expect_refused(trace_, "takes 12288 bytes");
}

struct BadTrace {
  const char* name;
  std::function<void(TraceParts&)> spoil;
  const char* why;
};

const BadTrace kBadTraces[] = {
    {"NoKeys", [](TraceParts& p) { p.remove("k"); }, "has no tensor 'k'"},
    {"NoQueries", [](TraceParts& p) { p.remove("q"); }, "has no tensor 'q'"},
    {"NoPositions", [](TraceParts& p) { p.remove("q_pos"); }, "has no tensor 'q_pos'"},
    {"KeysOfIntegers", [](TraceParts& p) { p.at("k").dtype = "I32"; }, "k: is I32"},
    {"KeysOfDoubles",
     [](TraceParts& p) {
       p.at("k") = {"k", "F64", {96, 2, 16}, zeros().data()};
     },
     "k: is F64"},
    {"KeysOfRank2",
     [](TraceParts& p) {
       p.at("k").shape = {96, 32};
     },
     "k: is F32 [96, 32]"},
    {"KeysEmpty",
     [](TraceParts& p) {
       p.at("k").shape = {0, 2, 16};
     },
     "k: is empty"},
    {"QueriesEmpty",
     [](TraceParts& p) {
       p.at("q").shape = {0, 4, 16};
     },
     "q: is empty"},
    {"QueryWidth",
     [](TraceParts& p) {
       p.at("q").shape = {3, 8, 8};
     },
     "q: is F32 [3, 8, 8]"},
    {"QueryHeads",
     [](TraceParts& p) {
       p.at("q").shape = {3, 3, 16};
     },
     "3 query heads"},
    {"PositionsAreFloats", [](TraceParts& p) { p.at("q_pos").dtype = "F32"; }, "q_pos: is F32"},
    {"TooFewPositions", [](TraceParts& p) { p.at("q_pos").shape = {2}; }, "q_pos: is I32 [2]"},
    {"PositionsDescend", [](TraceParts& p) { p.q_pos[1] = 59; }, "does not ascend"},
    {"PositionsRepeat", [](TraceParts& p) { p.q_pos[1] = 60; }, "does not ascend"},
    {"PositionNegative", [](TraceParts& p) { p.q_pos[0] = -1; }, "q_pos[0]: -1"},
    {"PositionPastEnd", [](TraceParts& p) { p.q_pos[2] = 96; }, "q_pos[2]: 96"},
    {"Values",
     [](TraceParts& p) {
       p.at("v").shape = {48, 4, 16};
     },
     "v: is F32 [48, 4, 16]"},
    {"TrainQueries",
     [](TraceParts& p) {
       p.tensors.push_back({"q_train", "F32", {2, 2, 16}, zeros().data()});
     },
     "q_train: is"},
    {"CodebookSubspaces",
     [](TraceParts& p) {
       p.tensors.push_back({"codebooks", "F32", {2, 4, 8, 4}, zeros().data()});
     },
     "have 4 subspaces"},
    {"CodebookBits",
     [](TraceParts& p) {
       p.tensors.push_back({"codebooks", "F32", {2, 2, 16, 8}, zeros().data()});
     },
     "have 16 centroids"},
    {"CodebookWidth",
     [](TraceParts& p) {
       p.tensors.push_back({"codebooks", "F32", {2, 2, 8, 9}, zeros().data()});
     },
     "have 9 coordinates"},
    {"CodebookHeads",
     [](TraceParts& p) {
       p.tensors.push_back({"codebooks", "F32", {4, 2, 8, 8}, zeros().data()});
     },
     "codebooks: is"},
    {"CodebookEmpty",
     [](TraceParts& p) {
       p.tensors.push_back({"codebooks", "F32", {2, 2, 0, 8}, zeros().data()});
     },
     "codebooks: is empty"},
    {"RotationAlone",
     [](TraceParts& p) {
       p.tensors.push_back({"rotation", "F32", {2, 16, 16}, zeros().data()});
     },
     "without query_rotation"},
    {"RotationShape",
     [](TraceParts& p) {
       p.tensors.push_back({"rotation", "F32", {2, 16, 8}, zeros().data()});
       p.tensors.push_back({"query_rotation", "F32", {2, 16, 16}, zeros().data()});
     },
     "rotation: is"},
};

class BadTraceTest : public ReplayCli, public testing::WithParamInterface<BadTrace> {
 protected:
  void SetUp() override { enter(GetParam().name); }
};

TEST_P(BadTraceTest, IsRefused) {
  TraceParts parts;
  GetParam().spoil(parts);
  write(parts);
  expect_refused(trace_ + kSmall, GetParam().why);
}

INSTANTIATE_TEST_SUITE_P(All, BadTraceTest, testing::ValuesIn(kBadTraces),
                         [](const auto& param) { return param.param.name; });

TEST_F(ReplayCli, InnerProductCodebooksNeedPhi) {
  TraceParts parts;
  parts.tensors.push_back({"codebooks", "F32", {2, 2, 8, 9}, zeros().data()});
  write(parts);
  expect_refused(trace_ + kSmall + " --metric inner_product", "without phi");
}

TEST_F(ReplayCli, UnknownTensorsAreIgnored) {
  TraceParts parts;
  write(parts);
  ASSERT_EQ(run(trace_ + kSmall + " --out " + folder_ + "/a").exit_code, 0);
  const std::int64_t x = 3;
  parts.tensors.push_back({"other", "I64", {1}, &x});
  write(parts);
  ASSERT_EQ(run(trace_ + kSmall + " --out " + folder_ + "/b").exit_code, 0);
  EXPECT_EQ(slurp(folder_ + "/a"), slurp(folder_ + "/b"));
}

}  // namespace
}  // namespace quarry::tools
