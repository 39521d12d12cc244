// SPDX-License-Identifier: Apache-2.0
//
// How the soak engine's sequences join and leave, and its pages.
#include <algorithm>
#include <cstring>

#include "soak.h"
#include "soak_call.h"

namespace quarry::test {

int Soak::take_page() {
  while (free_pages_.empty() && !prefixes_.empty()) {
    for (const int page : prefixes_.front().pages) drop_page(page);
    prefixes_.pop_front();
    ++counts_.evicted;
  }
  if (free_pages_.empty()) return -1;
  const int page = free_pages_.back();
  free_pages_.pop_back();
  references_[page] = 1;
  return page;
}

void Soak::drop_page(int page) {
  if (--references_[page] == 0) free_pages_.push_back(page);
}

/// Page `index` becomes the sequence's own: its keys are copied by the engine, its index by
/// copy_pages().
bool Soak::copy_on_write(Sequence& s, std::size_t index) {
  const int from = s.pages[index], to = take_page();
  if (to < 0) return false;
  const std::size_t size = static_cast<std::size_t>(cache_.page_size) * cache_.heads * cache_.dim;
  std::copy_n(cache_.keys.begin() + from * size, size, cache_.keys.begin() + to * size);
  pairs_->upload({from, to});
  if (!call("copy_pages", "copy_pages", [&](Stream stream) {
        return indexer_.copy_pages(pairs_->data(), pairs_->data() + 1, 1, stream);
      })) {
    return false;
  }
  oracle_.copy_page(from, to);
  drop_page(from);
  s.pages[index] = to;
  ++counts_.copied_pages;
  return true;
}

/// The pages that positions from .. to-1 are written to, and those of their block.
bool Soak::own(Sequence& s, int from, int to) {
  const int page = setup_.config.page_size;
  const int last = (to + page - 1) / page;
  for (int i = indexer_.shareable_positions(from) / page; i < last; ++i) {
    const auto at = static_cast<std::size_t>(i);
    if (at == s.pages.size()) {
      const int fresh = take_page();
      if (fresh < 0) return false;
      s.pages.push_back(fresh);
    } else if (references_[s.pages[at]] > 1 && !copy_on_write(s, at)) {
      return false;
    }
  }
  return true;
}

void Soak::write_keys(const Sequence& s, int from, int to) {
  const int row = cache_.heads * cache_.dim;
  for (int p = from; p < to; ++p) {
    float* k = key(s, p);
    for (int i = 0; i < row; ++i) k[i] = static_cast<float>(random_.normal()) + 0.1f * (p % 7);
  }
}

void Soak::join(int slot) {
  Sequence& s = sequences_[slot];
  s = Sequence{};
  bool joined = false;
  const int from = slot_of_choice(true);
  switch (random_.integer(0, 3)) {
    case 1:
      joined = join_by_prefix(slot);
      break;
    case 2:
      joined = from >= 0 && join_by_fork(slot, from);
      break;
    case 3:
      joined = join_by_restore(slot);
      break;
    default:
      break;
  }
  if (!joined && error_.empty()) join_by_prompt(slot);
}

void Soak::join_by_prompt(int slot) {
  Sequence& s = sequences_[slot];
  s.active = true;
  const int n = random_.integer(1, 100);
  if (!own(s, 0, n)) return leave(slot);
  write_keys(s, 0, n);
  if (!setup_.config.shared_codebook && !oracle_.built(slot)) {
    const Codebook& book = books_[random_.bits() % books_.size()];
    book_->upload(book.centroids);
    CodebookArgs args;
    args.slot = slot;
    args.codebooks = book_->data();
    if (!call("set_codebook", "",
              [&](Stream stream) { return indexer_.set_codebook(args, stream); })) {
      return;
    }
    oracle_.set_codebook(slot, book);
  }
  upload_keys();
  BuildArgs args;
  args.slot = slot;
  args.length = n;
  args.keys = key_view(upload_table(0, s.pages));
  args.workspace = {scratch_->data(), need_.build_workspace_bytes};
  if (!call("build", "", [&](Stream stream) { return indexer_.build(args, stream); })) return;
  oracle_.encode(cache_, s.pages, slot, n, true);
  s.n = s.seen = n;
  ++counts_.prompts;
}

bool Soak::join_by_prefix(int slot) {
  if (prefixes_.empty()) return false;
  Sequence& s = sequences_[slot];
  const Prefix& prefix = prefixes_[random_.bits() % prefixes_.size()];
  const std::int32_t host_slot = slot;
  AttachArgs args;
  args.slots = slots_->data();
  args.lengths = lengths_->data();
  args.count = 1;
  args.codebook_id = prefix.codebook_id;
  args.host_slots = &host_slot;
  const int length = random_.integer(1, prefix.length);
  slots_->upload({slot});
  lengths_->upload({length});
  if (indexer_.codebook_id(slot) != prefix.codebook_id) {
    const Status refused = indexer_.attach(args, launcher_.stream());
    if (refused.ok()) fail("attach to another codebook's pages was not refused");
    ++counts_.refused;
    return false;
  }
  // All its pages by reference; own() copies what is written to.
  const int page = setup_.config.page_size;
  s.pages.assign(prefix.pages.begin(), prefix.pages.begin() + (length + page - 1) / page);
  for (const int p : s.pages) ++references_[p];
  if (!call("attach", "", [&](Stream stream) { return indexer_.attach(args, stream); })) {
    return false;
  }
  oracle_.attach(slot, length);
  s.active = true;
  s.n = s.seen = length;
  ++counts_.attached;
  return true;
}

bool Soak::join_by_fork(int slot, int from) {
  Sequence& s = sequences_[slot];
  const Sequence& source = sequences_[from];
  const int page = setup_.config.page_size;
  s.pages = source.pages;
  for (const int p : s.pages) ++references_[p];
  if (random_.integer(0, 1) == 0) {
    // At once, not at the first write: fork() copies the index where the tables differ.
    const int pages = (source.seen + page - 1) / page;
    const auto size = static_cast<std::ptrdiff_t>(page) * cache_.heads * cache_.dim;
    const auto first = static_cast<std::size_t>(indexer_.shareable_positions(source.seen) / page);
    for (std::size_t i = first; i < s.pages.size(); ++i) {
      const int old = s.pages[i], fresh = take_page();
      if (fresh < 0) {
        for (const int p : s.pages) drop_page(p);
        s = Sequence{};
        return false;
      }
      std::copy_n(cache_.keys.begin() + old * size, size, cache_.keys.begin() + fresh * size);
      if (static_cast<int>(i) < pages) oracle_.copy_page(old, fresh);
      drop_page(old);
      s.pages[i] = fresh;
    }
  }
  ForkArgs args;
  args.from_slot = from;
  args.to_slot = slot;
  args.from_block_table = upload_table(0, source.pages);
  args.to_block_table = upload_table(1, s.pages);
  if (!call("fork", "", [&](Stream stream) { return indexer_.fork(args, stream); })) return false;
  oracle_.fork(from, slot, -1);
  s.active = true;
  s.n = source.n;
  s.seen = source.seen;
  ++counts_.forks;
  return true;
}

bool Soak::join_by_restore(int slot) {
  if (saved_.empty()) return false;
  Sequence& s = sequences_[slot];
  const SavedSequence& saved = saved_[random_.bits() % saved_.size()];
  if (!own(s, 0, saved.n)) {
    for (const int p : s.pages) drop_page(p);
    s = Sequence{};
    return false;
  }
  const int row = cache_.heads * cache_.dim;
  for (int p = 0; p < saved.n; ++p) {
    std::copy_n(saved.keys.begin() + static_cast<std::ptrdiff_t>(p) * row, row, key(s, p));
  }
  RestoreArgs args;
  args.slot = slot;
  args.block_table = upload_table(0, s.pages);
  args.workspace = {scratch_->data(), need_.transfer_workspace_bytes};
  args.data = saved.bytes.data();
  args.bytes = saved.bytes.size();
  if (!call("restore", "", [&](Stream stream) { return indexer_.restore(args, stream); })) {
    return false;
  }
  oracle_.restore(s.pages, slot, saved.oracle);
  s.active = true;
  s.n = saved.n;
  s.seen = saved.oracle.seen;
  ++counts_.restored;
  return true;
}

void Soak::rewind(int slot) {
  Sequence& s = sequences_[slot];
  const int page = setup_.config.page_size;
  if (s.seen < 2) return;
  s.n = s.seen = random_.integer(1, s.seen);
  while (static_cast<int>(s.pages.size()) > (s.n + page - 1) / page) {
    drop_page(s.pages.back());
    s.pages.pop_back();
  }
  slots_->upload({slot});
  lengths_->upload({s.n});
  call("truncate", "", [&](Stream stream) {
    return indexer_.truncate(slots_->data(), lengths_->data(), 1, stream);
  });
  oracle_.truncate(slot, s.n);
  ++counts_.truncated;
}

void Soak::leave(int slot) {
  Sequence& s = sequences_[slot];
  if (s.seen > 0 && random_.integer(0, 2) == 0) {
    SavedSequence saved;
    saved.n = s.n;
    saved.oracle = oracle_.save(s.pages, slot, -1);
    for (int p = 0; p < s.n; ++p) {
      saved.keys.insert(saved.keys.end(), key(s, p), key(s, p) + cache_.heads * cache_.dim);
    }
    std::size_t bytes = 0;
    saved.bytes.resize(indexer_.saved_bytes(s.seen));
    SaveArgs args;
    args.slot = slot;
    args.block_table = upload_table(0, s.pages);
    args.workspace = {scratch_->data(), need_.transfer_workspace_bytes};
    args.data = saved.bytes.data();
    args.capacity = saved.bytes.size();
    args.bytes = &bytes;
    call("save", "", [&](Stream stream) { return indexer_.save(args, stream); });
    if (bytes != saved.bytes.size()) fail("saved_bytes() is not what save() wrote");
    digest_.update(saved.bytes.data(), saved.bytes.size());
    saved_.push_back(std::move(saved));
    if (saved_.size() > 4) saved_.pop_front();
    ++counts_.saved;
  }
  if (random_.integer(0, 1) == 0) {
    // What the index has seen, without the pages that others could still write to.
    const int length = indexer_.shareable_positions(s.seen);
    if (length > 0) {
      Prefix prefix{{}, length, indexer_.codebook_id(slot)};
      prefix.pages.assign(s.pages.begin(), s.pages.begin() + length / setup_.config.page_size);
      for (const int p : prefix.pages) ++references_[p];
      prefixes_.push_back(std::move(prefix));
    }
    if (prefixes_.size() > 5) {
      for (const int p : prefixes_.front().pages) drop_page(p);
      prefixes_.pop_front();
    }
  }
  for (const int p : s.pages) drop_page(p);
  s = Sequence{};
  call("reset", "", [&](Stream stream) { return indexer_.reset(slot, stream); });
  oracle_.reset(slot);
  ++counts_.left;
}

}  // namespace quarry::test
