// SPDX-License-Identifier: Apache-2.0
//
// The first centroids, the next ones, and the trained codebook's way into the index.
#pragma once

#include "common/launch.h"
#include "philox.h"
#include "train/sample.cuh"

namespace quarry::cuda {

constexpr int kSeedThreads = 512;

template <typename S>
__device__ float sample_at(const TrainParams& p, std::int64_t problem, std::int32_t i, int j) {
  return S::widen(reinterpret_cast<const typename S::Bits*>(
      p.samples)[(problem * p.max_samples + i) * p.index.dcent + j]);
}

/// Grid (problems): ksub distinct samples, drawn one after another by Philox; a draw that
/// repeats is passed over. Warp 0 draws 32 at a time, which changes nothing of that.
template <typename S>
__global__ void __launch_bounds__(kSeedThreads) seed_kernel(const __grid_constant__ TrainArgs a) {
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
      // A draw that an earlier lane made as well is a repeat, whatever became of that one.
      const unsigned earlier = (1u << lane) - 1;
      bool repeats = (__match_any_sync(0xffffffffu, mine) & earlier) != 0;
      for (int i = 0; i < taken; ++i) repeats |= chosen[i] == mine;
      const unsigned fresh = __ballot_sync(0xffffffffu, !repeats);
      const int place = taken + __popc(fresh & earlier);
      if (!repeats && place < ksub) chosen[place] = mine;
      taken += __popc(fresh);
      __syncwarp();
    }
  }
  __syncthreads();
  // Consecutive threads read consecutive dimensions: a store's latency hurts nobody.
  const int dcent = p.index.dcent;
  float* centroids = p.centroids + std::int64_t{problem} * dcent * ksub;
#pragma unroll 8
  for (int i = static_cast<int>(threadIdx.x); i < ksub * dcent; i += kSeedThreads) {
    const int c = i / dcent, j = i % dcent;
    centroids[j * ksub + c] = sample_at<S>(p, problem, chosen[c], j);
  }
}

/// Samples that cluster c has.
__device__ inline std::int32_t cluster_size(const TrainArgs& a, std::int32_t parts,
                                            std::int64_t problem, std::int64_t problems, int c) {
  std::int32_t sum = 0;
#pragma unroll 8
  for (std::int32_t part = 0; part < parts; ++part) {
    sum += a.part_counts[(part * problems + problem) * a.p.index.ksub + c];
  }
  return sum;
}

constexpr int kDistanceThreads = 256;

/// Bytes of `distance_kernel`'s table of centroids; 0 where it would be too large.
inline std::size_t distance_shared_bytes(const IndexView& ix) {
  const std::size_t bytes =
      static_cast<std::size_t>(ix.ksub) * static_cast<std::size_t>(ix.dcent + 1) * 4;
  return bytes <= 96 * 1024 ? bytes : 0;
}

/// Grid (parts, problems): how far every sample is from the centroid it was assigned to, if a
/// cluster is empty. That is rare, so only then. staged: there is shared memory for a table.
template <typename S>
__global__ void __launch_bounds__(kDistanceThreads)
    distance_kernel(const __grid_constant__ TrainArgs a, bool staged) {
  extern __shared__ float table[];  // [ksub][dcent + 1]
  wait_for_predecessor();
  let_successor_start();
  const TrainParams& p = a.p;
  const int ksub = p.index.ksub, dcent = p.index.dcent, tid = static_cast<int>(threadIdx.x);
  const std::int64_t problem = blockIdx.y, problems = gridDim.y;
  const std::int32_t samples =
      samples_of(p, static_cast<std::int32_t>(blockIdx.y) / p.index.num_subspaces);
  const std::int32_t first = static_cast<std::int32_t>(blockIdx.x) * kPartSamples;
  if (first >= samples) return;
  const std::int32_t end = first + kPartSamples < samples ? first + kPartSamples : samples;
  bool empty = false;
  if (tid < ksub) {
    empty = cluster_size(a, TrainScratch::parts(samples), problem, problems, tid) == 0;
  }
  if (__syncthreads_or(empty) == 0) return;

  const float* centroids = p.centroids + problem * dcent * ksub;
  if (staged) {
    for (int i = tid; i < ksub * dcent; i += kDistanceThreads) {
      table[i % ksub * (dcent + 1) + i / ksub] = centroids[i];
    }
    __syncthreads();
  }
  // Eight lanes a sample.
  constexpr int kLanes = 8;
  for (std::int32_t k0 = first; k0 < end; k0 += kDistanceThreads / kLanes) {
    const std::int32_t k = k0 + tid / kLanes;
    const bool there = k < end;
    const int id = there ? p.assignment[problem * p.max_samples + k] : 0;
    const float* c = staged ? table + id * (dcent + 1) : centroids + id;
    const int step = staged ? 1 : ksub;
    float sum = 0;
    if (there) {
#pragma unroll 8
      for (int j = tid % kLanes; j < dcent; j += kLanes) {
        const float diff = sample_at<S>(p, problem, k, j) - c[j * step];
        sum = fmaf(diff, diff, sum);
      }
    }
#pragma unroll
    for (int l = kLanes / 2; l > 0; l /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, l);
    if (there && tid % kLanes == 0) p.distances[problem * p.max_samples + k] = sum;
  }
}

constexpr int kUpdateThreads = 512;
constexpr int kUpdateElements = 4 * kUpdateThreads;  // a thread block's

/// The largest of a warp's, in all its lanes.
__device__ inline unsigned long long warp_max(unsigned long long v) {
  const auto high = static_cast<std::uint32_t>(v >> 32);
  const std::uint32_t most = __reduce_max_sync(0xffffffffu, high);
  const std::uint32_t low =
      __reduce_max_sync(0xffffffffu, high == most ? static_cast<std::uint32_t>(v) : 0u);
  return static_cast<unsigned long long>(most) << 32 | low;
}

/// taken[c], for every empty cluster c in ascending order, is the sample that is farthest from
/// its old centroid and not taken yet, the lowest position first. All threads call it; a
/// barrier must follow.
__device__ inline void take_farthest(const float* __restrict__ distances, std::int32_t samples,
                                     const std::int32_t* counts, int ksub, std::int32_t* taken) {
  constexpr int kWarps = kUpdateThreads / 32;
  __shared__ unsigned long long farthest[2][kWarps];
  const int tid = static_cast<int>(threadIdx.x), lane = tid & 31, warp = tid >> 5;
  // The best of this thread's samples below a key; no two samples' keys are equal.
  const auto best_below = [&](unsigned long long limit) {
    unsigned long long best = 0;
#pragma unroll 8
    for (std::int32_t i = tid; i < samples; i += kUpdateThreads) {
      // NaN, from an overflow, counts as the farthest.
      const unsigned long long key = static_cast<unsigned long long>(distance_key(distances[i]))
                                         << 32 |
                                     (0xffffffffu - static_cast<std::uint32_t>(i));
      if (key < limit && key > best) best = key;
    }
    return best;
  };
  unsigned long long mine = best_below(~0ull);
  int round = 0;
  for (int c = 0; c < ksub; ++c) {
    if (counts[c] != 0) continue;
    const unsigned long long of_warp = warp_max(mine);
    if (lane == 0) farthest[round][warp] = of_warp;
    __syncthreads();
    // At least ksub samples, so one is left.
    const unsigned long long most = warp_max(lane < kWarps ? farthest[round][lane] : 0);
    if (tid == 0) {
      taken[c] = static_cast<std::int32_t>(0xffffffffu - static_cast<std::uint32_t>(most));
    }
    if (mine == most) mine = best_below(most);
    round ^= 1;  // the next round's stores pass this one's reads by
  }
}

/// Grid (problems, tiles of kUpdateElements of dcent * ksub): means of the clusters; an empty
/// one takes a sample.
template <typename S>
__global__ void __launch_bounds__(kUpdateThreads)
    update_kernel(const __grid_constant__ TrainArgs a) {
  __shared__ std::int32_t counts[256];
  __shared__ std::int32_t taken[256];
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
  if (tid < ksub) {
    counts[tid] = cluster_size(a, parts, problem, problems, tid);
    empty = counts[tid] == 0;
  }
  if (__syncthreads_or(empty) != 0) {
    take_farthest(p.distances + problem * p.max_samples, samples, counts, ksub, taken);
    __syncthreads();
  }
  float* centroids = p.centroids + problem * dcent * ksub;
  const int first = static_cast<int>(blockIdx.y) * kUpdateElements, all = ksub * dcent;
  const int end = first + kUpdateElements < all ? first + kUpdateElements : all;
  for (int i = first + tid; i < end; i += kUpdateThreads) {
    const int c = i % ksub;
    if (counts[c] == 0) {
      centroids[i] = sample_at<S>(p, problem, taken[c], i / ksub);
      continue;
    }
    double sum = 0;
#pragma unroll 8
    for (std::int32_t part = 0; part < parts; ++part) {
      sum += static_cast<double>(a.part_sums[(part * problems + problem) * all + i]);
    }
    centroids[i] = static_cast<float>(sum / counts[c]);
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
  // Not has_codebook: another thread block may have set it just now.
  if (p.finite_counts[head] < 0) return;
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
  const std::int32_t step = static_cast<std::int32_t>(gridDim.y) * kCommitThreads;
  for (std::int32_t i = first; i < size; i += step) {
    ix.codebooks[to * size + i] = p.centroids[std::int64_t{head} * size + i];
  }
  if (ix.phi != nullptr && first < ix.num_subspaces) {
    ix.phi[to * ix.num_subspaces + first] = p.trained_phi[head * ix.num_subspaces + first];
  }
  if (first == 0) ix.baseline[to] = -1.0f;  // for stage drift to measure
  if (!leader) return;
  ix.has_codebook[slot] = 1;
  ix.codebook_ids[slot] = p.codebook_id;
}

}  // namespace quarry::cuda
