// SPDX-License-Identifier: Apache-2.0
//
// Every golden of tests/data, replayed as quarry-replay does and compared with the lists
// and codes it expects. What a float32 rounding may decide is judged here in float64, from
// the file's tensors alone: no code is shared with the index or with tests/support.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <map>
#include <numeric>
#include <set>

#include "replay.h"
#include "safetensors.h"
#include "trace.h"

namespace quarry::tools {
namespace {

constexpr double kNear = 1e-5;  // relative: closer than this may go either way

class Golden {
 public:
  explicit Golden(const std::string& name)
      : path_(std::string(QUARRY_TEST_DATA_DIR) + "/" + name + ".safetensors"),
        file_(path_),
        trace(load_trace(path_)) {
    IndexerConfig& c = options.config;
    c.num_subspaces = number("num_subspaces", 0);
    c.bits = number("bits", 0);
    c.sink_size = number("sink", -1);
    c.heavy_size = number("heavy", -1);
    c.window_size = number("window", -1);
    c.encode_from = number("encode_from", -1);
    c.block_size = number("block_size", 0);
    c.refine_factor = number("refine", 1);
    const std::string& metric = file_.metadata().at("metric");
    EXPECT_TRUE(metric == "ip" || metric == "euclidean") << metric;
    c.metric = metric == "ip" ? Metric::inner_product : Metric::euclidean;
    indices = ints("expect_indices");
    lens = ints("expect_lens");
    const TensorInfo& info = *file_.find("expect_codes");
    const std::vector<std::byte> bytes = file_.read(info);
    codes.resize(bytes.size());
    std::memcpy(codes.data(), bytes.data(), bytes.size());
    width = file_.find("expect_indices")->shape.back();
    encoded = info.shape[0];
  }

 private:
  std::int32_t number(const char* key, std::int32_t absent) const {
    const auto at = file_.metadata().find(key);
    return at == file_.metadata().end() ? absent : std::stoi(at->second);
  }
  std::vector<std::int32_t> ints(const char* name) {
    const std::vector<std::byte> bytes = file_.read(*file_.find(name));
    std::vector<std::int32_t> out(bytes.size() / sizeof(std::int32_t));
    std::memcpy(out.data(), bytes.data(), bytes.size());
    return out;
  }

  std::string path_;
  SafetensorsFile file_;

 public:
  Trace trace;
  ReplayOptions options;
  std::vector<std::int32_t> indices, lens;
  std::vector<std::uint8_t> codes;
  std::int64_t width = 0, encoded = 0;
};

/// The quantizer in float64, on a golden's own codebooks.
class Reference {
 public:
  explicit Reference(const Golden& golden)
      : trace_(golden.trace),
        config_(golden.options.config),
        expected_(golden.codes),
        keys_(widen(golden.trace.k)),
        queries_(widen(golden.trace.q)),
        d_(golden.trace.d),
        hkv_(golden.trace.hkv),
        m_(golden.options.config.num_subspaces),
        dsub_(d_ / m_),
        dcent_(golden.trace.model.dcent),
        ksub_(golden.trace.model.ksub) {}

  /// Squared distance of a key's subvector to each centroid.
  std::vector<double> distances(int position, int head, int subspace) const {
    std::vector<double> x = residual(position, head);
    if (!trace_.model.rotation.empty()) x = rotated(x, trace_.model.rotation, head);
    std::vector<double> part(x.begin() + subspace * dsub_, x.begin() + (subspace + 1) * dsub_);
    if (dcent_ > dsub_) {
      double norm = 0;
      for (const double v : part) norm += v * v;
      const double phi = trace_.model.phi[static_cast<std::size_t>(head * m_ + subspace)];
      part.push_back(std::sqrt(std::max(phi - norm, 0.0)));
    }
    std::vector<double> out;
    for (int c = 0; c < ksub_; ++c) {
      double sum = 0;
      for (int j = 0; j < dcent_; ++j) {
        const double delta = part[static_cast<std::size_t>(j)] - centroid(head, subspace, c, j);
        sum += delta * delta;
      }
      out.push_back(sum);
    }
    return out;
  }

  /// The PQ score of a position for query 0 of a head, from the expected codes.
  double score(int position, int query_head) const {
    const int head = query_head / (trace_.hq / hkv_);
    std::vector<double> q = query(query_head);
    double sum = config_.block_size > 0 ? dot(q, mean(position, head)) : 0;
    if (!trace_.model.query_rotation.empty()) q = rotated(q, trace_.model.query_rotation, head);
    for (int s = 0; s < m_; ++s) {
      const int row = (position - config_.encode_from) * hkv_ + head;
      const int code = expected_[static_cast<std::size_t>(row * m_ + s)];
      for (int j = 0; j < dsub_; ++j) {
        sum += q[static_cast<std::size_t>(s * dsub_ + j)] * centroid(head, s, code, j);
      }
    }
    return sum;
  }

  double exact_score(int position, int query_head) const {
    return dot(query(query_head), key(position, query_head / (trace_.hq / hkv_)));
  }

 private:
  std::vector<double> key(int position, int head) const {
    const auto at = keys_.begin() + (position * hkv_ + head) * d_;
    return {at, at + d_};
  }
  std::vector<double> query(int head) const {
    const auto at = queries_.begin() + head * d_;
    return {at, at + d_};
  }
  /// The block's mean, rounded to float32 as it is stored.
  std::vector<double> mean(int position, int head) const {
    const int block = position / config_.block_size;
    const int begin = std::max(config_.encode_from, block * config_.block_size);
    const int end = (block + 1) * config_.block_size;
    std::vector<double> sum(static_cast<std::size_t>(d_));
    for (int p = begin; p < end; ++p) {
      const std::vector<double> x = key(p, head);
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += x[i];
    }
    for (double& v : sum) v = static_cast<float>(v / (end - begin));
    return sum;
  }
  std::vector<double> residual(int position, int head) const {
    std::vector<double> x = key(position, head);
    if (config_.block_size == 0) return x;
    const std::vector<double> centre = mean(position, head);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] -= centre[i];
    return x;
  }
  std::vector<double> rotated(const std::vector<double>& x, const std::vector<float>& matrix,
                              int head) const {
    std::vector<double> out(x.size());
    for (int i = 0; i < d_; ++i) {
      for (int j = 0; j < d_; ++j) {
        out[static_cast<std::size_t>(j)] +=
            x[static_cast<std::size_t>(i)] *
            static_cast<double>(matrix[static_cast<std::size_t>((head * d_ + i) * d_ + j)]);
      }
    }
    return out;
  }
  double centroid(int head, int subspace, int code, int j) const {
    const int at = ((head * m_ + subspace) * ksub_ + code) * dcent_ + j;
    return trace_.model.codebooks[static_cast<std::size_t>(at)];
  }
  static double dot(const std::vector<double>& a, const std::vector<double>& b) {
    return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
  }

  const Trace& trace_;
  const IndexerConfig& config_;
  const std::vector<std::uint8_t>& expected_;
  std::vector<float> keys_, queries_;
  int d_, hkv_, m_, dsub_, dcent_, ksub_;
};

bool near(double a, double b) {
  return std::abs(a - b) <= kNear * std::max({std::abs(a), std::abs(b), 1e-3});
}

class GoldenTest : public testing::TestWithParam<const char*> {
 protected:
  GoldenTest() : golden(GetParam()), reference(golden) {
    result = replay(golden.trace, golden.options, [](std::int64_t, std::int64_t) {});
  }

  /// Positions of one of the two lists alone.
  static std::vector<int> difference(const std::set<int>& a, const std::set<int>& b) {
    std::vector<int> out;
    std::set_difference(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(out));
    return out;
  }

  /// Whether a swap of these two may come from rounding: their deciding scores agree, or,
  /// with refine, one of them stands at the shortlist's end.
  bool may_swap(int query_head, int mine, int expected) const {
    const IndexerConfig& c = result.config;
    if (c.refine_factor == 1) {
      return near(reference.score(mine, query_head), reference.score(expected, query_head));
    }
    if (near(reference.exact_score(mine, query_head),
             reference.exact_score(expected, query_head))) {
      return true;
    }
    std::vector<double> scores;
    const int n = golden.trace.q_pos[0] + 1;
    for (int p = c.sink_size; p < n - c.window_size; ++p) {
      scores.push_back(reference.score(p, query_head));
    }
    std::sort(scores.rbegin(), scores.rend());
    const double last = scores[static_cast<std::size_t>(c.refine_factor * c.heavy_size - 1)];
    return near(reference.score(mine, query_head), last) ||
           near(reference.score(expected, query_head), last);
  }

  Golden golden;
  Reference reference;
  ReplayResult result;
};

TEST_P(GoldenTest, Lists) {
  ASSERT_EQ(golden.trace.queries, 1);
  ASSERT_EQ(result.rows, golden.trace.hq);
  ASSERT_EQ(result.lens, golden.lens);
  // A golden is as wide as its longest list; an index also has room for its dense range.
  ASSERT_GE(result.max_list, golden.width);
  const bool integer = std::string(GetParam()).starts_with("int-");
  int swapped = 0;
  for (int row = 0; row < result.rows; ++row) {
    const std::int32_t* mine = result.indices.data() + row * result.max_list;
    const std::int32_t* expected = golden.indices.data() + row * golden.width;
    const int length = golden.lens[static_cast<std::size_t>(row)];
    EXPECT_TRUE(std::is_sorted(mine, mine + length)) << "row " << row;
    EXPECT_TRUE(
        std::all_of(mine + length, mine + result.max_list, [](std::int32_t p) { return p == -1; }))
        << "row " << row;
    const std::set<int> a(mine, mine + length), b(expected, expected + length);
    EXPECT_EQ(a.size(), static_cast<std::size_t>(length)) << "row " << row;
    if (a == b) continue;
    ASSERT_FALSE(integer) << "row " << row;
    const std::vector<int> added = difference(a, b), lost = difference(b, a);
    for (std::size_t i = 0; i < added.size(); ++i) {
      EXPECT_TRUE(may_swap(row, added[i], lost[i]))
          << "row " << row << ": " << added[i] << " in place of " << lost[i];
      ++swapped;
    }
  }
  EXPECT_LE(swapped, 2) << "near ties are rare";
}

TEST_P(GoldenTest, Codes) {
  const int m = result.config.num_subspaces, hkv = golden.trace.hkv;
  const bool blocks = result.config.block_size > 0;
  // Rows of an incomplete last block are not part of the contract.
  ASSERT_EQ(result.encoded,
            blocks ? golden.trace.n / result.config.block_size * result.config.block_size -
                         result.config.encode_from
                   : golden.encoded);
  ASSERT_LE(result.encoded, golden.encoded);
  ASSERT_EQ(result.codes.size(), static_cast<std::size_t>(result.encoded * hkv * m));
  int differing = 0;
  for (std::size_t i = 0; i < result.codes.size(); ++i) {
    if (result.codes[i] == golden.codes[i]) continue;
    ++differing;
    const int subspace = static_cast<int>(i) % m, head = static_cast<int>(i) / m % hkv;
    const int position = static_cast<int>(i) / m / hkv + result.config.encode_from;
    const std::vector<double> distances = reference.distances(position, head, subspace);
    EXPECT_TRUE(near(distances[result.codes[i]], distances[golden.codes[i]]))
        << "position " << position << ", head " << head << ", subspace " << subspace;
  }
  EXPECT_LE(differing, static_cast<int>(result.codes.size() / 1000)) << "near ties are rare";
}

TEST_P(GoldenTest, ExpectedCodesAreNearest) {
  // The golden itself, so that a misread of it would show.
  const int m = result.config.num_subspaces, hkv = golden.trace.hkv;
  for (std::size_t i = 0; i < result.codes.size(); i += 7) {
    const int subspace = static_cast<int>(i) % m, head = static_cast<int>(i) / m % hkv;
    const int position = static_cast<int>(i) / m / hkv + result.config.encode_from;
    const std::vector<double> distances = reference.distances(position, head, subspace);
    EXPECT_TRUE(
        near(distances[golden.codes[i]], *std::min_element(distances.begin(), distances.end())))
        << "position " << position << ", head " << head << ", subspace " << subspace;
  }
}

TEST_P(GoldenTest, EarlierPrefillGivesTheSame) {
  ReplayOptions options = golden.options;
  for (const std::int32_t prefill : {0, golden.trace.q_pos[0] / 2}) {
    options.prefill = prefill;
    const ReplayResult other = replay(golden.trace, options, [](std::int64_t, std::int64_t) {});
    EXPECT_EQ(other.indices, result.indices) << "prefill " << prefill;
    EXPECT_EQ(other.codes, result.codes) << "prefill " << prefill;
  }
}

INSTANTIATE_TEST_SUITE_P(All, GoldenTest,
                         testing::Values("gauss-ip-m4b4", "gauss-mha-m2b6", "block-gqa-m4b4",
                                         "block-rot-refine", "int-gqa-m2b6", "short-dense"),
                         [](const auto& param) {
                           std::string name = param.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(Goldens, AllAreListedHere) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(QUARRY_TEST_DATA_DIR)) {
    files += entry.path().extension() == ".safetensors" ? 1 : 0;
  }
  EXPECT_EQ(files, 6);
}

}  // namespace
}  // namespace quarry::tools
