// SPDX-License-Identifier: Apache-2.0
//
// A grid of configurations over one trace: which quality costs which bytes and which time.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "calibration.h"
#include "replay.h"
#include "report.h"
#include "trace.h"

namespace quarry::tools {

struct SweepOptions {
  /// What all configurations share; the grid sets num_subspaces, bits, block_size and
  /// refine_factor. Its block_size is the one tried beside 0.
  ReplayOptions base;
  bool prompt_rotation = false;   ///< those trained on the prompt are rotated by q_train
  bool rotate_calibrated = true;  ///< those calibrated are rotated by their traces' queries
  std::int32_t calibration_iterations = kCalibrationIterations;
  std::vector<const Trace*> calibrate_on;  ///< empty: trained on the prompt alone
  std::vector<std::string> calibrate_on_names;
};

struct SweepPoint {
  IndexerConfig config;  ///< resolved
  bool calibrated = false;
  Quality quality;
  double index_bytes_per_key = 0;
  std::int64_t model_bytes = 0;
  double raw_keys_per_row = 0;
  double next_us_p50 = 0, next_us_p99 = 0, build_ms = 0;
  /// Nothing else has at least its recall for at most its bytes (its time).
  bool best_for_bytes = false, best_for_time = false;
};

struct SweepResult {
  std::vector<SweepPoint> points;
  std::vector<std::string> skipped;  ///< a line each: what could not be run, and why
  std::int32_t prefill = 0;
};

/// The (subspaces, bits) of the grid that fit a head dimension.
struct CodeSize {
  std::int32_t subspaces, bits;
};
std::vector<CodeSize> code_sizes(std::int32_t head_dim);

/// Replays every configuration, all sparse from the same position on. The exact reference is
/// computed once, a calibration or a rotation once for all that share it. A configuration that
/// cannot be run (too few keys for its codebook, a window below the block) is skipped and said
/// so. Throws Error, also where none can be run.
SweepResult sweep(const Trace& trace, const SweepOptions& options,
                  const std::function<void(std::int64_t, std::int64_t)>& progress);

/// Sets best_for_bytes and best_for_time.
void mark_best(std::vector<SweepPoint>* points);

std::string sweep_table(const Trace& trace, const SweepResult& result, const Setting& setting);
std::string sweep_json(const Trace& trace, const SweepResult& result, const Setting& setting);
/// Recall against index bytes and against latency, the best of each marked (SVG).
std::string plot_bytes(const SweepResult& result, const Setting& setting);
std::string plot_time(const SweepResult& result, const Setting& setting);

}  // namespace quarry::tools
