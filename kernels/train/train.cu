// SPDX-License-Identifier: Apache-2.0
//
// Stage train: k-means (Lloyd) for every KV head and subspace, all on the stream. What only
// the device sees (how many keys are finite) is decided there, by every kernel for itself.
#include "train/train.h"

#include "common/launch.h"
#include "train/centroids.cuh"
#include "train/copy.cuh"
#include "train/lloyd.cuh"
#include "train/sample.cuh"
#include "train/scratch.h"
#include "train/step.cuh"

namespace quarry::cuda {
namespace {

// Whether keys are not transformed before they are encoded.
bool as_is(const IndexView& ix) {
  return ix.block_size == 0 && ix.rotation == nullptr && ix.metric == Metric::euclidean;
}

// Tiles of at most 64 keys that leave room for two thread blocks a multiprocessor.
Tiling sample_tiling(const IndexView& ix) {
  constexpr std::size_t kMost = 96 * 1024;
  Tiling t{64, ix.block_size, ix.encode_from};
  while (t.keys > 8 && SampleShared(nullptr, ix, t).bytes > kMost) t.keys /= 2;
  return t;
}

// Assignment, sums and counts of every part.
template <typename S>
Status assign_and_sum(const TrainArgs& a, const Launch& launch) {
  const TrainParams& p = a.p;
  const IndexView& ix = p.index;
  const auto problems = static_cast<unsigned>(ix.num_kv_heads * ix.num_subspaces);
  const auto parts = static_cast<unsigned>(TrainScratch::parts(p.max_samples));
  const dim3 assign(blocks_for(p.max_samples, kTileSamples * kTilesPerBlock), problems);
  if (Status s = launch_kernel<assign_kernel<S>>("train: assign", launch, assign, kAssignThreads,
                                                 sizeof(AssignShared), a);
      !s.ok()) {
    return s;
  }
  return launch_kernel<sum_kernel<S>>("train: sum", launch,
                                      dim3(parts, blocks_for(ix.dcent, 32), problems),
                                      sum_warps(ix.ksub) * 32, sum_shared_bytes(ix.ksub), a);
}

template <typename S, int kDims, int kCents>
Status launch_step(const TrainArgs& a, const Launch& launch) {
  const IndexView& ix = a.p.index;
  const dim3 grid(static_cast<unsigned>(TrainScratch::parts(a.p.max_samples)),
                  static_cast<unsigned>(ix.num_kv_heads * ix.num_subspaces));
  return launch_kernel<step_kernel<S, kDims, kCents>>("train: step", launch, grid, kStepThreads,
                                                      sizeof(StepShared<kDims, kCents>), a);
}

// The same in one kernel, where it serves the shape.
template <typename S>
Status step(const TrainArgs& a, const Launch& launch) {
  const IndexView& ix = a.p.index;
  if constexpr (sizeof(typename S::Bits) == 2) {
    if (step_serves(ix)) {
      if (ix.ksub <= 16) {
        return ix.dcent <= 16   ? launch_step<S, 16, 16>(a, launch)
               : ix.dcent <= 32 ? launch_step<S, 32, 16>(a, launch)
               : ix.dcent <= 64 ? launch_step<S, 64, 16>(a, launch)
                                : launch_step<S, 128, 16>(a, launch);
      }
      return ix.dcent <= 16   ? launch_step<S, 16, 64>(a, launch)
             : ix.dcent <= 32 ? launch_step<S, 32, 64>(a, launch)
             : ix.dcent <= 64 ? launch_step<S, 64, 64>(a, launch)
                              : launch_step<S, 128, 64>(a, launch);
    }
  }
  return assign_and_sum<S>(a, launch);
}

template <typename S>
Status iterate(const TrainArgs& a, const Launch& launch) {
  const TrainParams& p = a.p;
  const IndexView& ix = p.index;
  const auto problems = static_cast<unsigned>(ix.num_kv_heads * ix.num_subspaces);
  const dim3 parts(static_cast<unsigned>(TrainScratch::parts(p.max_samples)), problems);
  const dim3 update(problems, blocks_for(std::int64_t{ix.dcent} * ix.ksub, kUpdateElements));
  const std::size_t table = distance_shared_bytes(ix);
  Status s = launch_kernel<seed_kernel<S>>("train: seed", launch, problems, kSeedThreads, 0, a);
  for (std::int32_t i = 0; i < p.iterations && s.ok(); ++i) {
    s = step<S>(a, launch);
    if (!s.ok()) break;
    s = launch_kernel<distance_kernel<S>>("train: distance", launch, parts, kDistanceThreads, table,
                                          a, table > 0);
    if (!s.ok()) break;
    s = launch_kernel<update_kernel<S>>("train: update", launch, update, kUpdateThreads, 0, a);
  }
  return s;
}

// Which keys are finite, which are kept, and those as samples. E: the keys' type; S: the
// samples'.
template <typename E, typename S>
Status take_samples(const TrainArgs& a, const Launch& launch) {
  const TrainParams& p = a.p;
  const IndexView& ix = p.index;
  const bool wide = is_wide(p.keys.data, p.keys.dtype,
                            {p.keys.page_stride, p.keys.slot_stride, p.keys.head_stride});
  const Tiling tiling = sample_tiling(ix);
  const std::size_t bytes = SampleShared(nullptr, ix, tiling).bytes;
  const auto heads = static_cast<unsigned>(ix.num_kv_heads);
  constexpr bool kMayCopy = std::is_same_v<E, S>;
  const bool copies = kMayCopy && as_is(ix) && copies_serve(p, wide);
  const dim3 survey(static_cast<unsigned>(tiling.tiles(ix.encode_from, p.step.fixed_length)),
                    heads);
  Status s;
  if constexpr (kMayCopy) {
    if (copies) {
      s = launch_kernel<survey_copy_kernel<E>>("train: survey", launch,
                                               heads * blocks_for(p.num_positions, kCopyKeys),
                                               kCopyThreads, 0, a);
    }
  }
  if (!copies) {
    s = launch_kernel<survey_kernel<E>>("train: survey", launch, survey, kSampleThreads, bytes, a,
                                        tiling, wide);
  }
  if (!s.ok()) return s;
  s = launch_kernel<choose_kernel>("train: choose", launch, heads, kChooseThreads, 0, a);
  if (!s.ok()) return s;
  if constexpr (kMayCopy) {
    if (copies) {
      return launch_kernel<gather_copy_kernel<E>>("train: gather", launch,
                                                  heads * blocks_for(p.max_samples, kCopyKeys),
                                                  kCopyThreads, 0, a);
    }
  }
  return launch_kernel<gather_kernel<E, S>>("train: gather", launch,
                                            dim3(blocks_for(p.max_samples, tiling.keys), heads),
                                            kSampleThreads, bytes, a, tiling, wide);
}

template <typename E, typename S>
Status train_as(const TrainArgs& a, const Launch& launch) {
  if (Status s = take_samples<E, S>(a, launch); !s.ok()) return s;
  if (Status s = iterate<S>(a, launch); !s.ok()) return s;
  return launch_kernel<commit_kernel>("train: commit", launch,
                                      dim3(static_cast<unsigned>(a.p.index.num_kv_heads), 16),
                                      kCommitThreads, 0, a);
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
    // A scaled key is a float32. Other keys that are not transformed keep their type as samples:
    // half the bytes, no rounding.
    using Own = std::conditional_t<std::is_same_v<E, Float8>, Float32, E>;
    return as_is(ix) ? train_as<E, Own>(a, launch) : train_as<E, Float32>(a, launch);
  });
}

}  // namespace quarry::cuda
