// SPDX-License-Identifier: Apache-2.0
#include "quarry/indexer.h"

#include <new>
#include <utility>

#include "call.h"
#include "impl.h"
#include "log.h"
#include "stats.h"
#include "step.h"

namespace quarry {

Indexer::Indexer() noexcept = default;
Indexer::~Indexer() = default;
Indexer::Indexer(Indexer&&) noexcept = default;
Indexer& Indexer::operator=(Indexer&&) noexcept = default;

Status Indexer::create(const IndexerConfig& config, const Device& device,
                       const Resources& resources, Indexer* out) noexcept {
  const Call call("create");
  if (out == nullptr) return Status(StatusCode::invalid_argument, "out is null");
  IndexerConfig resolved;
  if (Status s = resolve(config, device.backend, &resolved); !s.ok()) return s;
  if (resources.num_threads < 0 || resources.num_threads > 4096) {
    return Status(StatusCode::invalid_argument, "resources.num_threads is %d, must be 0..4096",
                  resources.num_threads);
  }
  const Stages& stages = *stages_of(device.backend);
  Plan plan;
  if (Status s = make_plan(resolved, stages, &plan); !s.ok()) return s;
  Launch launch;
  if (Status s = stages.open(device.ordinal, resources.num_threads, &launch); !s.ok()) return s;

  const std::size_t bytes = plan.memory.index_bytes;
  if (resources.index_memory != nullptr) {
    if (Status s = check_pointer("resources.index_memory", resources.index_memory, kAlignment);
        !s.ok()) {
      return s;
    }
    if (resources.index_memory_bytes < bytes) {
      return Status(StatusCode::invalid_argument,
                    "resources.index_memory_bytes is %zu, must be at least %zu",
                    resources.index_memory_bytes, bytes);
    }
  }

  std::unique_ptr<Impl> impl(new (std::nothrow) Impl);
  if (impl == nullptr) return Status(StatusCode::out_of_memory, "no host memory for the Indexer");
  try {
    impl->slots.resize(static_cast<std::size_t>(resolved.max_sequences));
  } catch (const std::bad_alloc&) {
    return Status(StatusCode::out_of_memory, "no host memory for %d slots", resolved.max_sequences);
  }
  impl->config = resolved;
  impl->device = device;
  impl->stages = &stages;
  impl->launch = launch;
  impl->plan = plan;
  void* memory = resources.index_memory;
  if (memory == nullptr) {
    if (Status s = stages.allocate(bytes, &memory); !s.ok()) return s;
    impl->owned = memory;
  }
  if (Status s = stages.zero(memory, bytes); !s.ok()) return s;
  Arena arena(memory);
  carve_index(arena, &impl->plan);
  out->impl_ = std::move(impl);
  log_created(resolved, device, plan.memory);
  return {};
}

Status Indexer::build(const BuildArgs& args, Stream stream) noexcept {
  const Call call("build");
  if (impl_ == nullptr) return not_created();
  Impl& im = *impl_;
  if (Status s = check_build(im.plan, im.config, args, im.slots.data()); !s.ok()) return s;

  const Launch l = im.on(stream);
  HostSlot& slot = im.slots[static_cast<std::size_t>(args.slot)];
  Arena arena(args.workspace.data);
  BuildBuffers buffers = carve_build(arena, im.plan, *im.stages);
  StepView step{};
  step.batch_size = 1;
  step.query_tokens = 1;
  step.block_table = args.keys.block_table;
  step.fixed_slot = args.slot;
  step.fixed_length = args.length;
  step.restart = true;
  step.states = buffers.states;
  step.device_status = args.device_status;

  // A slot whose training may have failed on the device is trained again where it has.
  const std::int32_t positions = encoded_positions(im.plan.view, args.length);
  const bool uncertain = slot.built && !slot.certain && positions >= im.plan.view.ksub;
  const bool trains = im.plan.trains && (args.retrain || !slot.built || uncertain);
  if (trains) {
    if (args.rotation != nullptr) {
      // Nothing reads the slot's rotations before it has a codebook, so this is no change yet.
      const SetCodebookParams rotations{im.plan.view,  args.slot,           nullptr, nullptr,
                                        args.rotation, args.query_rotation, 0,       nullptr};
      if (Status s = im.stages->set_codebook(rotations, l); !s.ok()) return s;
    }
    TrainParams& train = buffers.train;
    train.index = im.plan.view;
    train.step = step;
    train.keys = args.keys;
    train.keep_codebook = !args.retrain && slot.built;
    // One that may be kept keeps its id; if there was none, nothing has used the id yet.
    train.codebook_id = train.keep_codebook ? slot.codebook_id : fresh_codebook_id();
    train.iterations = im.config.kmeans_iterations;
    train.seed = im.config.seed;
    train.num_positions = positions;
    if (train.max_samples > train.num_positions) train.max_samples = train.num_positions;
    if (Status s = im.stages->train(train, l); !s.ok()) return s;
    slot.certain = im.stages->train_is_synchronous || (slot.built && slot.certain);
    slot.built = true;
    slot.codebook_id = train.codebook_id;
    slot.rotation = slot.rotation || args.rotation != nullptr;
  }
  step.if_trained = trains && args.retrain;
  if (Status s = im.stages->encode({im.plan.view, step, args.keys}, l); !s.ok()) return s;
  if (trains) {
    const DriftParams baseline{im.plan.view, step, args.keys, kBaselineKeys, nullptr};
    if (Status s = im.stages->drift(baseline, l); !s.ok()) return s;
  }
  log_built(args, trains);
  return {};
}

Status Indexer::next(const NextArgs& args, Stream stream) noexcept {
  const Call call("next");
  if (impl_ == nullptr) return not_created();
  Impl& im = *impl_;
  if (Status s = check_next(im.plan, im.config, args, im.slots.data()); !s.ok()) return s;
  Arena arena(args.workspace.data);
  const NextBuffers buffers =
      carve_next(arena, im.plan, *im.stages, args.batch.batch_size, args.batch.query_tokens);
  if (Status s = check_workspace(args.workspace, arena.bytes()); !s.ok()) return s;
  if (im.plan.algorithm == Algorithm::scan) {
    return im.stages->scan(make_scan(im.plan, args, buffers), im.on(stream));
  }
  return run_staged(make_staged(im.plan, args, buffers), *im.stages, im.on(stream));
}

Status Indexer::append(const AppendArgs& args, Stream stream) noexcept {
  const Call call("append");
  if (impl_ == nullptr) return not_created();
  Impl& im = *impl_;
  if (args.batch.query_tokens != 1) {
    return Status(StatusCode::invalid_argument, "batch.query_tokens is %d, must be 1 in append()",
                  args.batch.query_tokens);
  }
  if (Status s = check_batch(im.plan, im.config, args.batch, im.slots.data()); !s.ok()) return s;
  if (Status s = check_keys(im.plan, args.keys, im.config.max_seq_len, true); !s.ok()) return s;
  if (args.device_status != nullptr) {
    if (Status s = check_pointer("device_status", args.device_status, 4); !s.ok()) return s;
  }
  Arena arena(args.workspace.data);
  const NextBuffers buffers =
      carve_next(arena, im.plan, *im.stages, args.batch.batch_size, args.batch.query_tokens);
  if (Status s = check_workspace(args.workspace, arena.bytes()); !s.ok()) return s;
  const StepView step = make_step(args.batch, args.keys, buffers.states, args.device_status);
  return im.stages->encode({im.plan.view, step, args.keys}, im.on(stream));
}

Status Indexer::stats(const StatsArgs& args, Stream stream) noexcept {
  const Call call("stats");
  if (impl_ == nullptr) return not_created();
  Impl& im = *impl_;
  if (Status s = check_stats(im.plan, im.config, args, im.slots.data()); !s.ok()) return s;
  Arena arena(args.workspace.data);
  const StatsBuffers buffers =
      carve_stats(arena, im.plan, *im.stages, args.batch.batch_size, args.batch.query_tokens,
                  args.recall == nullptr ? 0 : args.sample_every);
  if (Status s = check_workspace(args.workspace, arena.bytes()); !s.ok()) return s;
  return run_stats(im.plan, args, buffers, *im.stages, im.on(stream));
}

Status Indexer::set_codebook(const CodebookArgs& args, Stream stream) noexcept {
  const Call call("set_codebook");
  if (impl_ == nullptr) return not_created();
  Impl& im = *impl_;
  if (Status s = check_codebook(im.plan, im.config, args); !s.ok()) return s;
  const SetCodebookParams params{
      im.plan.view,  args.slot,           args.codebooks,      args.phi,
      args.rotation, args.query_rotation, fresh_codebook_id(), args.baseline_error};
  if (Status s = im.stages->set_codebook(params, im.on(stream)); !s.ok()) return s;
  for (std::int32_t slot = 0; slot < im.config.max_sequences; ++slot) {
    if (args.slot == -1 || args.slot == slot) {
      im.slots[static_cast<std::size_t>(slot)] = {true, im.config.rotation, true, false,
                                                  params.codebook_id};
    }
  }
  return {};
}

Status Indexer::truncate(const std::int32_t* slots, const std::int32_t* lengths, std::int32_t count,
                         Stream stream) noexcept {
  const Call call("truncate");
  if (impl_ == nullptr) return not_created();
  const Impl& im = *impl_;
  if (count < 1 || count > im.config.max_sequences) {
    return Status(StatusCode::out_of_range, "count is %d, must be 1..%d", count,
                  im.config.max_sequences);
  }
  if (Status s = check_pointer("lengths", lengths, 4); !s.ok()) return s;
  if (slots != nullptr) {
    if (Status s = check_pointer("slots", slots, 4); !s.ok()) return s;
  }
  return im.stages->truncate({im.plan.view, slots, lengths, count}, im.on(stream));
}

Status Indexer::reset(std::int32_t slot, Stream stream) noexcept {
  const Call call("reset");
  if (impl_ == nullptr) return not_created();
  Impl& im = *impl_;
  if (slot < 0 || slot >= im.config.max_sequences) {
    return Status(StatusCode::out_of_range, "slot is %d, must be 0..%d", slot,
                  im.config.max_sequences - 1);
  }
  const ResetParams params{im.plan.view, slot, im.plan.trains};
  if (Status s = im.stages->reset(params, im.on(stream)); !s.ok()) return s;
  if (im.plan.trains) im.slots[static_cast<std::size_t>(slot)] = {};
  return {};
}

Status Indexer::codes(std::int32_t slot, std::int32_t first, std::int32_t count,
                      const std::int32_t* block_table, std::uint8_t* out,
                      Stream stream) const noexcept {
  const Call call("codes");
  if (impl_ == nullptr) return not_created();
  const Impl& im = *impl_;
  if (slot < 0 || slot >= im.config.max_sequences) {
    return Status(StatusCode::out_of_range, "slot is %d, must be 0..%d", slot,
                  im.config.max_sequences - 1);
  }
  const std::int32_t most = im.config.max_seq_len;
  if (first < 0 || first > most) {
    return Status(StatusCode::out_of_range, "first is %d, must be 0..%d", first, most);
  }
  if (count < 0 || count > most - first) {
    return Status(StatusCode::out_of_range, "count is %d, must be 0..%d", count, most - first);
  }
  if ((block_table != nullptr) != im.plan.paged) {
    return Status(StatusCode::invalid_argument, "block_table is %s, config.page_size is %d",
                  block_table == nullptr ? "null" : "given", im.config.page_size);
  }
  if (count == 0) return {};
  if (Status s = check_pointer("out", out, 1); !s.ok()) return s;
  return im.stages->codes({im.plan.view, slot, first, count, block_table, out}, im.on(stream));
}

Status Indexer::codebook(std::int32_t slot, float* codebooks, float* phi,
                         Stream stream) const noexcept {
  const Call call("codebook");
  if (impl_ == nullptr) return not_created();
  const Impl& im = *impl_;
  if (slot < 0 || slot >= im.config.max_sequences) {
    return Status(StatusCode::out_of_range, "slot is %d, must be 0..%d", slot,
                  im.config.max_sequences - 1);
  }
  if (!im.slots[static_cast<std::size_t>(slot)].built) {
    return Status(StatusCode::not_built, "slot %d has no codebook", slot);
  }
  if (Status s = check_pointer("codebooks", codebooks, 4); !s.ok()) return s;
  if (phi != nullptr && im.config.metric != Metric::inner_product) {
    return Status(StatusCode::invalid_argument, "phi is given, but config.metric is %s",
                  to_string(im.config.metric));
  }
  return im.stages->codebook({im.plan.view, slot, codebooks, phi}, im.on(stream));
}

std::size_t Indexer::workspace_bytes(std::int32_t batch_size,
                                     std::int32_t query_tokens) const noexcept {
  if (impl_ == nullptr || batch_size < 1 || query_tokens < 1 ||
      batch_size > impl_->config.max_sequences || query_tokens > impl_->config.max_query_tokens) {
    return 0;
  }
  Arena arena;
  carve_next(arena, impl_->plan, *impl_->stages, batch_size, query_tokens);
  return arena.bytes();
}

std::size_t Indexer::stats_workspace_bytes(std::int32_t batch_size, std::int32_t query_tokens,
                                           std::int32_t sample_every) const noexcept {
  if (impl_ == nullptr || batch_size < 1 || query_tokens < 1 || sample_every < 0 ||
      batch_size > impl_->config.max_sequences || query_tokens > impl_->config.max_query_tokens) {
    return 0;
  }
  Arena arena;
  carve_stats(arena, impl_->plan, *impl_->stages, batch_size, query_tokens, sample_every);
  return arena.overflowed() ? 0 : arena.bytes();
}

const IndexerConfig& Indexer::config() const noexcept {
  static const IndexerConfig empty{};
  return impl_ == nullptr ? empty : impl_->config;
}

const Device& Indexer::device() const noexcept {
  static const Device none{};
  return impl_ == nullptr ? none : impl_->device;
}

std::int32_t Indexer::list_heads() const noexcept {
  return impl_ == nullptr ? 0 : impl_->plan.list_heads;
}

std::int32_t Indexer::max_list_length() const noexcept {
  return impl_ == nullptr ? 0 : impl_->plan.max_list;
}

}  // namespace quarry
