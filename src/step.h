// SPDX-License-Identifier: Apache-2.0
//
// A decode step as its algorithm runs it: `staged`, one kernel a stage in stream order, or
// `scan`, one call of the backend.
#pragma once

#include "plan.h"

namespace quarry {

/// Every stage's parameters for one call.
struct StagedStep {
  EncodeParams encode;
  ScoreParams score;
  MaskParams mask;
  bool reduces;         ///< lists are KV heads'
  ReduceParams reduce;  ///< of the candidates' scores
  SelectParams select;  ///< of the candidates: the heavy ones, or, with refine, the shortlist
  bool refines;
  RefineParams refine;
  ReduceParams rereduce;  ///< of the shortlist's exact scores
  SelectParams reselect;  ///< of the shortlist by exact score
  EmitParams emit;
};

/// What the stages know of a call's batch; later stages find its states in `states`.
StepView make_step(const Batch& batch, const KeyView& keys, SequenceState* states,
                   std::uint32_t* device_status) noexcept;

/// What a step writes; whose rows and heavy positions is for the algorithm to say.
EmitParams make_emit(const Plan& plan, const NextArgs& args, const StepView& step) noexcept;

StagedStep make_staged(const Plan& plan, const NextArgs& args, const NextBuffers& buffers) noexcept;

/// Algorithm `scan`: the same step as one call of the backend.
ScanParams make_scan(const Plan& plan, const NextArgs& args, const NextBuffers& buffers) noexcept;

Status run_staged(const StagedStep& step, const Stages& stages, const Launch& launch) noexcept;

}  // namespace quarry
