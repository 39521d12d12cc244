// SPDX-License-Identifier: Apache-2.0
//
// The first centroids, the next ones, and the trained codebook's way into the index.
#pragma once

#include "common/launch.h"
#include "philox.h"
#include "train/sample.cuh"

namespace quarry::cuda {

constexpr int kSeedThreads = 128;

template <typename S>
__device__ float sample_at(const TrainParams& p, std::int64_t problem, std::int32_t i, int j) {
  return S::widen(reinterpret_cast<const typename S::Bits*>(
      p.samples)[(problem * p.max_samples + i) * p.index.dcent + j]);
}

/// Grid (problems): ksub distinct samples, drawn one after another by Philox; a draw that
/// repeats is passed over. Warp 0 draws 32 at a time and takes them in order.
template <typename S>
__global__ void __launch_bounds__(kSeedThreads)
    seed_kernel(const __grid_constant__ TrainArgs a) {
  __shared__ std::int32_t chosen[256];
  wait_for_predecessor();
  let_successor_start();
  const TrainParams& p = a.p;
  const int ksub = p.index.ksub;
  const auto problem = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t head = problem / p.index.num_subspaces, s = problem % p.index.num_subspaces;
  const std::int32_t count = samples_of(p, head);
  if (count == 0) return;
  if (threadIdx.x < 32) {
    const unsigned lane = threadIdx.x;
    int taken = 0;
    for (std::uint32_t draw = 0; taken < ksub; draw += 32) {
      const std::int32_t mine = philox_index(p.seed, draw + lane, s, head, count);
      for (int l = 0; l < 32 && taken < ksub; ++l) {
        const std::int32_t index = __shfl_sync(0xffffffffu, mine, l);
        bool repeats = false;
        for (int i = static_cast<int>(lane); i < taken; i += 32) repeats |= chosen[i] == index;
        if (__any_sync(0xffffffffu, repeats)) continue;
        if (lane == 0) chosen[taken] = index;
        ++taken;
        __syncwarp();
      }
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < ksub * p.index.dcent; i += kSeedThreads) {
    const int c = i % ksub, j = i / ksub;
    p.centroids[std::int64_t{problem} * p.index.dcent * ksub + i] =
        sample_at<S>(p, problem, chosen[c], j);
  }
}

constexpr int kUpdateThreads = 1024;

/// Grid (problems): means of the clusters; an empty one takes the sample that is farthest
/// from its old centroid and not taken yet, the lowest position first.
template <typename S>
__global__ void __launch_bounds__(kUpdateThreads)
    update_kernel(const __grid_constant__ TrainArgs a) {
  __shared__ std::int32_t counts[256];
  __shared__ unsigned long long farthest;
  wait_for_predecessor();
  let_successor_start();
  const TrainParams& p = a.p;
  const IndexView& ix = p.index;
  const int ksub = ix.ksub, dcent = ix.dcent, tid = static_cast<int>(threadIdx.x);
  const std::int64_t problem = blockIdx.x, problems = gridDim.x;
  const std::int32_t samples =
      samples_of(p, static_cast<std::int32_t>(blockIdx.x) / ix.num_subspaces);
  if (samples == 0) return;
  const std::int32_t parts = TrainScratch::parts(samples);
  bool empty = false;
  for (int c = tid; c < ksub; c += kUpdateThreads) {
    std::int32_t sum = 0;
    for (std::int32_t part = 0; part < parts; ++part) {
      sum += a.part_counts[(part * problems + problem) * ksub + c];
    }
    counts[c] = sum;
    empty |= sum == 0;
  }
  empty = __syncthreads_or(empty) != 0;
  float* centroids = p.centroids + problem * dcent * ksub;
  float* distances = p.distances + problem * p.max_samples;
  if (empty) {
    // Rare, so only now: how far every sample is from the centroid it was assigned to.
    const std::uint8_t* assignment = p.assignment + problem * p.max_samples;
    for (std::int32_t i = tid; i < samples; i += kUpdateThreads) {
      float sum = 0;
      for (int j = 0; j < dcent; ++j) {
        const float diff = sample_at<S>(p, problem, i, j) - centroids[j * ksub + assignment[i]];
        sum = fmaf(diff, diff, sum);
      }
      distances[i] = sum;
    }
    __syncthreads();
  }
  for (int i = tid; i < ksub * dcent; i += kUpdateThreads) {
    const std::int32_t count = counts[i % ksub];
    if (count == 0) continue;
    double sum = 0;
    for (std::int32_t part = 0; part < parts; ++part) {
      sum += static_cast<double>(a.part_sums[(part * problems + problem) * dcent * ksub + i]);
    }
    centroids[i] = static_cast<float>(sum / count);
  }
  for (int c = 0; empty && c < ksub; ++c) {
    if (counts[c] != 0) continue;
    if (tid == 0) farthest = 0;
    __syncthreads();
    unsigned long long mine = 0;
    for (std::int32_t i = tid; i < samples; i += kUpdateThreads) {
      // A taken sample is negative. NaN, from an overflow, counts as the farthest.
      if (distances[i] < 0) continue;
      const unsigned long long key = static_cast<unsigned long long>(distance_key(distances[i]))
                                         << 32 |
                                     (0xffffffffu - static_cast<std::uint32_t>(i));
      mine = key > mine ? key : mine;
    }
    atomicMax(&farthest, mine);
    __syncthreads();
    // At least ksub samples, so one is left: the low half is never 0 here.
    const auto taken = static_cast<std::int32_t>(0xffffffffu - static_cast<std::uint32_t>(farthest));
    for (int j = tid; j < dcent; j += kUpdateThreads) {
      centroids[j * ksub + c] = sample_at<S>(p, problem, taken, j);
    }
    __syncthreads();
    if (tid == 0) distances[taken] = -1.0f;
  }
}

constexpr int kCommitThreads = 256;

/// Grid (Hkv, parts): the codebook into the slot, if every head had enough to train on and
/// every page of the sequence is in range (stage encode reports one that is not).
static __global__ void __launch_bounds__(kCommitThreads)
    commit_kernel(const __grid_constant__ TrainArgs a) {
  wait_for_predecessor();
  let_successor_start();
  const TrainParams& p = a.p;
  const IndexView& ix = p.index;
  const auto head = static_cast<std::int32_t>(blockIdx.x);
  const int tid = static_cast<int>(threadIdx.x);
  const std::int32_t slot = p.step.fixed_slot, n = p.step.fixed_length;
  bool few = false, bad = false;
  for (std::int32_t h = tid; h < ix.num_kv_heads; h += kCommitThreads) {
    few |= p.finite_counts[h] < ix.ksub;
  }
  const std::int32_t* table = block_table_row(p.step, 0);
  const std::int32_t pages =
      table == nullptr ? 0 : n / ix.page_size + (n % ix.page_size != 0 ? 1 : 0);
  for (std::int32_t i = tid; i < pages; i += kCommitThreads) {
    bad |= table[i] < 0 || table[i] >= ix.num_pages;
  }
  few = __syncthreads_or(few) != 0;
  bad = __syncthreads_or(bad) != 0;
  const bool leader = blockIdx.x == 0 && blockIdx.y == 0 && tid == 0;
  if (few || bad) {
    // Where a page is bad, its keys were not seen: that they are few says nothing.
    if (leader && !bad && p.step.device_status != nullptr) {
      atomicOr(p.step.device_status, static_cast<std::uint32_t>(kTooFewKeys));
    }
    return;
  }
  const std::int64_t to = std::int64_t{codebook_of(ix, slot)} * ix.num_kv_heads + head;
  const std::int32_t size = ix.num_subspaces * ix.dcent * ix.ksub;
  const auto first = static_cast<std::int32_t>(blockIdx.y) * kCommitThreads + tid;
  for (std::int32_t i = first; i < size; i += static_cast<std::int32_t>(gridDim.y) * kCommitThreads) {
    ix.codebooks[to * size + i] = p.centroids[std::int64_t{head} * size + i];
  }
  if (ix.phi != nullptr && first < ix.num_subspaces) {
    ix.phi[to * ix.num_subspaces + first] = p.trained_phi[head * ix.num_subspaces + first];
  }
  if (leader) ix.has_codebook[slot] = 1;
}

}  // namespace quarry::cuda
