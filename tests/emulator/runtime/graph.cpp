// SPDX-License-Identifier: Apache-2.0
//
// Stream capture and graphs. A graph here is the list of what was submitted, in order: one
// stream's capture, without branches.
#include <algorithm>

#include "stream.h"

namespace quarry::emulator::runtime {
namespace {

void invalidate(CUstream_st& stream, const char* call) {
  stream.capture->valid = false;
  throw CallError(cudaErrorStreamCaptureUnsupported,
                  std::string(call) + " while a stream is captured");
}

}  // namespace

void refuse_during_capture(const char* call) {
  for (CUstream_st* stream : live_streams()) {
    if (stream->capture == nullptr) continue;
    const Capture& c = *stream->capture;
    const bool own = c.thread == std::this_thread::get_id();
    if (own ? c.mode != cudaStreamCaptureModeRelaxed : c.mode == cudaStreamCaptureModeGlobal) {
      invalidate(*stream, call);
    }
  }
}

void refuse_if_captured(cudaStream_t handle, const char* call) {
  CUstream_st* stream = resolve(handle);
  if (stream != nullptr && stream->capture != nullptr) invalidate(*stream, call);
}

void refuse_if_any_captured(const char* call) {
  for (CUstream_st* stream : live_streams()) {
    if (stream->capture != nullptr) invalidate(*stream, call);
  }
}

}  // namespace quarry::emulator::runtime

namespace emu = quarry::emulator::runtime;

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  return emu::call([&] {
    CUstream_st* stream = emu::resolve(handle);
    if (stream == nullptr) return cudaErrorStreamCaptureUnsupported;  // the legacy default stream
    if (stream->capture != nullptr) return cudaErrorIllegalState;
    stream->capture = std::make_unique<emu::Capture>();
    stream->capture->mode = mode;
    stream->capture->thread = std::this_thread::get_id();
    return cudaSuccess;
  });
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  return emu::call([&] {
    if (graph == nullptr) return cudaErrorInvalidValue;
    *graph = nullptr;
    CUstream_st* stream = emu::resolve(handle);
    if (stream == nullptr || stream->capture == nullptr) return cudaErrorIllegalState;
    if (stream->capture->mode != cudaStreamCaptureModeRelaxed &&
        stream->capture->thread != std::this_thread::get_id()) {
      return cudaErrorStreamCaptureWrongThread;
    }
    const auto capture = std::move(stream->capture);
    if (!capture->valid) return cudaErrorStreamCaptureInvalidated;
    *graph = new CUgraph_st{std::move(capture->nodes)};
    return cudaSuccess;
  });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  return emu::call([&] {
    if (status == nullptr) return cudaErrorInvalidValue;
    const CUstream_st* stream = emu::resolve(handle);
    *status = stream == nullptr || stream->capture == nullptr ? cudaStreamCaptureStatusNone
              : stream->capture->valid                        ? cudaStreamCaptureStatusActive
                                                              : cudaStreamCaptureStatusInvalidated;
    return cudaSuccess;
  });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* out, cudaGraph_t graph,
                                 unsigned long long /*flags*/) {
  return emu::call([&] {
    if (out == nullptr || graph == nullptr) return cudaErrorInvalidValue;
    *out = new CUgraphExec_st{graph->nodes};
    return cudaSuccess;
  });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return emu::call([&] {
    if (exec == nullptr) return cudaErrorInvalidValue;
    // Into a stream that is captured itself, they become nodes of its graph.
    for (const emu::Work& node : exec->nodes) {
      if (cudaError_t e = emu::submit(stream, node); e != cudaSuccess) return e;
    }
    return cudaSuccess;
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return emu::call([&] {
    if (graph == nullptr) return cudaErrorInvalidValue;
    delete graph;
    return cudaSuccess;
  });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  return emu::call([&] {
    if (exec == nullptr) return cudaErrorInvalidValue;
    delete exec;
    return cudaSuccess;
  });
}

}  // extern "C"
