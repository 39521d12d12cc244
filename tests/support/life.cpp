// SPDX-License-Identifier: Apache-2.0
//
// World's calls of a sequence's life: attach, fork, copy_pages, save, restore.
#include <algorithm>

#include "scenario.h"

namespace quarry::test {

void World::copy_keys(int from_page, int to_page) {
  const std::int64_t size = static_cast<std::int64_t>(cache_.page_size) * cache_.heads * cache_.dim;
  std::copy_n(cache_.keys.begin() + from_page * size, size, cache_.keys.begin() + to_page * size);
}

Status World::attach(const std::vector<std::int32_t>& slots, const std::vector<std::int32_t>& to,
                     std::uint64_t codebook_id, std::vector<std::uint32_t>* bits) {
  ++step_;
  DeviceBuffer<std::int32_t> slot_buffer(setup_.backend, slots), length_buffer(setup_.backend, to);
  DeviceBuffer<std::uint32_t> status(setup_.backend, std::vector<std::uint32_t>(to.size(), 0));
  AttachArgs args;
  if (!slots.empty()) args.slots = slot_buffer.data();
  args.lengths = length_buffer.data();
  args.count = static_cast<std::int32_t>(to.size());
  args.codebook_id = codebook_id;
  args.device_status = status.data();
  if (setup_.host_copies && !slots.empty()) args.host_slots = slots.data();
  const Status s = indexer_.attach(args, launcher_.stream());
  launcher_.synchronize();
  const std::vector<std::uint32_t> got = status.download();
  if (bits != nullptr) *bits = got;
  if (!s.ok()) return s;
  for (std::size_t i = 0; i < to.size(); ++i) {
    if (got[i] == 0) oracle_.attach(slots.empty() ? static_cast<int>(i) : slots[i], to[i]);
  }
  return s;
}

Status World::fork(int from, int to, int length) {
  ++step_;
  const bool paged = config().page_size > 0;
  DeviceBuffer<std::int32_t> from_table(setup_.backend, pages_[from]),
      to_table(setup_.backend, pages_[to]);
  ForkArgs args;
  args.from_slot = from;
  args.to_slot = to;
  args.length = length;
  if (paged) {
    args.from_block_table = from_table.data();
    args.to_block_table = to_table.data();
  }
  const Status s = indexer_.fork(args, launcher_.stream());
  launcher_.synchronize();
  if (!s.ok()) return s;
  oracle_.fork(from, to, length);
  // The engine's part: all keys it holds of the sequence, also those not seen yet.
  for (std::size_t i = 0; i < pages_[from].size(); ++i) {
    if (pages_[from][i] == pages_[to][i]) continue;
    copy_keys(pages_[from][i], pages_[to][i]);
    if (static_cast<int>(i) * oracle_.page_size() >= oracle_.seen(to)) continue;
    oracle_.copy_page(pages_[from][i], pages_[to][i]);
  }
  return s;
}

Status World::copy_pages(const std::vector<std::int32_t>& from,
                         const std::vector<std::int32_t>& to) {
  ++step_;
  DeviceBuffer<std::int32_t> from_buffer(setup_.backend, from), to_buffer(setup_.backend, to);
  const Status s = indexer_.copy_pages(from_buffer.data(), to_buffer.data(),
                                       static_cast<std::int32_t>(from.size()), launcher_.stream());
  launcher_.synchronize();
  if (!s.ok()) return s;
  for (std::size_t i = 0; i < from.size(); ++i) {
    if (std::min(from[i], to[i]) < 0 || std::max(from[i], to[i]) >= cache_.num_pages) continue;
    copy_keys(from[i], to[i]);
    oracle_.copy_page(from[i], to[i]);
  }
  return s;
}

World::Saved World::save(int slot, int length) {
  ++step_;
  MemoryRequirements need;
  Saved saved;
  saved.status = memory_requirements(setup_.config, setup_.backend, &need);
  if (!saved.status.ok()) return saved;
  DeviceBytes scratch(setup_.backend, need.transfer_workspace_bytes);
  scratch.fill(0xa5);
  DeviceBuffer<std::int32_t> table(setup_.backend, pages_[slot]);
  std::size_t bytes = 0;
  SaveArgs args;
  args.slot = slot;
  args.length = length;
  if (config().page_size > 0) args.block_table = table.data();
  args.workspace = {scratch.data(), scratch.bytes()};
  args.bytes = &bytes;
  // A first call asks for the size.
  saved.status = indexer_.save(args, launcher_.stream());
  if (bytes == 0) return saved;
  DeviceBytes exact(Backend::cpu, bytes, 1);  // host memory between guards, of no alignment
  exact.fill(0x5b);
  args.data = exact.data();
  args.capacity = bytes;
  saved.status = indexer_.save(args, launcher_.stream());
  saved.bytes.resize(bytes);
  exact.download(saved.bytes.data(), bytes);
  saved.oracle = oracle_.save(pages_[slot], slot, length);
  return saved;
}

Status World::restore(int slot, const std::vector<std::uint8_t>& bytes,
                      const Oracle::Saved* saved) {
  ++step_;
  MemoryRequirements need;
  Status s = memory_requirements(setup_.config, setup_.backend, &need);
  if (!s.ok()) return s;
  DeviceBytes scratch(setup_.backend, need.transfer_workspace_bytes);
  scratch.fill(0x5a);
  DeviceBuffer<std::int32_t> table(setup_.backend, pages_[slot]);
  DeviceBytes exact(Backend::cpu, bytes.size(), 1);
  exact.upload(bytes.data(), bytes.size());
  RestoreArgs args;
  args.slot = slot;
  if (config().page_size > 0) args.block_table = table.data();
  args.workspace = {scratch.data(), scratch.bytes()};
  args.data = exact.data();
  args.bytes = bytes.size();
  s = indexer_.restore(args, launcher_.stream());
  launcher_.synchronize();
  if (s.ok() && saved != nullptr) oracle_.restore(pages_[slot], slot, *saved);
  return s;
}

}  // namespace quarry::test
