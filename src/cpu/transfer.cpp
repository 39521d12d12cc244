// SPDX-License-Identifier: Apache-2.0
//
// A slot's index to and from flat host arrays (section.h). Elements move as bytes: the
// caller's memory has no alignment.
#include <cstring>

#include "cpu/stages.h"
#include "section.h"

namespace quarry::cpu {
namespace {

constexpr std::int64_t kParallel = 1 << 14;  // elements worth waking threads for

}  // namespace

Status export_section(const SectionParams& p, void* out, const Launch& launch) noexcept {
  const std::int64_t bytes = element_bytes(p.index, p.section);
  auto* const flat = static_cast<unsigned char*>(out);
#pragma omp parallel for schedule(static) num_threads(launch.num_threads) if (p.count > kParallel)
  for (std::int64_t i = 0; i < p.count; ++i) {
    const unsigned char* const from = element_at(p, p.first + i);
    if (from == nullptr) {
      std::memset(flat + i * bytes, 0, static_cast<std::size_t>(bytes));
    } else {
      std::memcpy(flat + i * bytes, from, static_cast<std::size_t>(bytes));
    }
  }
  return Status();
}

Status import_section(const SectionParams& p, const void* in, const Launch& launch) noexcept {
  const std::int64_t bytes = element_bytes(p.index, p.section);
  const auto* const flat = static_cast<const unsigned char*>(in);
#pragma omp parallel for schedule(static) num_threads(launch.num_threads) if (p.count > kParallel)
  for (std::int64_t i = 0; i < p.count; ++i) {
    unsigned char* const to = element_at(p, p.first + i);
    if (to != nullptr) std::memcpy(to, flat + i * bytes, static_cast<std::size_t>(bytes));
  }
  return Status();
}

Status synchronize(const Launch&) noexcept { return Status(); }

}  // namespace quarry::cpu
