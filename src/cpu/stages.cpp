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
    .select = select,
    .refine = refine,
    .emit = emit,
    .scan = nullptr,
    .scan_serves = nullptr,
    .sample = sample,
    .exact = exact,
    .recall = recall,
    .drift = drift,
    .set_codebook = set_codebook,
    .truncate = truncate,
    .reset = reset,
    .codes = codes,
    .codebook = codebook,
    .select_scratch_bytes = select_scratch_bytes,
    .scan_scratch_bytes = nullptr,
    .train_scratch_bytes = train_scratch_bytes,
    .train_is_synchronous = true,
    .open = open,
    .allocate = allocate,
    .release = release,
    .zero = zero,
};

}  // namespace quarry::cpu
