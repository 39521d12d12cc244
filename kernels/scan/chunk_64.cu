// SPDX-License-Identifier: Apache-2.0
#include "scan/chunk_launch.cuh"

namespace quarry::cuda {

Status launch_chunks_64(const ChunkParams& p, const Launch& launch) {
  return launch_for_stride<64>(p, launch);
}

}  // namespace quarry::cuda
