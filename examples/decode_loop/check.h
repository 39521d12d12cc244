// SPDX-License-Identifier: Apache-2.0
//
// What a step is judged by: attention in double over positions of the caller's choice.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "step.h"

/// q.k / sqrt(d) of head h with all positions.
std::vector<double> scores(const LayerStep& step, std::int32_t h);

std::vector<std::int32_t> every_position(const std::vector<double>& score);
/// Sink, the K best of what is between, window.
std::vector<std::int32_t> exact_list(const quarry::IndexerConfig& config,
                                     const std::vector<double>& score);

/// Head h's attention over some positions, [d].
std::vector<double> attend(const LayerStep& step, std::int32_t h, const std::vector<double>& score,
                           const std::vector<std::int32_t>& positions);

/// |output - dense| / |dense|.
template <typename T>
double error(const T* output, const std::vector<double>& dense) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < dense.size(); ++i) {
    difference += (double{output[i]} - dense[i]) * (double{output[i]} - dense[i]);
    norm += dense[i] * dense[i];
  }
  return std::sqrt(difference / norm);
}
