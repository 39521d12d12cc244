// SPDX-License-Identifier: Apache-2.0
#include "arithmetic.h"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>

namespace quarry::smollm2 {
namespace {

using Eigen::Index;
using Strided = Eigen::OuterStride<>;
using RowMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ConstRows = Eigen::Map<const RowMatrix, 0, Strided>;
using Rows = Eigen::Map<RowMatrix, 0, Strided>;
using ConstVector = Eigen::Map<const Eigen::VectorXf>;
using Vector = Eigen::Map<Eigen::VectorXf>;

ConstRows rows_of(const float* data, Index rows, Index columns, Index stride) {
  return {data, rows, columns, Strided(stride)};
}

/// Softmax numerators in place; their sum is returned.
float exponentials(float* scores, Index count, float scale) {
  Eigen::Map<Eigen::ArrayXf> s(scores, count);
  s = ((s - s.maxCoeff()) * scale).exp();
  return s.sum();
}

float scale_of(std::int32_t d) { return 1.0f / std::sqrt(static_cast<float>(d)); }

}  // namespace

void project(const float* x, std::int64_t rows, const Matrix& w, float* y) {
  constexpr std::int64_t kFew = 4;
  const ConstRows weights = rows_of(w.data.data(), w.out, w.in, w.in);
  if (rows > kFew) {
    Rows(y, rows, w.out, Strided(w.out)).noalias() =
        rows_of(x, rows, w.in, w.in) * weights.transpose();
    return;
  }
  constexpr std::int64_t kSlice = 64;
#pragma omp parallel for schedule(static)
  for (std::int64_t begin = 0; begin < w.out; begin += kSlice) {
    const std::int64_t count = std::min(kSlice, w.out - begin);
    for (std::int64_t r = 0; r < rows; ++r) {
      Vector(y + r * w.out + begin, count).noalias() =
          weights.middleRows(begin, count) * ConstVector(x + r * w.in, w.in);
    }
  }
}

void rms_norm(const float* x, std::int64_t rows, const std::vector<float>& weight, float eps,
              float* y) {
  const auto width = static_cast<std::int64_t>(weight.size());
  const Eigen::Map<const Eigen::ArrayXf> scale(weight.data(), width);
  for (std::int64_t r = 0; r < rows; ++r) {
    const Eigen::Map<const Eigen::ArrayXf> from(x + r * width, width);
    const float mean = from.square().mean();
    Eigen::Map<Eigen::ArrayXf>(y + r * width, width) =
        from * (1.0f / std::sqrt(mean + eps)) * scale;
  }
}

void swiglu(float* gate, const float* up, std::int64_t count) {
  Eigen::Map<Eigen::ArrayXf> g(gate, count);
  g = g / (1.0f + (-g).exp()) * Eigen::Map<const Eigen::ArrayXf>(up, count);
}

RotaryTable::RotaryTable(std::int32_t positions, std::int32_t d, double base) : d_(d) {
  cos_sin_.resize(static_cast<std::size_t>(positions) * static_cast<std::size_t>(d));
  float* to = cos_sin_.data();
  for (std::int32_t p = 0; p < positions; ++p) {
    for (std::int32_t i = 0; i < d; i += 2) {
      const double angle = p * std::pow(base, -static_cast<double>(i) / d);
      *to++ = static_cast<float>(std::cos(angle));
      *to++ = static_cast<float>(std::sin(angle));
    }
  }
}

void RotaryTable::rotate(float* heads, std::int32_t count, std::int32_t position) const {
  const float* table = cos_sin_.data() + std::int64_t{position} * d_;
  for (std::int32_t h = 0; h < count; ++h, heads += d_) {
    float* second = heads + d_ / 2;
    for (std::int32_t i = 0; i < d_ / 2; ++i) {
      const float cosine = table[2 * i], sine = table[2 * i + 1];
      const float a = heads[i], b = second[i];
      heads[i] = a * cosine - b * sine;
      second[i] = a * sine + b * cosine;
    }
  }
}

void attend_dense(const HeadCache& cache, const float* q, std::int64_t q_stride, std::int32_t first,
                  std::int32_t count, float* scores, float* out, std::int64_t out_stride) {
  const std::int32_t last = first + count;
  score_keys(cache, q, q_stride, count, last, scores);
  Rows output(out, count, cache.d, Strided(out_stride));
  for (std::int32_t t = 0; t < count; ++t) {
    float* row = scores + std::int64_t{t} * last;
    const std::int32_t visible = first + t + 1;
    const float sum = exponentials(row, visible, scale_of(cache.d));
    Vector(row, visible) /= sum;
    std::fill(row + visible, row + last, 0.0f);
  }
  output.noalias() =
      rows_of(scores, count, last, last) * rows_of(cache.values, last, cache.d, cache.stride);
}

void attend_list(const HeadCache& cache, const float* q, const std::int32_t* list,
                 std::int32_t length, float* scores, float* out) {
  const ConstVector query(q, cache.d);
  Vector output(out, cache.d);
  output.setZero();
  if (length == 0) return;
  for (std::int32_t i = 0; i < length; ++i) {
    scores[i] = ConstVector(cache.keys + list[i] * cache.stride, cache.d).dot(query);
  }
  const float sum = exponentials(scores, length, scale_of(cache.d));
  for (std::int32_t i = 0; i < length; ++i) {
    output += scores[i] / sum * ConstVector(cache.values + list[i] * cache.stride, cache.d);
  }
}

void score_keys(const HeadCache& cache, const float* q, std::int64_t q_stride, std::int32_t count,
                std::int32_t positions, float* scores) {
  Rows(scores, count, positions, Strided(positions)).noalias() =
      rows_of(q, count, cache.d, q_stride) *
      rows_of(cache.keys, positions, cache.d, cache.stride).transpose();
}

double negative_log_likelihood(const float* logits, std::int64_t count, std::int64_t target) {
  const Eigen::Map<const Eigen::ArrayXf> l(logits, count);
  const float largest = l.maxCoeff();
  constexpr std::int64_t kPart = 1024;  // summed in float32, the parts in float64
  double sum = 0;
  for (std::int64_t i = 0; i < count; i += kPart) {
    const std::int64_t part = std::min(kPart, count - i);
    sum += static_cast<double>((l.segment(i, part) - largest).exp().sum());
  }
  return std::log(sum) + static_cast<double>(largest) - static_cast<double>(logits[target]);
}

}  // namespace quarry::smollm2
