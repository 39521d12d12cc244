// SPDX-License-Identifier: Apache-2.0
//
// What bench_grid measured, read from Google Benchmark's JSON, and its figures.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace quarry::bench {

struct GridResults {
  /// By the axis' value, the median times of the repetitions, in microseconds.
  using Line = std::map<double, std::vector<double>>;
  /// axis -> "algorithm/backend" -> line.
  std::map<std::string, std::map<std::string, Line>> axes;
  std::vector<double> empty_graph;  ///< microseconds
  /// axis -> what was not measured and why, a line each.
  std::map<std::string, std::vector<std::string>> missing;
  std::string base;  ///< the point that the axes go through, in words
};

/// Adds what `text`, Google Benchmark's JSON of the file `name`, holds of the axes n and rows and
/// of an empty graph; other benchmarks are passed over. Throws tools::BadInput, the file and the
/// benchmark named, where it is not that, or holds nothing of these, or is of another base.
void read_grid(const std::string& name, const std::string& text, GridResults* results);

/// Time against one axis ("n" or "rows") as SVG, both logarithmic, a line for each algorithm and
/// backend. `note` (the machine) stands below the title. Throws tools::BadInput where the axis
/// has no measured point.
std::string draw_grid(const GridResults& results, const std::string& axis, const std::string& note);

}  // namespace quarry::bench
