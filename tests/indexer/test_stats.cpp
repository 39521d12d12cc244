// SPDX-License-Identifier: Apache-2.0
//
// stats(): drift and live recall against plain sums in double, and what it must not change.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "support/backends.h"
#include "support/scenario.h"

namespace quarry::test {
namespace {

class Stats : public BackendTest {};

struct Request {
  int every = 0, offset = 0;  ///< 0: no recall
  std::uint32_t counter = 0;
  bool use_counter = false;
  int recent = 0;    ///< 0: no drift
  int launches = 1;  ///< of one call, captured once in graph modes
};

struct Answer {
  Status status;
  std::vector<DriftStats> drift;
  std::vector<std::vector<RecallStats>> recall;  ///< of each launch
  std::uint32_t counter = 0;
  std::vector<std::uint32_t> bits;
};

constexpr std::uint32_t kOldBit = 0x80000000u;
constexpr float kScale = 0.0625f;  // of float8_e4m3 keys; division by it is exact

/// stats() beside a World: buffers of its own, of exact size, poisoned; keys that it may not
/// read are NaN.
class Probe {
 public:
  explicit Probe(World& world) : w_(world), c_(world.config()) {}

  std::vector<float> queries(const HostBatch& batch, Values values, std::uint64_t seed) const {
    Random random(seed);
    std::vector<float> q(static_cast<std::size_t>(batch.batch_size) * batch.query_tokens *
                         c_.num_query_heads * c_.head_dim);
    for (float& x : q) {
      x = values == Values::integers   ? static_cast<float>(random.integer(-3, 3))
          : values == Values::denormal ? static_cast<float>(random.normal() * 0x1p-140)
                                       : static_cast<float>(random.normal());
      x = round_to(w_.setup().query_dtype, x);
    }
    if (values == Values::nan) q[3] = std::nanf("");
    return q;
  }

  Answer run(const HostBatch& batch, const std::vector<float>& q, const StepOutput& lists,
             const Request& r) {
    const Backend backend = w_.setup().backend;
    const int max_list = w_.oracle().max_list(), stride = max_list + 5;
    const std::size_t rows =
        static_cast<std::size_t>(batch.batch_size) * batch.query_tokens * c_.num_query_heads;
    StatsArgs a;
    // Keys [cache slot][Hkv][d], NaN but where a measured or a candidate position is.
    std::vector<float> shown(w_.cache().keys.size(), std::nanf(""));
    show(batch, r, &shown);
    const DType dtype = w_.setup().key_dtype;
    DeviceBytes keys(backend, shown.size() * static_cast<std::size_t>(dtype_size(dtype)));
    upload(keys, shown, dtype);
    DeviceBytes query_bytes(
        backend, q.size() * static_cast<std::size_t>(dtype_size(w_.setup().query_dtype)));
    upload(query_bytes, q, w_.setup().query_dtype);
    const std::int64_t row = std::int64_t{c_.num_kv_heads} * c_.head_dim;
    a.keys = {keys.data(), dtype, row * w_.oracle().page_size(), row, c_.head_dim, nullptr, 0};
    DeviceBuffer<float> scale(backend, std::vector<float>{kScale});
    if (dtype == DType::float8_e4m3) a.keys.scales = scale.data(), a.keys.num_scales = 1;
    const std::int64_t q_row = std::int64_t{c_.num_query_heads} * c_.head_dim;
    a.queries = {query_bytes.data(), w_.setup().query_dtype, q_row * batch.query_tokens, q_row,
                 c_.head_dim};
    std::vector<std::int32_t> table;
    if (c_.page_size > 0) {
      for (int b = 0; b < batch.batch_size; ++b) {
        const Pages& pages = w_.pages(std::max(batch.slot(b), 0) % c_.max_sequences);
        table.insert(table.end(), pages.begin(), pages.end());
        a.keys.block_table_stride = static_cast<std::int64_t>(pages.size());
      }
    }
    DeviceBuffer<std::int32_t> tables(backend, table), slots(backend, batch.slots),
        lengths_(backend, batch.lengths), counts(backend, batch.query_counts);
    if (c_.page_size > 0) a.keys.block_table = tables.data();
    a.batch.batch_size = batch.batch_size;
    a.batch.query_tokens = batch.query_tokens;
    a.batch.lengths = lengths_.data();
    if (!batch.slots.empty()) a.batch.slots = slots.data();
    if (!batch.query_counts.empty()) a.batch.query_counts = counts.data();
    DeviceBuffer<std::uint32_t> status(
        backend, std::vector<std::uint32_t>(static_cast<std::size_t>(batch.batch_size), kOldBit));
    a.device_status = status.data();

    std::vector<std::int32_t> padded(rows * stride, -1);
    for (std::size_t i = 0; i < rows && !lists.indices.empty(); ++i) {
      std::copy_n(lists.indices.begin() + static_cast<std::ptrdiff_t>(i) * max_list, max_list,
                  padded.begin() + static_cast<std::ptrdiff_t>(i) * stride);
    }
    DeviceBuffer<std::int32_t> indices(backend, padded), list_lengths(backend, lists.lengths);
    const std::size_t samples = r.every > 0 ? (rows - 1) / r.every + 1 : 0;
    DeviceBuffer<RecallStats> recall(backend, samples);
    DeviceBuffer<DriftStats> drift(
        backend, r.recent > 0 ? static_cast<std::size_t>(batch.batch_size) * c_.num_kv_heads : 0);
    DeviceBuffer<std::uint32_t> counter(backend, std::vector<std::uint32_t>{r.counter});
    if (r.recent > 0) {
      a.drift = drift.data();
      a.recent_keys = r.recent;
    }
    if (r.every > 0) {
      a.recall = recall.data();
      a.sample_every = r.every;
      a.sample_offset = r.offset;
      if (r.use_counter) a.sample_counter = counter.data();
      a.indices = indices.data();
      a.index_stride = stride;
      a.list_lengths = list_lengths.data();
    }
    DeviceBytes scratch(
        backend, w_.indexer().stats_workspace_bytes(batch.batch_size, batch.query_tokens, r.every));
    a.workspace = {scratch.data(), scratch.bytes()};
    Answer out;
    const std::string shape = "stats " + std::to_string(++runs_);
    for (int i = 0; i < r.launches; ++i) {
      scratch.fill(i % 2 == 0 ? 0xff : 0x7f);
      recall.fill(0x5b), drift.fill(0x5b);
      out.status =
          w_.launcher().run(shape, [&](Stream stream) { return w_.indexer().stats(a, stream); });
      if (!out.status.ok()) return out;
      out.recall.push_back(recall.download());
    }
    out.drift = drift.download();
    out.counter = counter.download()[0];
    out.bits = status.download();
    return out;
  }

  /// Positions drift measures.
  std::pair<int, int> measured(const HostBatch& batch, int b, int recent) const {
    const int slot = batch.slot(b);
    if (slot < 0 || slot >= c_.max_sequences || !w_.oracle().built(slot)) return {0, 0};
    const int end = w_.oracle().encoded_end(std::min(w_.oracle().seen(slot), batch.length(b, 0)));
    return {std::max(c_.encode_from, end - recent), std::max(c_.encode_from, end)};
  }

  std::string check_drift(const HostBatch& batch, int b, int head, int recent,
                          const DriftStats& got, double tolerance) const {
    const auto [first, end] = measured(batch, b, recent);
    const int slot = batch.slot(b), d = c_.head_dim, dsub = d / c_.num_subspaces;
    double error = 0, norm = 0;
    int keys = 0;
    for (int p = first; p < end; ++p) {
      const Codebook& cb = w_.oracle().codebook(slot);
      const std::int64_t at = w_.oracle().cache_slot(w_.pages(slot), p);
      std::vector<double> x(d), y(d, 0.0);
      bool finite = true;
      for (int i = 0; i < d; ++i) {
        x[i] = w_.cache().key(at, head)[i];
        if (c_.block_size > 0) {
          const int last = p / c_.block_size * c_.block_size + c_.block_size - 1;
          x[i] -= w_.oracle().mean(w_.oracle().cache_slot(w_.pages(slot), last), head)[i];
        }
        finite = finite && std::isfinite(x[i]);
      }
      if (!finite) continue;
      for (int j = 0; j < d; ++j) {
        if (cb.rotation.empty()) {
          y[j] = x[j];
          continue;
        }
        for (int i = 0; i < d; ++i) {
          y[j] += x[i] * cb.rotation[(static_cast<std::size_t>(head) * d + i) * d + j];
        }
      }
      const std::uint8_t* code = w_.oracle().code(at, head);
      for (int j = 0; j < d; ++j) {
        const int s = j / dsub;
        const float centroid =
            cb.centroids[((static_cast<std::size_t>(head) * c_.num_subspaces + s) *
                              w_.oracle().ksub() +
                          code[s]) *
                             w_.oracle().dcent() +
                         j % dsub];
        error += (y[j] - centroid) * (y[j] - centroid);
        norm += y[j] * y[j];
      }
      ++keys;
    }
    if (got.keys != keys) {
      return "keys " + std::to_string(got.keys) + ", must be " + std::to_string(keys);
    }
    if (keys == 0 || norm == 0) {
      return std::isnan(got.error) ? "" : "error " + std::to_string(got.error) + ", must be NaN";
    }
    const double want = error / norm;
    if (std::abs(got.error - want) <= tolerance * (want + 1e-3)) return "";
    return "error " + std::to_string(got.error) + ", must be " + std::to_string(want);
  }

  /// Bounds of `found`: what float32 cannot tell apart may fall either way, but equal keys go by
  /// position.
  std::string check_recall(const HostBatch& batch, const std::vector<float>& q,
                           const StepOutput& lists, int row, const RecallStats& got) const {
    const int rows = batch.batch_size * batch.query_tokens * c_.num_query_heads;
    if (row >= rows) row = -1;
    if (got.row != row)
      return "row " + std::to_string(got.row) + ", must be " + std::to_string(row);
    const int b = row < 0 ? 0 : row / c_.num_query_heads / batch.query_tokens;
    const int t = row < 0 ? 0 : row / c_.num_query_heads % batch.query_tokens;
    const int slot = batch.slot(b);
    const bool active = row >= 0 && slot >= 0 && slot < c_.max_sequences && t < batch.count(b);
    const int n = active ? batch.length(b, t) : 0;
    if (!active || n <= w_.oracle().dense_limit() || !w_.oracle().built(slot)) {
      return got.exact == 0 && got.found == 0 && std::isnan(got.recall)
                 ? ""
                 : "a row without a heavy part has a recall";
    }
    const int first = c_.sink_size, end = n - c_.window_size, h = row % c_.num_query_heads;
    const int k = std::min(c_.heavy_size, end - first);
    const float* query = q.data() + static_cast<std::ptrdiff_t>(row) * c_.head_dim;
    const auto list = lists.indices.begin() + std::ptrdiff_t{row} * w_.oracle().max_list();
    struct Item {
      double low, high;
      int same;
      bool listed;
    };
    std::vector<Item> items;
    std::map<std::vector<std::uint32_t>, int> known;  // NaN is equal to itself as bits alone
    for (int p = first; p < end; ++p) {
      const float* key = w_.cache().key(w_.oracle().cache_slot(w_.pages(slot), p),
                                        h / (c_.num_query_heads / c_.num_kv_heads));
      const Score s = dot(query, key, c_.head_dim);
      std::vector<std::uint32_t> bits(static_cast<std::size_t>(c_.head_dim));
      std::memcpy(bits.data(), key, bits.size() * 4);
      const int same = known.emplace(bits, p).first->second;
      items.push_back({rank_low(s), rank_high(s), same,
                       std::binary_search(list, list + lists.lengths[row], p)});
    }
    int surely = 0, surely_listed = 0, open = 0, open_listed = 0;
    for (std::size_t i = 0; i < items.size(); ++i) {
      int better = 0, maybe = 0;  // that rank above i
      for (std::size_t j = 0; j < items.size(); ++j) {
        if (i == j) continue;
        const bool equal = items[i].same == items[j].same ||
                           (items[i].low == items[i].high && items[j].low == items[j].high &&
                            items[i].low == items[j].low);
        const bool above = equal ? j < i : items[j].low > items[i].high;
        better += above;
        maybe += above || (!equal && items[j].high >= items[i].low);
      }
      if (maybe < k) {
        ++surely;
        surely_listed += items[i].listed;
      } else if (better < k) {
        ++open;
        open_listed += items[i].listed;
      }
    }
    const int least = surely_listed + std::max(0, k - surely - (open - open_listed));
    const int most = surely_listed + std::min(open_listed, k - surely);
    if (got.exact != k) return "exact " + std::to_string(got.exact);
    if (got.found < least || got.found > most) {
      return "found " + std::to_string(got.found) + ", must be " + std::to_string(least) + ".." +
             std::to_string(most);
    }
    const float recall = static_cast<float>(got.found) / static_cast<float>(k);
    return got.recall == recall ? "" : "recall is not found / exact";
  }

 private:
  static void upload(DeviceBytes& to, const std::vector<float>& values, DType dtype) {
    if (dtype == DType::float32) {
      to.upload(values.data(), values.size() * 4);
      return;
    }
    if (dtype == DType::float8_e4m3) {  // keys, of one scale
      std::vector<std::uint8_t> bytes;
      for (const float v : values) {
        bytes.push_back(std::isnan(v) ? std::uint8_t{0x7f} : float8_bits(v / kScale));
      }
      to.upload(bytes.data(), bytes.size());
      return;
    }
    std::vector<std::uint16_t> bits;
    for (const float v : values) {
      bits.push_back(std::isnan(v) ? std::uint16_t{0x7fff} : bits16(dtype, v));
    }
    to.upload(bits.data(), bits.size() * 2);
  }

  void show(const HostBatch& batch, const Request& r, std::vector<float>* to) {
    for (int b = 0; b < batch.batch_size; ++b) {
      const int slot = batch.slot(b);
      if (slot < 0 || slot >= c_.max_sequences) continue;
      int first = c_.max_seq_len, end = 0;
      if (r.recent > 0) {
        const auto [from, to_] = measured(batch, b, r.recent);
        first = from, end = to_;
        copy(slot, first, end, to);
      }
      for (int t = 0; r.every > 0 && t < batch.query_tokens; ++t) {
        if (batch.length(b, t) > c_.max_seq_len) continue;
        copy(slot, c_.sink_size, batch.length(b, t) - c_.window_size, to);
      }
    }
  }
  void copy(int slot, int first, int end, std::vector<float>* to) {
    for (int p = first; p < end; ++p) {
      const std::int64_t page = w_.pages(slot)[p / w_.oracle().page_size()];
      if (page < 0 || page >= w_.oracle().num_pages()) continue;
      const std::int64_t at = w_.oracle().cache_slot(w_.pages(slot), p);
      for (int h = 0; h < c_.num_kv_heads; ++h) {
        std::copy_n(w_.cache().key(at, h), c_.head_dim, to->begin() + w_.cache().offset(at, h));
      }
    }
  }

  World& w_;
  const IndexerConfig& c_;
  int runs_ = 0;
};

Scenario base(Backend backend) {
  Scenario s;
  s.backend = backend;
  s.config = small_config();
  s.config.max_sequences = 2;
  s.config.max_seq_len = 400;
  return s;
}

HostBatch two_tokens(std::vector<std::int32_t> n) {
  HostBatch b;
  b.batch_size = static_cast<int>(n.size() / 2);
  b.query_tokens = 2;
  b.lengths = std::move(n);
  return b;
}

/// Steps `w` to `batch` and compares all that stats() says of it.
void expect_agreement(World& w, const HostBatch& batch, Values queries, double tolerance,
                      const std::string& what) {
  Probe probe(w);
  const std::vector<float> q = probe.queries(batch, queries, 11);
  w.use_queries(q);
  const StepOutput out = w.next(batch);
  ASSERT_EQ(w.error(), "") << what;
  const int heads = w.config().num_kv_heads;
  for (const int recent : {1, 50, w.config().max_seq_len}) {
    for (const int every : {1, 3, 1 << 30}) {
      const int offset = every == 1 ? 0 : every == 3 ? 2 : 5;
      const Answer got = probe.run(batch, q, out, {every, offset, 0, false, recent, 1});
      ASSERT_TRUE(got.status.ok()) << got.status.detail();
      for (std::size_t i = 0; i < got.recall[0].size(); ++i) {
        const int row = static_cast<int>(i) * every + offset;
        EXPECT_EQ(probe.check_recall(batch, q, out, row, got.recall[0][i]), "")
            << what << " every " << every << " sample " << i;
      }
      for (int i = 0; i < batch.batch_size * heads; ++i) {
        EXPECT_EQ(probe.check_drift(batch, i / heads, i % heads, recent, got.drift[i], tolerance),
                  "")
            << what << " recent " << recent << " entry " << i;
        EXPECT_EQ(got.drift[i].baseline, 0.0f);
        EXPECT_TRUE(std::isnan(got.drift[i].ratio));
      }
      for (int b = 0; b < batch.batch_size; ++b) EXPECT_EQ(got.bits[b], kOldBit | out.bits[b]);
    }
  }
}

TEST_P(Stats, AgreesWithTheOracle) {
  struct Case {
    const char* name;
    int dim, m, bits, block, group, page, tokens;
    bool rotation, ip;
    DType key, mean;
    int refine;
  };
  constexpr DType k32 = DType::float32, k16 = DType::float16, kB16 = DType::bfloat16,
                  k8 = DType::float8_e4m3;
  const Case cases[] = {
      {"plain", 32, 2, 4, 0, 2, 0, 1, false, false, k32, k32, 1},
      {"blocks", 32, 4, 4, 16, 2, 0, 1, false, false, k16, k16, 1},
      {"rotation", 64, 8, 4, 16, 4, 32, 2, true, false, kB16, k16, 4},
      {"inner product", 40, 5, 8, 8, 1, 8, 2, true, true, k32, kB16, 2},
      {"odd", 24, 3, 3, 0, 3, 7, 2, false, true, k16, k32, 1},
      {"wide", 512, 64, 1, 4, 1, 2, 1, true, false, k32, k32, 1},
      {"one byte keys", 64, 8, 4, 16, 2, 32, 1, true, false, k8, k16, 4},
      {"one byte keys as they are", 24, 3, 4, 0, 2, 0, 2, false, true, k8, k32, 1},
      {"one byte codes", 16, 1, 8, 3, 1, 9, 1, false, false, kB16, kB16, 3},
  };
  for (const Case& c : cases) {
    for (const LaunchMode mode : launch_modes(GetParam())) {
      Scenario s = base(GetParam());
      s.mode = mode;
      s.config.head_dim = c.dim;
      s.config.num_subspaces = c.m;
      s.config.bits = c.bits;
      s.config.block_size = c.block;
      s.config.num_query_heads = 2 * c.group;
      s.config.max_query_tokens = c.tokens;
      s.config.window_size = c.block + 9;
      s.config.rotation = c.rotation;
      s.config.metric = c.ip ? Metric::inner_product : Metric::euclidean;
      s.config.refine_factor = c.refine;
      s.config.mean_dtype = c.mean;
      s.key_dtype = c.key;
      if (c.key == k8) s.key_scales = {kScale};
      s.query_dtype = c.mean;
      if (c.page > 0) use_pages(&s.config, c.page);
      if (c.dim == 512) s.config.max_seq_len = 120;
      if (c.dim == 512 && c.page > 0) use_pages(&s.config, c.page);
      World w(s);
      w.set_codebook(-1);
      const int n = s.config.max_seq_len;
      const HostBatch batch =
          c.tokens == 2 ? two_tokens({n - 40, n - 39, n - 1, n}) : lengths({n - 3, n / 2 + 20});
      expect_agreement(w, batch, Values::gaussian, 1e-4, c.name);
    }
  }
}

TEST_P(Stats, AgreesOnAdversarialValues) {
  for (const Values v :
       {Values::integers, Values::tied, Values::two_valued, Values::nan, Values::infinite,
        Values::signed_zero, Values::denormal, Values::huge_cluster}) {
    for (const int block : {0, 16}) {
      Scenario s = base(GetParam());
      s.keys = v;
      s.centroids = v == Values::denormal || v == Values::integers ? v : Values::gaussian;
      s.config.block_size = block;
      s.config.window_size = 20;
      World w(s);
      w.set_codebook(-1);
      expect_agreement(w, lengths({400, 300}), v, 1e-5, to_string(v));
    }
  }
}

TEST_P(Stats, AQueryThatIsNotANumberTakesTheFirstPositions) {
  Scenario s = base(GetParam());
  World w(s);
  w.set_codebook(-1);
  Probe probe(w);
  const HostBatch batch = lengths({400});
  std::vector<float> q = probe.queries(batch, Values::gaussian, 3);
  for (int i = 0; i < w.config().head_dim; ++i) q[static_cast<std::size_t>(i)] = std::nanf("");
  w.use_queries(q);
  const StepOutput out = w.next(batch);
  const Answer got = probe.run(batch, q, out, {4, 0, 0, false, 0, 1});
  ASSERT_TRUE(got.status.ok()) << got.status.detail();
  EXPECT_EQ(got.recall[0][0].exact, w.config().heavy_size);
  EXPECT_EQ(got.recall[0][0].recall, 1.0f);  // by score too, all candidates tie
}

TEST_P(Stats, TheCounterTakesEveryRowInTurn) {
  for (const LaunchMode mode : launch_modes(GetParam())) {
    Scenario s = base(GetParam());
    s.mode = mode;
    World w(s);
    w.set_codebook(-1);
    Probe probe(w);
    const HostBatch batch = lengths({400, 350});
    const std::vector<float> q = probe.queries(batch, Values::gaussian, 3);
    w.use_queries(q);
    const StepOutput out = w.next(batch);
    const Answer all = probe.run(batch, q, out, {1, 0, 0, false, 0, 1});
    Request r{3, 1, 0xfffffffeu, true, 0, 5};
    if (mode == LaunchMode::graph) r.launches = 1;  // captures anew every time
    const Answer got = probe.run(batch, q, out, r);
    ASSERT_TRUE(got.status.ok()) << got.status.detail();
    EXPECT_EQ(got.counter, r.counter + static_cast<std::uint32_t>(r.launches));  // wraps
    for (int i = 0; i < r.launches; ++i) {
      const auto counter = static_cast<std::uint32_t>(r.counter + static_cast<std::uint32_t>(i));
      const int phase = static_cast<int>((std::uint64_t{counter} + 1) % 3);
      for (int k = 0; k < 3; ++k) {
        const RecallStats& sampled =
            got.recall[static_cast<std::size_t>(i)][static_cast<std::size_t>(k)];
        const int row = 3 * k + phase;
        if (row >= 8) {
          EXPECT_EQ(sampled.row, -1);
          continue;
        }
        EXPECT_EQ(sampled.row, row);
        EXPECT_EQ(sampled.found, all.recall[0][static_cast<std::size_t>(row)].found);
      }
    }
  }
}

TEST_P(Stats, RefineOfEverythingHasRecallOne) {
  Scenario s = base(GetParam());
  s.config.refine_factor = 20;
  s.config.block_size = 16;
  s.config.window_size = 20;
  World w(s);
  w.set_codebook(-1);
  Probe probe(w);
  const HostBatch batch = lengths({400, 380});
  const std::vector<float> q = probe.queries(batch, Values::gaussian, 3);
  w.use_queries(q);
  const StepOutput out = w.next(batch);
  const Answer got = probe.run(batch, q, out, {1, 0, 0, false, 0, 1});
  ASSERT_EQ(got.recall[0].size(), 8u);
  for (const RecallStats& row : got.recall[0]) {
    EXPECT_EQ(row.exact, w.config().heavy_size);
    EXPECT_EQ(row.recall, 1.0f);
  }
}

TEST_P(Stats, RowsWithoutAHeavyPartSaySo) {
  Scenario s = base(GetParam());
  s.config.max_sequences = 4;
  s.config.max_query_tokens = 2;
  use_pages(&s.config, 16);
  World w(s);
  w.set_codebook(0);
  w.set_codebook(1);
  w.set_codebook(2);
  Probe probe(w);
  HostBatch batch = two_tokens({30, 31, 300, 301, 400, 700, 200, 201});
  batch.slots = {1, -1, 2, 3};  // dense; inactive; second length out of range; not built
  const std::vector<float> q = probe.queries(batch, Values::gaussian, 3);
  w.use_queries(q);
  const StepOutput out = w.next(batch);
  ASSERT_EQ(w.error(), "");
  const Answer got = probe.run(batch, q, out, {1, 0, 0, false, 100, 1});
  ASSERT_TRUE(got.status.ok()) << got.status.detail();
  for (int row = 0; row < 32; ++row) {
    const RecallStats& r = got.recall[0][static_cast<std::size_t>(row)];
    EXPECT_EQ(r.row, row);
    const bool sparse = row >= 16 && row < 20;  // slot 2's first token
    EXPECT_EQ(r.exact, sparse ? w.config().heavy_size : 0) << row;
    EXPECT_EQ(std::isnan(r.recall), !sparse) << row;
  }
  const int keys[] = {30 - 8, 0, 100, 0};
  for (std::size_t b = 0; b < 4; ++b) {
    EXPECT_EQ(got.bits[b] & ~kOldBit, out.bits[b]);
    EXPECT_EQ(got.drift[b * 2].keys, keys[b]);
    EXPECT_EQ(std::isnan(got.drift[b * 2].error), keys[b] == 0);
  }
}

TEST_P(Stats, ABadPageEmptiesItsSequenceAlone) {
  Scenario s = base(GetParam());
  use_pages(&s.config, 16);
  World w(s);
  w.set_codebook(-1);
  Probe probe(w);
  const HostBatch batch = lengths({400, 390});
  const std::vector<float> q = probe.queries(batch, Values::gaussian, 3);
  w.use_queries(q);
  const StepOutput out = w.next(batch);
  w.pages(0)[7] = 1 << 30;
  const Answer got = probe.run(batch, q, out, {1, 0, 0, false, 64, 1});
  ASSERT_TRUE(got.status.ok()) << got.status.detail();
  EXPECT_EQ(got.bits[0], kOldBit | kPageOutOfRange);
  EXPECT_EQ(got.bits[1], kOldBit);
  EXPECT_EQ(got.drift[0].keys, 0);
  EXPECT_EQ(got.drift[2].keys, 64);
  for (std::size_t row = 0; row < 8; ++row) {
    EXPECT_EQ(got.recall[0][row].exact, row < 4 ? 0 : w.config().heavy_size);
  }
}

TEST_P(Stats, ListsThatAreNoneStayInBounds) {
  Scenario s = base(GetParam());
  World w(s);
  w.set_codebook(-1);
  Probe probe(w);
  const HostBatch batch = lengths({400, 390});
  const std::vector<float> q = probe.queries(batch, Values::gaussian, 3);
  w.use_queries(q);
  StepOutput out = w.next(batch);
  Random random(4);
  for (std::int32_t& v : out.indices) v = static_cast<std::int32_t>(random.bits());
  out.lengths = {INT32_MAX, -1, INT32_MIN, 1 << 30, 0, 1, 2, 400};
  const Answer got = probe.run(batch, q, out, {1, 0, 0, false, 0, 1});
  ASSERT_TRUE(got.status.ok()) << got.status.detail();
  for (const RecallStats& r : got.recall[0]) {
    EXPECT_EQ(r.exact, w.config().heavy_size);
    EXPECT_GE(r.found, 0);
    EXPECT_LE(r.found, r.exact);
  }
  EXPECT_EQ(got.recall[0][4].found, 0);
}

/// Drift of sequence 0 over `recent` keys after a step to `n`.
std::vector<DriftStats> drift_of(World& w, int n, int recent) {
  Probe probe(w);
  const HostBatch batch = lengths({n});
  w.append(batch);
  EXPECT_EQ(w.error(), "");
  const Answer got =
      probe.run(batch, probe.queries(batch, Values::gaussian, 1), {}, {0, 0, 0, false, recent, 1});
  EXPECT_TRUE(got.status.ok()) << got.status.detail();
  return got.drift;
}

TEST_P(Stats, BuildMeasuresWhatItTrained) {
  for (const int block : {0, 16}) {
    for (const Metric metric : {Metric::euclidean, Metric::inner_product}) {
      Scenario s = base(GetParam());
      s.config.block_size = block;
      s.config.metric = metric;
      s.config.window_size = 20;
      World w(s);
      ASSERT_TRUE(w.build(0, 320).ok());
      // 312 keys: all of them are measured, there and here.
      for (const DriftStats& head : drift_of(w, 320, 400)) {
        EXPECT_EQ(head.keys, 312);
        EXPECT_GT(head.error, 0.0f);
        EXPECT_EQ(head.baseline, head.error);
        EXPECT_EQ(head.ratio, 1.0f);
      }
      // Without a training it stays, whatever the keys have become.
      w.overwrite(0, 0, 400, 99);
      ASSERT_TRUE(w.build(0, 300).ok());
      const std::vector<DriftStats> kept = drift_of(w, 300, 400);
      for (const DriftStats& head : kept) EXPECT_GT(head.ratio, 1.1f);
      ASSERT_TRUE(w.build(0, 300, true).ok());
      for (const DriftStats& head : drift_of(w, 300, 400)) EXPECT_EQ(head.ratio, 1.0f);
      EXPECT_EQ(w.error(), "");
    }
  }
}

TEST_P(Stats, ARandomCodebookDriftsAway) {
  Scenario s = base(GetParam());
  s.config.block_size = 16;
  s.config.window_size = 20;
  World w(s);
  ASSERT_TRUE(w.build(0, 300).ok());
  const std::vector<DriftStats> right = drift_of(w, 400, 96);
  const float baseline[] = {right[0].baseline, -1.0f};
  DeviceBuffer<float> given(GetParam(), std::vector<float>(baseline, baseline + 2));
  const Codebook wrong = w.make_codebook(3);
  DeviceBuffer<float> centroids(GetParam(), wrong.centroids);
  CodebookArgs args;
  args.slot = 0;
  args.codebooks = centroids.data();
  args.baseline_error = given.data();
  ASSERT_TRUE(w.indexer().set_codebook(args, w.launcher().stream()).ok());
  w.launcher().synchronize();
  w.oracle().set_codebook(0, wrong);
  const std::vector<DriftStats> drift = drift_of(w, 400, 96);
  EXPECT_EQ(drift[0].baseline, baseline[0]);
  EXPECT_EQ(drift[0].ratio, drift[0].error / baseline[0]);
  EXPECT_GT(drift[0].ratio, 1.2f * right[0].ratio);
  // What is no error says nothing.
  EXPECT_EQ(drift[1].baseline, 0.0f);
  EXPECT_TRUE(std::isnan(drift[1].ratio));
  EXPECT_GT(drift[1].error, 0.0f);
  // Nor is the last codebook's kept.
  args.baseline_error = nullptr;
  ASSERT_TRUE(w.indexer().set_codebook(args, w.launcher().stream()).ok());
  w.launcher().synchronize();
  w.oracle().set_codebook(0, wrong);
  EXPECT_EQ(drift_of(w, 400, 96)[0].baseline, 0.0f);
}

TEST_P(Stats, AFailedRetrainingKeepsTheBaseline) {
  Scenario s = base(GetParam());
  s.config.max_sequences = 1;
  World w(s);
  ASSERT_TRUE(w.build(0, 300).ok());
  const float before = drift_of(w, 300, 400)[0].baseline;
  ASSERT_GT(before, 0.0f);
  for (float& x : w.cache().keys) x = std::nanf("");
  const Status status = w.build(0, 200, true);
  if (GetParam() == Backend::cpu) {
    EXPECT_EQ(status.code(), StatusCode::too_few_keys);
  }
  const std::vector<DriftStats> after = drift_of(w, 300, 50);
  EXPECT_EQ(after[0].baseline, before);
  EXPECT_EQ(after[0].keys, 0);
  EXPECT_TRUE(std::isnan(after[0].ratio));
}

TEST_P(Stats, ChangesNothingAndIsTheSameForAnyThreads) {
  std::vector<Answer> answers;
  for (const int threads : {1, 3}) {
    Scenario s = base(GetParam());
    s.threads = threads;
    s.config.block_size = 16;
    s.config.window_size = 20;
    s.config.rotation = true;
    World w(s), other(s);
    w.set_codebook(-1);
    other.set_codebook(-1);
    Probe probe(w);
    for (const int n : {350, 351, 368}) {
      const HostBatch batch = lengths({n, n + 7});
      const std::vector<float> q = probe.queries(batch, Values::gaussian, 3);
      w.use_queries(q);
      other.use_queries(q);
      const StepOutput out = w.next(batch);
      EXPECT_TRUE(other.next(batch) == out);  // which has not been looked at
      answers.push_back(probe.run(batch, q, out, {1, 0, 0, false, 200, 1}));
      ASSERT_TRUE(answers.back().status.ok());
      EXPECT_EQ(w.codes(0, n), other.codes(0, n));
    }
    EXPECT_EQ(w.error(), "");
  }
  for (std::size_t i = 0; i < 3; ++i) {
    const Answer &a = answers[i], &b = answers[i + 3];
    EXPECT_EQ(std::memcmp(a.drift.data(), b.drift.data(), a.drift.size() * sizeof(DriftStats)), 0);
    EXPECT_EQ(std::memcmp(a.recall[0].data(), b.recall[0].data(),
                          a.recall[0].size() * sizeof(RecallStats)),
              0);
  }
}

QUARRY_ON_EVERY_BACKEND(Stats);

}  // namespace
}  // namespace quarry::test
