// SPDX-License-Identifier: Apache-2.0
#include "stats.h"

#include "step.h"

namespace quarry {
namespace {

constexpr std::int32_t kMostEvery = 1 << 30;

Status out_of_range(const char* name, std::int32_t value, std::int32_t low, std::int32_t high) {
  return Status(StatusCode::out_of_range, "%s is %d, must be %d..%d", name, value, low, high);
}

Status check_recall(const Plan& plan, const IndexerConfig& config, const StatsArgs& args) {
  if (Status s = check_pointer("recall", args.recall, 4); !s.ok()) return s;
  if (args.sample_every < 1 || args.sample_every > kMostEvery) {
    return out_of_range("sample_every", args.sample_every, 1, kMostEvery);
  }
  if (args.sample_offset < 0 || args.sample_offset >= args.sample_every) {
    return out_of_range("sample_offset", args.sample_offset, 0, args.sample_every - 1);
  }
  if (Status s = check_optional("sample_counter", args.sample_counter, 4); !s.ok()) return s;
  if (Status s = check_queries(config, args.batch, args.queries); !s.ok()) return s;
  if (Status s = check_pointer("indices", args.indices, 4); !s.ok()) return s;
  if (Status s = check_stride("index_stride", args.index_stride, plan.max_list); !s.ok()) return s;
  return check_pointer("list_lengths", args.list_lengths, 4);
}

}  // namespace

Status check_stats(const Plan& plan, const IndexerConfig& config, const StatsArgs& args,
                   HostSlot* slots) noexcept {
  if (args.drift == nullptr && args.recall == nullptr) {
    return Status(StatusCode::invalid_argument, "drift and recall are both null");
  }
  if (Status s = check_batch(plan, config, args.batch, slots); !s.ok()) return s;
  if (Status s = check_keys(plan, args.keys, config.max_seq_len, true); !s.ok()) return s;
  if (Status s = check_optional("device_status", args.device_status, 4); !s.ok()) return s;
  if (args.drift != nullptr) {
    if (Status s = check_pointer("drift", args.drift, 4); !s.ok()) return s;
    if (args.recent_keys < 1 || args.recent_keys > config.max_seq_len) {
      return out_of_range("recent_keys", args.recent_keys, 1, config.max_seq_len);
    }
  }
  if (args.recall != nullptr) return check_recall(plan, config, args);
  if (args.sample_every == 0 && args.sample_counter == nullptr) return {};
  return Status(StatusCode::invalid_argument,
                "sample_every is %d and sample_counter %s, but "
                "recall is null",
                args.sample_every, args.sample_counter == nullptr ? "null" : "given");
}

Status run_stats(const Plan& plan, const StatsArgs& args, const StatsBuffers& buffers,
                 const Stages& stages, const Launch& launch) noexcept {
  const StepView step = make_step(args.batch, args.keys, buffers.states, args.device_status);
  const std::int32_t samples = buffers.num_samples;
  const SampleParams sample{plan.view,
                            step,
                            samples,
                            args.sample_every,
                            args.sample_offset,
                            args.sample_counter,
                            buffers.sampled,
                            buffers.rows};
  if (Status s = stages.sample(sample, launch); !s.ok()) return s;
  if (args.drift != nullptr) {
    const DriftParams drift{plan.view, step, args.keys, args.recent_keys, args.drift};
    if (Status s = stages.drift(drift, launch); !s.ok()) return s;
  }
  if (samples == 0) return {};

  const ExactParams exact{plan.view,       step,         args.queries,   args.keys,        samples,
                          buffers.sampled, buffers.rows, buffers.scores, plan.score_stride};
  if (Status s = stages.exact(exact, launch); !s.ok()) return s;
  SelectParams select{};
  select.num_rows = samples;
  select.k = plan.view.heavy_size;
  select.rows = buffers.rows;
  select.scores = buffers.scores;
  select.score_stride = plan.score_stride;
  select.max_candidates = plan.view.max_seq_len;
  select.selected = buffers.selected;
  select.selected_counts = buffers.selected_counts;
  select.backend_scratch = buffers.select_scratch;
  if (Status s = stages.select(select, launch); !s.ok()) return s;
  return stages.recall({samples, plan.view.num_query_heads, plan.list_heads, select.k,
                        buffers.sampled, buffers.selected, buffers.selected_counts, args.indices,
                        args.index_stride, args.list_lengths, args.recall},
                       launch);
}

}  // namespace quarry
