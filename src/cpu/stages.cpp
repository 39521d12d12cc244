// SPDX-License-Identifier: Apache-2.0
//
// The CPU backend's table of stages, and its memory.
#include "cpu/stages.h"

#include <omp.h>

#include <cstdlib>
#include <cstring>

namespace quarry::cpu {
namespace {

constexpr std::size_t kAlignment = 256;

Status open(std::int32_t ordinal, std::int32_t num_threads, Launch* launch) noexcept {
  (void)ordinal;
  *launch = Launch{};
  launch->num_threads = num_threads > 0 ? num_threads : omp_get_max_threads();
  return Status();
}

Status allocate(std::size_t bytes, void** out) noexcept {
  *out = nullptr;
  if (bytes <= SIZE_MAX - kAlignment) {
    const std::size_t whole = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    *out = std::aligned_alloc(kAlignment, whole == 0 ? kAlignment : whole);
  }
  if (*out != nullptr) return Status();
  return Status(StatusCode::out_of_memory, "the index needs %zu bytes of host memory", bytes);
}

bool scan_serves(const IndexView& index) noexcept {
  (void)index;  // any shape
  return true;
}

void release(void* memory) noexcept { std::free(memory); }

Status zero(void* memory, std::size_t bytes) noexcept {
  if (bytes > 0) std::memset(memory, 0, bytes);
  return Status();
}

}  // namespace

const Stages stages = {
    .encode = encode,
    .train = train,
    .score = score,
    .mask = mask,
    .reduce = reduce,
    .select = select,
    .refine = refine,
    .emit = emit,
    .scan = scan,
    .scan_serves = scan_serves,
    .sample = sample,
    .exact = exact,
    .recall = recall,
    .drift = drift,
    .set_codebook = set_codebook,
    .truncate = truncate,
    .reset = reset,
    .codes = codes,
    .codebook = codebook,
    .attach = attach,
    .copy_pages = copy_pages,
    .fork = fork,
    .export_section = export_section,
    .import_section = import_section,
    .synchronize = synchronize,
    .transfer_scratch_bytes = 0,
    .select_scratch_bytes = select_scratch_bytes,
    .scan_scratch_bytes = scan_scratch_bytes,
    .train_scratch_bytes = train_scratch_bytes,
    .train_is_synchronous = true,
    .open = open,
    .allocate = allocate,
    .release = release,
    .zero = zero,
};

}  // namespace quarry::cpu
