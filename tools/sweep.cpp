// SPDX-License-Identifier: Apache-2.0
#include "sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "error.h"

namespace quarry::tools {
namespace {

constexpr std::int32_t kRefines[] = {1, 2, 4};
constexpr std::int32_t kMostCentroids = 256;  // of kSizes
constexpr CodeSize kSizes[] = {{2, 6}, {4, 4}, {4, 8}, {8, 4}, {8, 8}, {16, 4}, {16, 8}};

/// What a group of configurations shares: all but refine.
struct Group {
  CodeSize size;
  std::int32_t block_size;
  bool calibrated;
};

class Sweep {
 public:
  Sweep(const Trace& trace, const SweepOptions& options,
        const std::function<void(std::int64_t, std::int64_t)>& progress)
      : trace_(trace), options_(options), progress_(progress) {
    result_.prefill = resolve_prefill(trace, options.base);
    std::vector<std::int32_t> blocks = {0};
    if (options.base.config.block_size != 0) blocks.push_back(options.base.config.block_size);
    for (const bool calibrated : {false, true}) {
      if (calibrated && options.calibrate_on.empty()) continue;
      for (const std::int32_t block_size : blocks) {
        for (const CodeSize size : code_sizes(trace.d)) {
          groups_.push_back({size, block_size, calibrated});
        }
      }
    }
  }

  SweepResult run() {
    const auto total = static_cast<std::int64_t>(groups_.size() * std::size(kRefines));
    std::string last;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      done_ = static_cast<std::int64_t>(g * std::size(kRefines));
      progress_(done_, total);
      try {
        run_group(groups_[g], total);
      } catch (const Error& e) {
        if (e.exit_code() != kExitBadInput) throw;
        last = e.what();
        result_.skipped.push_back(name(groups_[g]) + ": " + last);
      }
    }
    progress_(total, total);
    if (result_.points.empty()) throw BadInput("no configuration can be run: " + last);
    mark_best(&result_.points);
    return std::move(result_);
  }

 private:
  static std::string name(const Group& g) {
    return fmt::format("{}, block {}, m={} b={}", g.calibrated ? "calibrated" : "prompt",
                       g.block_size, g.size.subspaces, g.size.bits);
  }

  void run_group(const Group& group, std::int64_t total) {
    ReplayOptions replay_options = options_.base;
    IndexerConfig& c = replay_options.config;
    c.num_subspaces = group.size.subspaces;
    c.bits = group.size.bits;
    c.block_size = group.block_size;
    // The default depends on bits; all shall be judged on the same queries.
    c.dense_threshold =
        c.heavy_size + (c.encode_from < 0 ? c.sink_size : c.encode_from) + 1 + kMostCentroids;
    Model model;
    if (group.calibrated) {
      c.rotation = options_.rotate_calibrated;
      IndexerConfig calibration = c;
      calibration.kmeans_iterations = options_.calibration_iterations;
      model = calibrate_traces(calibration, options_.calibrate_on, options_.calibrate_on_names,
                               options_.base.threads, {})
                  .model;
    } else if (options_.prompt_rotation) {
      model = prompt_rotation(c, trace_, result_.prefill, options_.base.threads);
    }
    replay_options.model = &model;
    for (const std::int32_t refine : kRefines) {
      c.refine_factor = refine;
      const ReplayResult replayed =
          replay(trace_, replay_options, [](std::int64_t, std::int64_t) {});
      if (replayed.unbuilt_rows > 0) {
        throw BadInput("the prompt has too few keys for a codebook");
      }
      if (reference_ == nullptr) {
        reference_ = std::make_unique<ExactReference>(trace_, replayed.config);
      }
      const Report report = make_report(trace_, replayed, *reference_, options_.base.threads,
                                        [](std::int64_t, std::int64_t) {});
      if (report.sparse_rows == 0) throw BadInput("no list leaves the dense range");
      SweepPoint point;
      point.config = replayed.config;
      point.calibrated = group.calibrated;
      point.quality = report.quality;
      point.index_bytes_per_key = report.index_bytes_per_key;
      point.model_bytes = report.model_bytes;
      point.raw_keys_per_row = report.raw_keys_per_row;
      point.next_us_p50 = report.next_us_p50;
      point.next_us_p99 = report.next_us_p99;
      point.build_ms = report.build_ms;
      result_.points.push_back(point);
      progress_(++done_, total);
    }
  }

  const Trace& trace_;
  const SweepOptions& options_;
  const std::function<void(std::int64_t, std::int64_t)>& progress_;
  std::vector<Group> groups_;
  std::unique_ptr<ExactReference> reference_;
  std::int64_t done_ = 0;
  SweepResult result_;
};

void mark(std::vector<SweepPoint>* points, double SweepPoint::*cost, bool SweepPoint::*best) {
  for (SweepPoint& p : *points) {
    p.*best = std::none_of(points->begin(), points->end(), [&](const SweepPoint& other) {
      const bool no_worse = other.*cost <= p.*cost && other.quality.recall >= p.quality.recall;
      return no_worse && (other.*cost < p.*cost || other.quality.recall > p.quality.recall);
    });
  }
}

}  // namespace

std::vector<CodeSize> code_sizes(std::int32_t head_dim) {
  std::vector<CodeSize> out;
  for (const CodeSize size : kSizes) {
    // Subspaces of a single dimension would be scalar quantization, at its bytes.
    if (head_dim % size.subspaces == 0 && head_dim / size.subspaces >= 2) out.push_back(size);
  }
  return out;
}

void mark_best(std::vector<SweepPoint>* points) {
  mark(points, &SweepPoint::index_bytes_per_key, &SweepPoint::best_for_bytes);
  mark(points, &SweepPoint::next_us_p50, &SweepPoint::best_for_time);
}

SweepResult sweep(const Trace& trace, const SweepOptions& options,
                  const std::function<void(std::int64_t, std::int64_t)>& progress) {
  return Sweep(trace, options, progress).run();
}

}  // namespace quarry::tools
