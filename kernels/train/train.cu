// SPDX-License-Identifier: Apache-2.0
//
// Stage train: k-means (Lloyd) for every KV head and subspace, all on the stream. What only
// the device sees (how many keys are finite) is decided there, by every kernel for itself.
#include "train/train.h"

#include "common/launch.h"
#include "train/centroids.cuh"
#include "train/lloyd.cuh"
#include "train/sample.cuh"
#include "train/scratch.h"

namespace quarry::cuda {
namespace {

// Tiles of at most 64 keys that leave room for two thread blocks a multiprocessor.
Tiling sample_tiling(const IndexView& ix) {
  constexpr std::size_t kMost = 96 * 1024;
  Tiling t{64, ix.block_size, ix.encode_from};
  while (t.keys > 8 && SampleShared(nullptr, ix, t).bytes > kMost) t.keys /= 2;
  return t;
}

template <typename S>
Status iterate(const TrainArgs& a, const Launch& launch) {
  const TrainParams& p = a.p;
  const IndexView& ix = p.index;
  const auto problems = static_cast<unsigned>(ix.num_kv_heads * ix.num_subspaces);
  Status s = launch_kernel<seed_kernel<S>>("train: seed", launch, problems, kSeedThreads, 0, a);
  for (std::int32_t i = 0; i < p.iterations && s.ok(); ++i) {
    const dim3 assign(blocks_for(p.max_samples, kTileSamples * kTilesPerBlock), problems);
    const dim3 sum(static_cast<unsigned>(TrainScratch::parts(p.max_samples)),
                   blocks_for(ix.dcent, 32), problems);
    s = launch_kernel<assign_kernel<S>>("train: assign", launch, assign, kAssignThreads,
                                        sizeof(AssignShared), a);
    if (!s.ok()) break;
    s = launch_kernel<sum_kernel<S>>("train: sum", launch, sum, sum_warps(ix.ksub) * 32,
                                     sum_shared_bytes(ix.ksub), a);
    if (!s.ok()) break;
    s = launch_kernel<update_kernel<S>>("train: update", launch, problems, kUpdateThreads, 0, a);
  }
  return s;
}

// E: the keys' type; S: the samples'.
template <typename E, typename S>
Status train_as(const TrainArgs& a, const Launch& launch) {
  const TrainParams& p = a.p;
  const IndexView& ix = p.index;
  const bool wide = is_wide(p.keys.data, p.keys.dtype,
                            {p.keys.page_stride, p.keys.slot_stride, p.keys.head_stride});
  const Tiling tiling = sample_tiling(ix);
  const std::size_t bytes = SampleShared(nullptr, ix, tiling).bytes;
  const auto heads = static_cast<unsigned>(ix.num_kv_heads);
  const dim3 survey(static_cast<unsigned>(tiling.tiles(ix.encode_from, p.step.fixed_length)),
                    heads);
  if (Status s = launch_kernel<survey_kernel<E>>("train: survey", launch, survey, kSampleThreads,
                                                 bytes, a, tiling, wide);
      !s.ok()) {
    return s;
  }
  if (Status s =
          launch_kernel<choose_kernel>("train: choose", launch, heads, kChooseThreads, 0, a);
      !s.ok()) {
    return s;
  }
  const dim3 gather(blocks_for(p.max_samples, tiling.keys), heads);
  if (Status s = launch_kernel<gather_kernel<E, S>>("train: gather", launch, gather,
                                                    kSampleThreads, bytes, a, tiling, wide);
      !s.ok()) {
    return s;
  }
  if (Status s = iterate<S>(a, launch); !s.ok()) return s;
  return launch_kernel<commit_kernel>("train: commit", launch, dim3(heads, 16), kCommitThreads, 0,
                                      a);
}

}  // namespace

std::size_t train_scratch_bytes(const IndexView& ix, std::int32_t max_samples) noexcept {
  return TrainScratch(ix, max_samples, nullptr).bytes;
}

Status train(const TrainParams& p, const Launch& launch) noexcept {
  const IndexView& ix = p.index;
  const TrainScratch scratch(ix, p.max_samples, p.backend_scratch);
  const TrainArgs a{p, scratch.finite, scratch.means, scratch.part_sums, scratch.part_counts};
  if (ix.metric == Metric::inner_product) {
    if (Status s = launch_kernel<clear_phi_kernel>("train: clear", launch, 1, kSampleThreads, 0, a);
        !s.ok()) {
      return s;
    }
  }
  return with_dtype(p.keys.dtype, [&](auto element) {
    using E = decltype(element);
    // Keys that are not transformed keep their type as samples: half the bytes, no rounding.
    const bool as_is =
        ix.block_size == 0 && ix.rotation == nullptr && ix.metric == Metric::euclidean;
    return as_is ? train_as<E, E>(a, launch) : train_as<E, Float32>(a, launch);
  });
}

}  // namespace quarry::cuda
