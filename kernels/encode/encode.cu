// SPDX-License-Identifier: Apache-2.0
//
// Stage encode, in two kernels. `plan_kernel` finds each sequence's state and marks its
// positions as seen; `encode_kernel` reads that state alone, so no thread block can meet a
// `seen` that another has already moved.
#include "encode/encode.h"

#include "common/launch.h"
#include "encode/step.cuh"
#include "encode/tensor.cuh"

namespace quarry::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPlanThreads = 128;

// Grid (B).
__global__ void __launch_bounds__(kPlanThreads)
    plan_kernel(const __grid_constant__ EncodeParams p) {
  wait_for_predecessor();
  let_successor_start();
  const auto b = static_cast<std::int32_t>(blockIdx.x);
  const SequenceState st = plan_sequence(p, b);
  if (threadIdx.x != 0) return;
  p.step.states[b] = st;
  if (st.bits != 0 && p.step.device_status != nullptr) {
    atomicOr(p.step.device_status + b, st.bits);
  }
  if (st.slot >= 0 && st.built != 0) p.index.seen[st.slot] = st.n;
}

// Grid (B * Hkv * shape.shares), shares innermost.
__global__ void __launch_bounds__(kThreads, 2)
    encode_step_kernel(const __grid_constant__ EncodeParams p,
                       const __grid_constant__ StepShape shape) {
  extern __shared__ __align__(16) unsigned char memory[];
  wait_for_predecessor();
  let_successor_start();
  const auto id = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t b = id / shape.shares / p.index.num_kv_heads;
  encode_share(p, shape, p.step.states[b], b, id / shape.shares % p.index.num_kv_heads,
               id % shape.shares, shape.shares, 0, INT32_MAX, memory);
}

// Grid (B * Hkv * tiles), tiles innermost: a prefill that the tensor cores do not serve.
template <typename E>
__global__ void __launch_bounds__(kThreads, 2)
    encode_bulk_kernel(const __grid_constant__ EncodeParams p,
                       const __grid_constant__ Tiling tiling, std::int32_t tiles, bool wide) {
  extern __shared__ __align__(16) unsigned char memory[];
  wait_for_predecessor();
  let_successor_start();
  const IndexView& ix = p.index;
  const auto id = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t b = id / tiles / ix.num_kv_heads;
  const SequenceState st = p.step.states[b];
  if (st.slot < 0 || st.built == 0 || id % tiles >= tiling.tiles(st.begin, st.n)) return;
  const KeySource source{
      ix, p.keys, block_table_row(p.step, b), st.slot, id / tiles % ix.num_kv_heads, wide};
  const Tile tile = tiling.tile(st.begin, st.n, id % tiles);
  if (tile.count > 0) encode_tile<E, 8>(source, tiling, tile, TileShared(memory, ix, tiling));
}

template <int kTiles, int kUnits>
Status launch_tensor(const EncodeParams& p, const Tiling& tiling, std::int32_t tiles, bool wide,
                     std::size_t bytes, const Launch& launch) {
  // Two thread blocks a multiprocessor, as far as shared memory lets them, shared out evenly:
  // what each loads of rotation and codebook is then read for as many tiles as can be.
  const std::int32_t resident = launch.num_multiprocessors * (bytes > 113 * 1024 ? 1 : 2);
  std::int32_t blocks = resident / (p.index.num_kv_heads * p.step.batch_size);
  blocks = blocks < 1 ? 1 : blocks > tiles ? tiles : blocks;
  const dim3 grid(static_cast<unsigned>(blocks) * static_cast<unsigned>(p.index.num_kv_heads) *
                  static_cast<unsigned>(p.step.batch_size));
  return launch_kernel<encode_tensor_kernel<kTiles, kUnits>>("encode", launch, grid, kTensorThreads,
                                                             bytes, p, tiling, blocks, wide);
}

// A prefill on tensor cores; *served tells whether the shape is one of theirs.
Status encode_on_tensor_cores(const EncodeParams& p, bool wide, const Launch& launch,
                              bool* served) {
  const IndexView& ix = p.index;
  *served = false;
  if (!tensor_cores_serve(ix)) return {};
  const Tiling tiling{kTensorKeys, ix.block_size, ix.encode_from};
  const std::size_t bytes = TensorShared(nullptr, ix, tiling).bytes;
  int most = 0;
  if (cudaError_t e =
          cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, launch.device);
      e != cudaSuccess) {
    return to_status(e, "encode: cudaDeviceGetAttribute");
  }
  if (bytes > static_cast<std::size_t>(most)) return {};
  *served = true;
  const std::int32_t tiles = tiling.tiles(ix.encode_from, p.step.fixed_length);
  if (tiles == 0) return {};
  const auto go = [&](auto kernel) { return kernel(p, tiling, tiles, wide, bytes, launch); };
  if (ix.head_dim == 128) {
    return ix.dsub == 8    ? go(launch_tensor<8, 1>)
           : ix.dsub == 16 ? go(launch_tensor<8, 2>)
           : ix.dsub == 32 ? go(launch_tensor<8, 4>)
                           : go(launch_tensor<8, 8>);
  }
  return ix.dsub == 8    ? go(launch_tensor<4, 1>)
         : ix.dsub == 16 ? go(launch_tensor<4, 2>)
                         : go(launch_tensor<4, 4>);
}

}  // namespace

Status encode(const EncodeParams& p, const Launch& launch) noexcept {
  const IndexView& ix = p.index;
  const dim3 sequences(static_cast<unsigned>(p.step.batch_size));
  if (Status s = launch_kernel<plan_kernel>("encode: plan", launch, sequences, kPlanThreads, 0, p);
      !s.ok()) {
    return s;
  }
  const auto blocks_of = [&](std::int32_t each) {
    return dim3(static_cast<unsigned>(each) * static_cast<unsigned>(ix.num_kv_heads) *
                static_cast<unsigned>(p.step.batch_size));
  };
  const StepShape shape = step_shape(p);
  if (p.step.lengths != nullptr) {
    return launch_kernel<encode_step_kernel>("encode", launch, blocks_of(shape.shares), kThreads,
                                             shape.shared_bytes, p, shape);
  }
  // A prefill is cut into as many thread blocks as it has tiles.
  bool served = false;
  if (Status s = encode_on_tensor_cores(p, shape.wide, launch, &served); !s.ok() || served) {
    return s;
  }
  const Tiling tiling = tiling_of(ix, ix.rotation == nullptr && ix.num_subspaces <= 2 ? 128 : 64);
  const std::int32_t tiles = tiling.tiles(ix.encode_from, p.step.fixed_length);
  return with_dtype(p.keys.dtype, [&](auto element) {
    return launch_kernel<encode_bulk_kernel<decltype(element)>>(
        "encode", launch, blocks_of(tiles), kThreads, TileShared(nullptr, ix, tiling).bytes, p,
        tiling, tiles, shape.wide);
  });
}

}  // namespace quarry::cuda
