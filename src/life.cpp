// SPDX-License-Identifier: Apache-2.0
//
// Indexer's calls that start, share and split sequences.
#include <atomic>

#include "call.h"
#include "impl.h"

namespace quarry {

std::uint64_t fresh_codebook_id() noexcept {
  static std::atomic<std::uint64_t> last{0};
  return last.fetch_add(1, std::memory_order_relaxed) + 1;
}

Status Indexer::attach(const AttachArgs& args, Stream stream) noexcept {
  const Call call("attach");
  if (impl_ == nullptr) return not_created();
  Impl& im = *impl_;
  if (Status s = check_attach(im.plan, im.config, args, im.slots.data()); !s.ok()) return s;
  const AttachParams params{im.plan.view, args.slots,       args.lengths,
                            args.count,   args.codebook_id, args.device_status};
  return im.stages->attach(params, im.on(stream));
}

std::int32_t Indexer::shareable_positions(std::int32_t length) const noexcept {
  if (impl_ == nullptr || length < 0 || length > impl_->config.max_seq_len) return 0;
  // One divides the other where there are blocks.
  const IndexView& v = impl_->plan.view;
  const std::int32_t unit = v.block_size > v.page_size ? v.block_size : v.page_size;
  return length / unit * unit;
}

Status Indexer::copy_pages(const std::int32_t* from_pages, const std::int32_t* to_pages,
                           std::int32_t count, Stream stream) noexcept {
  const Call call("copy_pages");
  if (impl_ == nullptr) return not_created();
  const Impl& im = *impl_;
  if (!im.plan.paged) {
    return Status(StatusCode::invalid_argument,
                  "config.page_size is 0: the cache has no pages to copy");
  }
  if (count < 1 || count > im.plan.view.num_pages) {
    return Status(StatusCode::out_of_range, "count is %d, must be 1..%lld", count,
                  static_cast<long long>(im.plan.view.num_pages));
  }
  if (Status s = check_pointer("from_pages", from_pages, 4); !s.ok()) return s;
  if (Status s = check_pointer("to_pages", to_pages, 4); !s.ok()) return s;
  return im.stages->copy_pages({im.plan.view, from_pages, to_pages, count}, im.on(stream));
}

Status Indexer::fork(const ForkArgs& args, Stream stream) noexcept {
  const Call call("fork");
  if (impl_ == nullptr) return not_created();
  Impl& im = *impl_;
  if (Status s = check_slot("from_slot", im.config, args.from_slot); !s.ok()) return s;
  if (Status s = check_slot("to_slot", im.config, args.to_slot); !s.ok()) return s;
  if (args.from_slot == args.to_slot) {
    return Status(StatusCode::invalid_argument, "to_slot is from_slot (%d), must be another",
                  args.to_slot);
  }
  if (args.length < -1 || args.length > im.config.max_seq_len) {
    return Status(StatusCode::out_of_range, "length is %d, must be -1..%d", args.length,
                  im.config.max_seq_len);
  }
  if (Status s = check_table("from_block_table", im.plan, args.from_block_table); !s.ok()) return s;
  if (Status s = check_table("to_block_table", im.plan, args.to_block_table); !s.ok()) return s;
  const ForkParams params{
      im.plan.view,        args.from_slot,
      args.to_slot,        args.from_block_table,
      args.to_block_table, args.length < 0 ? im.config.max_seq_len : args.length};
  if (Status s = im.stages->fork(params, im.on(stream)); !s.ok()) return s;
  im.slots[static_cast<std::size_t>(args.to_slot)] =
      im.slots[static_cast<std::size_t>(args.from_slot)];
  return {};
}

std::uint64_t Indexer::codebook_id(std::int32_t slot) const noexcept {
  if (impl_ == nullptr || slot < 0 || slot >= impl_->config.max_sequences) return 0;
  return impl_->slots[static_cast<std::size_t>(slot)].codebook_id;
}

}  // namespace quarry
