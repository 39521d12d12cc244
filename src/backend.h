// SPDX-License-Identifier: Apache-2.0
//
// A backend: the stages as plain functions over the params structs, and memory.
#pragma once

#include <cstddef>

#include "params.h"
#include "section.h"

namespace quarry {

/// Where and with what a stage runs.
struct Launch {
  Stream stream = nullptr;
  std::int32_t num_threads = 0;          ///< CPU; resolved, at least 1
  std::int32_t num_multiprocessors = 0;  ///< CUDA
  std::int32_t device = 0;               ///< CUDA: ordinal
  std::int32_t compute_capability = 0;   ///< CUDA: 10 * major + minor
};

struct Stages {
  Status (*encode)(const EncodeParams&, const Launch&) noexcept;
  Status (*train)(const TrainParams&, const Launch&) noexcept;
  Status (*score)(const ScoreParams&, const Launch&) noexcept;
  Status (*mask)(const MaskParams&, const Launch&) noexcept;
  Status (*reduce)(const ReduceParams&, const Launch&) noexcept;
  Status (*select)(const SelectParams&, const Launch&) noexcept;
  Status (*refine)(const RefineParams&, const Launch&) noexcept;
  Status (*emit)(const EmitParams&, const Launch&) noexcept;
  Status (*scan)(const ScanParams&, const Launch&) noexcept;  ///< null: staged alone
  /// Whether scan serves a resolved configuration's shape; else automatic is staged.
  bool (*scan_serves)(const IndexView&) noexcept;
  // stats()
  Status (*sample)(const SampleParams&, const Launch&) noexcept;
  Status (*exact)(const ExactParams&, const Launch&) noexcept;
  Status (*recall)(const RecallParams&, const Launch&) noexcept;
  Status (*drift)(const DriftParams&, const Launch&) noexcept;
  Status (*set_codebook)(const SetCodebookParams&, const Launch&) noexcept;
  Status (*truncate)(const TruncateParams&, const Launch&) noexcept;
  Status (*reset)(const ResetParams&, const Launch&) noexcept;
  Status (*codes)(const CodesParams&, const Launch&) noexcept;
  Status (*codebook)(const CodebookParams&, const Launch&) noexcept;
  Status (*attach)(const AttachParams&, const Launch&) noexcept;
  Status (*copy_pages)(const CopyPagesParams&, const Launch&) noexcept;
  Status (*fork)(const ForkParams&, const Launch&) noexcept;

  /// save(), restore(): between the index and host memory. What export_section() gives is
  /// there once synchronize() has returned; import_section() has read its input on return.
  Status (*export_section)(const SectionParams&, void* out, const Launch&) noexcept;
  Status (*import_section)(const SectionParams&, const void* in, const Launch&) noexcept;
  Status (*synchronize)(const Launch&) noexcept;
  std::size_t transfer_scratch_bytes;  ///< device memory those two are staged in

  /// Scratch a stage wants beside what plan.h carves for every backend; may be 0.
  std::size_t (*select_scratch_bytes)(std::int32_t rows, std::int32_t k,
                                      std::int32_t max_candidates) noexcept;
  std::size_t (*scan_scratch_bytes)(const IndexView&, std::int32_t batch_size,
                                    std::int32_t query_tokens) noexcept;
  std::size_t (*train_scratch_bytes)(const IndexView&, std::int32_t max_samples) noexcept;

  /// train() returns only once it is known whether it succeeded.
  bool train_is_synchronous;

  /// create(): checks the device, fills what Launch needs, allocates, zeroes on no stream.
  Status (*open)(std::int32_t ordinal, std::int32_t num_threads, Launch*) noexcept;
  Status (*allocate)(std::size_t bytes, void** out) noexcept;
  void (*release)(void* memory) noexcept;
  Status (*zero)(void* memory, std::size_t bytes) noexcept;
};

/// Null where this build does not hold the backend.
const Stages* stages_of(Backend backend) noexcept;

namespace cpu {
extern const Stages stages;
}
namespace cuda {
extern const Stages stages;  // defined where QUARRY_CUDA is on
bool device_present() noexcept;
}  // namespace cuda

}  // namespace quarry
