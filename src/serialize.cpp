// SPDX-License-Identifier: Apache-2.0
//
// Indexer::save and Indexer::restore: sections of a slot's index to and from host memory
// (section.h) behind a header (saved.h).
#include <algorithm>
#include <cstring>

#include "call.h"
#include "checksum.h"
#include "impl.h"
#include "saved.h"

namespace quarry {
namespace {

/// What the device knows of a slot: the elements of Section::state.
struct SlotState {
  std::int32_t seen;
  std::uint32_t has_codebook;
  std::uint64_t codebook_id;
};
static_assert(sizeof(SlotState) == 4 * kStateElements);

/// One slot's sections, moved on one stream.
class Transfer {
 public:
  Transfer(const Plan& plan, const Stages& stages, const Launch& launch, std::int32_t slot,
           const std::int32_t* table, const Workspace& workspace) noexcept
      : stages_(stages), launch_(launch) {
    params_ = {plan.view, slot, table, Section::codes, 0, 0, workspace.data, workspace.bytes};
  }

  Status out(Section section, std::int64_t first, std::int64_t count, void* to) noexcept {
    return count == 0 ? Status() : stages_.export_section(of(section, first, count), to, launch_);
  }
  Status in(Section section, std::int64_t count, const void* from) noexcept {
    return count == 0 ? Status() : stages_.import_section(of(section, 0, count), from, launch_);
  }
  /// The baseline of a codebook that was restored is unknown: 0.
  Status forget_baseline() noexcept {
    const float zeros[kEntries] = {};
    const std::int32_t heads = params_.index.num_kv_heads;
    for (std::int32_t first = 0; first < heads; first += kEntries) {
      const SectionParams p = of(Section::baseline, first, std::min(kEntries, heads - first));
      if (Status s = stages_.import_section(p, zeros, launch_); !s.ok()) return s;
    }
    return {};
  }
  Status synchronize() noexcept { return stages_.synchronize(launch_); }

  Status read_state(SlotState* to) noexcept {
    if (Status s = out(Section::state, 0, kStateElements, to); !s.ok()) return s;
    return synchronize();
  }

  /// Refuses a block table that does not lead to every coded position of `length`.
  Status check_pages(std::int32_t length) noexcept {
    const IndexView& v = params_.index;
    if (params_.block_table == nullptr || encoded_positions(v, length) == 0) return {};
    const std::int32_t last = v.encode_from + encoded_positions(v, length) - 1;
    std::int32_t entries[kEntries];
    for (std::int32_t i = v.encode_from / v.page_size; i <= last / v.page_size; i += kEntries) {
      const std::int32_t count = std::min(kEntries, last / v.page_size - i + 1);
      if (Status s = out(Section::table, i, count, entries); !s.ok()) return s;
      if (Status s = synchronize(); !s.ok()) return s;
      for (std::int32_t k = 0; k < count; ++k) {
        if (entries[k] >= 0 && entries[k] < v.num_pages) continue;
        return Status(StatusCode::out_of_range, "block_table entry %d is %d, must be 0..%lld",
                      i + k, entries[k], static_cast<long long>(v.num_pages - 1));
      }
    }
    return {};
  }

  /// Checksum of the slot's codebook, phi and rotations, as if they were saved. The last one
  /// is kept in *known_id and *known.
  Status hash_codebook(std::uint64_t id, std::uint64_t* known_id, std::uint64_t* known,
                       std::uint64_t* hash) noexcept {
    if (id == *known_id) {
      *hash = *known;
      return {};
    }
    const SavedLayout layout(params_.index, 0, true);
    std::uint32_t part[kEntries * 8];
    Checksum sum;
    for (int i = static_cast<int>(Section::codebooks); i < kSavedSections; ++i) {
      for (std::int64_t done = 0; done < layout.count[i];) {
        const std::int64_t count = std::min<std::int64_t>(layout.count[i] - done, std::size(part));
        if (Status s = out(static_cast<Section>(i), done, count, part); !s.ok()) return s;
        if (Status s = synchronize(); !s.ok()) return s;
        sum.update(part, static_cast<std::size_t>(count) * sizeof part[0]);
        done += count;
      }
    }
    *known_id = id;
    *known = *hash = sum.value();
    return {};
  }

 private:
  static constexpr std::int32_t kEntries = 512;

  const SectionParams& of(Section section, std::int64_t first, std::int64_t count) noexcept {
    params_.section = section;
    params_.first = first;
    params_.count = count;
    return params_;
  }

  const Stages& stages_;
  Launch launch_;
  SectionParams params_;
};

SavedHeader header_of(const IndexerConfig& c, const SavedLayout& layout, std::int32_t length,
                      bool with_codebook, std::uint64_t codebook_hash) {
  SavedHeader h{};
  std::memcpy(h.magic, kSavedMagic, sizeof h.magic);
  h.version = kSavedVersion;
  h.header_bytes = sizeof h;
  h.total_bytes = layout.total;
  h.codebook_hash = codebook_hash;
  h.num_kv_heads = static_cast<std::uint32_t>(c.num_kv_heads);
  h.head_dim = static_cast<std::uint32_t>(c.head_dim);
  h.num_subspaces = static_cast<std::uint32_t>(c.num_subspaces);
  h.bits = static_cast<std::uint32_t>(c.bits);
  h.metric = static_cast<std::uint32_t>(c.metric);
  h.block_size = static_cast<std::uint32_t>(c.block_size);
  // Without blocks there are no means to have a type.
  h.mean_dtype = c.block_size > 0 ? static_cast<std::uint32_t>(c.mean_dtype) : 0;
  h.rotation = c.rotation ? 1 : 0;
  h.encode_from = static_cast<std::uint32_t>(c.encode_from);
  h.has_codebook = with_codebook ? 1 : 0;
  h.length = static_cast<std::uint32_t>(length);
  std::copy_n(layout.bytes, kSavedSections, h.section_bytes);
  return h;
}

/// A saved header against what save() of this Indexer would have written.
Status check_fits(const IndexerConfig& c, const IndexView& view, const SavedHeader& h) {
  if (h.length > static_cast<std::uint32_t>(c.max_seq_len)) {
    return Status(StatusCode::out_of_range, "data: length is %u, must be 0..%d", h.length,
                  c.max_seq_len);
  }
  const auto length = static_cast<std::int32_t>(h.length);
  const SavedLayout layout(view, length, h.has_codebook == 1);
  const SavedHeader own = header_of(c, layout, length, h.has_codebook == 1, 0);
  const struct {
    const char* name;
    std::uint32_t saved, own;
  } fields[] = {
      {"num_kv_heads", h.num_kv_heads, own.num_kv_heads},
      {"head_dim", h.head_dim, own.head_dim},
      {"num_subspaces", h.num_subspaces, own.num_subspaces},
      {"bits", h.bits, own.bits},
      {"metric", h.metric, own.metric},
      {"block_size", h.block_size, own.block_size},
      {"mean_dtype", h.mean_dtype, own.mean_dtype},
      {"rotation", h.rotation, own.rotation},
      {"encode_from", h.encode_from, own.encode_from},
  };
  for (const auto& f : fields) {
    if (f.saved == f.own) continue;
    return Status(StatusCode::invalid_argument, "data: %s is %u, this Indexer's is %u", f.name,
                  f.saved, f.own);
  }
  for (int i = 0; i < kSavedSections; ++i) {
    if (h.section_bytes[i] == own.section_bytes[i]) continue;
    return Status(StatusCode::invalid_argument, "data: section_bytes[%d] is %llu, must be %llu", i,
                  static_cast<unsigned long long>(h.section_bytes[i]),
                  static_cast<unsigned long long>(own.section_bytes[i]));
  }
  return {};
}

std::uint64_t hash_of_saved(const SavedLayout& layout, const unsigned char* data) {
  const std::uint64_t first = layout.offset[static_cast<int>(Section::codebooks)];
  Checksum sum;
  sum.update(data + first, layout.total - first);
  return sum.value();
}

Status check_transfer(const Plan& plan, const IndexerConfig& config, std::int32_t slot,
                      const std::int32_t* table, const Workspace& workspace) {
  if (Status s = check_slot("slot", config, slot); !s.ok()) return s;
  if (Status s = check_table("block_table", plan, table); !s.ok()) return s;
  const std::size_t needed = plan.memory.transfer_workspace_bytes;
  return needed == 0 ? Status() : check_workspace(workspace, needed);
}

}  // namespace

std::size_t Indexer::saved_bytes(std::int32_t length) const noexcept {
  if (impl_ == nullptr || length < 0 || length > impl_->config.max_seq_len) return 0;
  return SavedLayout(impl_->plan.view, length, impl_->plan.trains).total;
}

Status Indexer::save(const SaveArgs& args, Stream stream) const noexcept {
  const Call call("save");
  if (impl_ == nullptr) return not_created();
  Impl& im = *impl_;
  if (Status s = check_transfer(im.plan, im.config, args.slot, args.block_table, args.workspace);
      !s.ok()) {
    return s;
  }
  if (args.length < -1 || args.length > im.config.max_seq_len) {
    return Status(StatusCode::out_of_range, "length is %d, must be -1..%d", args.length,
                  im.config.max_seq_len);
  }
  if (Status s = check_pointer("bytes", args.bytes, alignof(std::size_t)); !s.ok()) return s;
  if (args.capacity > 0) {
    if (Status s = check_pointer("data", args.data, 1); !s.ok()) return s;
  }
  const HostSlot& slot = im.slots[static_cast<std::size_t>(args.slot)];
  Transfer transfer(im.plan, *im.stages, im.on(stream), args.slot, args.block_table,
                    args.workspace);
  SlotState state{};
  if (slot.built) {
    if (Status s = transfer.read_state(&state); !s.ok()) return s;
  }
  if (state.has_codebook == 0) {
    return Status(StatusCode::not_built, "slot %d has no codebook", args.slot);
  }
  const std::int32_t length = args.length < 0 ? state.seen : std::min(state.seen, args.length);
  if (Status s = transfer.check_pages(length); !s.ok()) return s;
  const bool own_codebook = im.plan.trains;
  const SavedLayout layout(im.plan.view, length, own_codebook);
  *args.bytes = layout.total;
  if (args.capacity < layout.total) {
    return Status(StatusCode::invalid_argument, "capacity is %zu, must be at least %llu",
                  args.capacity, static_cast<unsigned long long>(layout.total));
  }
  auto* const data = static_cast<unsigned char*>(args.data);
  for (int i = 0; i < kSavedSections; ++i) {
    const auto section = static_cast<Section>(i);
    if (Status s = transfer.out(section, 0, layout.count[i], data + layout.offset[i]); !s.ok()) {
      return s;
    }
  }
  if (Status s = transfer.synchronize(); !s.ok()) return s;
  std::uint64_t hash = 0;
  if (own_codebook) {
    hash = hash_of_saved(layout, data);
  } else if (Status s = transfer.hash_codebook(slot.codebook_id, &im.hashed_id, &im.hash, &hash);
             !s.ok()) {
    return s;
  }
  SavedHeader header = header_of(im.config, layout, length, own_codebook, hash);
  std::memcpy(data, &header, sizeof header);
  Checksum sum;
  sum.update(data, layout.total);
  header.checksum = sum.value();
  std::memcpy(data, &header, sizeof header);
  return {};
}

Status Indexer::restore(const RestoreArgs& args, Stream stream) noexcept {
  const Call call("restore");
  if (impl_ == nullptr) return not_created();
  Impl& im = *impl_;
  if (Status s = check_transfer(im.plan, im.config, args.slot, args.block_table, args.workspace);
      !s.ok()) {
    return s;
  }
  const auto* const data = static_cast<const unsigned char*>(args.data);
  SavedHeader header;
  if (Status s = parse_saved(data, args.bytes, &header); !s.ok()) return s;
  if (Status s = check_fits(im.config, im.plan.view, header); !s.ok()) return s;
  const auto length = static_cast<std::int32_t>(header.length);
  const bool brings_codebook = header.has_codebook == 1;
  const SavedLayout layout(im.plan.view, length, brings_codebook);
  if (Status s = check_saved_codes(im.plan.view, data + layout.offset[0], layout.bytes[0]);
      !s.ok()) {
    return s;
  }
  if (brings_codebook && hash_of_saved(layout, data) != header.codebook_hash) {
    return Status(StatusCode::invalid_argument,
                  "data: codebook_hash is %016llx, not that of the codebooks beside it",
                  static_cast<unsigned long long>(header.codebook_hash));
  }

  Transfer transfer(im.plan, *im.stages, im.on(stream), args.slot, args.block_table,
                    args.workspace);
  if (Status s = transfer.check_pages(length); !s.ok()) return s;
  HostSlot& slot = im.slots[static_cast<std::size_t>(args.slot)];
  SlotState state{};
  if (slot.built) {
    if (Status s = transfer.read_state(&state); !s.ok()) return s;
  }
  std::uint64_t hash = 0;
  if (state.has_codebook != 0) {
    if (Status s = transfer.hash_codebook(slot.codebook_id, &im.hashed_id, &im.hash, &hash);
        !s.ok())
      return s;
  }
  const bool same = state.has_codebook != 0 && hash == header.codebook_hash;
  if (!same && (!im.plan.trains || !brings_codebook)) {
    return Status(state.has_codebook == 0 ? StatusCode::not_built : StatusCode::invalid_argument,
                  "data: codebook_hash is %016llx, slot %d has %s codebook",
                  static_cast<unsigned long long>(header.codebook_hash), args.slot,
                  state.has_codebook == 0 ? "no" : "another");
  }

  for (int i = 0; i < kSavedSections; ++i) {
    const auto section = static_cast<Section>(i);
    if (section >= Section::codebooks && same) break;
    if (Status s = transfer.in(section, layout.count[i], data + layout.offset[i]); !s.ok()) {
      return s;
    }
  }
  if (!same) {
    if (Status s = transfer.forget_baseline(); !s.ok()) return s;
  }
  const HostSlot restored{true, im.config.rotation, true, false,
                          same ? slot.codebook_id : fresh_codebook_id()};
  state = {length, 1, restored.codebook_id};
  if (Status s = transfer.in(Section::state, kStateElements, &state); !s.ok()) return s;
  slot = restored;
  return {};
}

}  // namespace quarry
