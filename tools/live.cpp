// SPDX-License-Identifier: Apache-2.0
#include "live.h"

#include <algorithm>

#include "error.h"

namespace quarry::tools {

LiveStats::LiveStats(Indexer& indexer, DeviceQueue& queue, std::int32_t sample_every)
    : indexer_(indexer),
      queue_(queue),
      sample_every_(sample_every),
      workspace_(queue, indexer.stats_workspace_bytes(1, 1, sample_every)),
      recall_(queue,
              static_cast<std::size_t>((indexer.config().num_query_heads - 1) / sample_every + 1) *
                  sizeof(RecallStats)),
      drift_(queue, static_cast<std::size_t>(indexer.config().num_kv_heads) * sizeof(DriftStats)),
      counter_(queue, sizeof(std::uint32_t)) {
  const std::uint32_t first = 0;
  counter_.upload(&first, sizeof first);
}

std::vector<RecallStats> LiveStats::sample(const NextArgs& step) {
  StatsArgs args;
  args.batch = step.batch;
  args.keys = step.keys;
  args.queries = step.queries;
  args.indices = step.indices;
  args.index_stride = step.index_stride;
  args.list_lengths = step.list_lengths;
  args.recall = recall_.as<RecallStats>();
  args.sample_every = sample_every_;
  args.sample_counter = counter_.as<std::uint32_t>();
  run(args);
  std::vector<RecallStats> rows(recall_.size() / sizeof(RecallStats));
  recall_.download(rows.data(), recall_.size());
  return rows;
}

std::vector<DriftStats> LiveStats::drift(const Batch& batch, const KeyView& keys) {
  StatsArgs args;
  args.batch = batch;
  args.keys = keys;
  args.drift = drift_.as<DriftStats>();
  args.recent_keys = std::min(kRecentKeys, indexer_.config().max_seq_len);
  run(args);
  std::vector<DriftStats> heads(drift_.size() / sizeof(DriftStats));
  drift_.download(heads.data(), drift_.size());
  return heads;
}

void LiveStats::run(StatsArgs& args) {
  args.workspace = {workspace_.as<void>(), workspace_.size()};
  check(indexer_.stats(args, queue_.stream()), "Indexer::stats");
  queue_.synchronize();
}

}  // namespace quarry::tools
