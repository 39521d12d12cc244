// SPDX-License-Identifier: Apache-2.0
//
// Stage encode of a prefill: on tensor cores where they serve the shape, else exactly.
#include "encode/bulk.h"

#include "common/launch.h"
#include "encode/columns.cuh"
#include "encode/exact.cuh"
#include "encode/tensor.cuh"
#include "encode/tensor_raw.cuh"

namespace quarry::cuda {
namespace {

// As many thread blocks as the device holds, `each` a multiprocessor, shared out evenly: what each
// loads of rotation and codebook is then read for as many tiles as can be.
std::int32_t blocks_a_head(const EncodeParams& p, std::int32_t tiles, int each,
                           const Launch& launch) {
  const std::int32_t resident = launch.num_multiprocessors * each;
  const std::int32_t blocks = resident / (p.index.num_kv_heads * p.step.batch_size);
  return blocks < 1 ? 1 : blocks > tiles ? tiles : blocks;
}

template <auto kKernel, typename... Args>
Status launch_blocks(const EncodeParams& p, const Tiling& tiling, std::int32_t blocks,
                     std::size_t bytes, int threads, const Launch& launch, Args... args) {
  const dim3 grid(static_cast<unsigned>(blocks) * static_cast<unsigned>(p.index.num_kv_heads) *
                  static_cast<unsigned>(p.step.batch_size));
  return launch_kernel<kKernel>("encode", launch, grid, threads, bytes, p, tiling, blocks, args...);
}

template <auto kKernel, typename... Args>
Status launch_tensor(const EncodeParams& p, const Tiling& tiling, std::int32_t tiles,
                     std::size_t bytes, const Launch& launch, Args... args) {
  return launch_blocks<kKernel>(p, tiling,
                                blocks_a_head(p, tiles, bytes > 113 * 1024 ? 1 : 2, launch), bytes,
                                kTensorThreads, launch, args...);
}

Status launch_columns(const EncodeParams& p, int warps, const Launch& launch) {
  const IndexView& ix = p.index;
  const Tiling tiling{kColumnsKeys, ix.block_size, ix.encode_from};
  const std::int32_t tiles = tiling.tiles(ix.encode_from, p.step.fixed_length);
  if (tiles == 0) return {};
  const std::size_t bytes = ColumnsShared(nullptr, ix.head_dim, ix.num_subspaces, warps).bytes;
  const auto go = [&]<int kSteps>() {
    const std::int32_t blocks = blocks_a_head(p, tiles, 1, launch);
    return ix.block_size > 0 ? launch_blocks<encode_columns_kernel<kSteps, true>>(
                                   p, tiling, blocks, bytes, 32 * warps, launch)
                             : launch_blocks<encode_columns_kernel<kSteps, false>>(
                                   p, tiling, blocks, bytes, 32 * warps, launch);
  };
  return ix.head_dim == 128 ? go.operator()<8>() : go.operator()<4>();
}

// A prefill on tensor cores; *served tells whether the shape is one of theirs.
Status encode_on_tensor_cores(const EncodeParams& p, bool wide, const Launch& launch,
                              bool* served) {
  const IndexView& ix = p.index;
  *served = false;
  if (!tensor_cores_serve(ix)) return {};
  int most = 0;
  if (cudaError_t e =
          cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, launch.device);
      e != cudaSuccess) {
    return to_status(e, "encode: cudaDeviceGetAttribute");
  }
  if (columns_serves(ix, p.keys.dtype, wide)) {
    const int warps = columns_warps(ix.head_dim, ix.num_subspaces, static_cast<std::size_t>(most));
    if (warps > 0) {
      *served = true;
      return launch_columns(p, warps, launch);
    }
  }
  const Tiling tiling{kTensorKeys, ix.block_size, ix.encode_from};
  const std::size_t bytes = TensorShared(nullptr, ix, tiling).bytes;
  if (bytes > static_cast<std::size_t>(most)) return {};
  *served = true;
  const std::int32_t tiles = tiling.tiles(ix.encode_from, p.step.fixed_length);
  if (tiles == 0) return {};
  if (raw_keys_serve(ix, p.keys.dtype, wide)) {
    return ix.dsub == 16
               ? launch_tensor<encode_raw_kernel<8, 2, 0>>(p, tiling, tiles, bytes, launch)
               : launch_tensor<encode_raw_kernel<8, 1, 4>>(p, tiling, tiles, bytes, launch);
  }
  const auto go = [&]<int kTiles, int kUnits>() {
    return launch_tensor<encode_tensor_kernel<kTiles, kUnits>>(p, tiling, tiles, bytes, launch,
                                                               wide);
  };
  if (ix.head_dim == 128) {
    return ix.dsub == 8    ? go.operator()<8, 1>()
           : ix.dsub == 16 ? go.operator()<8, 2>()
           : ix.dsub == 32 ? go.operator()<8, 4>()
                           : go.operator()<8, 8>();
  }
  return ix.dsub == 8    ? go.operator()<4, 1>()
         : ix.dsub == 16 ? go.operator()<4, 2>()
                         : go.operator()<4, 4>();
}

}  // namespace

Status encode_bulk(const EncodeParams& p, bool wide, const Launch& launch) noexcept {
  const IndexView& ix = p.index;
  bool served = false;
  if (Status s = encode_on_tensor_cores(p, wide, launch, &served); !s.ok() || served) return s;
  // As many thread blocks as there are tiles.
  const Tiling tiling =
      exact_tiling(ix, ix.rotation == nullptr && ix.num_subspaces <= 2 ? 128 : 64);
  const std::int32_t tiles = tiling.tiles(ix.encode_from, p.step.fixed_length);
  const dim3 grid(static_cast<unsigned>(tiles) * static_cast<unsigned>(ix.num_kv_heads) *
                  static_cast<unsigned>(p.step.batch_size));
  return with_dtype(p.keys.dtype, [&](auto element) {
    return launch_kernel<encode_exact_kernel<decltype(element)>>(
        "encode", launch, grid, kExactThreads, TileShared(nullptr, ix, tiling).bytes, p, tiling,
        tiles, wide);
  });
}

}  // namespace quarry::cuda
