// SPDX-License-Identifier: Apache-2.0
//
// The stages of stats(): sample, exact, recall, drift. Sums are float64 in ascending position,
// so they do not depend on the number of threads.
#include <algorithm>
#include <cmath>

#include "cpu/simd.h"
#include "cpu/stages.h"
#include "cpu/vectors.h"
#include "stats_math.h"

namespace quarry::cpu {
namespace {

/// As stage encode finds it: a sequence with a bad page is in error.
SequenceState state_of(const SampleParams& p, std::int32_t b) {
  SequenceState st = sequence_state(p.index, p.step, b);
  if (st.slot < 0) return st;
  std::int32_t most = st.n;
  for (std::int32_t t = 0; t < st.count; ++t) {
    std::uint32_t bits = 0;
    most = std::max(most, row_state(p.index, p.step, st, b, t, &bits).n);
    st.bits |= bits;
  }
  const std::int32_t* table = block_table_row(p.step, b);
  for (std::int32_t position = 0; table != nullptr && position < most;
       position += p.index.page_size) {
    if (page_of(p.index, table, st.slot, position) < 0) {
      st.bits = kPageOutOfRange;
      st.slot = -1;
      break;
    }
  }
  return st;
}

struct ErrorSums {
  double error = 0, norm = 0;
  std::int32_t keys = 0;
};

/// One KV head of one sequence.
class Measure {
 public:
  Measure(const DriftParams& p, std::int32_t b, std::int32_t head)
      : ix_(p.index),
        slot_(p.step.states[b].slot),
        book_(std::int64_t{codebook_of(p.index, slot_)} * p.index.num_kv_heads + head),
        source_{p.index,
                p.keys,
                block_table_row(p.step, b),
                slot_,
                head,
                p.index.rotation == nullptr
                    ? nullptr
                    : p.index.rotation + book_ * p.index.head_dim * p.index.head_dim} {}

  void add(std::int32_t position) {
    alignas(64) float x[kMaxHeadDim];
    if (ix_.block_size > 0 && position / ix_.block_size != mean_block_) {
      mean_block_ = position / ix_.block_size;
      const std::int32_t last = (mean_block_ + 1) * ix_.block_size - 1;
      widen(ix_.means, ix_.mean_dtype, 1.0f, mean_offset(ix_, page(last), source_.head, last),
            ix_.head_dim, nullptr, mean_);
    }
    load_vectors(source_, position, 1, ix_.block_size > 0 ? mean_ : nullptr, x);
    double error = 0, norm = 0;
    for (std::int32_t s = 0; s < ix_.num_subspaces; ++s) {
      const std::int32_t code =
          stored_code(ix_, page(position), source_.head, position % ix_.page_size, s);
      const float* centroid =
          ix_.codebooks + (book_ * ix_.num_subspaces + s) * ix_.dcent * ix_.ksub + code;
      for (std::int32_t j = 0; j < ix_.dsub; ++j) {
        const double v = x[s * ix_.dsub + j];
        const double difference = v - static_cast<double>(centroid[j * ix_.ksub]);
        error += difference * difference;
        norm += v * v;
      }
    }
    if (!std::isfinite(norm)) return;  // of float32 values: one of them is not
    sums.error += error;
    sums.norm += norm;
    ++sums.keys;
  }

  ErrorSums sums;

 private:
  std::int64_t page(std::int32_t position) const {
    return page_of(ix_, source_.table, slot_, position);
  }

  const IndexView& ix_;
  std::int32_t slot_;
  std::int64_t book_;
  KeySource source_;
  std::int32_t mean_block_ = -1;
  alignas(64) float mean_[kMaxHeadDim];
};

}  // namespace

Status sample(const SampleParams& p, const Launch& launch) noexcept {
  (void)launch;  // a few instructions a row
  for (std::int32_t b = 0; b < p.step.batch_size; ++b) {
    p.step.states[b] = state_of(p, b);
    if (p.step.device_status != nullptr) p.step.device_status[b] |= p.step.states[b].bits;
  }
  if (p.num_samples == 0) return Status();
  const std::int32_t phase =
      sample_phase(p.every, p.offset, p.counter == nullptr ? 0u : *p.counter);
  if (p.counter != nullptr) ++*p.counter;
  for (std::int32_t i = 0; i < p.num_samples; ++i) {
    const std::int32_t row = sample_at(p, i, phase);
    p.sampled[i] = row;
    p.rows[i] = {RowKind::empty, 0, 0, 0};
    if (row < 0) continue;
    const SampledRow at = sampled_row(row, p.step.query_tokens, p.index.num_query_heads);
    std::uint32_t ignored = 0;
    p.rows[i] = row_state(p.index, p.step, p.step.states[at.b], at.b, at.t, &ignored);
  }
  return Status();
}

Status exact(const ExactParams& p, const Launch& launch) noexcept {
  constexpr std::int32_t kChunk = 64, kRun = 4096;
  const IndexView& ix = p.index;
  const std::int64_t runs = (ix.max_seq_len + kRun - 1) / kRun;
  const std::int64_t tasks = runs * p.num_samples;
#pragma omp parallel for schedule(dynamic, 1) num_threads(launch.num_threads)
  for (std::int64_t task = 0; task < tasks; ++task) {
    const std::int64_t i = task / runs;
    const RowState& row = p.rows[i];
    const std::int64_t start = std::int64_t{row.first} + task % runs * kRun;
    if (row.kind != RowKind::sparse || start >= row.end) continue;
    const auto end = static_cast<std::int32_t>(std::min<std::int64_t>(start + kRun, row.end));
    const SampledRow at = sampled_row(p.sampled[i], p.step.query_tokens, ix.num_query_heads);
    alignas(64) float q[kMaxHeadDim];
    widen(p.queries.data, p.queries.dtype, 1.0f,
          at.b * p.queries.batch_stride + at.t * p.queries.token_stride +
              at.head * p.queries.head_stride,
          ix.head_dim, nullptr, q);
    const std::int32_t* table = block_table_row(p.step, at.b);
    float* scores = p.scores + i * p.score_stride;
    const float scale = key_scale(p.keys, at.head / ix.group_size);
    std::int64_t offsets[kChunk];
    for (auto first = static_cast<std::int32_t>(start); first < end; first += kChunk) {
      const std::int32_t count = std::min(kChunk, end - first);
      for (std::int32_t k = 0; k < count; ++k) {
        const std::int64_t page = page_of(ix, table, p.step.states[at.b].slot, first + k);
        offsets[k] = key_offset(ix, p.keys, page, at.head / ix.group_size, first + k);
      }
      dots(q, p.keys.data, p.keys.dtype, scale, offsets, count, ix.head_dim, scores + first);
    }
  }
  return Status();
}

Status recall(const RecallParams& p, const Launch& launch) noexcept {
  (void)launch;  // K binary searches a row
  for (std::int32_t i = 0; i < p.num_samples; ++i) {
    const std::int32_t row = p.sampled[i], count = p.selected_counts[i];
    std::int32_t found = 0;
    if (row >= 0 && count > 0) {
      const std::int64_t at = list_row(p, row);
      const std::int32_t length = readable_length(p, at);
      for (std::int32_t k = 0; k < count; ++k) {
        const std::int32_t position = p.selected[std::int64_t{i} * p.k + k];
        found += lists(p.indices + at * p.index_stride, length, position) ? 1 : 0;
      }
    }
    p.recall[i] = recall_stats(row, count, found);
  }
  return Status();
}

Status drift(const DriftParams& p, const Launch& launch) noexcept {
  const IndexView& ix = p.index;
  const std::int64_t tasks = std::int64_t{p.step.batch_size} * ix.num_kv_heads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(launch.num_threads)
  for (std::int64_t task = 0; task < tasks; ++task) {
    const auto b = static_cast<std::int32_t>(task / ix.num_kv_heads);
    const auto head = static_cast<std::int32_t>(task % ix.num_kv_heads);
    const SequenceState& st = p.step.states[b];
    const KeySpan span = measured_keys(p, st);
    float* baseline = span.count == 0 ? nullptr : baseline_of(ix, st.slot, head);
    if (p.drift == nullptr && (baseline == nullptr || *baseline >= 0.0f)) continue;
    ErrorSums sums;
    if (span.count > 0) {
      Measure measure(p, b, head);
      for (std::int32_t i = 0; i < span.count; ++i) measure.add(span.position(i));
      sums = measure.sums;
    }
    const float known = baseline == nullptr ? 0.0f : *baseline;
    const DriftStats result = drift_stats(sums.error, sums.norm, sums.keys, known);
    if (p.drift != nullptr) {
      p.drift[task] = result;
    } else {
      *baseline = known_baseline(result.error);
    }
  }
  return Status();
}

}  // namespace quarry::cpu
