// SPDX-License-Identifier: Apache-2.0
//
// The two kernels of algorithm scan, as their translation units offer them.
#pragma once

#include "backend.h"
#include "encode/step_shape.h"
#include "scan/plan.h"

namespace quarry::cuda {

struct ChunkParams {
  EncodeParams encode;
  StepShape step_shape;
  QueryView queries;
  ScanPlan plan;
  ScanLayout layout;
  std::uint32_t* encoded;  ///< [B], as in ScanScratch: set to 0
  std::int32_t* counts;    ///< [rows][chunks]
  Candidate* candidates;   ///< [rows][chunks][capacity]
};

Status launch_chunks_16(const ChunkParams& p, const Launch& launch);
Status launch_chunks_64(const ChunkParams& p, const Launch& launch);
Status launch_chunks_256(const ChunkParams& p, const Launch& launch);

Status launch_finish(const ScanParams& p, const ScanPlan& plan, const ScanScratch& scratch,
                     const Launch& launch);

inline Status too_many_blocks(const char* kernel, std::int64_t blocks) {
  return Status(StatusCode::unsupported, "scan: %lld thread blocks of %s, must be at most 2^31 - 1",
                static_cast<long long>(blocks), kernel);
}

}  // namespace quarry::cuda
