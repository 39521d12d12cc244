// SPDX-License-Identifier: Apache-2.0
//
// Stages score, refine, mask and emit by themselves, over an index whose bytes the test wrote:
// the float32 order of the contract bit for bit, and nothing written that is not theirs.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <set>

#include "plan.h"
#include "support/backends.h"
#include "support/oracle.h"
#include "support/random.h"
#include "support/scenario.h"

namespace quarry::test {
namespace {

constexpr std::uint32_t kPoison = 0x5b5b5b5bu;

/// Sum of products as the CPU backend fixes it: 16 strided partial sums, halved.
float lane_dot(const float* a, const float* b, int n) {
  float lanes[16] = {};
  for (int i = 0; i < n; ++i) lanes[i % 16] = std::fma(a[i], b[i], lanes[i % 16]);
  for (int half = 8; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  return lanes[0];
}

/// An index of random codes, means and codebooks, and a step over it.
class StageTest : public BackendTest {
 protected:
  void open(const IndexerConfig& config, std::uint64_t seed) {
    IndexerConfig r;
    ASSERT_TRUE(resolve(config, GetParam(), &r).ok());
    ASSERT_TRUE(make_plan(r, stages(), &plan_).ok());
    memory_ = std::make_unique<DeviceBytes>(GetParam(), plan_.memory.index_bytes);
    Random random(seed);
    // Built in host memory at the same offsets, then uploaded.
    std::vector<std::uint8_t> host(plan_.memory.index_bytes, 0);
    Plan host_plan = plan_;
    Arena host_arena(host.data());
    carve_index(host_arena, &host_plan);
    IndexView& v = host_plan.view;
    ids_.clear();
    for (int page = 0; page < v.num_pages; ++page) {
      for (int head = 0; head < v.num_kv_heads; ++head) {
        for (int slot = 0; slot < v.page_size; ++slot) {
          for (int s = 0; s < v.num_subspaces; ++s) {
            const int id = random.integer(0, v.ksub - 1);
            ids_.push_back(id);
            std::uint8_t* code = v.codes + code_offset(v, page, head, slot);
            if (v.bits <= 4) {
              code[s / 2 * v.tile] |= static_cast<std::uint8_t>(s % 2 == 0 ? id : id << 4);
            } else {
              code[s * v.tile] = static_cast<std::uint8_t>(id);
            }
          }
        }
      }
    }
    const std::size_t books = static_cast<std::size_t>(v.codebook_slots) * v.num_kv_heads;
    centroids_.resize(books * v.num_subspaces * v.dcent * v.ksub);
    for (float& x : centroids_) x = static_cast<float>(random.normal());
    std::memcpy(v.codebooks, centroids_.data(), centroids_.size() * 4);
    if (v.block_size > 0) {
      means_.resize(static_cast<std::size_t>(v.num_pages) * v.num_kv_heads * v.blocks_per_page *
                    v.head_dim);
      for (std::size_t i = 0; i < means_.size(); ++i) {
        means_[i] = round_to(v.mean_dtype, static_cast<float>(random.normal()));
        const std::uint16_t bits = bits16(v.mean_dtype, means_[i]);
        if (v.mean_dtype == DType::float32) {
          std::memcpy(static_cast<std::uint8_t*>(v.means) + i * 4, &means_[i], 4);
        } else if (v.mean_dtype == DType::float8_e4m3) {
          static_cast<std::uint8_t*>(v.means)[i] = float8_bits(means_[i]);
        } else {
          std::memcpy(static_cast<std::uint8_t*>(v.means) + i * 2, &bits, 2);
        }
      }
    }
    memory_->upload(host.data(), host.size());
    Arena arena(memory_->data());
    carve_index(arena, &plan_);
  }

  const Stages& stages() const { return *stages_of(GetParam()); }
  Launch launch() const {
    Launch l;
    EXPECT_TRUE(stages().open(0, 2, &l).ok());
    l.stream = stream_.get();
    return l;
  }
  int id(int page, int head, int slot, int s) const {
    const IndexView& v = plan_.view;
    return ids_[((static_cast<std::size_t>(page) * v.num_kv_heads + head) * v.page_size + slot) *
                    v.num_subspaces +
                s];
  }

  Plan plan_{};
  std::unique_ptr<DeviceBytes> memory_;
  std::vector<int> ids_;
  std::vector<float> centroids_, means_;
  StreamHandle stream_{GetParam()};
};

TEST_P(StageTest, ScoreAddsInTheContractsOrder) {
  struct Shape {
    int dim, m, bits, block, group, page;
    bool ip;
  };
  const Shape shapes[] = {{32, 2, 6, 0, 1, 0, false},   {64, 8, 4, 0, 4, 0, true},
                          {24, 3, 4, 0, 3, 48, false},  {128, 16, 4, 16, 2, 0, false},
                          {40, 5, 8, 16, 1, 32, false}, {64, 64, 1, 64, 5, 64, true},
                          {512, 64, 3, 8, 2, 4, false}, {16, 1, 5, 3, 1, 9, false}};
  int seed = 0;
  for (const Shape& s : shapes) {
    IndexerConfig c = small_config();
    c.head_dim = s.dim;
    c.num_subspaces = s.m;
    c.bits = s.bits;
    c.block_size = s.block;
    c.num_query_heads = c.num_kv_heads * s.group;
    c.window_size = s.block + 7;
    c.max_sequences = 2;
    c.max_query_tokens = 2;
    c.max_seq_len = 333;
    c.metric = s.ip ? Metric::inner_product : Metric::euclidean;
    c.mean_dtype = static_cast<DType>(seed % 4);
    if (s.page > 0) use_pages(&c, s.page);
    ++seed;
    open(c, static_cast<std::uint64_t>(seed));
    ASSERT_FALSE(HasFatalFailure());
    const IndexView& v = plan_.view;
    const Backend backend = GetParam();
    const int rows = 2 * 2 * c.num_query_heads, d = s.dim;
    Random random(100 + static_cast<std::uint64_t>(seed));

    std::vector<float> q(static_cast<std::size_t>(rows) * d);
    for (float& x : q) x = static_cast<float>(random.normal());
    const std::vector<std::int32_t> n{331, 332, 100, 100};
    const std::vector<SequenceState> states{{1, 331, 331, 2, 1, 0}, {0, 100, 100, 2, 1, 0}};
    const int pages_per = (c.max_seq_len + v.page_size - 1) / v.page_size;
    std::vector<std::int32_t> table(2 * static_cast<std::size_t>(pages_per));
    for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<std::int32_t>(i);
    random.shuffle(table);
    DeviceBuffer<float> queries(backend, q);
    DeviceBuffer<std::int32_t> lengths_(backend, n), device_table(backend, table);
    DeviceBuffer<SequenceState> device_states(backend, states);
    DeviceBuffer<float> luts(backend, static_cast<std::size_t>(rows) * s.m * v.ksub);
    DeviceBuffer<float> biases(backend, static_cast<std::size_t>(rows) * plan_.bias_stride);
    DeviceBuffer<float> scores(backend, static_cast<std::size_t>(rows) * plan_.score_stride);
    luts.fill(0xff), biases.fill(0xff), scores.fill(0x5b);
    ScoreParams p{};
    p.index = v;
    p.step.batch_size = 2;
    p.step.query_tokens = 2;
    p.step.lengths = lengths_.data();
    p.step.states = device_states.data();
    if (s.page > 0) {
      p.step.block_table = device_table.data();
      p.step.block_table_stride = pages_per;
    }
    p.queries = {queries.data(), DType::float32, 2 * c.num_query_heads * d, c.num_query_heads * d,
                 d};
    p.luts = luts.data();
    p.biases = s.block > 0 ? biases.data() : nullptr;
    p.bias_stride = plan_.bias_stride;
    p.scores = scores.data();
    p.score_stride = plan_.score_stride;
    ASSERT_TRUE(stages().score(p, launch()).ok());
    stream_.synchronize();
    const std::vector<float> got = scores.download();
    for (int row = 0; row < rows; ++row) {
      const int b = row / (2 * c.num_query_heads), t = row / c.num_query_heads % 2;
      const int kv = row % c.num_query_heads / s.group, slot = states[b].slot;
      const float* query = q.data() + static_cast<std::ptrdiff_t>(row) * d;
      const int length = n[b * 2 + t];
      const int end = length > v.dense_limit ? length - c.window_size : 0;  // dense: none
      for (int position = 0; position < plan_.score_stride; ++position) {
        const float score = got[static_cast<std::size_t>(row) * plan_.score_stride + position];
        if (position < c.sink_size || position >= end) {
          ASSERT_EQ(std::bit_cast<std::uint32_t>(score), kPoison)
              << "position " << position << " is no candidate of [" << c.sink_size << ", " << end
              << ")";
          continue;
        }
        auto page_at = [&](int at) {
          return s.page > 0 ? table[b * pages_per + at / v.page_size] : slot;
        };
        float want = 0, bound = 0;
        bool first = true;
        if (s.block > 0) {
          const int last = position / s.block * s.block + s.block - 1;
          const float* mean = means_.data() + mean_offset(v, page_at(last), kv, last);
          want = lane_dot(query, mean, d);
          bound = static_cast<float>(dot(query, mean, d).bound) * 2;
          first = false;
        }
        for (int k = 0; k < s.m; ++k) {
          const int code = id(page_at(position), kv, position % v.page_size, k);
          float entry = 0;
          for (int j = 0; j < v.dsub; ++j) {
            // Transposed: [slot][Hkv][m][dcent][ksub].
            const std::size_t at =
                (((static_cast<std::size_t>(slot) * c.num_kv_heads + kv) * s.m + k) * v.dcent + j) *
                    v.ksub +
                code;
            entry = std::fma(query[k * v.dsub + j], centroids_[at], entry);
          }
          want = first ? entry : want + entry;
          bound += std::abs(entry) * static_cast<float>(s.m) * 0x1p-23f;
          first = false;
        }
        // A GPU may sum the bias in an order of its own.
        if (backend == Backend::cpu || s.block == 0) {
          ASSERT_EQ(std::bit_cast<std::uint32_t>(score + 0.0f),
                    std::bit_cast<std::uint32_t>(want + 0.0f))
              << "row " << row << " position " << position << ": " << score << " " << want;
        } else {
          ASSERT_NEAR(score, want, bound) << "row " << row << " position " << position;
        }
      }
    }
  }
}

TEST_P(StageTest, RefineIsTheExactProduct) {
  for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16}) {
    for (const int d : {8, 16, 24, 64, 72, 128, 256, 512}) {
      IndexerConfig c = small_config();
      c.head_dim = d;
      c.num_query_heads = 6;
      c.max_sequences = 2;
      c.refine_factor = 3;
      c.heavy_size = 9;
      c.max_seq_len = 100;
      open(c, 1);
      ASSERT_FALSE(HasFatalFailure());
      const Backend backend = GetParam();
      const int rows = 12, stride = 27;
      Random random(static_cast<std::uint64_t>(d));
      // [slot][position][head][d] and [B][Hq][d].
      std::vector<float> k(2 * 100 * 2 * static_cast<std::size_t>(d)),
          q(rows * static_cast<std::size_t>(d));
      std::vector<std::uint16_t> k16, q16;
      for (float& x : k)
        k16.push_back(bits16(dtype, x = round_to(dtype, static_cast<float>(random.normal()))));
      for (float& x : q)
        q16.push_back(bits16(dtype, x = round_to(dtype, static_cast<float>(random.normal()))));
      const bool wide = dtype == DType::float32;
      DeviceBuffer<float> k_wide(backend, wide ? k : std::vector<float>{}),
          q_wide(backend, wide ? q : std::vector<float>{});
      DeviceBuffer<std::uint16_t> k_half(backend, k16), q_half(backend, q16);
      std::vector<std::int32_t> shortlist(rows * stride, -1), counts(rows);
      for (int r = 0; r < rows; ++r) {
        counts[r] = r == 3 ? 0 : random.integer(1, stride);
        for (int i = 0; i < counts[r]; ++i)
          shortlist[r * stride + i] = 8 + 2 * i + random.integer(0, 1);
      }
      DeviceBuffer<std::int32_t> device_shortlist(backend, shortlist),
          device_counts(backend, counts), lengths_(backend, std::vector<std::int32_t>{100, 100});
      DeviceBuffer<SequenceState> states(
          backend, std::vector<SequenceState>{{1, 100, 100, 1, 1, 0}, {0, 100, 100, 1, 1, 0}});
      DeviceBuffer<float> scores(backend, rows * stride);
      scores.fill(0x5b);
      RefineParams p{};
      p.index = plan_.view;
      p.step.batch_size = 2;
      p.step.query_tokens = 1;
      p.step.lengths = lengths_.data();
      p.step.states = states.data();
      p.queries = {wide ? static_cast<const void*>(q_wide.data()) : q_half.data(), dtype, 6 * d,
                   6 * d, d};
      p.keys = {wide ? static_cast<const void*>(k_wide.data()) : k_half.data(),
                dtype,
                100 * 2 * d,
                2 * d,
                d,
                nullptr,
                0};
      p.list_heads = 6;
      p.shortlist = device_shortlist.data();
      p.shortlist_counts = device_counts.data();
      p.shortlist_stride = stride;
      p.scores = scores.data();
      ASSERT_TRUE(stages().refine(p, launch()).ok());
      stream_.synchronize();
      const std::vector<float> got = scores.download();
      for (int r = 0; r < rows; ++r) {
        const int slot = r < 6 ? 1 : 0, kv = r % 6 / 3;
        for (int i = 0; i < counts[r]; ++i) {
          const float* key = k.data() + ((slot * 100 + shortlist[r * stride + i]) * 2 + kv) *
                                            static_cast<std::ptrdiff_t>(d);
          const float* query = q.data() + static_cast<std::ptrdiff_t>(r) * d;
          const Score want = dot(query, key, d);
          ASSERT_NEAR(got[r * stride + i], want.value, want.bound);
          if (backend == Backend::cpu) {
            ASSERT_EQ(got[r * stride + i], lane_dot(query, key, d)) << "d " << d << " row " << r;
          }
        }
      }
    }
  }
}

TEST_P(StageTest, MaskTellsWhatARowIs) {
  IndexerConfig c = small_config();
  c.max_sequences = 4;
  c.max_query_tokens = 3;
  c.window_size = 16;
  open(c, 1);
  ASSERT_FALSE(HasFatalFailure());
  const Backend backend = GetParam();
  const int limit = plan_.view.dense_limit, heads = c.num_query_heads;
  const std::vector<std::int32_t> n{limit - 1, limit, limit + 1, 400, 401, 399,
                                    0,         1,     2,         300, 300, 303};
  DeviceBuffer<std::int32_t> lengths_(backend, n);
  DeviceBuffer<SequenceState> states(backend, std::vector<SequenceState>{{0, limit - 1, 0, 3, 0, 0},
                                                                         {1, 400, 0, 3, 1, 0},
                                                                         {2, 0, 0, 2, 1, 0},
                                                                         {-1, 0, 0, 0, 0, 0}});
  DeviceBuffer<std::uint32_t> status(backend, std::vector<std::uint32_t>(4, 1u << 20));
  DeviceBuffer<RowState> rows(backend, 12 * static_cast<std::size_t>(heads));
  rows.fill(0x5b);
  MaskParams p{};
  p.index = plan_.view;
  p.step.batch_size = 4;
  p.step.query_tokens = 3;
  p.step.lengths = lengths_.data();
  p.step.states = states.data();
  p.step.device_status = status.data();
  p.list_heads = heads;
  p.rows = rows.data();
  ASSERT_TRUE(stages().mask(p, launch()).ok());
  stream_.synchronize();
  const std::vector<RowState> got = rows.download();
  const RowKind kinds[] = {RowKind::dense,  RowKind::dense, RowKind::not_built, RowKind::sparse,
                           RowKind::sparse, RowKind::empty, RowKind::dense,     RowKind::dense,
                           RowKind::empty,  RowKind::empty, RowKind::empty,     RowKind::empty};
  for (int i = 0; i < 12; ++i) {
    for (int h = 0; h < heads; ++h) {
      const RowState& row = got[i * heads + h];
      ASSERT_EQ(static_cast<int>(row.kind), static_cast<int>(kinds[i])) << i;
      if (row.kind == RowKind::empty) continue;
      EXPECT_EQ(row.n, n[i]);
      if (row.kind == RowKind::sparse) {
        EXPECT_EQ(row.first, c.sink_size);
        EXPECT_EQ(row.end, n[i] - 16);
      }
    }
  }
  const std::vector<std::uint32_t> bits = status.download();
  EXPECT_EQ(bits[0], 1u << 20 | kNotBuilt);
  EXPECT_EQ(bits[1], 1u << 20 | kLengthOutOfRange);
  EXPECT_EQ(bits[2], 1u << 20);
  EXPECT_EQ(bits[3], 1u << 20);
}

TEST_P(StageTest, EmitWritesListsAndWeights) {
  for (const bool with_previous : {false, true}) {
    IndexerConfig c = small_config();
    c.max_seq_len = 200;
    c.heavy_size = 20;
    open(c, 1);
    ASSERT_FALSE(HasFatalFailure());
    const Backend backend = GetParam();
    const int max_list = plan_.max_list, stride = max_list + 3, dense_stride = 205;
    const RowState kinds[] = {{RowKind::sparse, 150, 8, 134}, {RowKind::empty, 0, 8, 8},
                              {RowKind::dense, 44, 8, 8},     {RowKind::not_built, 200, 8, 184},
                              {RowKind::sparse, 200, 8, 184}, {RowKind::dense, 1, 8, 8},
                              {RowKind::sparse, 45, 8, 29},   {RowKind::dense, 9, 8, 8}};
    const std::vector<RowState> rows(std::begin(kinds), std::end(kinds));
    const int count = static_cast<int>(rows.size());
    Random random(6);
    std::vector<std::int32_t> heavy(count * 20, -9), heavy_counts(count, 0),
        previous(count * stride, 0x5b5b5b5b), previous_lengths(count);
    std::vector<std::set<int>> want(count);
    std::vector<float> dense(static_cast<std::size_t>(count) * dense_stride,
                             std::bit_cast<float>(kPoison));
    for (int r = 0; r < count; ++r) {
      const RowState& row = rows[r];
      if (row.kind == RowKind::dense) {
        for (int p = 0; p < row.n; ++p) want[r].insert(p);
      }
      if (row.kind == RowKind::sparse || row.kind == RowKind::not_built) {
        for (int p = 0; p < 8; ++p) want[r].insert(p);
        for (int p = row.n - 16; p < row.n; ++p) want[r].insert(p);
      }
      if (row.kind == RowKind::sparse) {
        std::set<int> chosen;
        const int wanted = std::min(20, row.end - row.first) - (r == 4 ? 1 : 0);
        while (static_cast<int>(chosen.size()) < wanted)
          chosen.insert(random.integer(row.first, row.end - 1));
        std::copy(chosen.begin(), chosen.end(), heavy.begin() + r * 20);
        heavy_counts[r] = wanted;
        want[r].insert(chosen.begin(), chosen.end());
      }
      // What the dense matrix held before: 1 at the previous list, 0 elsewhere.
      if (with_previous) {
        std::set<int> old;
        for (int i = 0; i < r * 7; ++i) old.insert(random.integer(0, 199));
        while (static_cast<int>(old.size()) > max_list) old.erase(old.begin());
        previous_lengths[r] = static_cast<int>(old.size());
        std::copy(old.begin(), old.end(), previous.begin() + r * stride);
        for (int p = 0; p < 200; ++p) dense[r * dense_stride + p] = old.count(p) != 0 ? 1.0f : 0.0f;
      }
    }
    DeviceBuffer<RowState> device_rows(backend, rows);
    DeviceBuffer<std::int32_t> device_heavy(backend, heavy), device_counts(backend, heavy_counts),
        device_previous(backend, previous), device_previous_lengths(backend, previous_lengths),
        indices(backend, count * stride), list_lengths(backend, count);
    DeviceBuffer<float> weights(backend, count * stride), device_dense(backend, dense);
    indices.fill(0x5b), list_lengths.fill(0x5b), weights.fill(0x5b);
    EmitParams p{};
    p.index = plan_.view;
    p.num_rows = count;
    p.list_heads = 1;
    p.max_list = max_list;
    p.rows = device_rows.data();
    p.heavy = device_heavy.data();
    p.heavy_counts = device_counts.data();
    p.indices = indices.data();
    p.index_stride = stride;
    p.list_lengths = list_lengths.data();
    p.weights = weights.data();
    p.dense_weights = device_dense.data();
    p.dense_stride = dense_stride;
    if (with_previous) {
      p.previous_indices = device_previous.data();
      p.previous_lengths = device_previous_lengths.data();
    }
    ASSERT_TRUE(stages().emit(p, launch()).ok());
    stream_.synchronize();
    const auto got = indices.download(), lens = list_lengths.download();
    const auto got_weights = weights.download(), got_dense = device_dense.download();
    for (int r = 0; r < count; ++r) {
      ASSERT_EQ(lens[r], static_cast<int>(want[r].size())) << r;
      ASSERT_TRUE(std::equal(want[r].begin(), want[r].end(), got.begin() + r * stride)) << r;
      for (int i = lens[r]; i < stride; ++i) {
        ASSERT_EQ(got[r * stride + i], i < max_list ? -1 : static_cast<int>(kPoison))
            << r << " " << i;
      }
      for (int i = 0; i < stride; ++i) {
        const float w = i < lens[r] ? 1.0f : i < max_list ? 0.0f : std::bit_cast<float>(kPoison);
        ASSERT_EQ(got_weights[r * stride + i], w) << r << " " << i;
      }
      for (int i = 0; i < dense_stride; ++i) {
        const float w = i >= 200                ? std::bit_cast<float>(kPoison)
                        : want[r].count(i) != 0 ? 1.0f
                                                : 0.0f;
        ASSERT_EQ(got_dense[r * dense_stride + i], w) << r << " " << i;
      }
    }
  }
}

TEST_P(StageTest, TrainLeavesACodebookThatItIsToKeep) {
  IndexerConfig c = small_config();
  c.max_sequences = 3;
  open(c, 1);
  ASSERT_FALSE(HasFatalFailure());
  const Backend backend = GetParam();
  const int n = 300, row = c.num_kv_heads * c.head_dim;
  Random random(9);
  std::vector<float> k(static_cast<std::size_t>(c.max_sequences) * c.max_seq_len * row);
  for (float& x : k) x = static_cast<float>(random.normal());
  DeviceBuffer<float> keys(backend, k);
  DeviceBytes scratch(backend, plan_.memory.build_workspace_bytes);
  // The whole index, and where in it a slot's codebook is.
  const auto read = [&] {
    std::vector<std::uint8_t> bytes(plan_.memory.index_bytes);
    memory_->download(bytes.data(), bytes.size());
    return bytes;
  };
  const auto offset = [&](const void* at) {
    return static_cast<std::size_t>(static_cast<const std::uint8_t*>(at) -
                                    static_cast<const std::uint8_t*>(memory_->data()));
  };
  const std::size_t size = sizeof(float) * c.num_kv_heads * c.num_subspaces *
                           static_cast<std::size_t>(plan_.view.dcent) * plan_.view.ksub;
  const auto codebook = [&](int slot) {
    const std::vector<std::uint8_t> bytes = read();
    const auto first =
        bytes.begin() + static_cast<std::ptrdiff_t>(offset(plan_.view.codebooks) + slot * size);
    return std::vector<std::uint8_t>(first, first + static_cast<std::ptrdiff_t>(size));
  };
  const auto has = [&](int slot) {
    std::uint32_t value = 0;
    std::memcpy(&value, read().data() + offset(plan_.view.has_codebook) + 4u * slot, 4);
    return value;
  };
  const auto train = [&](int slot, bool keep) {
    scratch.fill(0xff);
    Arena arena(scratch.data());
    TrainParams t = carve_build(arena, plan_, stages()).train;
    t.index = plan_.view;
    t.step.batch_size = t.step.query_tokens = 1;
    t.step.fixed_slot = slot;
    t.step.fixed_length = n;
    t.step.restart = true;
    t.keys.data = keys.data();
    t.keys.head_stride = c.head_dim;
    t.keys.slot_stride = row;
    t.keys.page_stride = std::int64_t{c.max_seq_len} * row;
    t.keep_codebook = keep;
    t.iterations = 3;
    t.seed = 4;
    t.num_positions = encoded_positions(plan_.view, n);
    t.max_samples = std::min(t.max_samples, t.num_positions);
    EXPECT_TRUE(stages().train(t, launch()).ok());
    stream_.synchronize();
  };
  // Without a codebook there is nothing to keep: slot 0 as slot 1, which trains in any case.
  const auto before = codebook(0);
  train(0, true);
  EXPECT_EQ(has(0), 1u);
  const auto trained = codebook(0);
  EXPECT_FALSE(trained == before);
  std::copy_n(k.begin(), std::ptrdiff_t{c.max_seq_len} * row,
              k.begin() + std::ptrdiff_t{c.max_seq_len} * row);
  keys.upload(k);
  train(1, false);
  EXPECT_TRUE(codebook(1) == trained);
  // With one, other keys change nothing of the index until it is not to be kept.
  for (float& x : k) x = static_cast<float>(random.normal());
  keys.upload(k);
  const auto index = read();
  train(0, true);
  EXPECT_TRUE(read() == index);
  train(0, false);
  EXPECT_FALSE(codebook(0) == trained);
  EXPECT_TRUE(codebook(1) == trained);
  EXPECT_EQ(has(2), 0u);
}

QUARRY_ON_EVERY_BACKEND(StageTest);

}  // namespace
}  // namespace quarry::test
