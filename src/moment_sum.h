// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

// One thread alone: how a product is split must not depend on the machine.
#define EIGEN_DONT_PARALLELIZE
#include <Eigen/Dense>

#include "quarry/status.h"
#include "quarry/tensor.h"

namespace quarry {

struct HostVectors;

/// Sum of x x^T over vectors that come one by one, as products of kChunk of them.
class MomentSum {
 public:
  using Matrix = Eigen::MatrixXd;

  explicit MomentSum(std::int32_t d) : sum_(Matrix::Zero(d, d)), chunk_(d, kChunk) {}

  /// Where the next vector goes; it counts once push() is called.
  auto next() { return chunk_.col(filled_); }
  void push() {
    if (++filled_ == kChunk) flush();
  }

  /// The sum, whole; the next one starts at zero.
  Matrix take() {
    flush();
    Matrix out(sum_.selfadjointView<Eigen::Lower>());
    sum_.setZero();
    return out;
  }

 private:
  static constexpr std::int64_t kChunk = 512;

  void flush() {
    // An update by no columns divides by zero in Eigen 3.4.
    if (filled_ > 0) sum_.selfadjointView<Eigen::Lower>().rankUpdate(chunk_.leftCols(filled_));
    filled_ = 0;
  }

  Matrix sum_, chunk_;
  std::int64_t filled_ = 0;
};

/// Refuses vectors whose members do not fit `heads` of `d`; `name` says whose they are. `keys`:
/// they may be float8_e4m3.
Status check_vectors(const char* name, const HostVectors& v, std::int64_t heads, std::int64_t d,
                     bool keys = false);

}  // namespace quarry
