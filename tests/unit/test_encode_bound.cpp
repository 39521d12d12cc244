// SPDX-License-Identifier: Apache-2.0
//
// What tensor cores may be off by when keys are encoded: the proven bounds against sums as they
// form them, where there is no GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "encode/bound.h"
#include "half.h"

namespace quarry::cuda {
namespace {

// sum + a . b as the tensor cores form it from split bfloat16, `depth` terms at a time; double
// inside a step, rounded to float32 after it.
float split_product(const float* a, const float* b, int count, int depth, float sum = 0) {
  const auto high = [](float v) { return bfloat16_to_float(float_to_bfloat16(v)); };
  for (int first = 0; first < count; first += depth) {
    for (int pass = 0; pass < 3; ++pass) {
      double step = sum;
      for (int i = first; i < first + depth; ++i) {
        const float ah = high(a[i]), bh = high(b[i]);
        const double x = pass == 2 ? high(a[i] - ah) : ah, y = pass == 1 ? high(b[i] - bh) : bh;
        step += x * y;
      }
      sum = static_cast<float>(step);
    }
  }
  return sum;
}

// The difference of two centroids' distances, approximate and as the contract has them, may
// be off by as much as safe_gap() and no more; and it is not so wide that all are near ties.
TEST(CudaEncodeBound, CoversTheTensorCoresError) {
  constexpr int kDim = 128, kSub = 8, kBits = 4, kCentroids = 1 << kBits, kTrials = 400;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> columns(kSub * kDim), centroids(kCentroids * kSub), x(kDim);
  for (float& v : columns) v = normal(random) / std::sqrt(static_cast<float>(kDim));
  for (float& v : centroids) v = 0.8f * normal(random);
  double spread = 0;
  for (const float v : columns) spread += double{v} * v;
  Subspace of{0, static_cast<float>(std::sqrt(spread)), 0};
  for (int c = 0; c < kCentroids; ++c) {
    double norm = 0, lever = 0;
    for (int j = 0; j < kSub; ++j) {
      const double v = centroids[c * kSub + j];
      double column = 0;
      for (int i = 0; i < kDim; ++i)
        column += double{columns[j * kDim + i]} * columns[j * kDim + i];
      norm += v * v;
      lever += std::abs(v) * std::sqrt(column);
    }
    of.reach = std::max(of.reach, static_cast<float>(std::sqrt(norm)));
    of.lever = std::max(of.lever, static_cast<float>(lever));
  }
  ASSERT_LE(of.lever, of.reach * of.spread * 1.0001f);
  int ties = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    double whole = 0, part = 0;
    for (float& v : x) v = normal(random), whole += double{v} * v;
    float exact[kSub] = {}, split[kSub];
    for (int j = 0; j < kSub; ++j) {
      const float* column = columns.data() + j * kDim;
      for (int i = 0; i < kDim; ++i) exact[j] = std::fma(x[i], column[i], exact[j]);
      split[j] = split_product(x.data(), column, kDim, 16);
      part += double{split[j]} * split[j];
    }
    std::vector<double> error;
    std::vector<float> approximate;
    for (int c = 0; c < kCentroids; ++c) {
      const float* centroid = centroids.data() + c * kSub;
      float norm = 0, distance = 0, doubled[kSub];
      for (int j = 0; j < kSub; ++j) {
        norm = std::fma(centroid[j], centroid[j], norm);
        doubled[j] = -2 * centroid[j];
        distance = std::fma(exact[j] - centroid[j], exact[j] - centroid[j], distance);
      }
      // The low bits of the mantissa give way to the centroid's id.
      const float value = split_product(split, doubled, kSub, 8, norm);
      approximate.push_back(bits_to_float((float_to_bits(value) & ~(kCentroids - 1u)) |
                                          static_cast<std::uint32_t>(c)));
      error.push_back(double{value} - distance);
    }
    const float gap = safe_gap(kSub, rotation_loss(kDim) * static_cast<float>(std::sqrt(whole)),
                               static_cast<float>(std::sqrt(part)), of);
    const auto [least, most] = std::minmax_element(error.begin(), error.end());
    ASSERT_LE(*most - *least, gap);
    std::sort(approximate.begin(), approximate.end());
    const float ids = id_loss(kBits) * (std::abs(approximate[0]) + std::abs(approximate[1]));
    if (!(approximate[1] - approximate[0] > gap + ids)) ++ties;
  }
  EXPECT_LT(ties, kTrials / 10);
  // What may overflow is never proven.
  EXPECT_EQ(safe_gap(kSub, rotation_loss(kDim), 1e19f, of), INFINITY);
  EXPECT_EQ(safe_gap(kSub, rotation_loss(kDim), NAN, of), INFINITY);
}

// Keys multiplied as they are, the mean's product subtracted after: no coordinate is further
// from the contract's than raw_rotation_loss() says, however large the mean beside the residual.
TEST(CudaEncodeBound, CoversKeysMultipliedAsTheyAre) {
  constexpr int kDim = 128;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  const auto bfloat16 = [](float v) { return bfloat16_to_float(float_to_bfloat16(v)); };
  // sum + a . b, 16 terms at a time, as an mma truncates.
  const auto product = [](const std::vector<float>& a, const std::vector<float>& b, float sum) {
    for (int first = 0; first < kDim; first += 16) {
      double step = sum;
      for (std::size_t i = 0; i < 16; ++i) {
        const std::size_t at = static_cast<std::size_t>(first) + i;
        step += double{a[at]} * b[at];
      }
      sum = static_cast<float>(step);
      if (std::abs(double{sum}) > std::abs(step)) sum = std::nextafter(sum, 0.0f);
    }
    return sum;
  };
  double worst = 0;
  for (int trial = 0; trial < 2000; ++trial) {
    std::vector<float> key(kDim), mean(kDim), column(kDim), high(kDim), low(kDim);
    std::vector<float> parts[3] = {mean, mean, mean};
    const float scale = trial % 3 == 0 ? 0.1f : trial % 3 == 1 ? 1.0f : 20.0f;
    double key_norm = 0, mean_norm = 0, column_norm = 0;
    float exact = 0;
    for (std::size_t i = 0; i < kDim; ++i) {
      mean[i] = scale * normal(random);
      key[i] = bfloat16(mean[i] + normal(random));
      column[i] = normal(random);
      high[i] = bfloat16(column[i]), low[i] = bfloat16(column[i] - high[i]);
      parts[0][i] = bfloat16(mean[i]), parts[1][i] = bfloat16(mean[i] - parts[0][i]);
      parts[2][i] = bfloat16(mean[i] - parts[0][i] - parts[1][i]);
      const float residual = key[i] - mean[i];
      exact = std::fma(residual, column[i], exact);
      key_norm += double{key[i]} * key[i], mean_norm += double{mean[i]} * mean[i];
      column_norm += double{column[i]} * column[i];
    }
    float rotated_mean = 0;
    for (const std::vector<float>& part : parts) {
      rotated_mean += product(part, high, 0) + product(part, low, 0);
    }
    const float fast = product(key, high, product(key, low, 0)) - rotated_mean;
    const double norms = std::sqrt(key_norm) + std::sqrt(mean_norm);
    const double off = std::abs(double{fast} - exact) / (norms * std::sqrt(column_norm));
    worst = std::max(worst, off);
    ASSERT_LE(off, raw_rotation_loss(kDim));
  }
  EXPECT_GT(worst, raw_rotation_loss(kDim) / 1000);  // the bound is of the error's kind
  EXPECT_LT(raw_rotation_loss(kDim), rotation_loss(kDim) / 2);

  // Squares summed in bfloat16, two a step: at least what kRawNorm allows for.
  for (int trial = 0; trial < 2000; ++trial) {
    float sum = 0;
    double whole = 0;
    for (int i = 0; i < kDim / 8; ++i) {
      const float v = bfloat16(std::exp(normal(random)) * normal(random));
      sum = bfloat16(std::fma(v, v, sum));
      whole += double{v} * v;
    }
    ASSERT_GE(double{kRawNorm} * std::sqrt(double{sum}), 1.002 * std::sqrt(whole));
  }
}

// What bound.h says of a value's halves is so, and no less would do.
TEST(CudaEncodeBound, KnowsWhatHalvesLose) {
  const auto lost = [](float v) {
    const float high = bfloat16_to_float(float_to_bfloat16(v));
    const float low = bfloat16_to_float(float_to_bfloat16(v - high));
    return std::abs(double{v} - high - low) / v;
  };
  double most = 0;
  for (std::uint32_t mantissa = 0; mantissa < 1u << 23; ++mantissa) {
    most = std::max(most, lost(bits_to_float(0x3f800000u | mantissa)));
  }
  EXPECT_LE(most, double{kHalvesLoss});
  EXPECT_GT(most, 0.99 * kHalvesLoss);
}

// Rotated and compared as encode_columns_kernel does it: approximate distances differ from the
// contract's by no more than columns_gap() says, with means up to twenty times the residuals,
// rotations that stretch, sums truncated as an mma's; and the gap leaves few near ties.
TEST(CudaEncodeBound, CoversColumnsOfARotation) {
  constexpr int kDim = 128, kSub = 8, kCentroids = 16, kTrials = 300;
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  const auto bfloat16 = [](float v) { return bfloat16_to_float(float_to_bfloat16(v)); };
  // sum + a . b, 16 terms at a time, each cut off below 2u of the largest, as an mma truncates.
  const auto product = [](const float* a, const float* b, int count, float sum) {
    for (int first = 0; first < count; first += 16) {
      double most = std::abs(double{sum});
      for (int i = first; i < first + 16; ++i) {
        most = std::max(most, std::abs(double{a[i]} * b[i]));
      }
      if (most == 0) continue;
      const double grain = std::ldexp(1.0, std::ilogb(most) - 23);
      double step = std::trunc(sum / grain);
      for (int i = first; i < first + 16; ++i) step += std::trunc(double{a[i]} * b[i] / grain);
      const double whole = step * grain;
      sum = static_cast<float>(whole);
      if (std::abs(double{sum}) > std::abs(whole)) sum = std::nextafter(sum, 0.0f);
    }
    return sum;
  };
  const auto length = [](const float* v, int count) {
    double sum = 0;
    for (int i = 0; i < count; ++i) sum += double{v[i]} * v[i];
    return std::sqrt(sum);
  };
  for (const float mean_scale : {0.0f, 1.0f, 20.0f}) {
    for (const float stretch : {1.0f, 30.0f}) {
      // Columns of the rotation, and centroids, [8][128] and [16][8].
      std::vector<float> columns(kSub * kDim), high(kSub * kDim), low(kSub * kDim);
      std::vector<float> centroids(kCentroids * kSub), norms(kCentroids);
      for (int j = 0; j < kSub; ++j) {
        for (int i = 0; i < kDim; ++i) {
          const int at = j * kDim + i;
          columns[at] = normal(random) * (j == 0 ? stretch : 1) / std::sqrt(float{kDim});
          high[at] = bfloat16(columns[at]), low[at] = bfloat16(columns[at] - high[at]);
        }
      }
      ColumnsSubspace of{};
      double most = 0;
      for (int a = 0; a < kSub; ++a) {
        double across = 0;
        for (int b = 0; b < kSub; ++b) {
          double entry = 0;
          for (int i = 0; i < kDim; ++i) {
            entry += double{columns[a * kDim + i]} * columns[b * kDim + i];
          }
          across += std::abs(entry);
        }
        most = std::max(most, across);
      }
      of.stretch = static_cast<float>(std::sqrt(most));
      for (int c = 0; c < kCentroids; ++c) {
        for (int j = 0; j < kSub; ++j) {
          const float v = normal(random) * (j == 0 ? stretch : 1);
          centroids[c * kSub + j] = v;
          norms[c] = std::fma(v, v, norms[c]);
        }
        double lever = 0;
        for (int i = 0; i < kDim; ++i) {
          double sum = 0;
          for (int j = 0; j < kSub; ++j) {
            const int at = j * kDim + i;
            sum += std::abs(double{centroids[c * kSub + j]}) *
                   (double{columns_weight(kDim, i)} * std::abs(columns[at]) +
                    std::abs(double{columns[at]} - high[at] - low[at]));
          }
          lever += sum * sum;
        }
        of.lever = std::max(of.lever, static_cast<float>(std::sqrt(lever)));
        of.reach = std::max(of.reach, std::sqrt(norms[c]));
        double lost = 0;
        for (int j = 0; j < kSub; ++j) {
          const float v = 2 * centroids[c * kSub + j], h = bfloat16(v);
          const double rest = double{v} - h - bfloat16(v - h);
          lost += rest * rest;
        }
        of.lost = std::max(of.lost, static_cast<float>(std::sqrt(lost)));
      }
      const ColumnsGap gap_of = columns_gap(of);
      int ties = 0;
      double worst = 0;
      for (int trial = 0; trial < kTrials; ++trial) {
        std::vector<float> key(kDim), mean(kDim), parts[3] = {key, key, key};
        float exact[kSub] = {}, x[2 * kSub];
        for (int i = 0; i < kDim; ++i) {
          mean[i] = mean_scale * normal(random);
          key[i] = bfloat16(mean[i] + normal(random));
          parts[0][i] = bfloat16(mean[i]), parts[1][i] = bfloat16(mean[i] - parts[0][i]);
          parts[2][i] = bfloat16(mean[i] - parts[0][i] - parts[1][i]);
          for (int j = 0; j < kSub; ++j) {
            exact[j] = std::fma(key[i] - mean[i], columns[j * kDim + i], exact[j]);
          }
        }
        for (int j = 0; j < kSub; ++j) {
          const float *h = &high[j * kDim], *l = &low[j * kDim];
          const auto rotated = [&](const std::vector<float>& v) {
            return product(v.data(), h, kDim, product(v.data(), l, kDim, 0));
          };
          const float v =
              rotated(key) - (rotated(parts[0]) + rotated(parts[1]) + rotated(parts[2]));
          x[j] = bfloat16(v), x[kSub + j] = bfloat16(v - x[j]);
        }
        std::vector<float> approximate;
        std::vector<double> error;
        for (int c = 0; c < kCentroids; ++c) {
          float c_high[2 * kSub], c_low[2 * kSub], distance = 0;
          for (int j = 0; j < kSub; ++j) {
            const float v = centroids[c * kSub + j], diff = exact[j] - v;
            distance = std::fma(diff, diff, distance);
            c_high[j] = c_high[kSub + j] = bfloat16(-2 * v);
            c_low[j] = c_low[kSub + j] = bfloat16(-2 * v - c_high[j]);
          }
          approximate.push_back(
              product(x, c_low, 2 * kSub, product(x, c_high, 2 * kSub, norms[c])));
          error.push_back(double{approximate.back()} - distance);
        }
        const float n = static_cast<float>(length(key.data(), kDim) + length(mean.data(), kDim));
        const float gap = gap_of(n);
        ASSERT_LT(n, gap_of.most);
        const auto [least, largest] = std::minmax_element(error.begin(), error.end());
        ASSERT_LE(*largest - *least, gap);
        worst = std::max(worst, (*largest - *least) / gap);
        std::sort(approximate.begin(), approximate.end());
        if (!(approximate[1] - approximate[0] > gap)) ++ties;
      }
      EXPECT_GT(worst, 1e-4);  // the bound is of the error's kind
      if (mean_scale < 2 && stretch < 2) {
        EXPECT_LT(ties, kTrials / 40);
      }
      EXPECT_FALSE(gap_of(INFINITY) < INFINITY);
      EXPECT_LT(of.stretch * gap_of.most + of.reach, kMostReach * 1.0001f);
    }
  }
  // A subspace of which nothing can be proven: at any n.
  for (const float v : {NAN, INFINITY, 1e19f}) {
    for (const ColumnsSubspace& of :
         {ColumnsSubspace{v, 1, 1, 1}, {1, v, 1, 1}, {1, 1, v, 1}, {1, 1, 1, v}}) {
      EXPECT_FALSE(columns_gap(of)(0) < INFINITY);
      EXPECT_FALSE(columns_gap(of)(1) < INFINITY);
      EXPECT_FALSE(columns_gap(of)(INFINITY) < INFINITY);
      EXPECT_GT(columns_gap(of).most, 1e17f);  // the others' n is theirs to judge
    }
  }
}

}  // namespace
}  // namespace quarry::cuda
