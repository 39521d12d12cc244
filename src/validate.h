// SPDX-License-Identifier: Apache-2.0
//
// What the host can know of a call's arguments, checked before anything is launched.
#pragma once

#include "plan.h"

namespace quarry {

/// What the host remembers of a slot.
struct HostSlot {
  bool built = false;     ///< set_codebook() or build() gave it a codebook
  bool rotation = false;  ///< and rotations
  bool certain = false;   ///< that `built` holds on the device: training may fail there
  bool marked = false;    ///< scratch of check_batch(), which leaves it false
  std::uint64_t codebook_id = 0;
};

Status check_keys(const Plan& plan, const KeyView& keys, std::int32_t positions,
                  bool batched) noexcept;
Status check_workspace(const Workspace& workspace, std::size_t needed) noexcept;
Status check_batch(const Plan& plan, const IndexerConfig& config, const Batch& batch,
                   HostSlot* slots) noexcept;
Status check_next(const Plan& plan, const IndexerConfig& config, const NextArgs& args,
                  HostSlot* slots) noexcept;
Status check_build(const Plan& plan, const IndexerConfig& config, const BuildArgs& args,
                   const HostSlot* slots) noexcept;
/// attach()'s host_slots, or, where slots is null, 0 .. count-1.
Status check_attach(const Plan& plan, const IndexerConfig& config, const AttachArgs& args,
                    HostSlot* slots) noexcept;
Status check_codebook(const Plan& plan, const IndexerConfig& config,
                      const CodebookArgs& args) noexcept;

Status check_slot(const char* name, const IndexerConfig& config, std::int32_t slot) noexcept;
/// A block table row must be there where the cache has pages, and only there.
Status check_table(const char* name, const Plan& plan, const std::int32_t* table) noexcept;
Status check_queries(const IndexerConfig& config, const Batch& batch, const QueryView& q) noexcept;
/// Refuses what is below `least` or above 2^31-1.
Status check_stride(const char* name, std::int64_t stride, std::int64_t least) noexcept;
/// check_pointer(), but null is fine.
Status check_optional(const char* name, const void* pointer, std::size_t alignment) noexcept;

/// Refuses null (by name) and pointers not aligned to `alignment`.
Status check_pointer(const char* name, const void* pointer, std::size_t alignment) noexcept;

}  // namespace quarry
