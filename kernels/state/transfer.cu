// SPDX-License-Identifier: Apache-2.0
//
// A slot's index to and from flat host arrays (src/section.h), staged through the caller's
// scratch: a kernel puts the elements in order, a copy takes them across. Stream order is all
// the staging memory needs between one part and the next.
#include "state/transfer.h"

#include "common/launch.h"
#include "section.h"

namespace quarry::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T, bool kImport>
__global__ void __launch_bounds__(kThreads) section_kernel(SectionParams p) {
  wait_for_predecessor();
  let_successor_start();
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < p.count;
       i += std::int64_t{gridDim.x} * kThreads) {
    move_element<T, kImport>(p, i, static_cast<T*>(p.staging));
  }
}

template <bool kImport>
Status launch_section(const SectionParams& p, const Launch& launch) {
  const char* const name = kImport ? "restore" : "save";
  const unsigned blocks = blocks_for(p.count, kThreads, 4096);
  switch (element_bytes(p.index, p.section)) {
    case 1:
      return launch_kernel<section_kernel<std::uint8_t, kImport>>(name, launch, blocks, kThreads, 0,
                                                                  p);
    case 2:
      return launch_kernel<section_kernel<std::uint16_t, kImport>>(name, launch, blocks, kThreads,
                                                                   0, p);
    default:
      return launch_kernel<section_kernel<std::uint32_t, kImport>>(name, launch, blocks, kThreads,
                                                                   0, p);
  }
}

/// Calls f(part, byte offset, bytes) for parts that fit the staging memory.
template <typename F>
Status for_each_part(const SectionParams& whole, F&& f) {
  const std::int64_t bytes = element_bytes(whole.index, whole.section);
  const std::int64_t most = static_cast<std::int64_t>(whole.staging_bytes) / bytes;
  for (std::int64_t done = 0; done < whole.count; done += most) {
    SectionParams part = whole;
    part.first = whole.first + done;
    part.count = whole.count - done < most ? whole.count - done : most;
    if (Status s = f(part, done * bytes, static_cast<std::size_t>(part.count * bytes)); !s.ok()) {
      return s;
    }
  }
  return {};
}

}  // namespace

Status export_section(const SectionParams& p, void* out, const Launch& launch) noexcept {
  const OwnErrors own;
  const DeviceGuard guard(launch.device);
  if (Status s = guard.status(); !s.ok()) return s;
  return for_each_part(
      p, [&](const SectionParams& part, std::int64_t at, std::size_t bytes) -> Status {
        if (Status s = launch_section<false>(part, launch); !s.ok()) return s;
        return to_status(cudaMemcpyAsync(static_cast<unsigned char*>(out) + at, part.staging, bytes,
                                         cudaMemcpyDeviceToHost, launch.stream),
                         "save: cudaMemcpyAsync");
      });
}

Status import_section(const SectionParams& p, const void* in, const Launch& launch) noexcept {
  const OwnErrors own;
  const DeviceGuard guard(launch.device);
  if (Status s = guard.status(); !s.ok()) return s;
  Status status = for_each_part(
      p, [&](const SectionParams& part, std::int64_t at, std::size_t bytes) -> Status {
        const cudaError_t e =
            cudaMemcpyAsync(part.staging, static_cast<const unsigned char*>(in) + at, bytes,
                            cudaMemcpyHostToDevice, launch.stream);
        if (e != cudaSuccess) return to_status(e, "restore: cudaMemcpyAsync");
        return launch_section<true>(part, launch);
      });
  if (!status.ok()) return status;
  // Pinned memory is read in stream order, and the caller may change it once we return.
  return synchronize(launch);
}

Status synchronize(const Launch& launch) noexcept {
  const OwnErrors own;
  const DeviceGuard guard(launch.device);
  if (Status s = guard.status(); !s.ok()) return s;
  return to_status(cudaStreamSynchronize(launch.stream), "cudaStreamSynchronize");
}

}  // namespace quarry::cuda
