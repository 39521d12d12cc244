// SPDX-License-Identifier: Apache-2.0
//
// NVTX 3 is headers of the CUDA toolkit; the profiler that is attached brings the rest.
#include "common/range.h"

#include <nvtx3/nvToolsExt.h>

namespace quarry::cuda {
namespace {

nvtxDomainHandle_t domain() noexcept {
  static const nvtxDomainHandle_t handle = nvtxDomainCreateA("quarry");
  return handle;
}

}  // namespace

void push_range(const char* name) noexcept {
  nvtxEventAttributes_t event{};
  event.version = NVTX_VERSION;
  event.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  event.messageType = NVTX_MESSAGE_TYPE_ASCII;
  event.message.ascii = name;
  nvtxDomainRangePushEx(domain(), &event);
}

void pop_range() noexcept { nvtxDomainRangePop(domain()); }

}  // namespace quarry::cuda
