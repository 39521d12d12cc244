// SPDX-License-Identifier: Apache-2.0
#include "scenario.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "check.h"

namespace quarry::test {
namespace {

constexpr std::uint32_t kOldBit = 0x80000000u;  // stands in device_status before every call
constexpr std::uint8_t kOutputPoison = 0x5b;

std::uint64_t mix(std::uint64_t a, std::uint64_t b) { return Random(a * 1000003u + b).bits(); }

/// Orthogonal rows by Gram-Schmidt, each column then stretched: R = Q D, inverse transpose Q / D.
void random_rotation(Random& random, int d, float* rotation, float* query_rotation) {
  std::vector<std::vector<double>> q(d, std::vector<double>(d));
  for (int i = 0; i < d; ++i) {
    for (double& v : q[i]) v = random.normal();
    for (int pass = 0; pass < 2; ++pass) {
      for (int k = 0; k < i; ++k) {
        const double along = std::inner_product(q[i].begin(), q[i].end(), q[k].begin(), 0.0);
        for (int j = 0; j < d; ++j) q[i][j] -= along * q[k][j];
      }
    }
    const double norm = std::sqrt(std::inner_product(q[i].begin(), q[i].end(), q[i].begin(), 0.0));
    for (double& v : q[i]) v /= norm;
  }
  for (int j = 0; j < d; ++j) {
    const double stretch = 0.5 + 1.5 * random.uniform();
    for (int i = 0; i < d; ++i) {
      rotation[i * d + j] = static_cast<float>(q[i][j] * stretch);
      query_rotation[i * d + j] = static_cast<float>(q[i][j] / stretch);
    }
  }
}

struct Layout {
  std::int64_t page, slot, head;
};

Layout key_layout(const Scenario& s, const Oracle& o) {
  const std::int64_t d = s.config.head_dim, heads = s.config.num_kv_heads, size = o.page_size();
  if (!s.padded) return {size * heads * d, heads * d, d};
  const std::int64_t slot = d + 3, head = size * slot + 5;
  return {heads * head + 7, slot, head};
}

Layout query_layout(const Scenario& s) {  // batch, token, head
  const std::int64_t d = s.config.head_dim, heads = s.config.num_query_heads;
  const std::int64_t tokens = s.config.max_query_tokens;
  if (!s.padded) return {tokens * heads * d, heads * d, d};
  const std::int64_t head = d + 5, token = heads * head + 1;
  return {tokens * token + 9, token, head};
}

/// The same number, or both NaN.
bool same(float a, float b) {
  return std::isnan(a) ? std::isnan(b) : std::bit_cast<int>(a) == std::bit_cast<int>(b);
}

/// A pattern whose value times `scale` is `value`. Where it is not the one that division finds
/// (a scale of 0, or one whose products underflow), any.
std::uint8_t float8_pattern(float value, float scale) {
  const std::uint8_t guess = float8_bits(round_to(DType::float8_e4m3, value / scale));
  if (same(from_float8_bits(guess) * scale, value)) return guess;
  for (int bits = 0; bits < 256; ++bits) {
    const auto pattern = static_cast<std::uint8_t>(bits);
    if (same(from_float8_bits(pattern) * scale, value)) return pattern;
  }
  ADD_FAILURE() << value << " is no E4M3 number times " << scale;
  return 0;
}

void store(std::vector<std::uint8_t>& image, DType dtype, std::int64_t i, float value,
           float scale = 1.0f) {
  if (dtype == DType::float8_e4m3) {
    image[static_cast<std::size_t>(i)] = float8_pattern(value, scale);
  } else if (dtype == DType::float32) {
    std::memcpy(image.data() + i * 4, &value, 4);
  } else {
    const std::uint16_t bits = bits16(dtype, value);
    std::memcpy(image.data() + i * 2, &bits, 2);
  }
}

}  // namespace

const char* to_string(Values v) {
  const char* const names[] = {"gaussian", "integers",    "tied",     "two_valued",  "nan",
                               "infinite", "signed_zero", "denormal", "huge_cluster"};
  return names[static_cast<int>(v)];
}

IndexerConfig small_config() {
  IndexerConfig c;
  c.num_query_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = 32;
  c.max_sequences = 1;
  c.max_seq_len = 600;
  c.num_subspaces = 2;
  c.bits = 4;
  c.sink_size = 8;
  c.heavy_size = 24;
  c.window_size = 16;
  c.dense_threshold = 0;
  c.kmeans_iterations = 3;
  return c;
}

void use_pages(IndexerConfig* c, int page_size) {
  c->page_size = page_size;
  c->num_pages =
      static_cast<std::int64_t>(c->max_sequences) * ((c->max_seq_len + page_size - 1) / page_size) +
      3;
}

HostBatch lengths(std::vector<std::int32_t> n) {
  HostBatch b;
  b.batch_size = static_cast<int>(n.size());
  b.lengths = std::move(n);
  return b;
}

struct World::Buffers {
  Buffers(const Scenario& s, const Oracle& o)
      : table_stride((s.config.max_seq_len + o.page_size() - 1) / o.page_size()),
        index_stride(o.max_list() + s.index_padding),
        dense_stride(s.config.max_seq_len + s.index_padding),
        max_rows(static_cast<std::size_t>(s.config.max_sequences) * s.config.max_query_tokens *
                 s.config.num_query_heads),
        keys(s.backend,
             static_cast<std::size_t>(key_extent(s, o)) *
                 static_cast<std::size_t>(dtype_size(s.key_dtype)),
             s.misaligned ? static_cast<std::size_t>(dtype_size(s.key_dtype)) : 0),
        queries(s.backend,
                static_cast<std::size_t>(query_extent(s)) *
                    static_cast<std::size_t>(dtype_size(s.query_dtype)),
                s.misaligned ? static_cast<std::size_t>(dtype_size(s.query_dtype)) : 0),
        scales(s.backend, s.key_scales),
        table(s.backend, static_cast<std::size_t>(s.config.max_sequences) * table_stride),
        slots(s.backend, s.config.max_sequences),
        lengths(s.backend,
                static_cast<std::size_t>(s.config.max_sequences) * s.config.max_query_tokens),
        counts(s.backend, s.config.max_sequences),
        status(s.backend, s.config.max_sequences),
        indices(s.backend, max_rows * index_stride),
        list_lengths(s.backend, max_rows),
        weights(s.backend, s.weights ? max_rows * index_stride : 0),
        dense(s.backend, s.dense_weights ? max_rows * dense_stride : 0),
        previous_indices(s.backend, s.previous ? max_rows * index_stride : 0),
        previous_lengths(s.backend, s.previous ? max_rows : 0),
        physical(s.backend, s.physical ? max_rows * index_stride : 0),
        physical64(s.backend, s.physical ? max_rows * index_stride : 0) {}

  static std::int64_t key_extent(const Scenario& s, const Oracle& o) {
    const Layout l = key_layout(s, o);
    return (o.num_pages() - 1) * l.page + (o.page_size() - 1) * l.slot +
           (s.config.num_kv_heads - 1) * l.head + s.config.head_dim;
  }
  static std::int64_t query_extent(const Scenario& s) {
    const Layout l = query_layout(s);
    return (s.config.max_sequences - 1) * l.page + (s.config.max_query_tokens - 1) * l.slot +
           (s.config.num_query_heads - 1) * l.head + s.config.head_dim;
  }

  int table_stride, index_stride, dense_stride;
  std::size_t max_rows;
  DeviceBytes keys, queries;
  DeviceBuffer<float> scales;
  DeviceBuffer<std::int32_t> table, slots, lengths, counts;
  DeviceBuffer<std::uint32_t> status;
  DeviceBuffer<std::int32_t> indices, list_lengths;
  DeviceBuffer<float> weights, dense;
  DeviceBuffer<std::int32_t> previous_indices, previous_lengths;
  DeviceBuffer<std::int32_t> physical;
  DeviceBuffer<std::int64_t> physical64;
};

World::World(const Scenario& setup)
    : setup_(setup), oracle_(setup.config), launcher_(setup.backend, setup.mode) {
  const IndexerConfig& c = setup_.config;
  Resources resources;
  resources.num_threads = setup_.threads;
  if (setup_.caller_memory) {
    MemoryRequirements need;
    const Status s = memory_requirements(c, setup_.backend, &need);
    if (!s.ok()) {
      fail(s.detail());
      return;
    }
    index_memory_ = std::make_unique<DeviceBytes>(setup_.backend, need.index_bytes);
    index_memory_->fill(0xff);
    resources.index_memory = index_memory_->data();
    resources.index_memory_bytes = need.index_bytes;
  }
  const Status s = Indexer::create(c, Device{setup_.backend, 0}, resources, &indexer_);
  if (!s.ok()) {
    fail(std::string("create: ") + s.detail());
    return;
  }
  buffers_ = std::make_unique<Buffers>(setup_, oracle_);
  if (!setup_.check) oracle_.without_codes();

  cache_.num_pages = oracle_.num_pages();
  cache_.page_size = oracle_.page_size();
  cache_.heads = c.num_kv_heads;
  cache_.dim = c.head_dim;
  cache_.keys.assign(
      static_cast<std::size_t>(cache_.num_pages) * cache_.page_size * c.num_kv_heads * c.head_dim,
      0.0f);
  pages_.resize(c.max_sequences);
  if (c.page_size == 0) {
    for (int slot = 0; slot < c.max_sequences; ++slot) pages_[slot] = {slot};
  } else {
    std::vector<std::int32_t> all(cache_.num_pages);
    std::iota(all.begin(), all.end(), 0);
    Random(setup_.seed + 17).shuffle(all);
    for (int slot = 0; slot < c.max_sequences; ++slot) {
      pages_[slot].assign(all.begin() + slot * buffers_->table_stride,
                          all.begin() + (slot + 1) * buffers_->table_stride);
    }
  }
  for (int slot = 0; slot < c.max_sequences && setup_.write_keys; ++slot) {
    overwrite(slot, 0, c.max_seq_len, setup_.seed);
  }
}

World::~World() { launcher_.synchronize(); }

void World::fail(const std::string& text) {
  if (error_.size() < 4000) error_ += "step " + std::to_string(step_) + ": " + text + "\n";
}

std::vector<float> World::random_vector(Values values, Random& random, int n, float scale) const {
  std::vector<float> v(n);
  for (float& x : v) {
    switch (values) {
      case Values::integers:
        x = static_cast<float>(random.integer(-3, 3));
        break;
      case Values::signed_zero: {
        const int k = random.integer(0, 9);
        x = k == 0 ? 1.0f : k == 1 ? -1.0f : k % 2 == 0 ? -0.0f : 0.0f;
        break;
      }
      case Values::denormal:
        x = static_cast<float>(random.normal() * 0x1p-140);
        break;
      default:
        x = static_cast<float>(random.normal()) * scale;
    }
    const float inf = std::numeric_limits<float>::infinity();
    if (values == Values::nan && random.integer(0, 4 * n) == 0) x = std::nanf("");
    if (values == Values::infinite && random.integer(0, 4 * n) == 0) {
      x = random.integer(0, 1) == 0 ? inf : -inf;
    }
  }
  return v;
}

void World::fill_key(Values values, int head, int slot, int position, std::uint64_t seed) {
  const int d = setup_.config.head_dim;
  std::uint64_t source = mix(mix(seed, slot), position) + 31 * head;
  if (values == Values::tied) source = 5 + head;
  if (values == Values::two_valued) source = 5 + head + 100 * (source % 2);
  if (values == Values::huge_cluster && source % 10 != 0) source = 5 + head;
  Random random(source);
  std::vector<float> key = random_vector(values, random, d, 1.0f);
  if (values == Values::huge_cluster && source != 5u + head) {
    for (float& x : key) x *= 1e4f;
  }
  if (values == Values::gaussian) {
    Random drift(mix(seed ^ 0xabcd, slot * 4096 + position / 40) + 77 * head);
    for (float& x : key) x += 2.0f * static_cast<float>(drift.normal());
  }
  float* to = cache_.keys.data() + cache_.offset(oracle_.cache_slot(pages_[slot], position), head);
  if (setup_.key_dtype != DType::float8_e4m3) {
    for (int i = 0; i < d; ++i) to[i] = round_to(setup_.key_dtype, key[i]);
    return;
  }
  // As an engine quantizes; where a scale is no divisor, elements are what keys without would be.
  const float scale = key_scale(head);
  const float divisor = std::isfinite(scale) && scale != 0 ? scale : 1.0f;
  for (int i = 0; i < d; ++i) {
    const float element = round_to(DType::float8_e4m3, key[i] / divisor);
    to[i] = from_float8_bits(float8_bits(element)) * scale;
  }
}

float World::key_scale(int head) const {
  const std::vector<float>& scales = setup_.key_scales;
  return scales.empty() ? 1.0f : scales[scales.size() == 1 ? 0 : head];
}

void World::rescale(const std::vector<float>& scales) {
  const std::vector<float> before = setup_.key_scales;
  if (scales.size() != before.size()) return fail("rescale: another number of scales");
  for (std::size_t i = 0; i < cache_.keys.size(); ++i) {
    const std::size_t head = scales.size() == 1 ? 0 : i / cache_.dim % cache_.heads;
    cache_.keys[i] = from_float8_bits(float8_pattern(cache_.keys[i], before[head])) * scales[head];
  }
  setup_.key_scales = scales;
  buffers_->scales.upload(scales);
}

void World::overwrite(int slot, int from, int to, std::uint64_t seed) {
  for (int p = from; p < to; ++p) {
    for (int h = 0; h < setup_.config.num_kv_heads; ++h) fill_key(setup_.keys, h, slot, p, seed);
  }
}

Codebook World::make_codebook(std::uint64_t seed) const {
  const IndexerConfig& c = setup_.config;
  Random random(mix(setup_.seed, seed));
  Codebook cb;
  const int d = c.head_dim;
  cb.centroids =
      random_vector(setup_.centroids, random,
                    c.num_kv_heads * c.num_subspaces * oracle_.ksub() * oracle_.dcent(), 1.3f);
  if (c.metric == Metric::inner_product) {
    for (int i = 0; i < c.num_kv_heads * c.num_subspaces; ++i) {
      cb.phi.push_back(static_cast<float>(oracle_.dsub() * (1.0 + 6.0 * random.uniform())));
    }
  }
  if (c.rotation) {
    cb.rotation.resize(static_cast<std::size_t>(c.num_kv_heads) * d * d);
    cb.query_rotation.resize(cb.rotation.size());
    for (int h = 0; h < c.num_kv_heads; ++h) {
      random_rotation(random, d, cb.rotation.data() + h * d * d,
                      cb.query_rotation.data() + h * d * d);
    }
  }
  return cb;
}

void World::set_codebook(int slot, std::uint64_t seed) { set_codebook(slot, make_codebook(seed)); }

void World::set_codebook(int slot, const Codebook& cb) {
  ++step_;
  if (buffers_ == nullptr) return;
  DeviceBuffer<float> centroids(setup_.backend, cb.centroids), phi(setup_.backend, cb.phi),
      rotation(setup_.backend, cb.rotation), query_rotation(setup_.backend, cb.query_rotation);
  CodebookArgs args;
  args.slot = slot;
  args.codebooks = centroids.data();
  if (!cb.phi.empty()) args.phi = phi.data();
  if (!cb.rotation.empty()) {
    args.rotation = rotation.data();
    args.query_rotation = query_rotation.data();
  }
  const Status s = indexer_.set_codebook(args, launcher_.stream());
  launcher_.synchronize();
  if (!s.ok()) return fail(std::string("set_codebook: ") + s.detail());
  for (int i = 0; i < setup_.config.max_sequences; ++i) {
    if (slot == -1 || slot == i) oracle_.set_codebook(i, cb);
  }
}

void World::show_sequence(std::vector<std::uint8_t>& image, int slot, int begin, int n) {
  const IndexerConfig& c = config();
  const Layout l = key_layout(setup_, oracle_);
  for (int p = std::max(begin, 0); p < n; ++p) {
    const std::int64_t at = oracle_.cache_slot(pages_[slot], p);
    for (int h = 0; h < c.num_kv_heads; ++h) {
      const float* key = cache_.key(at, h);
      const std::int64_t to =
          at / cache_.page_size * l.page + at % cache_.page_size * l.slot + h * l.head;
      for (int i = 0; i < c.head_dim; ++i) {
        store(image, setup_.key_dtype, to + i, key[i], key_scale(h));
      }
    }
  }
}

void World::show_keys(const HostBatch* batch, int build_slot, int build_length) {
  const IndexerConfig& c = config();
  std::vector<std::uint8_t> image(buffers_->keys.bytes(), 0xff);  // NaN in every dtype
  if (batch == nullptr) {
    show_sequence(image, build_slot, c.encode_from, build_length);
  } else {
    for (int b = 0; b < batch->batch_size; ++b) {
      const int slot = batch->slot(b), n = batch->length(b, 0);
      if (slot < 0 || slot >= c.max_sequences || n < 0 || n > c.max_seq_len) continue;
      const Pages& pages = pages_[slot];
      const bool bad_page = std::any_of(pages.begin(), pages.end(), [&](int page) {
        return page < 0 || page >= cache_.num_pages;
      });
      if (bad_page || !oracle_.built(slot)) continue;
      int begin = std::min(oracle_.seen(slot), n - 1);
      if (c.block_size > 0) begin = begin / c.block_size * c.block_size;
      if (c.refine_factor > 1) begin = 0;
      show_sequence(image, slot, std::max(begin, c.encode_from), n);
    }
  }
  buffers_->keys.upload(image.data(), image.size());
}

KeyView World::key_view() {
  const Layout l = key_layout(setup_, oracle_);
  KeyView v;
  v.data = buffers_->keys.data();
  v.dtype = setup_.key_dtype;
  v.page_stride = l.page;
  v.slot_stride = l.slot;
  v.head_stride = l.head;
  if (!setup_.key_scales.empty()) {
    v.scales = buffers_->scales.data();
    v.num_scales = static_cast<std::int32_t>(setup_.key_scales.size());
  }
  if (setup_.config.page_size > 0) {
    v.block_table = buffers_->table.data();
    v.block_table_stride = buffers_->table_stride;
  }
  return v;
}

QueryView World::query_view() {
  const Layout l = query_layout(setup_);
  return {buffers_->queries.data(), setup_.query_dtype, l.page, l.slot, l.head};
}

std::vector<Pages> World::tables(const HostBatch& batch) const {
  std::vector<Pages> t;
  for (int b = 0; b < batch.batch_size; ++b) {
    const int slot = batch.slot(b);
    t.push_back(slot >= 0 && slot < setup_.config.max_sequences ? pages_[slot] : pages_[0]);
  }
  return t;
}

std::vector<float> World::put_queries(const HostBatch& batch) {
  const IndexerConfig& c = config();
  const Layout l = query_layout(setup_);
  std::vector<std::uint8_t> image(buffers_->queries.bytes(), 0xff);
  std::vector<float> all;
  for (int b = 0; b < batch.batch_size; ++b) {
    for (int t = 0; t < batch.query_tokens; ++t) {
      for (int h = 0; h < c.num_query_heads; ++h) {
        // A query belongs to its slot, length and head, not to its place in the batch.
        const std::uint64_t length = static_cast<std::uint32_t>(batch.length(b, t));
        Random random(mix(mix(99, static_cast<std::uint32_t>(batch.slot(b))), length * 64 + h));
        std::vector<float> q = random_vector(setup_.queries, random, c.head_dim, 1.0f);
        if (!queries_.empty()) std::copy_n(queries_.begin() + all.size(), c.head_dim, q.begin());
        for (int i = 0; i < c.head_dim; ++i) {
          all.push_back(round_to(setup_.query_dtype, q[i]));
          store(image, setup_.query_dtype, b * l.page + t * l.slot + h * l.head + i, all.back());
        }
      }
    }
  }
  buffers_->queries.upload(image.data(), image.size());
  return all;
}

Batch World::put_batch(const HostBatch& batch) {
  Batch b;
  b.batch_size = batch.batch_size;
  b.query_tokens = batch.query_tokens;
  buffers_->lengths.upload(batch.lengths);
  b.lengths = buffers_->lengths.data();
  if (!batch.slots.empty()) {
    buffers_->slots.upload(batch.slots);
    b.slots = buffers_->slots.data();
  }
  if (!batch.query_counts.empty()) {
    buffers_->counts.upload(batch.query_counts);
    b.query_counts = buffers_->counts.data();
  }
  if (setup_.host_copies) {
    b.host_lengths = batch.lengths.data();
    if (!batch.slots.empty()) b.host_slots = batch.slots.data();
  }
  if (setup_.config.page_size > 0) {
    std::vector<std::int32_t> table;
    for (const Pages& pages : tables(batch)) table.insert(table.end(), pages.begin(), pages.end());
    buffers_->table.upload(table);
  }
  buffers_->status.upload(std::vector<std::uint32_t>(setup_.config.max_sequences, kOldBit));
  return b;
}

DeviceBytes& World::workspace(int batch_size, int query_tokens) {
  auto& w = workspaces_[{batch_size, query_tokens}];
  if (w == nullptr) {
    w = std::make_unique<DeviceBytes>(setup_.backend,
                                      indexer_.workspace_bytes(batch_size, query_tokens));
  }
  const std::uint8_t poisons[] = {0xff, 0x00, 0xa5, 0x7f};
  w->fill(poisons[step_ % 4]);
  return *w;
}

std::vector<std::uint8_t> World::codes(int slot, int n) {
  const IndexerConfig& c = config();
  const int count = oracle_.encoded_end(n) - c.encode_from;
  if (count <= 0) return {};
  DeviceBuffer<std::uint8_t> out(
      setup_.backend, static_cast<std::size_t>(count) * c.num_kv_heads * c.num_subspaces);
  DeviceBuffer<std::int32_t> table(setup_.backend, pages_[slot]);
  out.fill(kOutputPoison);
  const Status s =
      indexer_.codes(slot, c.encode_from, count, c.page_size > 0 ? table.data() : nullptr,
                     out.data(), launcher_.stream());
  launcher_.synchronize();
  if (!s.ok()) fail(std::string("codes: ") + s.detail());
  return out.download();
}

Codebook World::read_codebook(int slot) {
  const IndexerConfig& c = config();
  Codebook cb = oracle_.codebook(slot);
  DeviceBuffer<float> centroids(setup_.backend, static_cast<std::size_t>(c.num_kv_heads) *
                                                    c.num_subspaces * oracle_.ksub() *
                                                    oracle_.dcent());
  const bool ip = c.metric == Metric::inner_product;
  DeviceBuffer<float> phi(setup_.backend,
                          ip ? static_cast<std::size_t>(c.num_kv_heads) * c.num_subspaces : 0);
  centroids.fill(0xff);
  phi.fill(0xff);
  const Status s =
      indexer_.codebook(slot, centroids.data(), ip ? phi.data() : nullptr, launcher_.stream());
  launcher_.synchronize();
  if (!s.ok()) fail(std::string("codebook: ") + s.detail());
  cb.centroids = centroids.download();
  cb.phi = phi.download();
  return cb;
}

void World::check_codes(const HostBatch& batch) {
  const IndexerConfig& c = config();
  for (int b = 0; b < batch.batch_size; ++b) {
    const int slot = batch.slot(b);
    if (slot < 0 || slot >= c.max_sequences || !oracle_.built(slot)) continue;
    if (std::any_of(pages_[slot].begin(), pages_[slot].end(),
                    [&](int page) { return page < 0 || page >= cache_.num_pages; })) {
      continue;
    }
    const int n = oracle_.seen(slot);
    const std::vector<std::uint8_t> got = codes(slot, n);
    std::size_t i = 0;
    for (int p = c.encode_from; p < oracle_.encoded_end(n); ++p) {
      for (int h = 0; h < c.num_kv_heads; ++h) {
        const std::uint8_t* want = oracle_.code(oracle_.cache_slot(pages_[slot], p), h);
        for (int s = 0; s < c.num_subspaces; ++s, ++i) {
          if (got[i] == want[s]) continue;
          return fail("code of slot " + std::to_string(slot) + " position " + std::to_string(p) +
                      " head " + std::to_string(h) + " subspace " + std::to_string(s) + " is " +
                      std::to_string(got[i]) + ", must be " + std::to_string(want[s]));
        }
      }
    }
  }
  if (!oracle_.defects().empty()) fail("oracle: " + oracle_.defects());
}

Status World::build(int slot, int n, bool retrain, const Codebook* rotations) {
  ++step_;
  if (buffers_ == nullptr) return {};
  const IndexerConfig& c = config();
  MemoryRequirements need;
  Status s = memory_requirements(setup_.config, setup_.backend, &need);
  if (!s.ok()) return s;
  DeviceBytes scratch(setup_.backend, need.build_workspace_bytes);
  scratch.fill(step_ % 2 == 0 ? 0xff : 0x00);
  show_keys(nullptr, slot, n);
  const Codebook given = rotations == nullptr ? Codebook{} : *rotations;
  DeviceBuffer<float> rotation(setup_.backend, given.rotation),
      query_rotation(setup_.backend, given.query_rotation);
  DeviceBuffer<std::uint32_t> status(setup_.backend, std::vector<std::uint32_t>{kOldBit});
  DeviceBuffer<std::int32_t> table(setup_.backend, pages_[slot]);
  BuildArgs args;
  args.slot = slot;
  args.length = n;
  args.keys = key_view();
  if (c.page_size > 0) args.keys.block_table = table.data();
  args.workspace = {scratch.data(), scratch.bytes()};
  args.retrain = retrain;
  args.device_status = status.data();
  if (rotations != nullptr) {
    args.rotation = rotation.data();
    args.query_rotation = query_rotation.data();
  }
  const bool trains = retrain || !oracle_.built(slot);
  s = indexer_.build(args, launcher_.stream());
  launcher_.synchronize();
  if (!s.ok()) return s;
  if (status.download()[0] & kTooFewKeys) return s;
  if (trains) {
    Codebook cb = read_codebook(slot);
    if (rotations != nullptr) {
      cb.rotation = rotations->rotation;
      cb.query_rotation = rotations->query_rotation;
    }
    oracle_.set_codebook(slot, cb);
  }
  oracle_.encode(cache_, pages_[slot], slot, n, true);
  if (setup_.check) {
    HostBatch batch = lengths({n});
    batch.slots = {slot};
    check_codes(batch);
  }
  return s;
}

void World::append(const HostBatch& batch) {
  ++step_;
  if (buffers_ == nullptr) return;
  show_keys(&batch, 0, 0);
  AppendArgs args;
  args.batch = put_batch(batch);
  args.keys = key_view();
  DeviceBytes& scratch = workspace(batch.batch_size, 1);
  args.workspace = {scratch.data(), scratch.bytes()};
  args.device_status = buffers_->status.data();
  const std::string shape = "append " + std::to_string(batch.batch_size) +
                            (batch.slots.empty() ? "" : "s") +
                            (batch.query_counts.empty() ? "" : "c");
  const Status s =
      launcher_.run(shape, [&](Stream stream) { return indexer_.append(args, stream); });
  if (!s.ok()) return fail(std::string("append: ") + s.detail());
  std::vector<std::uint32_t> bits;
  oracle_.append(cache_, tables(batch), batch, &bits);
  const std::vector<std::uint32_t> got = buffers_->status.download();
  for (int b = 0; b < batch.batch_size; ++b) {
    if (got[b] != (bits[b] | kOldBit)) fail("device_status after append");
  }
  if (setup_.check) check_codes(batch);
}

bool World::exact() const {
  const IndexerConfig& c = setup_.config;
  return c.gqa_reduction != GqaReduction::softmax_sum && setup_.keys == Values::integers &&
         setup_.queries == Values::integers && setup_.centroids == Values::integers &&
         c.block_size == 0 && !c.rotation;
}

StepOutput World::next(const HostBatch& batch) {
  ++step_;
  if (buffers_ == nullptr) return {};
  show_keys(&batch, 0, 0);
  const std::vector<float> queries = put_queries(batch);
  NextArgs args;
  args.batch = put_batch(batch);
  args.keys = key_view();
  args.queries = query_view();
  DeviceBytes& scratch = workspace(batch.batch_size, batch.query_tokens);
  args.workspace = {scratch.data(), scratch.bytes()};
  buffers_->indices.fill(kOutputPoison);
  buffers_->list_lengths.fill(kOutputPoison);
  buffers_->weights.fill(kOutputPoison);
  buffers_->physical.fill(kOutputPoison);
  buffers_->physical64.fill(kOutputPoison);
  args.indices = buffers_->indices.data();
  args.index_stride = buffers_->index_stride;
  args.list_lengths = buffers_->list_lengths.data();
  args.device_status = buffers_->status.data();
  if (setup_.weights) args.weights = buffers_->weights.data();
  if (setup_.physical) {
    args.physical_indices = buffers_->physical.data();
    args.physical_indices64 = buffers_->physical64.data();
  }
  bool has_previous = false;
  if (setup_.dense_weights) {
    args.dense_weights = buffers_->dense.data();
    args.dense_stride = buffers_->dense_stride;
    has_previous = setup_.previous && last_ && last_->first.batch_size == batch.batch_size &&
                   last_->first.query_tokens == batch.query_tokens;
    if (has_previous) {
      // Only listed entries may be read: the rest of the previous rows is poison.
      std::vector<std::int32_t> previous(buffers_->max_rows * buffers_->index_stride, 0x5b5b5b5b);
      for (std::size_t r = 0; r < last_->second.lengths.size(); ++r) {
        for (int i = 0; i < last_->second.lengths[r]; ++i) {
          previous[r * buffers_->index_stride + i] =
              last_->second.indices[r * oracle_.max_list() + i];
        }
      }
      buffers_->previous_indices.upload(previous);
      buffers_->previous_lengths.upload(last_->second.lengths);
      args.previous_indices = buffers_->previous_indices.data();
      args.previous_lengths = buffers_->previous_lengths.data();
    } else {
      buffers_->dense.fill(kOutputPoison);
    }
  }
  const std::string shape = "next " + std::to_string(batch.batch_size) + "x" +
                            std::to_string(batch.query_tokens) + (batch.slots.empty() ? "" : "s") +
                            (batch.query_counts.empty() ? "" : "c") + (has_previous ? "p" : "");
  StepOutput out;
  out.status = launcher_.run(shape, [&](Stream stream) { return indexer_.next(args, stream); });
  if (!out.status.ok()) {
    fail(std::string("next: ") + out.status.detail());
    return out;
  }
  const std::size_t rows =
      static_cast<std::size_t>(batch.batch_size) * batch.query_tokens * oracle_.list_heads();
  const std::vector<std::int32_t> raw = buffers_->indices.download();
  const int max_list = oracle_.max_list(), stride = buffers_->index_stride;
  for (std::size_t r = 0; r < buffers_->max_rows; ++r) {
    for (int i = 0; i < stride; ++i) {
      const std::int32_t v = raw[r * stride + i];
      if (r < rows && i < max_list) {
        out.indices.push_back(v);
      } else if (v != 0x5b5b5b5b) {
        fail("indices written beyond row " + std::to_string(r) + "'s max_list_length()");
        break;
      }
    }
  }
  out.lengths = buffers_->list_lengths.download();
  for (std::size_t r = rows; r < out.lengths.size(); ++r) {
    if (out.lengths[r] != 0x5b5b5b5b) fail("list_lengths written beyond its rows");
  }
  out.lengths.resize(rows);
  std::vector<std::uint32_t> bits;
  std::vector<OracleRow> expected;
  if (setup_.check) {
    expected = oracle_.next(cache_, tables(batch), batch, queries, &bits);
  } else {
    oracle_.append(cache_, tables(batch), batch, &bits);
  }
  out.bits = buffers_->status.download();
  out.bits.resize(batch.batch_size);
  for (std::uint32_t& b : out.bits) {
    if (!(b & kOldBit)) fail("device_status was cleared");
    b &= ~kOldBit;
  }
  if (setup_.check) check_codes(batch);
  if (setup_.check) check_step(batch, expected, bits, queries, out);
  check_weights(batch, out, has_previous);
  if (setup_.physical) check_physical(batch, out);
  last_ = {batch, out};
  return out;
}

void World::check_step(const HostBatch& batch, const std::vector<OracleRow>& rows,
                       const std::vector<std::uint32_t>& bits, const std::vector<float>& queries,
                       const StepOutput& out) {
  const IndexerConfig& c = config();
  const int max_list = oracle_.max_list();
  for (int b = 0; b < batch.batch_size; ++b) {
    if (bits[b] != out.bits[b]) {
      fail("device_status[" + std::to_string(b) + "] gained " + std::to_string(out.bits[b]) +
           ", must be " + std::to_string(bits[b]));
    }
    std::vector<std::uint8_t> codes_of;  // of this sequence, read once
    const int heads = oracle_.list_heads(), group = oracle_.list_group();
    for (int i = 0; i < batch.query_tokens * heads; ++i) {
      const std::size_t r = static_cast<std::size_t>(b) * batch.query_tokens * heads + i;
      const OracleRow& want = rows[r];
      const std::vector<std::int32_t> row(out.indices.begin() + r * max_list,
                                          out.indices.begin() + (r + 1) * max_list);
      const std::string at = "row " + std::to_string(r) + " (n " + std::to_string(want.n) + "): ";
      if (want.kind == Kind::empty) {
        if (out.lengths[r] != 0)
          fail(at + "length " + std::to_string(out.lengths[r]) + ", must be 0");
        if (std::any_of(row.begin(), row.end(), [](int v) { return v != -1; })) {
          fail(at + "an empty row is not all -1");
        }
        continue;
      }
      const int slot = batch.slot(b);
      const std::string shape =
          check_structure(c, row, out.lengths[r], want.n, oracle_.built(slot));
      if (!shape.empty()) {
        fail(at + shape);
        continue;
      }
      const std::vector<std::int32_t> list(row.begin(), row.begin() + out.lengths[r]);
      const std::string difference = compare(c, want, list, exact());
      if (!difference.empty()) fail(at + "against the oracle: " + difference);
      if (want.kind != Kind::sparse) continue;
      if (codes_of.empty()) codes_of = codes(slot, batch.length(b, 0));
      const OrderInput input{&c,
                             &cache_,
                             &pages_[slot],
                             &oracle_.codebook(slot),
                             codes_of.data(),
                             queries.data() + r * group * c.head_dim,
                             group,
                             i % heads * group / oracle_.group(),
                             want.n,
                             exact()};
      const std::string order = check_order(input, list);
      if (!order.empty()) fail(at + "by score order: " + order);
    }
  }
}

void World::check_weights(const HostBatch& batch, const StepOutput& out, bool had_previous) {
  const int max_list = oracle_.max_list(), max_len = setup_.config.max_seq_len;
  const float poison = std::bit_cast<float>(0x5b5b5b5bu);
  const std::size_t rows = out.lengths.size();
  if (setup_.weights) {
    const std::vector<float> weights = buffers_->weights.download();
    for (std::size_t r = 0; r < buffers_->max_rows; ++r) {
      for (int i = 0; i < buffers_->index_stride; ++i) {
        const float want = r >= rows || i >= max_list ? poison : i < out.lengths[r] ? 1.0f : 0.0f;
        if (weights[r * buffers_->index_stride + i] != want) {
          return fail("weights of row " + std::to_string(r) + " entry " + std::to_string(i));
        }
      }
    }
  }
  if (!setup_.dense_weights) return;
  const std::vector<float> dense = buffers_->dense.download();
  for (std::size_t r = 0; r < buffers_->max_rows; ++r) {
    if (r >= rows && had_previous) break;
    std::vector<float> want(buffers_->dense_stride, poison);
    if (r < rows) {
      std::fill(want.begin(), want.begin() + max_len, 0.0f);
      for (int i = 0; i < out.lengths[r]; ++i) {
        const int p = out.indices[r * max_list + i];
        if (p >= 0 && p < max_len) want[p] = 1.0f;
      }
    }
    for (int p = 0; p < buffers_->dense_stride; ++p) {
      if (dense[r * buffers_->dense_stride + p] != want[p]) {
        return fail("dense_weights of row " + std::to_string(r) + " position " + std::to_string(p) +
                    " of batch " + std::to_string(batch.batch_size));
      }
    }
  }
}

void World::check_physical(const HostBatch& batch, const StepOutput& out) {
  const int max_list = oracle_.max_list(), stride = buffers_->index_stride;
  const int rows = static_cast<int>(out.lengths.size()) / batch.batch_size;
  const std::vector<std::int32_t> narrow = buffers_->physical.download();
  const std::vector<std::int64_t> wide = buffers_->physical64.download();
  for (std::size_t r = 0; r < buffers_->max_rows; ++r) {
    for (int i = 0; i < stride; ++i) {
      std::int64_t want = 0x5b5b5b5b5b5b5b5b;
      if (r < out.lengths.size() && i < max_list) {
        want = -1;
        if (i < out.lengths[r]) {
          const int slot = batch.slot(static_cast<int>(r) / rows);
          want = oracle_.cache_slot(pages_[slot], out.indices[r * max_list + i]);
        }
      }
      const std::size_t at = r * stride + i;
      if (wide[at] != want || narrow[at] != static_cast<std::int32_t>(want)) {
        return fail("physical index of row " + std::to_string(r) + " entry " + std::to_string(i) +
                    " is " + std::to_string(narrow[at]) + ", must be " + std::to_string(want));
      }
    }
  }
}

void World::truncate(const std::vector<std::int32_t>& slots, const std::vector<std::int32_t>& to) {
  ++step_;
  DeviceBuffer<std::int32_t> slot_buffer(setup_.backend, slots), length_buffer(setup_.backend, to);
  const Status s =
      indexer_.truncate(slots.empty() ? nullptr : slot_buffer.data(), length_buffer.data(),
                        static_cast<std::int32_t>(to.size()), launcher_.stream());
  launcher_.synchronize();
  if (!s.ok()) return fail(std::string("truncate: ") + s.detail());
  for (std::size_t i = 0; i < to.size(); ++i) {
    oracle_.truncate(slots.empty() ? static_cast<int>(i) : slots[i], to[i]);
  }
}

void World::reset(int slot) {
  ++step_;
  const Status s = indexer_.reset(slot, launcher_.stream());
  launcher_.synchronize();
  if (!s.ok()) return fail(std::string("reset: ") + s.detail());
  oracle_.reset(slot);
}

}  // namespace quarry::test
