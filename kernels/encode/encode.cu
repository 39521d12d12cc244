// SPDX-License-Identifier: Apache-2.0
//
// Stage encode, in two kernels. `plan_kernel` finds each sequence's state and marks its
// positions as seen; `encode_kernel` reads that state alone, so no thread block can meet a
// `seen` that another has already moved.
#include "encode/encode.h"

#include "common/launch.h"
#include "encode/nearest.cuh"
#include "encode/tensor.cuh"
#include "encode/tile.cuh"
#include "encode/tiling.h"

namespace quarry::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPlanThreads = 128;

// Grid (B).
__global__ void __launch_bounds__(kPlanThreads)
    plan_kernel(const __grid_constant__ EncodeParams p) {
  __shared__ SequenceState shared;
  wait_for_predecessor();
  let_successor_start();
  const IndexView& ix = p.index;
  const auto b = static_cast<std::int32_t>(blockIdx.x);
  if (threadIdx.x == 0) shared = sequence_state(ix, p.step, b);
  __syncthreads();
  SequenceState st = shared;
  // Every page the sequence's rows can touch: the later stages read codes, and refine reads
  // keys, by the same table.
  bool bad = false;
  const std::int32_t* table = block_table_row(p.step, b);
  if (st.slot >= 0 && table != nullptr) {
    std::int32_t most = st.n;
    for (std::int32_t t = 1; t < st.count && p.step.lengths != nullptr; ++t) {
      std::uint32_t ignored = 0;
      const std::int32_t n = row_state(ix, p.step, st, b, t, &ignored).n;
      most = n > most ? n : most;
    }
    const std::int32_t pages = most / ix.page_size + (most % ix.page_size != 0 ? 1 : 0);
    for (auto i = static_cast<std::int32_t>(threadIdx.x); i < pages; i += kPlanThreads) {
      bad |= table[i] < 0 || table[i] >= ix.num_pages;
    }
  }
  bad = __syncthreads_or(bad) != 0;
  if (threadIdx.x != 0) return;
  if (bad) {
    st.bits |= kPageOutOfRange;
    st.slot = -1;
  }
  p.step.states[b] = st;
  if (st.bits != 0 && p.step.device_status != nullptr) {
    atomicOr(p.step.device_status + b, st.bits);
  }
  if (st.slot >= 0 && st.built != 0) ix.seen[st.slot] = st.n;
}

// How the host cut the work up.
struct Shape {
  Tiling tiling;
  std::int32_t tiles;  // thread blocks a sequence and KV head; each takes every tiles-th tile
  bool wide;           // keys may be read 16 bytes at a time
};

// Dynamic shared memory, in the order of use. The code that counts it carves it.
struct Shared {
  float* xs;                 // [keys][stride]
  float* ys;                 // [keys][stride], rotated
  float* means;              // [blocks of a tile][d]
  float* extra;              // [keys][m]
  unsigned long long* best;  // [kManySubvectors]
  std::uint8_t* codes;       // [keys][m]
  std::size_t bytes;

  __host__ __device__ Shared(unsigned char* base, const IndexView& ix, const Tiling& tiling)
      : bytes(0) {
    const auto take = [&](std::size_t size) {
      unsigned char* const here = base == nullptr ? nullptr : base + bytes;
      bytes += (size + 15) / 16 * 16;
      return here;
    };
    const auto keys = static_cast<std::size_t>(tiling.keys);
    const auto d = static_cast<std::size_t>(ix.head_dim);
    const auto m = static_cast<std::size_t>(ix.num_subspaces);
    const std::size_t tile = keys * static_cast<std::size_t>(tile_stride(ix.head_dim)) * 4;
    const bool blocks = ix.block_size > 0, ip = ix.metric == Metric::inner_product;
    xs = reinterpret_cast<float*>(take(tile));
    ys = reinterpret_cast<float*>(take(ix.rotation != nullptr ? tile : 0));
    means = reinterpret_cast<float*>(
        take(blocks ? static_cast<std::size_t>(tiling.blocks_per_tile()) * d * 4 : 0));
    extra = reinterpret_cast<float*>(take(ip ? keys * m * 4 : 0));
    best = reinterpret_cast<unsigned long long*>(take(kManySubvectors * 8));
    codes = take(keys * m);
  }
};

// Grid (B * Hkv * shape.tiles), tiles innermost. kRows: keys a thread rotates at once.
template <typename E, int kRows>
__global__ void __launch_bounds__(kThreads, 2)
    encode_kernel(const __grid_constant__ EncodeParams p, const __grid_constant__ Shape shape) {
  extern __shared__ __align__(16) unsigned char memory[];
  wait_for_predecessor();
  let_successor_start();
  const IndexView& ix = p.index;
  const auto head = static_cast<std::int32_t>(blockIdx.x / shape.tiles % ix.num_kv_heads);
  const auto b = static_cast<std::int32_t>(blockIdx.x / shape.tiles / ix.num_kv_heads);
  const SequenceState st = p.step.states[b];
  if (st.slot < 0 || st.built == 0) return;

  const Shared sh(memory, ix, shape.tiling);
  const KeySource source{ix, p.keys, block_table_row(p.step, b), st.slot, head, shape.wide};
  const std::int64_t book = std::int64_t{codebook_of(ix, st.slot)} * ix.num_kv_heads + head;
  const int m = ix.num_subspaces, stride = tile_stride(ix.head_dim);
  const std::int32_t tiles = shape.tiling.tiles(st.begin, st.n);
  for (auto i = static_cast<std::int32_t>(blockIdx.x % shape.tiles); i < tiles; i += shape.tiles) {
    const Tile tile = shape.tiling.tile(st.begin, st.n, i);
    if (tile.count == 0) continue;
    const int rows = (tile.count + kRows - 1) / kRows * kRows;
    load_keys<E>(
        source, rows, [&](int k) { return k < tile.count ? tile.first + k : -1; }, sh.xs);
    __syncthreads();
    if (ix.block_size > 0) {
      subtract_means<E>(source, shape.tiling, tile, sh.xs, sh.means, MeanStore{source});
      __syncthreads();
    }
    const float* xs = sh.xs;
    if (ix.rotation != nullptr) {
      rotate<kRows>(ix.rotation + book * ix.head_dim * ix.head_dim, ix.head_dim, rows, sh.xs,
                    sh.ys);
      xs = sh.ys;
      __syncthreads();
    }
    const bool augmented = ix.metric == Metric::inner_product;
    if (augmented) {
      for (int item = static_cast<int>(threadIdx.x); item < tile.count * m; item += kThreads) {
        const int k = item / m, s = item % m;
        sh.extra[item] = augmentation(ix.phi[book * m + s],
                                      squared_norm(xs + k * stride + s * ix.dsub, ix.dsub));
      }
      __syncthreads();
    }
    const NearestInput in{ix, ix.codebooks + book * m * ix.dcent * ix.ksub, xs,
                          augmented ? sh.extra : nullptr, tile.count};
    if (tile.count * m >= kManySubvectors) {
      nearest_by_subvector(in, sh.codes);
    } else if (tile.count == 1) {
      nearest_by_centroid<1>(in, sh.best, sh.codes);
    } else {
      nearest_by_centroid<4>(in, sh.best, sh.codes);
    }
    __syncthreads();
    store_codes(source, tile, sh.codes);
    __syncthreads();  // the next tile overwrites what this one read
  }
}

// The largest tile of at most `keys` that leaves room for two thread blocks on every
// multiprocessor from 8.6 (100 KB) on.
Tiling tiling_of(const IndexView& ix, std::int32_t keys) {
  constexpr std::size_t kMost = 96 * 1024;
  Tiling t{keys, ix.block_size, ix.encode_from};
  while (t.keys > 8 && Shared(nullptr, ix, t).bytes > kMost) t.keys /= 2;
  return t;
}

template <typename E, int kRows>
Status launch_encode(const EncodeParams& p, const Shape& shape, const Launch& launch) {
  const dim3 grid(static_cast<unsigned>(shape.tiles) * static_cast<unsigned>(p.index.num_kv_heads) *
                  static_cast<unsigned>(p.step.batch_size));
  const std::size_t bytes = Shared(nullptr, p.index, shape.tiling).bytes;
  return launch_kernel<encode_kernel<E, kRows>>("encode", launch, grid, kThreads, bytes, p, shape);
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
  // A prefill is cut into as many thread blocks as it has tiles. A step has positions for
  // what a call may bring and one block completed; where more is pending its blocks loop.
  const bool bulk = p.step.lengths == nullptr;
  Shape shape{};
  shape.wide = is_wide(p.keys.data, p.keys.dtype,
                       {p.keys.page_stride, p.keys.slot_stride, p.keys.head_stride});
  if (bulk) {
    bool served = false;
    if (Status s = encode_on_tensor_cores(p, shape.wide, launch, &served); !s.ok() || served) {
      return s;
    }
    shape.tiling = tiling_of(ix, ix.rotation == nullptr && ix.num_subspaces <= 2 ? 128 : 64);
    shape.tiles = shape.tiling.tiles(ix.encode_from, p.step.fixed_length);
    if (shape.tiles == 0) return {};
  } else {
    shape.tiling = tiling_of(ix, 16);
    std::int32_t positions = p.step.query_tokens;
    if (ix.block_size > 0) {
      positions = ((positions - 1) / ix.block_size + 1) * ix.block_size;
    }
    shape.tiles = shape.tiling.tiles(0, positions);
    // encode_from clips no tile here: it only makes them shorter.
  }
  return with_dtype(p.keys.dtype, [&](auto element) {
    using E = decltype(element);
    return bulk ? launch_encode<E, 8>(p, shape, launch) : launch_encode<E, 2>(p, shape, launch);
  });
}

}  // namespace quarry::cuda
