// SPDX-License-Identifier: Apache-2.0
//
// The soak engine's step: who comes, who goes, one next() of those that are there.
#include "soak.h"

#include <algorithm>
#include <numeric>

#include "soak_call.h"

namespace quarry::test {

namespace {

std::vector<float> normals(Random& random, std::size_t count) {
  std::vector<float> v(count);
  for (float& x : v) x = static_cast<float>(random.normal());
  return v;
}

}  // namespace

Soak::Soak(const SoakSetup& setup)
    : setup_(setup),
      random_(setup.seed),
      oracle_(setup.config),
      launcher_(setup.backend, setup.mode) {
  const IndexerConfig& c = setup_.config;
  Status s = memory_requirements(c, setup_.backend, &need_);
  if (!s.ok()) {
    fail(s.detail());
    return;
  }
  Resources resources;
  resources.num_threads = setup_.threads;
  s = Indexer::create(c, Device{setup_.backend, 0}, resources, &indexer_);
  if (!s.ok()) {
    fail(s.detail());
    return;
  }
  cache_.num_pages = oracle_.num_pages();
  cache_.page_size = c.page_size;
  cache_.heads = c.num_kv_heads;
  cache_.dim = c.head_dim;
  const std::size_t row = static_cast<std::size_t>(c.num_kv_heads) * c.head_dim;
  cache_.keys.assign(row * c.page_size * static_cast<std::size_t>(c.num_pages), 0.0f);
  references_.assign(cache_.num_pages, 0);
  free_pages_.resize(cache_.num_pages);
  std::iota(free_pages_.begin(), free_pages_.end(), 0);
  random_.shuffle(free_pages_);
  sequences_.resize(c.max_sequences);
  table_stride_ = (c.max_seq_len + c.page_size - 1) / c.page_size;

  const Backend b = setup_.backend;
  const std::size_t slots = c.max_sequences, tokens = slots * c.max_query_tokens;
  const std::size_t rows = tokens * c.num_query_heads;
  keys_ = std::make_unique<DeviceBuffer<float>>(b, cache_.keys.size());
  queries_ = std::make_unique<DeviceBuffer<float>>(b, rows * c.head_dim);
  table_ = std::make_unique<DeviceBuffer<std::int32_t>>(b, slots * table_stride_);
  slots_ = std::make_unique<DeviceBuffer<std::int32_t>>(b, slots);
  lengths_ = std::make_unique<DeviceBuffer<std::int32_t>>(b, tokens);
  counts_of_ = std::make_unique<DeviceBuffer<std::int32_t>>(b, slots);
  list_ = std::make_unique<DeviceBuffer<std::int32_t>>(b, rows * oracle_.max_list());
  lens_ = std::make_unique<DeviceBuffer<std::int32_t>>(b, rows);
  pairs_ = std::make_unique<DeviceBuffer<std::int32_t>>(b, 2 * table_stride_);
  status_ = std::make_unique<DeviceBuffer<std::uint32_t>>(b, slots);
  scratch_ = std::make_unique<DeviceBytes>(
      b, std::max({need_.next_workspace_bytes, need_.build_workspace_bytes,
                   need_.transfer_workspace_bytes}));
  for (int i = 0; i < (c.shared_codebook ? 1 : 3); ++i) {
    Codebook book;
    book.centroids = normals(
        random_, row / oracle_.dsub() * static_cast<std::size_t>(oracle_.ksub()) * oracle_.dcent());
    books_.push_back(book);
  }
  book_ = std::make_unique<DeviceBuffer<float>>(b, books_[0].centroids);
  if (!c.shared_codebook) return;
  CodebookArgs args;
  args.codebooks = book_->data();
  s = indexer_.set_codebook(args, launcher_.stream());
  launcher_.synchronize();
  if (!s.ok()) {
    fail(s.detail());
    return;
  }
  for (int slot = 0; slot < c.max_sequences; ++slot) oracle_.set_codebook(slot, books_[0]);
}

void Soak::fail(const std::string& text) {
  if (error_.size() < 2000) error_ += "step " + std::to_string(counts_.steps) + ": " + text + "\n";
}

float* Soak::key(const Sequence& s, int position) {
  return cache_.keys.data() + cache_.offset(oracle_.cache_slot(s.pages, position), 0);
}

void Soak::upload_keys() { keys_->upload(cache_.keys); }

const std::int32_t* Soak::upload_table(int row, const Pages& pages) {
  // Entries behind a sequence's pages are no pages: nothing may look at them.
  std::vector<std::int32_t> all = table_->download();
  std::fill_n(all.begin() + row * table_stride_, table_stride_, -77);
  std::copy(pages.begin(), pages.end(), all.begin() + row * table_stride_);
  table_->upload(all);
  return table_->data() + row * table_stride_;
}

KeyView Soak::key_view(const std::int32_t* table) {
  const IndexerConfig& c = setup_.config;
  const std::int64_t row = static_cast<std::int64_t>(c.num_kv_heads) * c.head_dim;
  return {keys_->data(), DType::float32, row * c.page_size, row, c.head_dim, table, table_stride_};
}

int Soak::slot_of_choice(bool active) {
  std::vector<int> all;
  for (int slot = 0; slot < setup_.config.max_sequences; ++slot) {
    if (sequences_[slot].active == active) all.push_back(slot);
  }
  return all.empty() ? -1 : all[random_.bits() % all.size()];
}

void Soak::step() {
  ++counts_.steps;
  const int idle = slot_of_choice(false);
  if (idle >= 0 && random_.integer(0, 2) > 0) join(idle);
  if (random_.integer(0, 7) == 0) {
    if (const int slot = slot_of_choice(true); slot >= 0) leave(slot);
  }
  if (random_.integer(0, 9) == 0) {
    if (const int slot = slot_of_choice(true); slot >= 0) rewind(slot);
  }
  if (error_.empty()) take_steps();
  if (error_.empty() && counts_.steps % setup_.check_every == 0) check_codes();
}

void Soak::take_steps() {
  const IndexerConfig& c = setup_.config;
  const int tokens = c.max_query_tokens;
  std::vector<int> order(c.max_sequences);
  std::iota(order.begin(), order.end(), 0);
  random_.shuffle(order);
  HostBatch batch;
  batch.batch_size = c.max_sequences;
  batch.query_tokens = tokens;
  for (int& slot : order) {
    Sequence& s = sequences_[slot];
    if (s.active && s.n + tokens > c.max_seq_len) leave(slot);
    const int count = random_.integer(s.active ? 1 : 0, tokens);
    const bool steps = s.active && random_.integer(0, 9) > 0;
    if (steps && !own(s, s.n, s.n + count)) leave(slot);
    const bool goes = steps && s.active;
    if (goes) write_keys(s, s.n, s.n + count);
    batch.slots.push_back(goes ? slot : random_.integer(0, 1) == 0 ? -1 : slot);
    batch.query_counts.push_back(goes ? count : batch.slots.back() < 0 ? count : 0);
    for (int t = 0; t < tokens; ++t) batch.lengths.push_back(goes ? s.n + 1 + t : 1 + t);
  }
  std::vector<std::int32_t> table(table_->size(), -77);
  for (std::size_t b = 0; b < order.size(); ++b) {
    const Pages& pages = sequences_[order[b]].pages;
    std::copy(pages.begin(), pages.end(), table.begin() + b * table_stride_);
  }
  const std::vector<float> queries = normals(random_, queries_->size());
  upload_keys();
  table_->upload(table);
  queries_->upload(queries);
  slots_->upload(batch.slots);
  counts_of_->upload(batch.query_counts);
  lengths_->upload(batch.lengths);
  status_->fill(0);
  list_->fill(0x5b);
  NextArgs args;
  args.batch = {batch.batch_size,   tokens,  slots_->data(), lengths_->data(),
                counts_of_->data(), nullptr, nullptr};
  args.keys = key_view(table_->data());
  const std::int64_t d = c.head_dim, heads = c.num_query_heads;
  args.queries = {queries_->data(), DType::float32, tokens * heads * d, heads * d, d};
  args.workspace = {scratch_->data(), need_.next_workspace_bytes};
  args.indices = list_->data();
  args.index_stride = oracle_.max_list();
  args.list_lengths = lens_->data();
  args.device_status = status_->data();
  if (!call("next", "next", [&](Stream stream) { return indexer_.next(args, stream); })) return;
  check(batch, queries);
  for (std::size_t b = 0; b < order.size(); ++b) {
    if (batch.slots[b] < 0 || batch.query_counts[b] == 0) continue;
    Sequence& s = sequences_[batch.slots[b]];
    s.seen = s.n + 1;
    const int accepted = random_.integer(1, batch.query_counts[b]);
    counts_.rejected_drafts += batch.query_counts[b] - accepted;
    s.n += accepted;
  }
}

void Soak::check(const HostBatch& batch, const std::vector<float>& queries) {
  const std::vector<std::int32_t> lists = list_->download(), lens = lens_->download();
  digest_.update(lists.data(), lists.size() * sizeof lists[0]);
  digest_.update(lens.data(), lens.size() * sizeof lens[0]);
  for (const std::uint32_t bits : status_->download()) {
    if (bits != 0) fail("device_status " + std::to_string(bits));
  }
  std::vector<Pages> tables(batch.batch_size);
  for (int b = 0; b < batch.batch_size; ++b) {
    if (batch.slots[b] >= 0) tables[b] = sequences_[batch.slots[b]].pages;
  }
  std::vector<std::uint32_t> bits;
  if (counts_.steps % setup_.check_every != 0) {
    return oracle_.append(cache_, tables, batch, &bits);
  }
  const std::vector<OracleRow> rows = oracle_.next(cache_, tables, batch, queries, &bits);
  const int max_list = oracle_.max_list();
  for (std::size_t r = 0; r < rows.size(); ++r) {
    if (lens[r] < 0 || lens[r] > max_list) return fail("list_lengths " + std::to_string(lens[r]));
    const auto first = lists.begin() + static_cast<std::ptrdiff_t>(r) * max_list;
    const std::string difference = compare(
        oracle_.config(), rows[r], std::vector<std::int32_t>(first, first + lens[r]), false);
    if (!difference.empty()) fail("row " + std::to_string(r) + ": " + difference);
    if (std::any_of(first + lens[r], first + max_list, [](int p) { return p != -1; })) {
      fail("row " + std::to_string(r) + " is not -1 behind its list");
    }
    counts_.checked_rows += lens[r] > 0;
  }
}

void Soak::check_codes() {
  // Not by chance: how often is checked must not change what happens.
  const int slot = counts_.steps / setup_.check_every % setup_.config.max_sequences;
  if (!sequences_[slot].active || !oracle_.built(slot)) return;
  const Sequence& s = sequences_[slot];
  const IndexerConfig& c = oracle_.config();
  const int count = oracle_.encoded_end(s.seen) - c.encode_from;
  if (count <= 0) return;
  const int row = c.num_kv_heads * c.num_subspaces;
  DeviceBuffer<std::uint8_t> out(setup_.backend, static_cast<std::size_t>(count) * row);
  const std::int32_t* table = upload_table(0, s.pages);
  if (!call("codes", "", [&](Stream stream) {
        return indexer_.codes(slot, c.encode_from, count, table, out.data(), stream);
      })) {
    return;
  }
  const std::vector<std::uint8_t> got = out.download();
  for (int i = 0; i < count; ++i) {
    const std::uint8_t* want = oracle_.code(oracle_.cache_slot(s.pages, c.encode_from + i), 0);
    if (!std::equal(want, want + row, got.begin() + i * row)) {
      return fail("codes of slot " + std::to_string(slot) + " position " +
                  std::to_string(c.encode_from + i));
    }
  }
  counts_.checked_codes += count;
}

}  // namespace quarry::test
