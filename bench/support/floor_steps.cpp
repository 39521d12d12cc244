// SPDX-License-Identifier: Apache-2.0
#include "support/floor_steps.h"

#include "step.h"
#include "support/floor.h"

namespace quarry::bench {
namespace {

using tools::DeviceMemory;
using tools::DeviceQueue;

FloorParams floor_of(Layer& layer, DeviceMemory& sink) {
  const IndexerConfig& c = layer.indexer().config();
  Plan plan{};
  (void)make_plan(c, *stages_of(Backend::cuda), &plan);
  Arena arena(layer.index_memory());
  carve_index(arena, &plan);
  const IndexView& v = plan.view;
  const std::int64_t keys = std::int64_t{c.max_sequences} * c.num_kv_heads * v.page_slots;
  FloorParams p{};
  p.streamed[0] = v.codes;
  p.streamed_bytes[0] = keys * v.code_bytes;
  p.streamed[1] = v.means;
  p.streamed_bytes[1] =
      v.block_size == 0 ? 0 : keys / v.block_size * c.head_dim * dtype_size(c.mean_dtype);
  p.streamed[2] = v.codebooks;
  p.streamed_bytes[2] = std::int64_t{c.num_kv_heads} * v.num_subspaces * v.ksub * v.dcent * 4;
  if (c.refine_factor > 1) {
    p.keys = layer.args().keys.data;
    p.key_bytes = c.head_dim * dtype_size(layer.args().keys.dtype);
    p.num_keys = std::int64_t{c.max_sequences} * c.num_kv_heads * c.max_seq_len;
    p.gathered = std::int64_t{c.max_sequences} * c.num_query_heads * c.refine_factor * c.heavy_size;
  }
  p.sink = sink.as<std::uint32_t>();
  return p;
}

}  // namespace

Work empty_kernels(int count) {
  return [count](DeviceQueue& queue) {
    Status status;
    for (int i = 0; i < count && status.ok(); ++i) status = launch_empty(queue.stream());
    return status;
  };
}

std::vector<Work> floor_steps(Model& model, DeviceMemory& sink) {
  std::vector<Work> work;
  for (Layer& layer : model.layers) {
    const FloorParams params = floor_of(layer, sink);
    work.emplace_back([params](DeviceQueue& q) { return launch_floor(params, q.stream()); });
  }
  return work;
}

}  // namespace quarry::bench
