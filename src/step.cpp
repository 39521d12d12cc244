// SPDX-License-Identifier: Apache-2.0
#include "step.h"

#include "reduction.h"

namespace quarry {

StepView make_step(const Batch& batch, const KeyView& keys, SequenceState* states,
                   std::uint32_t* device_status) noexcept {
  StepView step{};
  step.batch_size = batch.batch_size;
  step.query_tokens = batch.query_tokens;
  step.slots = batch.slots;
  step.lengths = batch.lengths;
  step.query_counts = batch.query_counts;
  step.block_table = keys.block_table;
  step.block_table_stride = keys.block_table_stride;
  step.states = states;
  step.device_status = device_status;
  return step;
}

StagedStep make_staged(const Plan& plan, const NextArgs& args,
                       const NextBuffers& buffers) noexcept {
  const StepView step = make_step(args.batch, args.keys, buffers.states, args.device_status);
  const std::int32_t num_rows = step.batch_size * step.query_tokens * plan.list_heads;
  StagedStep s{};
  s.encode = {plan.view, step, args.keys};
  s.score = {plan.view,        step,           args.queries,     buffers.luts, buffers.biases,
             plan.bias_stride, buffers.scores, plan.score_stride};
  s.mask = {plan.view, step, plan.list_heads, buffers.rows};

  // The list's scores are where those of its first query head were.
  const std::int64_t group = plan.list_group;
  s.reduces = plan.reduction != GqaReduction::per_head;
  s.reduce.num_rows = num_rows;
  s.reduce.group = plan.list_group;
  s.reduce.reduction = plan.reduction;
  s.reduce.scale = plan.softmax_scale;
  s.reduce.rows = buffers.rows;
  s.reduce.scores = buffers.scores;
  s.reduce.score_stride = plan.score_stride;
  s.reduce.parts = reduce_parts(plan.view.max_seq_len);
  s.reduce.softmax = buffers.softmax;
  s.reduce.part_largest = buffers.part_largest;
  s.reduce.part_weights = buffers.part_weights;

  s.select.num_rows = num_rows;
  s.select.k = plan.shortlist;
  s.select.rows = buffers.rows;
  s.select.scores = buffers.scores;
  s.select.score_stride = group * plan.score_stride;
  s.select.max_candidates = plan.view.max_seq_len;
  s.select.selected = buffers.shortlist;
  s.select.selected_counts = buffers.shortlist_counts;
  s.select.backend_scratch = buffers.select_scratch;

  s.refines = plan.view.refine_factor > 1;
  s.refine = {plan.view,
              step,
              args.queries,
              args.keys,
              plan.list_heads,
              buffers.shortlist,
              buffers.shortlist_counts,
              plan.shortlist,
              buffers.refined_scores};
  s.rereduce = s.reduce;
  s.rereduce.scores = buffers.refined_scores;
  s.rereduce.score_stride = plan.shortlist;
  s.rereduce.parts = reduce_parts(plan.shortlist);
  s.rereduce.shortlist_counts = buffers.shortlist_counts;
  s.reselect = s.select;
  s.reselect.k = plan.view.heavy_size;
  s.reselect.scores = buffers.refined_scores;
  s.reselect.score_stride = group * plan.shortlist;
  s.reselect.max_candidates = plan.shortlist;
  s.reselect.shortlist = buffers.shortlist;
  s.reselect.shortlist_counts = buffers.shortlist_counts;
  s.reselect.shortlist_stride = plan.shortlist;
  s.reselect.selected = buffers.heavy;
  s.reselect.selected_counts = buffers.heavy_counts;

  s.emit = make_emit(plan, args, step);
  s.emit.rows = buffers.rows;
  s.emit.heavy = buffers.heavy;
  s.emit.heavy_counts = buffers.heavy_counts;
  return s;
}

EmitParams make_emit(const Plan& plan, const NextArgs& args, const StepView& step) noexcept {
  EmitParams emit{};
  emit.index = plan.view;
  emit.step = step;
  emit.num_rows = step.batch_size * step.query_tokens * plan.list_heads;
  emit.list_heads = plan.list_heads;
  emit.max_list = plan.max_list;
  emit.indices = args.indices;
  emit.index_stride = args.index_stride;
  emit.list_lengths = args.list_lengths;
  emit.weights = args.weights;
  emit.dense_weights = args.dense_weights;
  emit.dense_stride = args.dense_stride;
  emit.previous_indices = args.previous_indices;
  emit.previous_lengths = args.previous_lengths;
  emit.physical_indices = args.physical_indices;
  emit.physical_indices64 = args.physical_indices64;
  return emit;
}

ScanParams make_scan(const Plan& plan, const NextArgs& args, const NextBuffers& buffers) noexcept {
  const StepView step = make_step(args.batch, args.keys, buffers.states, args.device_status);
  return {plan.view,
          step,
          args.keys,
          args.queries,
          make_emit(plan, args, step),
          buffers.scan_scratch,
          plan.softmax_scale};
}

Status run_staged(const StagedStep& step, const Stages& stages, const Launch& launch) noexcept {
  if (Status s = stages.encode(step.encode, launch); !s.ok()) return s;
  if (Status s = stages.score(step.score, launch); !s.ok()) return s;
  if (Status s = stages.mask(step.mask, launch); !s.ok()) return s;
  if (step.reduces) {
    if (Status s = stages.reduce(step.reduce, launch); !s.ok()) return s;
  }
  if (Status s = stages.select(step.select, launch); !s.ok()) return s;
  if (step.refines) {
    if (Status s = stages.refine(step.refine, launch); !s.ok()) return s;
    if (step.reduces) {
      if (Status s = stages.reduce(step.rereduce, launch); !s.ok()) return s;
    }
    if (Status s = stages.select(step.reselect, launch); !s.ok()) return s;
  }
  return stages.emit(step.emit, launch);
}

}  // namespace quarry
