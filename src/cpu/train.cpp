// SPDX-License-Identifier: Apache-2.0
//
// Stage train: k-means (Lloyd) a KV head and subspace, seeded by Philox. Sums run in a fixed
// order whatever the threads, so the codebook's bytes depend on keys and seed alone.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/nearest.h"
#include "cpu/simd.h"
#include "cpu/stages.h"
#include "cpu/vectors.h"
#include "half.h"
#include "philox.h"

namespace quarry::cpu {
namespace {

/// The CPU's own scratch, carved from backend_scratch.
struct Scratch {
  double* sums;          ///< [Hkv * m][ksub][dcent]
  std::uint8_t* finite;  ///< [Hkv][max_seq_len]: the vector of position encode_from + i

  Scratch(const IndexView& ix, void* memory)
      : sums(static_cast<double*>(memory)),
        finite(static_cast<std::uint8_t*>(memory) + sum_bytes(ix)) {}

  static std::size_t sum_bytes(const IndexView& ix) {
    return sizeof(double) * static_cast<std::size_t>(ix.num_kv_heads) *
           static_cast<std::size_t>(ix.num_subspaces) * static_cast<std::size_t>(ix.ksub) *
           static_cast<std::size_t>(ix.dcent);
  }
};

/// The positions that are encoded, cut into groups of at most keys_per_group() of one block.
struct Groups {
  const IndexView& ix;
  std::int32_t end;

  explicit Groups(const TrainParams& p)
      : ix(p.index),
        end(p.index.block_size > 0 ? p.step.fixed_length / p.index.block_size * p.index.block_size
                                   : p.step.fixed_length) {}

  /// A run shares one mean: a block, or kRun positions.
  static constexpr std::int32_t kRun = 256;
  std::int32_t run_size() const { return ix.block_size > 0 ? ix.block_size : kRun; }
  std::int32_t first_run() const { return ix.encode_from / run_size(); }
  std::int32_t end_run() const { return (end + run_size() - 1) / run_size(); }
};

/// body(first, count, vectors [count][d]) for each group of run `run`.
template <typename Body>
void for_each_group(const Groups& groups, const KeySource& source, std::int32_t run,
                    const Body& body) {
  const IndexView& ix = groups.ix;
  const std::int32_t first = std::max(run * groups.run_size(), ix.encode_from);
  const std::int32_t end = std::min((run + 1) * groups.run_size(), groups.end);
  alignas(64) float vectors[kGroupFloats];
  alignas(64) float sum[kMaxHeadDim];
  alignas(64) float stored[kMaxHeadDim];  // the mean as mean_dtype holds it, widened
  if (ix.block_size > 0) {
    block_mean(source, run, sum);
    for (std::int32_t i = 0; i < ix.head_dim; ++i) {
      store_element(stored, ix.mean_dtype, i, sum[i]);
    }
    widen(stored, ix.mean_dtype, 1.0f, 0, ix.head_dim, nullptr, sum);
  }
  const std::int32_t group = keys_per_group(ix);
  for (std::int32_t p = first; p < end; p += group) {
    const std::int32_t count = std::min(group, end - p);
    if (!body.wanted(p, count)) continue;
    load_vectors(source, p, count, ix.block_size > 0 ? sum : nullptr, vectors);
    body(p, count, vectors);
  }
}

/// First pass: which vectors are finite, and the largest |x|^2 of each subspace.
struct Survey {
  const IndexView& ix;
  std::uint8_t* finite;  ///< of this head
  float* phi;            ///< [m], this thread's

  bool wanted(std::int32_t, std::int32_t) const { return true; }
  void operator()(std::int32_t first, std::int32_t count, const float* vectors) const {
    const std::int32_t d = ix.head_dim;
    for (std::int32_t i = 0; i < count; ++i) {
      // x - x is 0, or NaN where x is not finite.
      float zero = 0.0f;
      for (std::int32_t j = 0; j < d; ++j) zero += vectors[i * d + j] - vectors[i * d + j];
      finite[first + i - ix.encode_from] = zero == 0.0f ? 1 : 0;
    }
    if (ix.metric != Metric::inner_product) return;
    for (std::int32_t s = 0; s < ix.num_subspaces; ++s) {
      float squares[kGroup];
      norms(vectors + s * ix.dsub, count, d, ix.dsub, squares);
      for (std::int32_t i = 0; i < count; ++i) {
        if (finite[first + i - ix.encode_from] != 0) phi[s] = std::max(phi[s], squares[i]);
      }
    }
  }
};

/// Second pass: the sampled vectors, [m][max_samples][dcent] of this head.
struct Gather {
  const TrainParams& p;
  std::int32_t head, num_samples;

  const std::int32_t* positions() const {
    return p.sample_positions + std::int64_t{head} * p.max_samples;
  }
  std::int32_t rank(std::int32_t position) const {
    return static_cast<std::int32_t>(
        std::lower_bound(positions(), positions() + num_samples, position) - positions());
  }
  bool wanted(std::int32_t first, std::int32_t count) const {
    const std::int32_t r = rank(first);
    return r < num_samples && positions()[r] < first + count;
  }
  void operator()(std::int32_t first, std::int32_t count, const float* vectors) const {
    const IndexView& ix = p.index;
    alignas(64) float augmented[kGroupFloats + kGroup];
    const std::int32_t from = rank(first);
    for (std::int32_t s = 0; s < ix.num_subspaces; ++s) {
      const std::int64_t problem = std::int64_t{head} * ix.num_subspaces + s;
      std::int64_t stride = 0;
      const float* x =
          subvectors(ix, vectors, count, s, p.trained_phi[problem], augmented, &stride);
      float* out = p.samples + problem * p.max_samples * ix.dcent;
      for (std::int32_t r = from; r < num_samples && positions()[r] < first + count; ++r) {
        std::memcpy(out + std::int64_t{r} * ix.dcent, x + (positions()[r] - first) * stride,
                    sizeof(float) * static_cast<std::size_t>(ix.dcent));
      }
    }
  }
};

/// ksub distinct samples become the first centroids.
void seed_centroids(const TrainParams& p, std::int32_t head, std::int32_t s,
                    std::int32_t num_samples) {
  const IndexView& ix = p.index;
  const std::int64_t problem = std::int64_t{head} * ix.num_subspaces + s;
  const float* samples = p.samples + problem * p.max_samples * ix.dcent;
  float* centroids = p.centroids + problem * ix.dcent * ix.ksub;
  std::int32_t chosen[256];
  std::uint32_t draw = 0;
  for (std::int32_t c = 0; c < ix.ksub; ++c) {
    do {
      chosen[c] = philox_index(p.seed, draw++, s, head, num_samples);
    } while (std::find(chosen, chosen + c, chosen[c]) != chosen + c);
    for (std::int32_t j = 0; j < ix.dcent; ++j) {
      centroids[j * ix.ksub + c] = samples[std::int64_t{chosen[c]} * ix.dcent + j];
    }
  }
}

/// New centroids from the assignment; an empty cluster takes the farthest sample left.
void update_centroids(const TrainParams& p, double* sums, std::int64_t problem,
                      std::int32_t num_samples) {
  const IndexView& ix = p.index;
  const float* samples = p.samples + problem * p.max_samples * ix.dcent;
  const std::uint8_t* assignment = p.assignment + problem * p.max_samples;
  float* distances = p.distances + problem * p.max_samples;
  float* centroids = p.centroids + problem * ix.dcent * ix.ksub;
  std::int32_t counts[256] = {};
  std::fill_n(sums, std::int64_t{ix.ksub} * ix.dcent, 0.0);
  sum_clusters(samples, num_samples, ix.dcent, assignment, sums, counts);
  for (std::int32_t c = 0; c < ix.ksub; ++c) {
    if (counts[c] > 0) {
      for (std::int32_t j = 0; j < ix.dcent; ++j) {
        centroids[j * ix.ksub + c] =
            static_cast<float>(sums[std::int64_t{c} * ix.dcent + j] / counts[c]);
      }
      continue;
    }
    // Samples are in ascending position, so the first of the farthest is the lowest one.
    std::int32_t far = 0;
    for (std::int32_t i = 1; i < num_samples; ++i) {
      if (distances[i] > distances[far]) far = i;
    }
    distances[far] = -1.0f;
    for (std::int32_t j = 0; j < ix.dcent; ++j) {
      centroids[j * ix.ksub + c] = samples[std::int64_t{far} * ix.dcent + j];
    }
  }
}

/// Positions floor(i * count / kept) of the finite ones, ascending; how many.
std::int32_t choose_samples(const TrainParams& p, const std::uint8_t* finite, std::int32_t head) {
  const std::int64_t count = p.finite_counts[head];
  const std::int64_t kept = std::min<std::int64_t>(count, p.max_samples);
  std::int32_t* positions = p.sample_positions + std::int64_t{head} * p.max_samples;
  std::int64_t index = 0, taken = 0;  // of the finite ones
  for (std::int32_t i = 0; taken < kept; ++i) {
    if (finite[i] == 0) continue;
    if (index++ == taken * count / kept) positions[taken++] = p.index.encode_from + i;
  }
  return static_cast<std::int32_t>(kept);
}

}  // namespace

std::size_t train_scratch_bytes(const IndexView& index, std::int32_t max_samples) noexcept {
  (void)max_samples;
  return Scratch::sum_bytes(index) +
         static_cast<std::size_t>(index.num_kv_heads) * static_cast<std::size_t>(index.max_seq_len);
}

Status train(const TrainParams& p, const Launch& launch) noexcept {
  const IndexView& ix = p.index;
  const std::int32_t slot = p.step.fixed_slot, heads = ix.num_kv_heads, m = ix.num_subspaces;
  if (p.keep_codebook && ix.has_codebook[slot] != 0) return Status();
  const std::int32_t* table = block_table_row(p.step, 0);
  const Scratch scratch(ix, p.backend_scratch);
  const Groups groups(p);
  const std::int64_t problems = std::int64_t{heads} * m;
  const std::int64_t square = std::int64_t{ix.head_dim} * ix.head_dim;
  const std::int64_t book = codebook_of(ix, slot);
  const auto source_of = [&](std::int32_t head) {
    const float* rotation =
        ix.rotation == nullptr ? nullptr : ix.rotation + (book * heads + head) * square;
    return KeySource{ix, p.keys, table, slot, head, rotation};
  };
  const auto finite_of = [&](std::int32_t head) {
    return scratch.finite + std::int64_t{head} * ix.max_seq_len;
  };
  for (std::int32_t p0 = 0; table != nullptr && p0 < p.step.fixed_length; p0 += ix.page_size) {
    if (page_of(ix, table, slot, p0) >= 0) continue;
    if (p.step.device_status != nullptr) p.step.device_status[0] |= kPageOutOfRange;
    return Status(StatusCode::out_of_range, "block_table[%d] is outside 0 .. %lld",
                  p0 / ix.page_size, static_cast<long long>(ix.num_pages - 1));
  }

  const std::int32_t first_run = groups.first_run();
  const std::int32_t runs = std::max(groups.end_run() - first_run, 0);
  const std::int64_t tasks = std::int64_t{heads} * runs;
  const std::int32_t positions = std::max(groups.end - ix.encode_from, 0);
  std::fill_n(p.trained_phi, problems, 0.0f);
#pragma omp parallel num_threads(launch.num_threads)
  {
#pragma omp for schedule(dynamic, 4)
    for (std::int64_t task = 0; task < tasks; ++task) {
      const auto head = static_cast<std::int32_t>(task % heads);  // side by side in the cache
      float phi[64] = {};                                         // m <= 64
      for_each_group(groups, source_of(head), first_run + static_cast<std::int32_t>(task / heads),
                     Survey{ix, finite_of(head), phi});
      if (ix.metric != Metric::inner_product) continue;
#pragma omp critical(quarry_cpu_train_phi)
      for (std::int32_t s = 0; s < m; ++s) {
        float& most = p.trained_phi[std::int64_t{head} * m + s];
        most = std::max(most, phi[s]);
      }
    }
#pragma omp for schedule(static)
    for (std::int32_t head = 0; head < heads; ++head) {
      const std::uint8_t* finite = finite_of(head);
      p.finite_counts[head] =
          static_cast<std::int32_t>(std::count(finite, finite + positions, std::uint8_t{1}));
    }
  }
  for (std::int32_t head = 0; head < heads; ++head) {
    if (p.finite_counts[head] >= ix.ksub) continue;
    return Status(StatusCode::too_few_keys,
                  "KV head %d has %d finite keys to train on, fewer than ksub = %d", head,
                  p.finite_counts[head], ix.ksub);
  }
  const auto samples_of = [&](std::int32_t head) {
    return std::min(p.finite_counts[head], p.max_samples);
  };

  constexpr std::int32_t kPart = 1024;  // samples assigned together
  const std::int32_t parts = (p.max_samples + kPart - 1) / kPart;
#pragma omp parallel num_threads(launch.num_threads)
  {
#pragma omp for schedule(static)
    for (std::int32_t head = 0; head < heads; ++head) choose_samples(p, finite_of(head), head);
#pragma omp for schedule(dynamic, 4)
    for (std::int64_t task = 0; task < tasks; ++task) {
      const auto head = static_cast<std::int32_t>(task % heads);  // side by side in the cache
      for_each_group(groups, source_of(head), first_run + static_cast<std::int32_t>(task / heads),
                     Gather{p, head, samples_of(head)});
    }
#pragma omp for schedule(static)
    for (std::int64_t problem = 0; problem < problems; ++problem) {
      const auto head = static_cast<std::int32_t>(problem / m);
      seed_centroids(p, head, static_cast<std::int32_t>(problem % m), samples_of(head));
    }
    for (std::int32_t iteration = 0; iteration < p.iterations; ++iteration) {
#pragma omp for schedule(dynamic, 1)
      for (std::int64_t task = 0; task < problems * parts; ++task) {
        const std::int64_t problem = task / parts;
        const std::int32_t first = static_cast<std::int32_t>(task % parts) * kPart;
        const std::int32_t count =
            std::min(kPart, samples_of(static_cast<std::int32_t>(problem / m)) - first);
        if (count <= 0) continue;
        const std::int64_t at = problem * p.max_samples + first;
        nearest(p.samples + at * ix.dcent, count, ix.dcent,
                p.centroids + problem * ix.dcent * ix.ksub, ix.dcent, ix.ksub, p.assignment + at, 1,
                p.distances + at);
      }
#pragma omp for schedule(dynamic, 1)
      for (std::int64_t problem = 0; problem < problems; ++problem) {
        update_centroids(p, scratch.sums + problem * ix.ksub * ix.dcent, problem,
                         samples_of(static_cast<std::int32_t>(problem / m)));
      }
    }
  }

  const std::int64_t size = problems * ix.dcent * ix.ksub;
  std::copy_n(p.centroids, size, ix.codebooks + book * size);
  if (ix.phi != nullptr) std::copy_n(p.trained_phi, problems, ix.phi + book * problems);
  ix.has_codebook[slot] = 1;
  ix.codebook_ids[slot] = p.codebook_id;
  std::fill_n(ix.baseline + book * heads, heads, -1.0f);  // for stage drift to measure
  return Status();
}

}  // namespace quarry::cpu
