// SPDX-License-Identifier: Apache-2.0
//
// A scan block's chunk of a row group: where it lies, where its tables lie in shared memory, and
// the candidates that a chunk of several stretches keeps.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "scan/best.cuh"
#include "scan/launches.h"
#include "scan/plan.h"

namespace quarry::cuda {

/// The dynamic shared memory that scan_layout() places.
struct ChunkShared {
  unsigned char* base;
  const ScanLayout& at;

  __device__ __forceinline__ float* part(std::int32_t offset) const {
    return reinterpret_cast<float*>(base + offset);
  }
  /// [kHeads][d], both; one and the same without a rotation
  __device__ float* query() const { return part(at.query); }
  __device__ float* rotated() const { return part(at.rotated); }
  /// [blocks of a stretch][kHeads]
  __device__ float* bias() const { return part(at.bias); }
  /// [m][dcent][ksub] and [d][d], before the first stretch; null: not copied
  __device__ float* codebook() const { return at.codebook < 0 ? nullptr : part(at.codebook); }
  __device__ float* rotation() const { return at.rotation < 0 ? nullptr : part(at.rotation); }
  /// [plan.buffer], of head h
  __device__ Candidate* buffer(const ScanPlan& plan, std::int32_t h) const {
    return reinterpret_cast<Candidate*>(base + at.buffer) + h * plan.buffer;
  }
};

/// Where a chunk lies among a row's candidates [first, end): whole runs of positions from `begin`,
/// of which [low, high) are candidates.
struct ChunkSpan {
  std::int32_t begin, low, high;

  __device__ __forceinline__ ChunkSpan(const ScanPlan& plan, std::int32_t first, std::int32_t end,
                                       std::int32_t chunk) {
    const std::int32_t base = first & ~(kRun - 1);
    const std::int32_t length = scan_chunk(plan, end - base);
    const auto at = [&](std::int32_t of) {
      return static_cast<std::int32_t>(
          min(base + std::int64_t{of} * length, static_cast<std::int64_t>(end)));
    };
    begin = at(chunk);
    low = max(begin, first);
    high = max(at(chunk + 1), first);
  }
};

/// Puts the taken ones of a run's values, which begin at position p, to `out` in shared memory, in
/// order. As asm, so that the stores are predicated: branches would take twice the instructions.
template <int kValues>
__device__ __forceinline__ void put_taken(const float (&v)[kValues], std::uint32_t taken,
                                          std::int32_t p, Candidate* out) {
  if (taken == 0) return;
  auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(out));
#pragma unroll
  for (int k = 0; k < kValues; ++k) {
    asm volatile(
        "{\n"
        ".reg .pred takes;\n"
        "setp.ne.u32 takes, %3, 0;\n"
        "@takes st.shared.f32 [%0], %1;\n"
        "@takes st.shared.s32 [%0+4], %2;\n"
        "@takes add.u32 %0, %0, 8;\n"
        "}"
        : "+r"(address)
        : "f"(v[k]), "r"(p + k), "r"(taken & 1u << k)
        : "memory");
  }
}

/// put_taken() to global memory: where shared memory has no room for them.
template <int kValues>
__device__ __forceinline__ void put_taken_far(const float (&v)[kValues], std::uint32_t taken,
                                              std::int32_t p, Candidate* out) {
#pragma unroll
  for (int k = 0; k < kValues; ++k) {
    if ((taken >> k & 1u) != 0) *out++ = {v[k], p + k};
  }
}

/// What prune() leaves.
struct Pruned {
  std::int32_t count;
  float least;  ///< what as many as are wanted reach
  bool known;   ///< false: there are fewer numbers
};

/// Keeps of `count` candidates of a head, ascending in position, those that can be among the best
/// `want`, in place: at most `limit`. All threads call it; begins and ends with a barrier. A call,
/// so that its registers are not the caller's.
static __device__ __noinline__ Pruned prune(Exchange<1, kScanThreads>& st, Candidate* candidates,
                                            std::int32_t count, std::int32_t want,
                                            std::int32_t limit) {
  Place place;
  const std::int32_t each = (count + kScanThreads - 1) / kScanThreads;
  const std::int32_t from = static_cast<std::int32_t>(threadIdx.x) * each;
  float v[1][kPruned], used[1][kPruned];
  std::int32_t position[kPruned];
  std::uint32_t there[1] = {};
  __syncthreads();  // what was appended
#pragma unroll
  for (int i = 0; i < kPruned; ++i) {
    v[0][i] = __uint_as_float(0x7fc00000u);
    position[i] = 0;
    if (i < each && from + i < count) {
      const Candidate c = candidates[from + i];
      v[0][i] = c.score;
      position[i] = c.position;
      there[0] |= 1u << i;
    }
    used[0][i] = v[0][i];
  }
  float least[1];
  bool known[1];
  std::uint32_t taken[1];
  Counts<1> before, total;
  find_bounds<1, kScanThreads, kPruned>(st, place, used, each, want, want + want / 8, least, known);
  taken[0] = known[0] ? reaching(v[0], least[0]) : there[0];
  before[0] = static_cast<std::uint32_t>(__popc(taken[0]));
  count_before<1, kScanThreads>(st, place, before, total);  // every thread has read its share
  if (static_cast<std::int32_t>(total[0]) > limit) {
#pragma unroll
    for (int i = 0; i < kPruned; ++i) used[0][i] = v[0][i];
    take_best<1, kScanThreads, kPruned>(st, place, used, each, there, want, taken);
    before[0] = static_cast<std::uint32_t>(__popc(taken[0]));
    count_before<1, kScanThreads>(st, place, before, total);
  }
  Candidate* out = candidates + before[0];
#pragma unroll
  for (int i = 0; i < kPruned; ++i) {
    if ((taken[0] >> i & 1u) != 0) *out++ = {v[0][i], position[i]};
  }
  __syncthreads();
  return {static_cast<std::int32_t>(total[0]), least[0], known[0]};
}

}  // namespace quarry::cuda
