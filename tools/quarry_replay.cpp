// SPDX-License-Identifier: Apache-2.0
//
// quarry-replay: a captured trace through the index as an engine would run it, and how good
// and how fast that was.
#include <omp.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "calibration.h"
#include "cli.h"
#include "error.h"
#include "plot.h"
#include "progress.h"
#include "quarry/quarry.h"
#include "replay.h"
#include "report.h"
#include "sweep.h"
#include "trace.h"

namespace quarry::tools {
namespace {

struct Arguments {
  std::string trace, calibration, rotation = "none";
  std::string out, json, plot;
  bool sweep = false;
  std::vector<std::string> calibrate_on;
  ReplayOptions options;
  const CLI::App* app = nullptr;  // to ask what was given

  bool given(const char* flag) const { return app->count(flag) > 0; }
};

void declare(CLI::App& app, Arguments& a) {
  a.app = &app;
  a.options.sample_every = 16;
  IndexerConfig& c = a.options.config;
  app.add_option("TRACE", a.trace, "Trace of one sequence and layer, safetensors")->required();

  add_choice<Backend>(app, "--device", a.options.device.backend,
                      {{"cpu", Backend::cpu}, {"cuda", Backend::cuda}}, "Backend");
  app.add_option("--prefill", a.options.prefill, "Positions built at once (default: first q_pos)")
      ->check(CLI::Range(0, 1 << 28))
      ->type_name("N");
  app.add_option("--calibration", a.calibration,
                 "The layer's codebooks from quarry-calibrate; sets subspaces, bits, metric, "
                 "block size, mean and rotation")
      ->type_name("FILE");
  app.add_option("--rotation", a.rotation, "Rotation trained from q_train and the prompt's keys")
      ->check(CLI::IsMember({"none", "query"}))
      ->type_name("none|query")
      ->default_str("none");

  const auto number = [&](const char* flag, auto& target, const char* type, const char* help) {
    return app.add_option(flag, target, help)->type_name(type)->capture_default_str();
  };
  number("--subspaces", c.num_subspaces, "M", "Subspaces m");
  number("--bits", c.bits, "B", "Bits of a code");
  add_metric(app, c.metric);
  number("--block-size", c.block_size, "N", "Positions that share a mean, 0: no means");
  add_mean(app, c.mean_dtype);
  number("--sink", c.sink_size, "N", "First positions, always listed");
  number("--heavy", c.heavy_size, "N", "Positions selected by score, K");
  number("--window", c.window_size, "N", "Last positions, always listed");
  app.add_option("--encode-from", c.encode_from, "First encoded position (default: --sink)")
      ->check(CLI::Range(0, 1 << 28))
      ->type_name("N");

  add_choice<Algorithm>(app, "--algorithm", c.algorithm,
                        {{"staged", Algorithm::staged},
                         {"scan", Algorithm::scan},
                         {"automatic", Algorithm::automatic}},
                        "How a step is carried out");
  add_choice<GqaReduction>(app, "--gqa", c.gqa_reduction,
                           {{"per_head", GqaReduction::per_head},
                            {"sum", GqaReduction::sum},
                            {"softmax_sum", GqaReduction::softmax_sum},
                            {"max", GqaReduction::max}},
                           "Lists a query head, or a KV head by a reduction");
  number("--refine", c.refine_factor, "R", "Re-rank R x K positions by the exact q.k");
  app.add_option("--sample-every", a.options.sample_every,
                 "After each query compare every N-th row with the exact top-K on the device, "
                 "0: none")
      ->check(CLI::Range(0, 1 << 30))
      ->type_name("N")
      ->capture_default_str();
  number("--iterations", c.kmeans_iterations, "N", "k-means iterations");
  number("--seed", c.seed, "N", "k-means seed");
  app.add_option("--threads", a.options.threads, "CPU threads (default: OpenMP's)")
      ->check(CLI::Range(0, 1024))
      ->type_name("N");

  app.add_flag("--sweep", a.sweep,
               "Replay a grid of subspaces, bits, block size and refine (means: float16 unless "
               "--mean says otherwise)");
  app.add_option("--calibrate-on", a.calibrate_on,
                 "With --sweep: traces to calibrate each configuration on as well")
      ->type_name("TRACE...");

  app.add_option("--out", a.out, "Write lists and codes, safetensors")->type_name("FILE");
  app.add_option("--json", a.json, "Write the report as JSON")->type_name("FILE");
  app.add_option("--plot", a.plot,
                 "Draw the replay, SVG; with --sweep PREFIX-bytes.svg and PREFIX-time.svg")
      ->type_name("FILE");
}

/// What the library cannot be asked about because it has no such argument.
void refuse_unserved(const Arguments& a) {
  const Backend backend = a.options.device.backend;
  if (backend_available(backend)) return;
#if QUARRY_HAS_CUDA
  throw BadInput(std::string("no device for --device ") + to_string(backend));
#else
  throw BadInput(std::string("not built: --device ") + to_string(backend) +
                 ", this build holds the CPU backend alone");
#endif
}

/// Parameters of the calibration take the place of options that were not given; one that was
/// given and differs is refused.
void take_calibration(Arguments& a, const LayerCalibration& calibration) {
  const auto take = [&](const char* flag, auto& ours, auto theirs, auto text) {
    if (a.given(flag) && ours != theirs) {
      throw BadInput(printable(a.calibration) + " is calibrated for " + flag + " " + text(theirs) +
                     ", " + flag + " " + text(ours) + " is given");
    }
    ours = theirs;
  };
  const auto integer = [](std::int32_t value) { return std::to_string(value); };
  const auto name = [](auto value) { return std::string(to_string(value)); };
  IndexerConfig& c = a.options.config;
  take("--subspaces", c.num_subspaces, calibration.config.num_subspaces, integer);
  take("--bits", c.bits, calibration.config.bits, integer);
  take("--metric", c.metric, calibration.config.metric, name);
  take("--block-size", c.block_size, calibration.config.block_size, integer);
  if (calibration.config.block_size > 0) {
    take("--mean", c.mean_dtype, calibration.config.mean_dtype, name);
  }
  take("--rotation", a.rotation, std::string(calibration.config.rotation ? "query" : "none"),
       [](const std::string& value) { return value; });
}

/// The model to replay with in the place of the trace's own, and what to call it.
struct ChosenModel {
  Model model;
  bool replaces = false;
  std::string codebook;
};

ChosenModel choose_model(Arguments& a, const Trace& trace) {
  const bool own_codebooks = !trace.model.codebooks.empty();
  const bool own_rotation = !trace.model.rotation.empty();
  if (!a.calibration.empty()) {
    if (own_codebooks || own_rotation) {
      throw BadInput("--calibration is given, but the trace brings its own " +
                     std::string(own_codebooks ? "codebooks" : "rotation"));
    }
    LayerCalibration calibration = load_calibration(a.calibration);
    check_fits(calibration, a.calibration, trace);
    take_calibration(a, calibration);
    return {std::move(calibration.model), true, "calibrated"};
  }
  if (a.rotation == "query") {
    if (own_codebooks || own_rotation) {
      throw BadInput("--rotation query is given, but the trace brings its own " +
                     std::string(own_codebooks ? "codebooks" : "rotation"));
    }
    return {prompt_rotation(a.options.config, trace, resolve_prefill(trace, a.options),
                            a.options.threads),
            true, "and rotation trained on the prompt"};
  }
  return {{}, false, own_codebooks ? "from the trace" : "trained on the prompt"};
}

Setting setting_of(const Arguments& a) {
  Setting setting;
  setting.trace = a.trace;
  setting.device = to_string(a.options.device.backend);
  setting.threads = a.options.threads > 0 ? a.options.threads : omp_get_max_threads();
  return setting;
}

void run_replay(Arguments& a) {
  const Trace trace = load_trace(a.trace);
  const ChosenModel chosen = choose_model(a, trace);
  if (chosen.replaces) a.options.model = &chosen.model;
  ReplayResult result;
  {
    ProgressBar bar("replay");
    result = replay(trace, a.options,
                    [&](std::int64_t done, std::int64_t total) { bar.update(done, total); });
  }
  if (!a.out.empty()) write_lists(a.out, trace, result);

  Report report;
  {
    ProgressBar bar("compare");
    ExactReference reference(trace, result.config);
    report = make_report(trace, result, reference, a.options.threads,
                         [&](std::int64_t done, std::int64_t total) { bar.update(done, total); });
  }
  Setting setting = setting_of(a);
  setting.codebook = chosen.codebook;
  if (!a.json.empty()) write_text(a.json, to_json(trace, result, report, setting));
  if (!a.plot.empty()) write_text(a.plot, plot(trace, result, report, setting));
  print(to_table(trace, result, report, setting));
}

void run_sweep(Arguments& a) {
  for (const char* flag : {"--subspaces", "--bits", "--refine", "--calibration", "--out"}) {
    if (a.given(flag)) {
      throw BadInput(std::string(flag) + " is given, but a --sweep " +
                     (std::string(flag) == "--out" ? "writes no lists" : "sets it itself"));
    }
  }
  SweepOptions options;
  options.base = a.options;
  options.base.sample_every = 0;
  if (!a.given("--mean")) options.base.config.mean_dtype = DType::float16;
  if (!a.given("--block-size")) options.base.config.block_size = 64;
  options.prompt_rotation = a.rotation == "query";
  options.rotate_calibrated = !a.given("--rotation") || a.rotation == "query";
  if (a.given("--iterations")) {
    options.calibration_iterations = options.base.config.kmeans_iterations;
  }
  options.calibrate_on_names = a.calibrate_on;

  Trace trace = load_trace(a.trace);
  trace.model = {};  // every configuration has its own
  std::vector<Trace> others;
  for (const std::string& path : a.calibrate_on) others.push_back(load_trace(path, false));
  for (const Trace& other : others) options.calibrate_on.push_back(&other);
  check_same_layer(trace, a.trace, options.calibrate_on, a.calibrate_on);
  SweepResult result;
  {
    ProgressBar bar("sweep");
    result = sweep(trace, options,
                   [&](std::int64_t done, std::int64_t total) { bar.update(done, total); });
  }
  const Setting setting = setting_of(a);
  if (!a.json.empty()) write_text(a.json, sweep_json(trace, result, setting));
  if (!a.plot.empty()) {
    write_text(a.plot + "-bytes.svg", plot_bytes(result, setting));
    write_text(a.plot + "-time.svg", plot_time(result, setting));
  }
  print(sweep_table(trace, result, setting));
}

void run(Arguments& a) {
  refuse_unserved(a);
  if (a.sweep) {
    run_sweep(a);
    return;
  }
  if (!a.calibrate_on.empty()) throw BadInput("--calibrate-on needs --sweep");
  run_replay(a);
}

}  // namespace
}  // namespace quarry::tools

int main(int argc, char** argv) {
  using namespace quarry::tools;
  CLI::App app{
      "Replays a captured trace through quarry's index as an engine would, and says "
      "how good and how fast it was.",
      "quarry-replay"};
  Arguments arguments;
  declare(app, arguments);
  return run_tool(app, argc, argv, [&] { run(arguments); });
}
