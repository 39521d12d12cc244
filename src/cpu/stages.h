// SPDX-License-Identifier: Apache-2.0
//
// The CPU backend's stages, one a file. Contracts are with the params structs (params.h).
// Every result is the same for any number of threads and any SIMD width.
#pragma once

#include <cstddef>

#include "backend.h"

namespace quarry::cpu {

Status encode(const EncodeParams& p, const Launch& launch) noexcept;
Status train(const TrainParams& p, const Launch& launch) noexcept;
Status score(const ScoreParams& p, const Launch& launch) noexcept;
Status mask(const MaskParams& p, const Launch& launch) noexcept;
Status reduce(const ReduceParams& p, const Launch& launch) noexcept;
Status select(const SelectParams& p, const Launch& launch) noexcept;
Status refine(const RefineParams& p, const Launch& launch) noexcept;
Status emit(const EmitParams& p, const Launch& launch) noexcept;
Status scan(const ScanParams& p, const Launch& launch) noexcept;

Status sample(const SampleParams& p, const Launch& launch) noexcept;
Status exact(const ExactParams& p, const Launch& launch) noexcept;
Status recall(const RecallParams& p, const Launch& launch) noexcept;
Status drift(const DriftParams& p, const Launch& launch) noexcept;

Status set_codebook(const SetCodebookParams& p, const Launch& launch) noexcept;
Status truncate(const TruncateParams& p, const Launch& launch) noexcept;
Status reset(const ResetParams& p, const Launch& launch) noexcept;
Status codes(const CodesParams& p, const Launch& launch) noexcept;
Status codebook(const CodebookParams& p, const Launch& launch) noexcept;

Status attach(const AttachParams& p, const Launch& launch) noexcept;
Status copy_pages(const CopyPagesParams& p, const Launch& launch) noexcept;
Status fork(const ForkParams& p, const Launch& launch) noexcept;
Status export_section(const SectionParams& p, void* out, const Launch& launch) noexcept;
Status import_section(const SectionParams& p, const void* in, const Launch& launch) noexcept;
Status synchronize(const Launch& launch) noexcept;

std::size_t select_scratch_bytes(std::int32_t rows, std::int32_t k,
                                 std::int32_t max_candidates) noexcept;
std::size_t scan_scratch_bytes(const IndexView& index, std::int32_t batch_size,
                               std::int32_t query_tokens) noexcept;
std::size_t train_scratch_bytes(const IndexView& index, std::int32_t max_samples) noexcept;

}  // namespace quarry::cpu
