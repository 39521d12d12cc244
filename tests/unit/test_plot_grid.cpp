// SPDX-License-Identifier: Apache-2.0
//
// The figures of the grid of benchmarks: what is read from Google Benchmark's JSON, where it is
// drawn, and every way the JSON can be wrong is named.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "error.h"
#include "support/grid_figure.h"

namespace quarry::bench {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Key;
using testing::Not;
using testing::Pair;

std::string measured(const std::string& run, double us) {
  return R"({"name": ")" + run + R"(/manual_time", "run_name": ")" + run +
         R"(/manual_time", "run_type": "iteration", "real_time": 1, "median_us": )" +
         std::to_string(us) + "}";
}

std::string skipped(const std::string& run, const std::string& why) {
  return R"({"run_name": ")" + run +
         R"(/manual_time", "run_type": "iteration", "error_occurred": true, "error_message": ")" +
         why + R"("})";
}

std::string file(const std::vector<std::string>& benchmarks, const std::string& base = "the base") {
  std::string text = R"({"context": {"grid_base": ")" + base + R"("}, "benchmarks": [)";
  for (std::size_t i = 0; i < benchmarks.size(); ++i) text += (i > 0 ? "," : "") + benchmarks[i];
  return text + "]}";
}

std::string sound() {
  return file({measured("grid/n/4096/scan/cpu", 10), measured("grid/n/1048576/scan/cpu", 1000),
               measured("grid/n/4096/staged/cpu", 20), measured("grid/n/4096/floor/cuda", 4),
               skipped("grid/n/1048576/staged/cpu", "takes <9> GB"),
               measured("grid/rows/32/scan/cpu", 30), measured("grid/G/4/scan/cpu", 7),
               measured("next/original/scan/cpu", 8), measured("empty_graph/cuda", 2)});
}

GridResults read(const std::string& text) {
  GridResults results;
  read_grid("results.json", text, &results);
  return results;
}

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const tools::BadInput& e) {
    return e.what();
  }
  return "accepted";
}

std::size_t count(const std::string& text, const std::string& what) {
  std::size_t found = 0;
  for (auto at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++found;
  return found;
}

TEST(GridFigure, ReadsTheAxesOfTheFiguresAndNothingElse) {
  const GridResults results = read(sound());
  EXPECT_THAT(results.axes, ElementsAre(Key("n"), Key("rows")));
  EXPECT_THAT(results.axes.at("n"),
              ElementsAre(Key("floor/cuda"), Key("scan/cpu"), Key("staged/cpu")));
  EXPECT_THAT(results.axes.at("n").at("scan/cpu"),
              ElementsAre(Pair(4096, ElementsAre(10)), Pair(1048576, ElementsAre(1000))));
  EXPECT_THAT(results.axes.at("rows"),
              ElementsAre(Pair("scan/cpu", ElementsAre(Pair(32, ElementsAre(30))))));
  EXPECT_THAT(results.empty_graph, ElementsAre(2));
  EXPECT_THAT(results.missing,
              ElementsAre(Pair("n", ElementsAre("staged/cpu at n = 1048576: takes <9> GB"))));
  EXPECT_EQ(results.base, "the base");
}

TEST(GridFigure, DrawsEveryLineWhereItsTimesAre) {
  const std::string svg = draw_grid(read(sound()), "n", "a machine & more");
  EXPECT_EQ(svg.rfind("<svg ", 0), 0u);
  EXPECT_EQ(svg.substr(svg.size() - 7), "</svg>\n");
  EXPECT_EQ(count(svg, "<polyline"), 4u);
  for (const char* name :
       {">scan/cpu<", ">staged/cpu<", ">floor/cuda<", ">empty graph/cuda<", ">4K<", ">1M<",
        ">median time of a call (us)<", ">n (positions of a sequence)<", ">Otherwise the base<",
        ">a machine &amp; more<", "n = 1048576: takes &lt;9&gt; GB<"}) {
    EXPECT_THAT(svg, HasSubstr(name));
  }
  // 1 to 1000 us are the axis' ends, so 10 us lie a third up: y from 600 to 96. In x, 8 octaves
  // and a margin of 0.15 at either end, from 84 to 850.
  EXPECT_THAT(svg, HasSubstr("<polyline points=\"97.8,432.0 836.2,96.0 \""));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
}

TEST(GridFigure, OnePointIsDrawnToo) {
  const std::string svg =
      draw_grid(read(file({measured("grid/rows/4096/scan/cuda", 10)})), "rows", "");
  EXPECT_THAT(svg, HasSubstr("<polyline points=\"467.0,600.0 \""));
  EXPECT_THAT(svg, HasSubstr(">rows (sequences x query heads)<"));
  EXPECT_THAT(svg, HasSubstr(">4096<"));
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
}

TEST(GridFigure, RepetitionsAndFilesAreOneLine) {
  GridResults results;
  read_grid("a.json",
            file({measured("grid/n/4096/scan/cpu", 900), measured("grid/n/4096/scan/cpu", 10),
                  measured("grid/n/4096/scan/cpu", 100),
                  R"({"run_name": "grid/n/4096/scan/cpu", "run_type": "aggregate"})"}),
            &results);
  read_grid("b.json", file({measured("grid/n/4096/scan/cuda", 1)}), &results);
  // The median of the three, 100 us, on an axis from 1 to 100.
  EXPECT_THAT(draw_grid(results, "n", ""), HasSubstr("<polyline points=\"467.0,96.0 \""));
  EXPECT_EQ(refusal([&] {
              read_grid("c.json", file({measured("grid/n/4096/scan/cuda", 1)}, "another"),
                        &results);
            }),
            "c.json: its base 'another' is not that of the files before");
}

TEST(GridFigure, WhatCannotBeUsedIsRefusedByName) {
  const std::string number =
      "results.json: benchmark 'grid/n/4096/scan/cpu' has no positive number 'median_us'";
  const auto misnamed = [](const std::string& run) {
    return "results.json: benchmark '" + run + "' is not named grid/n/POSITIVE INTEGER/LINE";
  };
  const std::pair<std::string, std::string> cases[] = {
      {"", "results.json: is not JSON"},
      {sound().substr(0, 300), "results.json: is not JSON"},
      {"[]", "results.json: has no array 'benchmarks', as Google Benchmark's JSON has"},
      {R"({"benchmarks": 3})",
       "results.json: has no array 'benchmarks', as Google Benchmark's JSON has"},
      {file({"3"}), "results.json: a benchmark has no text 'run_name'"},
      {file({R"({"run_name": 3})"}), "results.json: a benchmark has no text 'run_name'"},
      {file({}), "results.json: holds no benchmark grid/n/... or grid/rows/..."},
      {file({measured("next/original/scan/cpu", 3)}),
       "results.json: holds no benchmark grid/n/... or grid/rows/..."},
      {file({R"({"run_name": "grid/n/4096/scan/cpu"})"}), number},
      {file({R"({"run_name": "grid/n/4096/scan/cpu", "median_us": "3"})"}), number},
      {file({measured("grid/n/4096/scan/cpu", 0)}), number},
      {file({measured("grid/n/4096/scan/cpu", -1)}), number},
      {file({measured("grid/n/4K/scan/cpu", 1)}), misnamed("grid/n/4K/scan/cpu")},
      {file({measured("grid/n/-8/scan/cpu", 1)}), misnamed("grid/n/-8/scan/cpu")},
      {file({measured("grid/n/99999999999999999999/a", 1)}),
       misnamed("grid/n/99999999999999999999/a")},
      {file({measured("grid/n/4096", 1)}), misnamed("grid/n/4096")},
      {file({measured("grid/n", 1)}), misnamed("grid/n")},
  };
  for (const auto& [text, line] : cases) {
    EXPECT_EQ(refusal([&text = text] { (void)read(text); }), line) << text;
  }
}

TEST(GridFigure, AnAxisThatWasNotMeasuredIsRefused) {
  const GridResults results =
      read(file({skipped("grid/n/4096/scan/cpu", "too large"), measured("empty_graph/cuda", 2)}));
  for (const char* axis : {"n", "rows"}) {
    EXPECT_EQ(refusal([&] { (void)draw_grid(results, axis, ""); }),
              std::string("no benchmark grid/") + axis + "/... was measured");
  }
}

}  // namespace
}  // namespace quarry::bench
