// SPDX-License-Identifier: Apache-2.0
//
// Stage train's own scratch on CUDA. The code that counts it carves it.
#pragma once

#include <cstddef>

#include "params.h"

namespace quarry::cuda {

/// Samples whose sums one thread block makes: fixed, so that the order of all sums, and
/// hence the codebook's bytes, depend on the sizes alone.
constexpr std::int32_t kPartSamples = 2048;

/// A head and subspace is a problem: problem = head * m + s. Samples lie in
/// TrainParams::samples as [problem][max_samples][dcent] of the storage type.
struct TrainScratch {
  std::uint8_t* finite;       ///< [Hkv][max_seq_len]: of position encode_from + i
  float* means;               ///< [Hkv][max_seq_len / block_size][d], rounded; with blocks alone
  float* part_sums;           ///< [parts][problems][dcent][ksub]
  std::int32_t* part_counts;  ///< [parts][problems][ksub]
  std::size_t bytes = 0;

  QUARRY_HD static std::int32_t parts(std::int32_t samples) {
    return (samples + kPartSamples - 1) / kPartSamples;
  }

  TrainScratch(const IndexView& ix, std::int32_t max_samples, void* memory) {
    auto* const base = static_cast<unsigned char*>(memory);
    const auto take = [&](std::int64_t count, std::int64_t size) {
      unsigned char* const here = base == nullptr ? nullptr : base + bytes;
      bytes += static_cast<std::size_t>((count * size + 255) / 256 * 256);
      return here;
    };
    const std::int64_t heads = ix.num_kv_heads, problems = heads * ix.num_subspaces;
    const std::int64_t blocks = ix.block_size > 0 ? ix.max_seq_len / ix.block_size : 0;
    finite = take(heads * ix.max_seq_len, 1);
    means = reinterpret_cast<float*>(take(heads * blocks * ix.head_dim, 4));
    const std::int64_t tables = parts(max_samples) * problems * ix.ksub;
    part_sums = reinterpret_cast<float*>(take(tables * ix.dcent, 4));
    part_counts = reinterpret_cast<std::int32_t*>(take(tables, 4));
  }
};

/// What every training kernel is told.
struct TrainArgs {
  TrainParams p;
  std::uint8_t* finite;
  float* means;
  float* part_sums;
  std::int32_t* part_counts;
};

/// Walks ranks among `count` finite positions in ascending order; of them `kept`, at most
/// count, are samples: sample i has rank floor(i * count / kept). Its rank comes from a running
/// remainder, since a division for each would take longer than all the rest.
struct SampleWalk {
  std::int32_t count, kept;
  std::int32_t sample;  ///< the next one
  std::int32_t rank;    ///< its rank
  std::int32_t remainder;

  /// At the first sample of rank `from` or a higher one.
  QUARRY_HD SampleWalk(std::int32_t from, std::int32_t count_, std::int32_t kept_)
      : count(count_), kept(kept_) {
    const std::int64_t first = (std::int64_t{from} * kept + count - 1) / count;
    sample = static_cast<std::int32_t>(first);
    rank = static_cast<std::int32_t>(first * count / kept);
    remainder = static_cast<std::int32_t>(first * count % kept);
  }

  /// The sample of rank `at`, or -1. Every rank from the first one on is asked for, ascending.
  QUARRY_HD std::int32_t take(std::int32_t at) {
    if (at != rank || sample >= kept) return -1;
    rank += count / kept;
    remainder += count % kept;  // below 2^31: both are positions
    if (remainder >= kept) {
      remainder -= kept;
      ++rank;
    }
    return sample++;
  }
};

/// The sample that the finite position of rank `rank` is, or -1.
QUARRY_HD inline std::int32_t sample_of_rank(std::int32_t rank, std::int32_t count,
                                             std::int32_t kept) {
  return SampleWalk(rank, count, kept).take(rank);
}

}  // namespace quarry::cuda
