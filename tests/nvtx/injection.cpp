// SPDX-License-Identifier: Apache-2.0
//
// A profiler of a few lines, as NVTX loads one (NVTX_INJECTION64_PATH): keeps the name of every
// range that is pushed in domain "quarry", and a '.' for every one that is popped.
#include <nvtx3/nvToolsExt.h>

#include <cstring>

namespace {

char trace[4096];
std::size_t used = 0;
int domain_tag;  // its address is the domain

void add(const char* text) {
  for (; *text != 0 && used + 1 < sizeof trace; ++text) trace[used++] = *text;
}

nvtxDomainHandle_t NVTX_API create(const char* name) {
  return std::strcmp(name, "quarry") == 0 ? reinterpret_cast<nvtxDomainHandle_t>(&domain_tag)
                                          : nullptr;
}

int NVTX_API push(nvtxDomainHandle_t domain, const nvtxEventAttributes_t* event) {
  if (static_cast<void*>(domain) != &domain_tag) return -1;
  add(event->message.ascii);
  add(" ");
  return 0;
}

int NVTX_API pop(nvtxDomainHandle_t domain) {
  if (static_cast<void*>(domain) != &domain_tag) return -1;
  add(". ");
  return 0;
}

/// Puts `function` where NVTX calls it.
template <typename F>
void hook(NvtxFunctionTable table, unsigned id, F function) {
  *table[id] = reinterpret_cast<NvtxFunctionPointer>(function);
}

}  // namespace

extern "C" {

/// What was seen so far.
__attribute__((visibility("default"))) const char* quarry_test_ranges() { return trace; }

__attribute__((visibility("default"))) int InitializeInjectionNvtx2(
    NvtxGetExportTableFunc_t get_table) {
  const auto* callbacks =
      static_cast<const NvtxExportTableCallbacks*>(get_table(NVTX_ETID_CALLBACKS));
  if (callbacks == nullptr) return 0;
  NvtxFunctionTable table = nullptr;
  unsigned size = 0;
  if (callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &table, &size) == 0) return 0;
  if (size <= NVTX_CBID_CORE2_DomainCreateA) return 0;
  hook(table, NVTX_CBID_CORE2_DomainCreateA, create);
  hook(table, NVTX_CBID_CORE2_DomainRangePushEx, push);
  hook(table, NVTX_CBID_CORE2_DomainRangePop, pop);
  return 1;
}

}  // extern "C"
