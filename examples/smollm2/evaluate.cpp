// SPDX-License-Identifier: Apache-2.0
#include "evaluate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <memory>

#include "error.h"
#include "progress.h"

namespace quarry::smollm2 {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void give_lists(const ListShape& lists, IndexerConfig* config) {
  config->sink_size = lists.sink;
  config->heavy_size = lists.heavy;
  config->window_size = lists.window;
}

/// Reorders `values`.
double median(std::vector<double>* values) {
  const auto middle = values->begin() + std::ssize(*values) / 2;
  std::nth_element(values->begin(), middle, values->end());
  return *middle;
}

}  // namespace

IndexerConfig recommended_config(const ModelShape& model, const ListShape& lists) {
  IndexerConfig config = IndexerConfig::recommended(model.d);
  give_lists(lists, &config);
  return config;
}

IndexerConfig original_config(const ListShape& lists) {
  IndexerConfig config;
  give_lists(lists, &config);
  return config;
}

Evaluation::Evaluation(const Model& model, std::span<const std::int32_t> tokens,
                       const std::vector<tools::LayerCalibration>& calibrations,
                       const EvaluateOptions& options)
    : tokens_(tokens),
      calibrations_(calibrations),
      options_(options),
      forward_(model, static_cast<std::int32_t>(tokens.size())),
      cache_(model.shape, static_cast<std::int32_t>(tokens.size())) {
  const std::int64_t after = static_cast<std::int64_t>(tokens.size()) - options.prefill;
  if (options.prefill < 1 || after < 2 || options.decode < 0 || options.decode >= after) {
    throw tools::BadInput("a prompt of " + std::to_string(options.prefill) + " and " +
                          std::to_string(options.decode) + " decoded tokens do not fit into " +
                          std::to_string(tokens.size()) + " with one left to predict");
  }
  DenseAttention dense(model.shape);
  tools::ProgressBar bar("prompt");
  const auto start = Clock::now();
  forward_.run(tokens.first(static_cast<std::size_t>(options.prefill)), 0, dense, cache_,
               [&](std::int32_t layer) { bar.update(layer + 1, model.shape.layers); });
  prefill_seconds_ = seconds_since(start);
}

Evaluation::Chosen Evaluation::choose(const std::string& mode) const {
  const ModelShape& shape = forward_.model().shape;
  if (mode == "dense") return {std::make_unique<DenseAttention>(shape), nullptr, 0};
  if (mode == "exact") {
    auto exact = std::make_unique<ExactLists>(shape, options_.lists);
    const ListAttention* lists = exact.get();
    return {std::move(exact), lists, 0};
  }
  const bool recommended = mode == "recommended";
  if (!recommended && mode != "original") {
    throw tools::BadInput("mode '" + tools::printable(mode) + "' is not known");
  }
  if (recommended && calibrations_.size() != static_cast<std::size_t>(shape.layers)) {
    throw tools::BadInput("mode recommended needs --calibrate-on or --calibration");
  }
  auto quarry = std::make_unique<QuarryLists>(
      recommended ? recommended_config(shape, options_.lists) : original_config(options_.lists),
      shape, cache_, options_.prefill, calibrations_, options_.index_threads);
  const ListAttention* lists = quarry.get();
  const std::size_t bytes = quarry->index_bytes();
  return {std::move(quarry), lists, bytes};
}

std::vector<double> Evaluation::log_likelihoods(const std::vector<float>& hidden) const {
  constexpr std::size_t kPart = 64;  // rows whose logits are held at once
  const ModelShape& shape = forward_.model().shape;
  const auto width = static_cast<std::size_t>(shape.width);
  const auto vocabulary = static_cast<std::size_t>(shape.vocabulary);
  const auto first = static_cast<std::size_t>(options_.prefill) + 1;
  // The last token has no successor to predict.
  std::vector<double> out(std::min(hidden.size() / width, tokens_.size() - first));
  std::vector<float> logits(kPart * vocabulary);
  for (std::size_t begin = 0; begin < out.size(); begin += kPart) {
    const std::size_t part = std::min(kPart, out.size() - begin);
    forward_.logits(hidden.data() + begin * width, static_cast<std::int64_t>(part), logits.data());
#pragma omp parallel for
    for (std::size_t i = 0; i < part; ++i) {
      out[begin + i] = negative_log_likelihood(logits.data() + i * vocabulary, shape.vocabulary,
                                               tokens_[first + begin + i]);
    }
  }
  return out;
}

ModeResult Evaluation::run(const std::string& mode) {
  ModeResult result;
  result.name = mode;
  std::vector<double> nll;
  {
    const Chosen chosen = choose(mode);
    result.index_bytes = chosen.index_bytes;
    tools::ProgressBar bar(mode);
    nll = log_likelihoods(forward_.run(
        tokens_.subspan(static_cast<std::size_t>(options_.prefill)), options_.prefill,
        *chosen.attention, cache_,
        [&](std::int32_t layer) { bar.update(layer + 1, forward_.model().shape.layers); }));
  }
  double sum = 0;
  for (const double v : nll) sum += v;
  result.perplexity = std::exp(sum / static_cast<double>(nll.size()));
  if (options_.decode > 0) decode(mode, nll, &result);
  return result;
}

void Evaluation::decode(const std::string& mode, const std::vector<double>& expected,
                        ModeResult* result) {
  const Chosen chosen = choose(mode);
  const ModelShape& shape = forward_.model().shape;
  std::vector<float> logits(static_cast<std::size_t>(shape.vocabulary));
  std::vector<double> seconds, cpu;
  tools::ProgressBar bar(mode + ", token by token");
  for (std::int32_t i = 0; i < options_.decode; ++i) {
    const auto at = static_cast<std::size_t>(options_.prefill + i);
    const auto start = Clock::now();
    const std::clock_t cpu_start = std::clock();
    const std::vector<float> hidden =
        forward_.run(tokens_.subspan(at, 1), options_.prefill + i, *chosen.attention, cache_);
    forward_.logits(hidden.data(), 1, logits.data());
    seconds.push_back(seconds_since(start));
    cpu.push_back(static_cast<double>(std::clock() - cpu_start) / CLOCKS_PER_SEC);
    const double nll = negative_log_likelihood(logits.data(), shape.vocabulary, tokens_[at + 1]);
    result->largest_difference =
        std::max(result->largest_difference, std::abs(nll - expected[static_cast<std::size_t>(i)]));
    bar.update(i + 1, options_.decode);
  }
  result->tokens_per_second = 1 / median(&seconds);
  result->cpu_ms = 1000 * median(&cpu);
  if (chosen.lists != nullptr) {
    result->list_ms = 1000 * chosen.lists->list_seconds() / options_.decode;
  }
}

}  // namespace quarry::smollm2
