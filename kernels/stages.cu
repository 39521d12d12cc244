// SPDX-License-Identifier: Apache-2.0
//
// The CUDA backend: its table of stages, and the device and memory of an Indexer.
#include <cuda_runtime.h>

#include "backend.h"
#include "common/error.h"
#include "emit/emit.h"
#include "encode/encode.h"
#include "mask/mask.h"
#include "reduce/reduce.h"
#include "refine/refine.h"
#include "scan/scan.h"
#include "score/score.h"
#include "select/select.h"
#include "state/share.h"
#include "state/state.h"
#include "state/transfer.h"
#include "stats/stats.h"
#include "train/train.h"

namespace quarry::cuda {
namespace {

constexpr int kLeastCapability = 80;

// The device of this thread's last open(): allocate() follows it within create(), and the
// caller's current device stays as it is.
thread_local int opened_device = 0;

Status open(std::int32_t ordinal, std::int32_t, Launch* launch) noexcept {
  const OwnErrors own;
  int count = 0;
  if (Status s = to_status(cudaGetDeviceCount(&count), "cudaGetDeviceCount"); !s.ok()) return s;
  if (ordinal < 0 || ordinal >= count) {
    return Status(StatusCode::invalid_argument, "device.ordinal is %d, must be 0..%d", ordinal,
                  count - 1);
  }
  int major = 0, minor = 0, multiprocessors = 0;
  const struct {
    cudaDeviceAttr attribute;
    int* value;
  } wanted[] = {{cudaDevAttrComputeCapabilityMajor, &major},
                {cudaDevAttrComputeCapabilityMinor, &minor},
                {cudaDevAttrMultiProcessorCount, &multiprocessors}};
  for (const auto& w : wanted) {
    const cudaError_t e = cudaDeviceGetAttribute(w.value, w.attribute, ordinal);
    if (Status s = to_status(e, "cudaDeviceGetAttribute"); !s.ok()) return s;
  }
  if (10 * major + minor < kLeastCapability) {
    return Status(StatusCode::unsupported,
                  "device %d has compute capability %d.%d, must be at least 8.0", ordinal, major,
                  minor);
  }
  *launch = Launch{};
  launch->num_threads = 1;
  launch->num_multiprocessors = multiprocessors;
  launch->device = ordinal;
  launch->compute_capability = 10 * major + minor;
  opened_device = ordinal;
  return {};
}

Status allocate(std::size_t bytes, void** out) noexcept {
  const OwnErrors own;
  const DeviceGuard guard(opened_device);
  if (Status s = guard.status(); !s.ok()) return s;
  const cudaError_t e = cudaMalloc(out, bytes);
  if (e == cudaErrorMemoryAllocation) {
    return Status(StatusCode::out_of_memory, "cudaMalloc of %zu bytes on device %d", bytes,
                  opened_device);
  }
  return to_status(e, "cudaMalloc");
}

void release(void* memory) noexcept {
  const OwnErrors own;
  static_cast<void>(cudaFree(memory));
}

// On a stream of its own: the default stream would wait for, or break the capture of, work
// that is none of ours.
Status zero(void* memory, std::size_t bytes) noexcept {
  const OwnErrors own;
  const DeviceGuard guard(opened_device);
  if (Status s = guard.status(); !s.ok()) return s;
  cudaStream_t stream = nullptr;
  cudaError_t e = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (e != cudaSuccess) return to_status(e, "cudaStreamCreateWithFlags");
  e = cudaMemsetAsync(memory, 0, bytes, stream);
  if (e == cudaSuccess) e = cudaStreamSynchronize(stream);
  static_cast<void>(cudaStreamDestroy(stream));
  return to_status(e, "cudaMemsetAsync");
}

}  // namespace

bool device_present() noexcept {
  const OwnErrors own;
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

const Stages stages = {
    encode,
    train,
    score,
    mask,
    reduce,
    select,
    refine,
    emit,
    scan,
    scan_serves,
    sample,
    exact,
    recall,
    drift,
    set_codebook,
    truncate,
    reset,
    codes,
    codebook,
    attach,
    copy_pages,
    fork,
    export_section,
    import_section,
    synchronize,
    /*transfer_scratch_bytes=*/kTransferBytes,
    select_scratch_bytes,
    scan_scratch_bytes,
    train_scratch_bytes,
    /*train_is_synchronous=*/false,
    open,
    allocate,
    release,
    zero,
};

}  // namespace quarry::cuda
