// SPDX-License-Identifier: Apache-2.0
//
// What a row's chunks have passed on, and the shared memory in which the second kernel chooses
// among it.
#pragma once

#include "common/segments.cuh"
#include "scan/ascending.cuh"
#include "scan/plan.h"

namespace quarry::cuda {

/// Candidates of a row that are kept in shared memory; a row with more reads them where they are.
constexpr std::int32_t kCachedCandidates = 6144;

/// Dynamic shared memory: where its parts begin, in bytes, as ScanLayout.
struct FinishLayout {
  std::int32_t ends, shortlist, exact, heavy, query;
  std::int64_t total;
};

inline FinishLayout finish_layout(const IndexView& ix, std::int32_t chunks, std::int32_t select) {
  FinishLayout at{};
  at.total = std::int64_t{kCachedCandidates} * 8;
  const auto take = [&](std::int64_t count) {
    const std::int64_t here = at.total;
    at.total += (count * 4 + 15) / 16 * 16;
    return static_cast<std::int32_t>(here);
  };
  const bool refines = ix.refine_factor > 1;
  at.ends = take(chunks);
  at.shortlist = take(select);
  at.exact = take(refines ? select : 0);
  at.heavy = refines ? take(ix.heavy_size) : at.shortlist;
  at.query = take(refines ? ix.head_dim : 0);
  return at;
}

/// Dynamic shared memory that finish_layout() places.
struct FinishShared {
  unsigned char* base;
  const FinishLayout& at;

  template <typename T>
  __device__ __forceinline__ T* part(std::int32_t offset) const {
    return reinterpret_cast<T*>(base + offset);
  }
  /// [kCachedCandidates], both
  __device__ std::uint32_t* keys() const { return part<std::uint32_t>(0); }
  __device__ std::int32_t* positions() const { return part<std::int32_t>(kCachedCandidates * 4); }
  /// [chunks]: candidates up to a chunk's end
  __device__ std::int32_t* ends() const { return part<std::int32_t>(at.ends); }
  /// [select]
  __device__ std::int32_t* shortlist() const { return part<std::int32_t>(at.shortlist); }
  /// [select]: selection keys of exact scores; only with refine
  __device__ std::uint32_t* exact() const { return part<std::uint32_t>(at.exact); }
  /// [heavy_size]; the shortlist itself without refine
  __device__ std::int32_t* heavy() const { return part<std::int32_t>(at.heavy); }
  /// [d]; only with refine
  __device__ float* query() const { return part<float>(at.query); }
};

/// A row's candidates: in shared memory, or in their segments.
struct RowCandidates {
  const std::uint32_t* keys;  ///< null: in their segments
  const std::int32_t* positions;
  const Candidate* segments;
  const std::int32_t* ends;
  std::int32_t chunks, capacity;

  __device__ __noinline__ Candidate at(std::int32_t i) const {
    return segment_entry(segments, ends, chunks, capacity, i);
  }
  __device__ __forceinline__ std::uint32_t key(std::int32_t i) const {
    return keys != nullptr ? keys[i] : at(i).key;
  }
  __device__ __forceinline__ std::int32_t position(std::int32_t i) const {
    return keys != nullptr ? positions[i] : at(i).position;
  }
};

/// A row's candidates, in shared memory where there is room. All threads call it; a barrier must
/// follow.
__device__ __forceinline__ RowCandidates read_candidates(
    BestStorage& storage, const std::int32_t* counts, const Candidate* segments,
    std::int32_t chunks, std::int32_t capacity, const FinishShared& sh, std::int32_t* total) {
  constexpr unsigned kAll = 0xffffffffu;
  const auto tid = static_cast<std::int32_t>(threadIdx.x), lane = tid % 32;
  RowCandidates items{nullptr, nullptr, segments, sh.ends(), chunks, capacity};
  if (chunks > 32) {
    std::int32_t all = 0;
    for (std::int32_t first = 0; first < chunks; first += kFinishThreads) {
      const std::int32_t i = first + tid;
      std::int32_t end = i < chunks ? counts[i] : 0, sum = 0;
      BestStorage::Scan(storage.scan).InclusiveSum(end, end, sum);
      if (i < chunks) sh.ends()[i] = all + end;
      all += sum;
      __syncthreads();
    }
    *total = all;
    if (all > kCachedCandidates) return items;
    // A warp a segment.
    for (std::int32_t c = tid / 32; c < chunks; c += kFinishThreads / 32) {
      const std::int32_t begin = c == 0 ? 0 : sh.ends()[c - 1], count = sh.ends()[c] - begin;
      const Candidate* from = segments + static_cast<std::int64_t>(c) * capacity;
#pragma unroll 4
      for (std::int32_t i = lane; i < count; i += 32) {
        const Candidate candidate = from[i];
        sh.keys()[begin + i] = candidate.key;
        sh.positions()[begin + i] = candidate.position;
      }
    }
  } else {
    // As many threads a segment as there are to share; every warp finds the ends for itself.
    std::int32_t team = kFinishThreads / 32;
    while (2 * team * chunks <= kFinishThreads) team *= 2;
    const std::int32_t c = tid / team, at = tid % team;
    const bool works = c < chunks;
    const Candidate* from = segments + static_cast<std::int64_t>(works ? c : 0) * capacity;
    const std::int32_t own = lane < chunks ? counts[lane] : 0;
    std::int32_t end = own;
#pragma unroll
    for (int apart = 1; apart < 32; apart *= 2) {
      const std::int32_t other = __shfl_up_sync(kAll, end, apart);
      if (lane >= apart) end += other;
    }
    *total = __shfl_sync(kAll, end, 31);
    if (tid < chunks) sh.ends()[tid] = end;
    const std::int32_t count = __shfl_sync(kAll, own, c), begin = __shfl_sync(kAll, end - own, c);
    if (*total > kCachedCandidates) return items;
    if (works) {
#pragma unroll 8
      for (std::int32_t i = at; i < count; i += team) {
        const Candidate candidate = from[i];
        sh.keys()[begin + i] = candidate.key;
        sh.positions()[begin + i] = candidate.position;
      }
    }
  }
  items.keys = sh.keys();
  items.positions = sh.positions();
  return items;
}

}  // namespace quarry::cuda
