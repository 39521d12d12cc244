// SPDX-License-Identifier: Apache-2.0
//
// quarry-calibrate: a layer's codebooks and rotation from captured traces of it, once for
// every prompt.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "calibration.h"
#include "cli.h"
#include "error.h"
#include "progress.h"
#include "report.h"

namespace quarry::tools {
namespace {

struct Arguments {
  std::vector<std::string> traces;
  std::string out;
  std::int32_t subspaces = 0;  // 0: d / 8
  std::int32_t threads = 0;
  std::int64_t max_keys = kCalibrationMaxKeys;
  std::string rotation = "query";
  IndexerConfig config;

  Arguments() {
    config.bits = 4;
    config.block_size = 64;
    config.mean_dtype = DType::float16;
    config.sink_size = 16;
    config.kmeans_iterations = kCalibrationIterations;
  }
};

void declare(CLI::App& app, Arguments& a) {
  IndexerConfig& c = a.config;
  app.add_option("TRACE", a.traces, "Traces of one layer, safetensors")->required();
  app.add_option("--out", a.out, "The calibration, safetensors")->required()->type_name("FILE");
  const auto number = [&](const char* flag, auto& target, const char* type, const char* help) {
    return app.add_option(flag, target, help)->type_name(type)->capture_default_str();
  };
  app.add_option("--subspaces", a.subspaces, "Subspaces m (default: one for 8 dimensions)")
      ->check(CLI::Range(1, 64))
      ->type_name("M");
  number("--bits", c.bits, "B", "Bits of a code");
  number("--block-size", c.block_size, "N", "Positions that share a mean, 0: no means");
  add_mean(app, c.mean_dtype);
  number("--sink", c.sink_size, "N", "First positions, left out as the index leaves them out");
  add_metric(app, c.metric);
  app.add_option("--rotation", a.rotation, "Rotation by the queries of the traces")
      ->check(CLI::IsMember({"none", "query"}))
      ->type_name("none|query")
      ->capture_default_str();
  number("--iterations", c.kmeans_iterations, "N", "k-means iterations");
  number("--seed", c.seed, "N", "k-means seed");
  number("--max-keys", a.max_keys, "N",
         "Keys a KV head held of all traces; past them whole blocks, evenly spaced. Bounds the "
         "memory for keys to N * KV heads * d elements of the traces' type")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 40));
  app.add_option("--threads", a.threads, "CPU threads (default: OpenMP's)")
      ->check(CLI::Range(0, 1024))
      ->type_name("N");
}

std::string percent(double value) {
  return std::isfinite(value) ? fmt::format("{:.2f} %", 100 * value) : "- (no block is held out)";
}

std::string report(const Arguments& a, const LayerCalibration& made) {
  const IndexerConfig& c = made.config;
  MemoryRequirements memory;
  check(memory_requirements(c, Backend::cpu, &memory), "configuration");
  std::string quantizer = describe(c);
  quantizer.resize(quantizer.find(" | "));
  std::string out = a.out + "\n";
  const auto line = [&](const char* name, const std::string& value) {
    out += fmt::format("  {:<34} {}\n", name, value);
  };
  line("layer", made.layer.empty() ? "not named by the traces" : made.layer);
  line("shape", fmt::format("{} query heads, {} KV heads, d={}", c.num_query_heads, c.num_kv_heads,
                            c.head_dim));
  line("quantizer", quantizer);
  line("keys of a KV head", fmt::format("{} of {} trace{}, {} trained on", made.keys, made.traces,
                                        made.traces == 1 ? "" : "s", made.sampled_keys));
  if (made.max_keys > 0) {
    line("sampled by --max-keys",
         fmt::format("at most {} of {}, whole blocks", made.max_keys, made.trace_keys));
  }
  if (c.rotation) line("queries of a KV head", std::to_string(made.queries));
  line("quantization error, trained on", percent(made.train_error));
  line("quantization error, held out", percent(made.held_out_error));
  line("index bytes a key and KV head",
       fmt::format("{:g}", memory.code_bytes_per_key + memory.mean_bytes_per_key));
  line("file",
       fmt::format("{:.1f} KiB", static_cast<double>(std::filesystem::file_size(a.out)) / 1024));
  return out;
}

void run(Arguments& a) {
  IndexerConfig& c = a.config;
  c.num_subspaces = a.subspaces;
  c.rotation = a.rotation == "query";
  c.window_size = std::max({c.window_size, c.block_size});
  LayerCalibration made;
  {
    ProgressBar bar("calibrate");
    made = calibrate_files(c, a.traces, a.max_keys, a.threads, [&](double done) {
      bar.update(static_cast<std::int64_t>(100 * done), 100);
    });
  }
  save_calibration(a.out, made);
  print(report(a, made));
}

}  // namespace
}  // namespace quarry::tools

int main(int argc, char** argv) {
  using namespace quarry::tools;
  CLI::App app{
      "Calibrates a layer of a model from captured traces: codebooks and a rotation "
      "that serve every prompt. Traces may be of any size: held are --max-keys keys a KV head, "
      "1 MiB of queries and their second moments (2 d^2 + 512 d doubles a KV head), and what "
      "k-means takes (twice 256 * 2^bits keys a KV head, float32).",
      "quarry-calibrate"};
  Arguments arguments;
  declare(app, arguments);
  return run_tool(app, argc, argv, [&] { run(arguments); });
}
