// SPDX-License-Identifier: Apache-2.0
//
// SmolLM2-135M decoding with attention restricted to quarry's lists. See docs/model.md.
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "capture.h"
#include "cli.h"
#include "evaluate.h"
#include "progress.h"
#include "tokenizer.h"

namespace quarry::smollm2 {
namespace {

using tools::BadInput;
using tools::LayerCalibration;
using tools::printable;

struct Arguments {
  std::string model, text, capture, calibrate_on, calibration, json;
  std::vector<std::string> modes = {"dense", "exact", "recommended", "original"};
  std::int32_t tokens = 6144, threads = 0;
  double within = 0;
  EvaluateOptions evaluate;
};

void declare(CLI::App& app, Arguments& a) {
  app.add_option("MODEL", a.model, "The model, GGUF")->required();
  app.add_option("TEXT", a.text, "What it reads, ASCII")->required();
  app.add_option("--capture", a.capture, "Only run TEXT densely and write a trace a layer to DIR")
      ->type_name("DIR");
  app.add_option("--calibrate-on", a.calibrate_on, "Another text: calibrate every layer on it")
      ->type_name("TEXT");
  app.add_option("--calibration", a.calibration,
                 "Where calibrations lie; with --calibrate-on, where they are written")
      ->type_name("DIR");
  app.add_option("--modes", a.modes, "Of dense, exact, recommended and original")
      ->delimiter(',')
      ->check(CLI::IsMember({"dense", "exact", "recommended", "original"}))
      ->type_name("MODE,...");
  app.add_option("--json", a.json, "The table for machines")->type_name("FILE");
  const auto number = [&](const char* flag, auto& target, const char* help, int low) {
    app.add_option(flag, target, help)
        ->check(CLI::Range(low, 1 << 20))
        ->type_name("N")
        ->capture_default_str();
  };
  number("--tokens", a.tokens, "Tokens of TEXT that are used", 2);
  number("--prefill", a.evaluate.prefill, "Of these, the prompt, read densely", 1);
  number("--decode", a.evaluate.decode, "Tokens decoded one by one for the speed", 0);
  number("--sink", a.evaluate.lists.sink, "First positions of every list", 0);
  number("--heavy", a.evaluate.lists.heavy, "Heavy positions of a list, K", 1);
  number("--window", a.evaluate.lists.window, "Last positions of every list", 64);
  number("--threads", a.threads, "CPU threads, 0: OpenMP's default", 0);
  number("--index-threads", a.evaluate.index_threads, "Of these, quarry's", 1);
  app.add_option("--within", a.within,
                 "Fail where recommended's perplexity is more than PERCENT above exact's")
      ->type_name("PERCENT");
}

std::vector<std::int32_t> read_tokens(const Tokenizer& tokenizer, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  if (!file || !(text << file.rdbuf())) throw BadInput(printable(path) + ": cannot be read");
  return tokenizer.encode(text.str());
}

/// Runs at most `at_most` tokens of a text densely; `each` gets every layer's trace.
template <typename Each>
void capture(const Model& model, std::vector<std::int32_t> tokens, std::size_t at_most,
             const std::string& text, Each each) {
  const auto context = static_cast<std::size_t>(model.shape.context);
  tokens.resize(std::min({tokens.size(), at_most, context}));
  if (tokens.size() < 2) throw BadInput(printable(text) + ": has no two tokens");
  const auto n = static_cast<std::int32_t>(tokens.size());
  KvCache cache(model.shape, n);
  Capture attention(model.shape, n);
  {
    tools::ProgressBar bar("capture");
    Forward(model, n).run(tokens, 0, attention, cache,
                          [&](std::int32_t layer) { bar.update(layer + 1, model.shape.layers); });
  }
  const std::string name = std::filesystem::path(text).filename().string();
  for (std::int32_t l = 0; l < model.shape.layers; ++l) {
    each(l, attention.trace(l, cache, model.name, name));
  }
}

std::string layer_file(const std::string& directory, std::int32_t layer, const char* what) {
  return (std::filesystem::path(directory) / fmt::format("layer{:02}{}.safetensors", layer, what))
      .string();
}

void make_directory(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) throw BadInput(printable(path) + ": " + error.message());
}

std::vector<LayerCalibration> calibrate_on(const Arguments& a, const Model& model,
                                           const Tokenizer& tokenizer) {
  IndexerConfig config = recommended_config(model.shape, a.evaluate.lists);
  config.kmeans_iterations = tools::kCalibrationIterations;
  if (!a.calibration.empty()) make_directory(a.calibration);
  std::vector<LayerCalibration> out;
  const auto start = std::chrono::steady_clock::now();
  capture(
      model, read_tokens(tokenizer, a.calibrate_on), SIZE_MAX, a.calibrate_on,
      [&](std::int32_t layer, const tools::Trace& trace) {
        out.push_back(tools::calibrate_traces(config, {&trace}, {a.calibrate_on}, a.threads, {}));
        if (a.calibration.empty()) return;
        tools::save_calibration(layer_file(a.calibration, layer, ".calibration"), out.back());
      });
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  tools::print(fmt::format("{} layers calibrated on {} keys each of {} in {:.1f} s\n", out.size(),
                           out.front().keys, a.calibrate_on, taken.count()));
  return out;
}

/// What the index is made with must be what the file was made for.
void check_fits(const LayerCalibration& of, const std::string& path, const IndexerConfig& config) {
  const IndexerConfig& c = of.config;
  if (c.num_kv_heads == config.num_kv_heads && c.num_query_heads == config.num_query_heads &&
      c.head_dim == config.head_dim && c.num_subspaces == config.num_subspaces &&
      c.bits == config.bits && c.metric == config.metric && c.rotation == config.rotation) {
    return;
  }
  throw BadInput(printable(path) + ": is of other heads or another quantizer");
}

std::vector<LayerCalibration> calibrations(const Arguments& a, const Model& model,
                                           const Tokenizer& tokenizer) {
  if (!a.calibrate_on.empty()) return calibrate_on(a, model, tokenizer);
  std::vector<LayerCalibration> out;
  if (a.calibration.empty()) return out;
  IndexerConfig config = recommended_config(model.shape, a.evaluate.lists);
  config.num_query_heads = model.shape.query_heads;
  config.num_kv_heads = model.shape.kv_heads;
  for (std::int32_t l = 0; l < model.shape.layers; ++l) {
    const std::string path = layer_file(a.calibration, l, ".calibration");
    out.push_back(tools::load_calibration(path));
    check_fits(out.back(), path, config);
    if (!out.back().layer.empty() && out.back().layer != std::to_string(l)) {
      throw BadInput(printable(path) + ": is of layer " + out.back().layer);
    }
  }
  return out;
}

std::string table_line(const ModeResult& r, double exact) {
  const std::string ratio = exact > 0 ? fmt::format("{:.4f}", r.perplexity / exact) : "-";
  return fmt::format("{:<12} {:>10.3f} {:>8} {:>9.2f} {:>13.1f} {:>8.2f} {:>10.1f} {:>12.1e}\n",
                     r.name, r.perplexity, ratio, r.tokens_per_second, r.cpu_ms, r.list_ms,
                     static_cast<double>(r.index_bytes) / (1 << 20), r.largest_difference);
}

void run_modes(const Arguments& a, const Model& model, const Tokenizer& tokenizer) {
  const auto asked = [&](const char* mode) {
    return std::find(a.modes.begin(), a.modes.end(), mode) != a.modes.end();
  };
  if (asked("recommended") && a.calibrate_on.empty() && a.calibration.empty()) {
    throw BadInput("mode recommended needs --calibrate-on or --calibration");
  }
  if (a.within > 0 && !(asked("exact") && asked("recommended"))) {
    throw BadInput("--within needs the modes exact and recommended");
  }
  std::vector<std::int32_t> tokens = read_tokens(tokenizer, a.text);
  const auto wanted = static_cast<std::size_t>(a.tokens);
  if (a.tokens > model.shape.context || wanted > tokens.size()) {
    throw BadInput(fmt::format("--tokens {}: the text has {}, the model's context {}", a.tokens,
                               tokens.size(), model.shape.context));
  }
  tokens.resize(wanted);
  const std::vector<LayerCalibration> calibrated = calibrations(a, model, tokenizer);
  Evaluation evaluation(model, tokens, calibrated, a.evaluate);
  const auto& o = a.evaluate;
  tools::print(fmt::format(
      "{}\nprompt of {} tokens read densely in {:.1f} s; tokens {} to {} predicted, sink {}, K {}, "
      "window {}\n\n{:<12} {:>10} {:>8} {:>9} {:>13} {:>8} {:>10} {:>12}\n",
      model.name, o.prefill, evaluation.prefill_seconds(), o.prefill + 1, a.tokens - 1,
      o.lists.sink, o.lists.heavy, o.lists.window, "attention", "perplexity", "/ exact", "tokens/s",
      "CPU ms/token", "lists", "index MiB", "decode diff"));
  std::vector<ModeResult> results;
  double exact = 0;
  nlohmann::json json;
  for (const std::string& mode : a.modes) {
    results.push_back(evaluation.run(mode));
    const ModeResult& r = results.back();
    if (mode == "exact") exact = r.perplexity;
    tools::print(table_line(r, exact));
    json[mode] = {
        {"perplexity", r.perplexity},   {"tokens_per_second", r.tokens_per_second},
        {"cpu_ms_per_token", r.cpu_ms}, {"list_cpu_ms_per_token", r.list_ms},
        {"index_bytes", r.index_bytes}, {"largest_decode_difference", r.largest_difference}};
  }
  if (!a.json.empty()) tools::write_text(a.json, json.dump(2) + "\n");
  if (a.within <= 0) return;
  for (const ModeResult& r : results) {
    if (r.name != "recommended" || r.perplexity <= exact * (1 + a.within / 100)) continue;
    throw tools::Error(tools::kExitInternal,
                       fmt::format("recommended's perplexity {:.3f} is not within {:g} % of "
                                   "exact's {:.3f}",
                                   r.perplexity, a.within, exact));
  }
}

void run(const Arguments& a) {
  if (a.threads > 0) omp_set_num_threads(a.threads);
  const GgufFile file = GgufFile::load(a.model);
  const Model model = load_model(file);
  const Tokenizer tokenizer(file);
  if (a.capture.empty()) return run_modes(a, model, tokenizer);
  make_directory(a.capture);
  capture(model, read_tokens(tokenizer, a.text), static_cast<std::size_t>(a.tokens), a.text,
          [&](std::int32_t layer, const tools::Trace& trace) {
            save_trace(layer_file(a.capture, layer, ""), trace);
          });
}

}  // namespace
}  // namespace quarry::smollm2

int main(int argc, char** argv) {
  CLI::App app{"SmolLM2-135M with attention restricted to quarry's lists: perplexity and speed.",
               "smollm2"};
  quarry::smollm2::Arguments arguments;
  quarry::smollm2::declare(app, arguments);
  return quarry::tools::run_tool(app, argc, argv, [&] { quarry::smollm2::run(arguments); });
}
