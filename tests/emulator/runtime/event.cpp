// SPDX-License-Identifier: Apache-2.0
//
// Events. Their times are the host's clock: how long the interpreter took.
#include <algorithm>
#include <chrono>
#include <memory>
#include <set>

#include "stream.h"

namespace quarry::emulator::runtime {
namespace {

/// One cudaEventRecord(). Recording again leaves those who wait for the earlier one with it.
struct Record {
  cudaStream_t stream;
  bool done = false;
  std::chrono::steady_clock::time_point time;
};

}  // namespace
}  // namespace quarry::emulator::runtime

struct CUevent_st {
  std::shared_ptr<quarry::emulator::runtime::Record> record;  // nullptr: never recorded
};

namespace quarry::emulator::runtime {
namespace {

std::set<CUevent_st*>& live_events() {
  static std::set<CUevent_st*>& live = *new std::set<CUevent_st*>;  // never destroyed
  return live;
}

CUevent_st* resolve_event(cudaEvent_t event) {
  if (live_events().count(event) == 0) {
    throw CallError(cudaErrorInvalidResourceHandle, "an event that does not exist (any more)");
  }
  return event;
}

/// Runs the stream of the record, which is in it or, the stream destroyed, already done.
void wait_for(const Record& record) {
  if (!record.done) finish(record.stream);
}

}  // namespace
}  // namespace quarry::emulator::runtime

namespace emu = quarry::emulator::runtime;

extern "C" {

cudaError_t cudaEventCreate(cudaEvent_t* out) {
  return emu::call([&] {
    if (out == nullptr) return cudaErrorInvalidValue;
    *out = new CUevent_st;
    emu::live_events().insert(*out);
    return cudaSuccess;
  });
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return emu::call([&] {
    delete emu::resolve_event(event);
    emu::live_events().erase(event);
    return cudaSuccess;
  });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return emu::call([&] {
    // A captured event would be an edge between streams; nothing here needs one.
    emu::refuse_if_captured(stream,
                            "cudaEventRecord (which the emulator has outside captures alone)");
    auto record = std::make_shared<emu::Record>(emu::Record{stream, false, {}});
    emu::resolve_event(event)->record = record;
    return emu::submit(stream, [record] {
      record->time = std::chrono::steady_clock::now();
      record->done = true;
      return cudaSuccess;
    });
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return emu::call([&] {
    if (const auto record = emu::resolve_event(event)->record) emu::wait_for(*record);
    return emu::sticky_error();
  });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  // Not an error that cudaGetLastError() would report, hence outside call().
  bool done = true;
  const cudaError_t result = emu::call([&] {
    if (const auto record = emu::resolve_event(event)->record) done = record->done;
    return cudaSuccess;
  });
  return result == cudaSuccess && !done ? cudaErrorNotReady : result;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned /*flags*/) {
  return emu::call([&] {
    emu::refuse_if_captured(stream,
                            "cudaStreamWaitEvent (which the emulator has outside captures alone)");
    const auto record = emu::resolve_event(event)->record;
    if (record == nullptr) return cudaSuccess;
    return emu::submit(stream, [record] {
      emu::wait_for(*record);
      return emu::sticky_error();
    });
  });
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  return emu::call([&] {
    const auto from = emu::resolve_event(start)->record;
    const auto to = emu::resolve_event(end)->record;
    if (from == nullptr || to == nullptr) return cudaErrorInvalidResourceHandle;
    if (!from->done || !to->done) return cudaErrorNotReady;
    *milliseconds = std::chrono::duration<float, std::milli>(to->time - from->time).count();
    return cudaSuccess;
  });
}

}  // extern "C"
