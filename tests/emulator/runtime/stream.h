// SPDX-License-Identifier: Apache-2.0
//
// Streams, what is queued in them, and their capture into graphs.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "state.h"

namespace quarry::emulator::runtime {

/// A kernel, copy or memset that was checked and holds copies of its arguments. A graph runs it
/// any number of times. Returns what a call after it would return.
using Work = std::function<cudaError_t()>;

/// In submission order. The legacy default stream and all blocking streams share one: to run them
/// in submission order is one of the orders that CUDA allows.
using Queue = std::deque<Work>;

/// Hands `work` to the stream: into the graph where the stream is being captured, else it runs at
/// once, or with QUARRY_EMULATOR_LAZY=1 when something waits for it. Throws CallError.
cudaError_t submit(cudaStream_t stream, Work work);
/// Runs what the stream, or every stream, still holds.
void finish(cudaStream_t stream);
void finish_everything();
bool is_lazy();

/// nullptr for the legacy default stream, whose handle is null or cudaStreamLegacy. Throws
/// CallError on what is not a live stream.
struct ::CUstream_st* resolve(cudaStream_t stream);

/// For calls that may not be made while a stream is captured: throws CallError and makes the
/// capture invalid where the calling thread captures in a mode other than relaxed, or another
/// thread does in global mode.
void refuse_during_capture(const char* call);
/// The same whatever the mode, where the stream itself is being captured.
void refuse_if_captured(cudaStream_t stream, const char* call);
/// The same where any stream is.
void refuse_if_any_captured(const char* call);

struct Capture {
  cudaStreamCaptureMode mode;
  std::thread::id thread;
  std::vector<Work> nodes;
  bool valid = true;
};

const std::vector<struct ::CUstream_st*>& live_streams();

}  // namespace quarry::emulator::runtime

// The types that the CUDA headers declare and leave to the runtime.
struct CUstream_st {
  bool blocking;
  quarry::emulator::runtime::Queue queue;
  std::unique_ptr<quarry::emulator::runtime::Capture> capture;
};

struct CUgraph_st {
  std::vector<quarry::emulator::runtime::Work> nodes;
};

struct CUgraphExec_st {
  std::vector<quarry::emulator::runtime::Work> nodes;
};
