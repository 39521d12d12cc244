// SPDX-License-Identifier: Apache-2.0
//
// Stage select alone, against a full sort, on scores that break approximate selections.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "backend.h"
#include "support/backends.h"
#include "support/random.h"

namespace quarry::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

enum class Shape {
  random,
  sorted,
  reversed,
  two_valued,
  tied,
  nan,
  mostly_nan,
  infinities,
  narrow,
  zeros,
  blocks
};
constexpr Shape kShapes[] = {Shape::random, Shape::sorted, Shape::reversed,   Shape::two_valued,
                             Shape::tied,   Shape::nan,    Shape::mostly_nan, Shape::infinities,
                             Shape::narrow, Shape::zeros,  Shape::blocks};

float value(Shape shape, int i, int n, Random& random) {
  const float x = static_cast<float>(random.normal());
  switch (shape) {
    case Shape::random:
      return x;
    case Shape::sorted:
      return static_cast<float>(i) / 7;
    case Shape::reversed:
      return static_cast<float>(n - i) / 7;
    case Shape::two_valued:
      return random.integer(0, 1) == 0 ? -1.5f : 2.5f;
    case Shape::tied:
      return -3.0f;
    case Shape::nan:
      return random.integer(0, 9) == 0 ? std::nanf("") : x;
    case Shape::mostly_nan:
      return random.integer(0, 99) == 0 ? x : -std::nanf("");
    case Shape::infinities:
      return random.integer(0, 2) == 0 ? kInf : random.integer(0, 1) == 0 ? -kInf : x;
    // Equal in all but the lowest mantissa bits, so that the first radix digits all tie.
    case Shape::narrow:
      return 1.0f + static_cast<float>(random.integer(0, 40)) * 0x1p-23f;
    case Shape::zeros:
      return random.integer(0, 20) == 0 ? 1.0f : random.integer(0, 1) == 0 ? -0.0f : 0.0f;
    case Shape::blocks:
      return static_cast<float>((i / 1000) % 3) + (i % 5 == 0 ? x * 1e-6f : 0);
  }
  return 0;
}

/// The contract by a stable full sort.
std::vector<std::int32_t> best(const std::vector<float>& scores, int first, int end, int k) {
  std::vector<std::int32_t> order(std::max(end - first, 0));
  std::iota(order.begin(), order.end(), first);
  auto better = [&](int a, int b) {
    const bool nan_a = std::isnan(scores[a]), nan_b = std::isnan(scores[b]);
    if (nan_a || nan_b) return !nan_a && nan_b;
    return scores[a] > scores[b];
  };
  std::stable_sort(order.begin(), order.end(), better);
  order.resize(std::min<std::size_t>(order.size(), k));
  std::sort(order.begin(), order.end());
  return order;
}

struct Problem {
  int rows, n, k, threads = 2;
};

class Select : public BackendTest {
 protected:
  const Stages& stages() const { return *stages_of(GetParam()); }
  Launch launch(int threads) const {
    Launch l;
    EXPECT_TRUE(stages().open(0, threads, &l).ok());
    l.stream = stream_.get();
    return l;
  }
  StreamHandle stream_{GetParam()};
};

TEST_P(Select, AgreesWithAFullSort) {
  const Problem problems[] = {{1, 1, 1},         {3, 40, 1},       {5, 100, 100},  {4, 100, 128},
                              {2, 1000, 999},    {7, 2053, 128},   {1, 70000, 64}, {2, 20000, 8192},
                              {1, 200001, 8192}, {1, 200001, 300}, {33, 700, 24}};
  int seed = 0;
  for (const Problem& p : problems) {
    for (const Shape shape : kShapes) {
      Random random(++seed);
      const std::int64_t stride = p.n + 13;
      // What is no candidate must not matter: it scores best.
      std::vector<float> scores(p.rows * stride, kInf);
      std::vector<RowState> rows(p.rows);
      std::vector<std::vector<std::int32_t>> want(p.rows);
      for (int r = 0; r < p.rows; ++r) {
        RowState& row = rows[r];
        row.kind = RowKind::sparse;
        row.first = r == 0 ? 0 : random.integer(0, p.n / 3);
        row.end = r == 0 ? p.n : random.integer(row.first, p.n);
        row.n = p.n;
        if (r % 5 == 4)
          row.kind = static_cast<RowKind>(random.integer(0, 1) * 3);  // empty, not_built
        std::vector<float> own(p.n, kInf);
        for (int i = row.first; i < row.end; ++i) {
          own[i] = scores[r * stride + i] = value(shape, i, p.n, random);
        }
        if (row.kind == RowKind::sparse) want[r] = best(own, row.first, row.end, p.k);
      }
      const Backend backend = GetParam();
      DeviceBuffer<float> device_scores(backend, scores);
      DeviceBuffer<RowState> device_rows(backend, rows);
      DeviceBuffer<std::int32_t> selected(backend, static_cast<std::size_t>(p.rows) * p.k);
      DeviceBuffer<std::int32_t> counts(backend, p.rows);
      DeviceBytes scratch(backend, stages().select_scratch_bytes(p.rows, p.k, p.n));
      for (const int threads : {1, 2, 3}) {
        selected.fill(0x5b);
        counts.fill(0x5b);
        scratch.fill(0xff);
        SelectParams params{};
        params.num_rows = p.rows;
        params.k = p.k;
        params.rows = device_rows.data();
        params.scores = device_scores.data();
        params.score_stride = stride;
        params.max_candidates = p.n;
        params.selected = selected.data();
        params.selected_counts = counts.data();
        params.backend_scratch = scratch.data();
        ASSERT_TRUE(stages().select(params, launch(threads)).ok());
        stream_.synchronize();
        const std::vector<std::int32_t> got = selected.download(), got_counts = counts.download();
        for (int r = 0; r < p.rows; ++r) {
          ASSERT_EQ(got_counts[r], static_cast<int>(want[r].size()))
              << "n " << p.n << " k " << p.k << " shape " << static_cast<int>(shape) << " row "
              << r;
          const std::vector<std::int32_t> list(
              got.begin() + static_cast<std::ptrdiff_t>(r) * p.k,
              got.begin() + static_cast<std::ptrdiff_t>(r) * p.k + got_counts[r]);
          ASSERT_TRUE(list == want[r]) << "n " << p.n << " k " << p.k << " shape "
                                       << static_cast<int>(shape) << " row " << r;
        }
        if (backend == Backend::cuda) break;  // has no threads
      }
    }
  }
}

TEST_P(Select, AfterRefineChoosesFromTheShortlist) {
  const Backend backend = GetParam();
  for (const Shape shape : kShapes) {
    for (const int k : {1, 16, 50, 300}) {
      Random random(static_cast<std::uint64_t>(k) * 100 + static_cast<int>(shape));
      const int rows = 6, stride = 256;
      std::vector<float> scores(rows * stride, kInf);
      std::vector<std::int32_t> shortlist(rows * stride, -7), counts(rows);
      std::vector<std::vector<std::int32_t>> want(rows);
      for (int r = 0; r < rows; ++r) {
        counts[r] = r == 0 ? stride : r == 1 ? 0 : random.integer(1, stride);
        int position = 0;
        std::vector<float> own(counts[r]);
        for (int i = 0; i < counts[r]; ++i) {
          shortlist[r * stride + i] = position += random.integer(1, 9);
          own[i] = scores[r * stride + i] = value(shape, i, counts[r], random);
        }
        for (const int i : best(own, 0, counts[r], k)) want[r].push_back(shortlist[r * stride + i]);
      }
      DeviceBuffer<float> device_scores(backend, scores);
      DeviceBuffer<std::int32_t> device_shortlist(backend, shortlist),
          device_counts(backend, counts);
      DeviceBuffer<RowState> device_rows(
          backend, std::vector<RowState>(rows, RowState{RowKind::sparse, 4000, 0, 3000}));
      DeviceBuffer<std::int32_t> selected(backend, static_cast<std::size_t>(rows) * k),
          selected_counts(backend, rows);
      DeviceBytes scratch(backend, stages().select_scratch_bytes(rows, k, stride));
      scratch.fill(0xff);
      SelectParams params{};
      params.num_rows = rows;
      params.k = k;
      params.rows = device_rows.data();
      params.scores = device_scores.data();
      params.score_stride = stride;
      params.max_candidates = stride;
      params.shortlist = device_shortlist.data();
      params.shortlist_counts = device_counts.data();
      params.shortlist_stride = stride;
      params.selected = selected.data();
      params.selected_counts = selected_counts.data();
      params.backend_scratch = scratch.data();
      ASSERT_TRUE(stages().select(params, launch(2)).ok());
      stream_.synchronize();
      const auto got = selected.download(), got_counts = selected_counts.download();
      for (int r = 0; r < rows; ++r) {
        ASSERT_EQ(got_counts[r], static_cast<int>(want[r].size()));
        const std::vector<std::int32_t> list(got.begin() + r * k,
                                             got.begin() + r * k + got_counts[r]);
        ASSERT_TRUE(list == want[r])
            << "k " << k << " shape " << static_cast<int>(shape) << " row " << r;
      }
    }
  }
}

QUARRY_ON_EVERY_BACKEND(Select);

}  // namespace
}  // namespace quarry::test
