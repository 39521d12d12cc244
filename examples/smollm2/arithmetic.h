// SPDX-License-Identifier: Apache-2.0
//
// The model's arithmetic, float32 on the CPU. Matrices are row-major.
#pragma once

#include <cstdint>
#include <vector>

namespace quarry::smollm2 {

/// A projection [out, in].
struct Matrix {
  std::vector<float> data;
  std::int64_t out = 0, in = 0;
};

/// y [rows, out] = x [rows, in] * w^T. Many rows are one matrix product; a few read the
/// weights once, split among the threads.
void project(const float* x, std::int64_t rows, const Matrix& w, float* y);

/// y [rows, width] = x / sqrt(mean(x^2) + eps) * weight.
void rms_norm(const float* x, std::int64_t rows, const std::vector<float>& weight, float eps,
              float* y);

/// gate = gate * sigmoid(gate) * up, `count` elements.
void swiglu(float* gate, const float* up, std::int64_t count);

/// Rotary position embedding (Su et al. 2021) of head vectors [heads, d] at one position,
/// elements i and d/2 + i a pair.
class RotaryTable {
 public:
  RotaryTable(std::int32_t positions, std::int32_t d, double base);
  void rotate(float* heads, std::int32_t count, std::int32_t position) const;

 private:
  std::int32_t d_;
  std::vector<float> cos_sin_;  // [positions, d / 2, 2]
};

/// What one query head attends with: d-vectors `stride` elements apart from position 0 on.
struct HeadCache {
  const float* keys = nullptr;
  const float* values = nullptr;
  std::int64_t stride = 0;
  std::int32_t d = 0;
};

/// Causal attention of `count` queries (stride q_stride) at positions first, first + 1, ...
/// over all positions up to their own; `scores` is scratch of count x (first + count).
void attend_dense(const HeadCache& cache, const float* q, std::int64_t q_stride, std::int32_t first,
                  std::int32_t count, float* scores, float* out, std::int64_t out_stride);

/// Attention of one query over the listed positions; `scores` is scratch of `length`.
void attend_list(const HeadCache& cache, const float* q, const std::int32_t* list,
                 std::int32_t length, float* scores, float* out);

/// scores [count, positions] = q.k, no scale.
void score_keys(const HeadCache& cache, const float* q, std::int64_t q_stride, std::int32_t count,
                std::int32_t positions, float* scores);

/// log(sum(exp(logits))) - logits[target], in double from the largest on.
double negative_log_likelihood(const float* logits, std::int64_t count, std::int64_t target);

}  // namespace quarry::smollm2
