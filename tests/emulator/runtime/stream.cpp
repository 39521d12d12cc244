// SPDX-License-Identifier: Apache-2.0
#include "stream.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace quarry::emulator::runtime {
namespace {

struct Streams {
  std::vector<CUstream_st*> live;
  Queue legacy;
};

Streams& streams() {
  static Streams& all = *new Streams;  // never destroyed, as the lock
  return all;
}

Queue& queue_of(CUstream_st* stream) {
  return stream == nullptr || stream->blocking ? streams().legacy : stream->queue;
}

void run_all(Queue& queue) {
  while (!queue.empty()) {
    const Work work = std::move(queue.front());
    queue.pop_front();
    if (sticky_error() == cudaSuccess) static_cast<void>(work());
  }
}

cudaError_t create(cudaStream_t* out, unsigned flags) {
  if (out == nullptr || (flags & ~static_cast<unsigned>(cudaStreamNonBlocking)) != 0) {
    return cudaErrorInvalidValue;
  }
  auto stream = std::make_unique<CUstream_st>();
  stream->blocking = (flags & cudaStreamNonBlocking) == 0;
  streams().live.push_back(stream.get());
  *out = stream.release();
  return cudaSuccess;
}

}  // namespace

const std::vector<CUstream_st*>& live_streams() { return streams().live; }

bool is_lazy() {
  static const bool lazy = [] {
    const char* asked = std::getenv("QUARRY_EMULATOR_LAZY");
    return asked != nullptr && std::strcmp(asked, "0") != 0;
  }();
  return lazy;
}

CUstream_st* resolve(cudaStream_t stream) {
  if (stream == nullptr || stream == cudaStreamLegacy) return nullptr;
  if (stream == cudaStreamPerThread) {
    throw CallError(cudaErrorNotSupported, "the per-thread default stream is not emulated");
  }
  const auto& live = streams().live;
  if (std::find(live.begin(), live.end(), stream) == live.end()) {
    throw CallError(cudaErrorInvalidResourceHandle, "a stream that does not exist (any more)");
  }
  return stream;
}

cudaError_t submit(cudaStream_t handle, Work work) {
  CUstream_st* stream = resolve(handle);
  if (stream != nullptr && stream->capture != nullptr) {
    if (!stream->capture->valid) return cudaErrorStreamCaptureInvalidated;
    stream->capture->nodes.push_back(std::move(work));
    return cudaSuccess;
  }
  if (stream == nullptr) {
    for (CUstream_st* other : streams().live) {
      if (!other->blocking || other->capture == nullptr) continue;
      other->capture->valid = false;
      return cudaErrorStreamCaptureImplicit;
    }
  }
  queue_of(stream).push_back(std::move(work));
  if (!is_lazy()) run_all(queue_of(stream));
  return sticky_error();
}

void finish(cudaStream_t stream) { run_all(queue_of(resolve(stream))); }

void finish_everything() {
  run_all(streams().legacy);
  for (CUstream_st* stream : streams().live) run_all(stream->queue);
}

}  // namespace quarry::emulator::runtime

namespace emu = quarry::emulator::runtime;

extern "C" {

cudaError_t cudaStreamCreate(cudaStream_t* out) {
  return emu::call([&] { return emu::create(out, cudaStreamDefault); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* out, unsigned flags) {
  return emu::call([&] { return emu::create(out, flags); });
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  return emu::call([&] {
    CUstream_st* stream = emu::resolve(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    emu::refuse_if_captured(stream, "cudaStreamDestroy");
    emu::finish(stream);
    std::erase(emu::streams().live, stream);
    delete stream;
    return emu::sticky_error();
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return emu::call([&] {
    emu::refuse_if_captured(stream, "cudaStreamSynchronize");
    emu::finish(stream);
    return emu::sticky_error();
  });
}

cudaError_t cudaDeviceSynchronize() {
  return emu::call([&] {
    emu::refuse_if_any_captured("cudaDeviceSynchronize");
    emu::finish_everything();
    return emu::sticky_error();
  });
}

}  // extern "C"
