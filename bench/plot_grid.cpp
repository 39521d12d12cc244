// SPDX-License-Identifier: Apache-2.0
//
// Draws what bench_grid measured: time against n and time against rows.
#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>

#include "../tools/cli.h"
#include "support/grid_figure.h"

namespace {

using namespace quarry::tools;

std::string read_text(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file || file.bad()) {
    throw BadInput(printable(path) + ": cannot be read: " + std::strerror(errno));
  }
  return text;
}

void run(const std::vector<std::string>& files, const std::string& out, const std::string& note) {
  quarry::bench::GridResults results;
  for (const std::string& file : files) {
    quarry::bench::read_grid(file, read_text(file), &results);
  }
  // Both are drawn before either is written.
  const std::string n = quarry::bench::draw_grid(results, "n", note);
  const std::string rows = quarry::bench::draw_grid(results, "rows", note);
  write_text(out + "-n.svg", n);
  write_text(out + "-rows.svg", rows);
  std::size_t missing = 0;
  for (const auto& [axis, lines] : results.missing) missing += lines.size();
  print(fmt::format("{0}-n.svg, {0}-rows.svg; {1} points were not measured, as they say\n",
                    printable(out), missing));
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "Draws time against n and time against rows, both logarithmic, from what "
      "bench_grid --benchmark_out=FILE --benchmark_out_format=json left in one or more files.",
      "plot_grid"};
  std::vector<std::string> files;
  std::string out, note;
  app.add_option("FILE", files, "Google Benchmark's JSON")->required();
  app.add_option("--out", out, "The figures are OUT-n.svg and OUT-rows.svg")->required();
  app.add_option("--note", note, "A line below the titles, such as the machine's name");
  return run_tool(app, argc, argv, [&] { run(files, out, note); });
}
