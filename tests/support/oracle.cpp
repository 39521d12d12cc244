// SPDX-License-Identifier: Apache-2.0
#include "oracle.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <limits>
#include <numeric>

#include "group_scores.h"

namespace quarry::test {
namespace {

/// Higham's gamma: k float32 roundings change a term by at most this factor less one.
double gamma(int k) {
  const double ku = k * 0x1p-24;
  return ku / (1.0 - ku);
}

/// What k float32 operations may lose where they underflow.
double underflow(int k) { return k * 0x1p-149; }

/// Order of distances: NaN after +inf.
std::uint32_t nearness(float d) {
  return std::isnan(d) ? 0x7fffffffu : std::bit_cast<std::uint32_t>(d);
}

// Stands for NaN and the infinities among finite scores, which are far smaller.
constexpr double kRankNaN = -1e301, kRankInf = 1e300;

double rank_of(double v) {
  if (std::isnan(v)) return kRankNaN;
  if (v > FLT_MAX) return kRankInf;
  if (v < -FLT_MAX) return -kRankInf;
  return v;
}

}  // namespace

double rank(const Score& s) { return rank_of(s.value); }

double rank_low(const Score& s) {
  const double r = rank_of(s.value);
  return std::abs(r) >= kRankInf ? r : r - s.bound;
}

double rank_high(const Score& s) {
  const double r = rank_of(s.value);
  return std::abs(r) >= kRankInf ? r : r + s.bound;
}

/// To E4M3: 4 significant bits, 2^-9 the least unit, 448 the most there is, no infinity.
float round_to_float8(float value) {
  if (std::isnan(value) || value == 0) return value;
  if (std::isinf(value)) return std::numeric_limits<float>::quiet_NaN();
  const double unit = std::ldexp(1.0, std::max(std::ilogb(value), -6) - 3);
  const double rounded = std::nearbyint(static_cast<double>(value) / unit) * unit;
  return static_cast<float>(std::copysign(std::min(std::abs(rounded), 448.0), value));
}

float round_to(DType dtype, float value) {
  if (dtype == DType::float8_e4m3) return round_to_float8(value);
  if (dtype == DType::float32 || std::isnan(value) || std::isinf(value) || value == 0) return value;
  const int mantissa = dtype == DType::float16 ? 11 : 8;  // the leading one included
  const int min_exponent = dtype == DType::float16 ? -14 : -126;
  const double largest = dtype == DType::float16 ? 65504.0 : 0x1.fep127;
  const int exponent = std::max(std::ilogb(value), min_exponent);
  // In units of the last place; nearbyint rounds half to even.
  const double unit = std::ldexp(1.0, exponent - (mantissa - 1));
  const double rounded = std::nearbyint(static_cast<double>(value) / unit) * unit;
  if (std::abs(rounded) > largest)
    return std::copysign(std::numeric_limits<float>::infinity(), value);
  return static_cast<float>(std::copysign(rounded, value));
}

std::uint16_t bits16(DType dtype, float value) {
  if (dtype == DType::bfloat16) {
    return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
  }
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return sign | 0x7e00;
  if (std::isinf(value)) return sign | 0x7c00;
  const double magnitude = std::abs(static_cast<double>(value));
  if (magnitude < 0x1p-14) return static_cast<std::uint16_t>(sign | std::lrint(magnitude * 0x1p24));
  const int exponent = std::ilogb(magnitude);
  const long fraction = std::lrint(std::ldexp(magnitude, 10 - exponent)) - 1024;
  return static_cast<std::uint16_t>(sign | (exponent + 15) << 10 | fraction);
}

std::uint8_t float8_bits(float value) {
  const std::uint8_t sign = std::signbit(value) ? 0x80 : 0;
  if (!std::isfinite(value)) return sign | 0x7f;
  const double magnitude = std::abs(static_cast<double>(value));
  if (magnitude < 0x1p-6) return static_cast<std::uint8_t>(sign | std::lrint(magnitude * 0x1p9));
  const int exponent = std::ilogb(magnitude);
  const long fraction = std::lrint(std::ldexp(magnitude, 3 - exponent)) - 8;
  return static_cast<std::uint8_t>(sign | (exponent + 7) << 3 | fraction);
}

float from_float8_bits(std::uint8_t bits) {
  const int exponent = bits >> 3 & 15, fraction = bits & 7;
  double magnitude = exponent == 0 ? fraction / 512.0 : std::ldexp(8 + fraction, exponent - 10);
  if (exponent == 15 && fraction == 7) magnitude = std::numeric_limits<double>::quiet_NaN();
  return static_cast<float>(bits >> 7 == 0 ? magnitude : -magnitude);
}

IndexerConfig resolved(IndexerConfig c) {
  if (c.encode_from < 0) c.encode_from = c.sink_size;
  if (c.dense_threshold < 0) c.dense_threshold = c.heavy_size + c.encode_from + 1 + (1 << c.bits);
  if (c.algorithm == Algorithm::automatic) c.algorithm = Algorithm::staged;
  if (c.softmax_scale == 0) {
    c.softmax_scale = static_cast<float>(1 / std::sqrt(static_cast<double>(c.head_dim)));
  }
  return c;
}

Oracle::Oracle(const IndexerConfig& config) : c_(resolved(config)) {
  codebooks_.resize(c_.max_sequences);
  built_.assign(c_.max_sequences, 0);
  seen_.assign(c_.max_sequences, 0);
  const std::size_t slots = static_cast<std::size_t>(num_pages()) * page_size();
  codes_.assign(slots * c_.num_kv_heads * c_.num_subspaces, 0);
  if (c_.block_size > 0) means_.assign(slots * c_.num_kv_heads * c_.head_dim, 0.0f);
}

int Oracle::dense_limit() const {
  return std::max(c_.dense_threshold, c_.sink_size + c_.heavy_size + c_.window_size);
}

int Oracle::max_list() const { return std::min(c_.max_seq_len, dense_limit()); }

void Oracle::set_codebook(int slot, const Codebook& codebook) {
  codebooks_[slot] = codebook;
  built_[slot] = 1;
  seen_[slot] = std::min(seen_[slot], c_.encode_from);
}

void Oracle::truncate(int slot, int length) {
  if (slot < 0 || slot >= c_.max_sequences || length < 0 || length > c_.max_seq_len) return;
  seen_[slot] = std::min(seen_[slot], length);
}

void Oracle::reset(int slot) {
  seen_[slot] = 0;
  if (!c_.shared_codebook) built_[slot] = 0;
}

void Oracle::attach(int slot, int length) {
  if (slot < 0 || slot >= c_.max_sequences || length < 0 || length > c_.max_seq_len) return;
  if (built_[slot]) seen_[slot] = length;
}

void Oracle::fork(int from, int to, int length) {
  codebooks_[to] = codebooks_[from];
  built_[to] = built_[from];
  seen_[to] = length < 0 ? seen_[from] : std::min(seen_[from], length);
}

void Oracle::copy_page(int from, int to) {
  const auto move = [&](auto& array, std::int64_t slot_size) {
    const std::int64_t size = slot_size * page_size();
    std::copy_n(array.begin() + from * size, size, array.begin() + to * size);
  };
  move(codes_, static_cast<std::int64_t>(c_.num_kv_heads) * c_.num_subspaces);
  if (!means_.empty()) move(means_, static_cast<std::int64_t>(c_.num_kv_heads) * c_.head_dim);
}

Oracle::Saved Oracle::save(const Pages& pages, int slot, int length) const {
  Saved s;
  s.seen = length < 0 ? seen_[slot] : std::min(seen_[slot], length);
  s.codebook = codebooks_[slot];
  const int codes = c_.num_kv_heads * c_.num_subspaces, means = c_.num_kv_heads * c_.head_dim;
  for (int p = 0; p < s.seen; ++p) {
    const std::int64_t at = cache_slot(pages, p);
    s.codes.insert(s.codes.end(), codes_.begin() + at * codes, codes_.begin() + (at + 1) * codes);
    if (means_.empty()) continue;
    s.means.insert(s.means.end(), means_.begin() + at * means, means_.begin() + (at + 1) * means);
  }
  return s;
}

void Oracle::restore(const Pages& pages, int slot, const Saved& s) {
  seen_[slot] = s.seen;
  built_[slot] = 1;
  codebooks_[slot] = s.codebook;
  const int codes = c_.num_kv_heads * c_.num_subspaces, means = c_.num_kv_heads * c_.head_dim;
  for (int p = 0; p < s.seen; ++p) {
    const std::int64_t at = cache_slot(pages, p);
    std::copy_n(s.codes.begin() + p * codes, codes, codes_.begin() + at * codes);
    if (means_.empty()) continue;
    std::copy_n(s.means.begin() + p * means, means, means_.begin() + at * means);
  }
}

int Oracle::encoded_end(int n) const {
  return c_.block_size > 0 ? n / c_.block_size * c_.block_size : n;
}

void Oracle::encode_vector(const Codebook& cb, int head, const float* x, std::uint8_t* code) {
  const int d = c_.head_dim, m = c_.num_subspaces;
  // The float32 form of the contract and, beside it, the double form with its error.
  std::vector<float> xf(x, x + d);
  std::vector<double> xd(x, x + d), err(d, 0.0);
  if (!cb.rotation.empty()) {
    const float* r = cb.rotation.data() + static_cast<std::size_t>(head) * d * d;
    for (int j = 0; j < d; ++j) {
      float acc = 0;
      double sum = 0, magnitude = 0;
      for (int i = 0; i < d; ++i) {
        const float rij = r[static_cast<std::size_t>(i) * d + j];
        acc = std::fma(x[i], rij, acc);
        sum += static_cast<double>(x[i]) * rij;
        magnitude += std::abs(static_cast<double>(x[i]) * rij);
      }
      xf[j] = acc;
      xd[j] = sum;
      err[j] = gamma(d) * magnitude + underflow(d);
    }
  }
  for (int s = 0; s < m; ++s) {
    std::vector<float> vf(xf.begin() + s * dsub(), xf.begin() + (s + 1) * dsub());
    std::vector<double> vd(xd.begin() + s * dsub(), xd.begin() + (s + 1) * dsub());
    std::vector<double> ve(err.begin() + s * dsub(), err.begin() + (s + 1) * dsub());
    if (c_.metric == Metric::inner_product) {
      const float phi = cb.phi[head * m + s];
      float norm = 0;
      double norm_d = 0, norm_e = 0;
      for (int j = 0; j < dsub(); ++j) {
        norm = std::fma(vf[j], vf[j], norm);
        norm_d += vd[j] * vd[j];
        norm_e += (2 * std::abs(vd[j]) + ve[j]) * ve[j];
      }
      norm_e += gamma(dsub()) * (norm_d + norm_e) + underflow(dsub());
      const float rest = phi - norm;
      vf.push_back(std::isnan(rest) ? rest : std::sqrt(std::max(rest, 0.0f)));
      const double rest_d = std::max(phi - norm_d, 0.0);
      const double rest_e = norm_e + gamma(1) * (rest_d + norm_e);
      const double extra = std::sqrt(rest_d);
      // |sqrt(a) - sqrt(b)| = |a - b| / (sqrt(a) + sqrt(b)), and at most sqrt(|a - b|).
      const double root_e =
          extra > 0 ? std::min(std::sqrt(rest_e), rest_e / extra) : std::sqrt(rest_e);
      vd.push_back(std::isnan(norm_d) ? norm_d : extra);
      ve.push_back(root_e + gamma(1) * (extra + root_e));
    }
    std::uint32_t best = 0xffffffffu;
    for (int id = 0; id < ksub(); ++id) {
      const float* centroid =
          cb.centroids.data() + ((static_cast<std::size_t>(head) * m + s) * ksub() + id) * dcent();
      float acc = 0;
      double sum = 0, bound = 0, magnitude = 0;
      for (int j = 0; j < dcent(); ++j) {
        const float diff = vf[j] - centroid[j];
        acc = std::fma(diff, diff, acc);
        const double exact = vd[j] - centroid[j];
        sum += exact * exact;
        bound += (2 * std::abs(exact) + ve[j]) * ve[j];
        magnitude += (std::abs(exact) + ve[j]) * (std::abs(exact) + ve[j]);
      }
      bound += gamma(dcent() + 2) * magnitude + underflow(dcent());
      if (std::isfinite(acc) && !(std::abs(acc - sum) <= bound) && defects_.size() < 2000) {
        char text[160];
        std::snprintf(text, sizeof text, "distance %.9g in float32, %.17g in double, bound %.3g\n",
                      acc, sum, bound);
        defects_ += text;
      }
      if (std::isfinite(sum) && sum < FLT_MAX / 4 && !std::isfinite(acc)) {
        defects_ += "a finite distance is not finite in float32\n";
      }
      const std::uint32_t key = nearness(acc);
      if (key < best) {
        best = key;
        code[s] = static_cast<std::uint8_t>(id);
      }
    }
  }
}

void Oracle::encode(const Cache& cache, const Pages& pages, int slot, int n, bool restart) {
  if (!built_[slot]) return;
  const int s = std::min(restart ? 0 : seen_[slot], n - 1);
  seen_[slot] = n;
  if (!keeps_codes_) return;
  const Codebook& cb = codebooks_[slot];
  const int d = c_.head_dim, m = c_.num_subspaces;
  auto codes_of = [&](int position, int head) {
    return codes_.data() + (cache_slot(pages, position) * c_.num_kv_heads + head) * m;
  };
  if (c_.block_size == 0) {
    for (int p = std::max(s, c_.encode_from); p < n; ++p) {
      for (int h = 0; h < c_.num_kv_heads; ++h) {
        encode_vector(cb, h, cache.key(cache_slot(pages, p), h), codes_of(p, h));
      }
    }
  } else {
    for (int end = c_.block_size; end <= n; end += c_.block_size) {
      if (end <= s || end <= c_.encode_from) continue;
      const int begin = std::max(end - c_.block_size, c_.encode_from);
      for (int h = 0; h < c_.num_kv_heads; ++h) {
        std::vector<float> mean(d);
        for (int i = 0; i < d; ++i) {
          float sum = 0;
          for (int p = begin; p < end; ++p) sum += cache.key(cache_slot(pages, p), h)[i];
          mean[i] = round_to(c_.mean_dtype, sum / static_cast<float>(end - begin));
        }
        std::copy(mean.begin(), mean.end(),
                  means_.begin() + (cache_slot(pages, end - 1) * c_.num_kv_heads + h) * d);
        for (int p = begin; p < end; ++p) {
          const float* key = cache.key(cache_slot(pages, p), h);
          std::vector<float> residual(d);
          for (int i = 0; i < d; ++i) residual[i] = key[i] - mean[i];
          encode_vector(cb, h, residual.data(), codes_of(p, h));
        }
      }
    }
  }
}

Score dot(const float* a, const float* b, int n) {
  Score s;
  double magnitude = 0;
  for (int i = 0; i < n; ++i) {
    s.value += static_cast<double>(a[i]) * b[i];
    magnitude += std::abs(static_cast<double>(a[i]) * b[i]);
  }
  // A product passes at most n roundings, its own included, whatever the order.
  s.bound = std::isfinite(s.value) ? gamma(n + 1) * magnitude + underflow(2 * n) : 0;
  return s;
}

std::vector<Score> Oracle::pq_scores(const Pages& pages, int slot, int head, const float* query,
                                     int first, int end) const {
  const Codebook& cb = codebooks_[slot];
  const int d = c_.head_dim, m = c_.num_subspaces, kv = head / group();
  std::vector<double> q(query, query + d), err(d, 0.0);
  if (!cb.query_rotation.empty()) {
    const float* r = cb.query_rotation.data() + static_cast<std::size_t>(kv) * d * d;
    for (int j = 0; j < d; ++j) {
      double sum = 0, magnitude = 0;
      for (int i = 0; i < d; ++i) {
        const double term = static_cast<double>(query[i]) * r[static_cast<std::size_t>(i) * d + j];
        sum += term;
        magnitude += std::abs(term);
      }
      q[j] = sum;
      err[j] = gamma(d) * magnitude + underflow(d);
    }
  }
  std::vector<Score> lut(static_cast<std::size_t>(m) * ksub());
  for (int s = 0; s < m; ++s) {
    for (int id = 0; id < ksub(); ++id) {
      const float* centroid =
          cb.centroids.data() + ((static_cast<std::size_t>(kv) * m + s) * ksub() + id) * dcent();
      double value = 0, magnitude = 0, carried = 0;
      for (int j = 0; j < dsub(); ++j) {
        const int i = s * dsub() + j;
        value += q[i] * centroid[j];
        magnitude += (std::abs(q[i]) + err[i]) * std::abs(static_cast<double>(centroid[j]));
        carried += err[i] * std::abs(static_cast<double>(centroid[j]));
      }
      lut[s * ksub() + id] = {value, gamma(dsub()) * magnitude + carried + underflow(dsub())};
    }
  }
  std::vector<Score> scores;
  Score bias;
  bool finite_mean = true;
  for (int p = first; p < end; ++p) {
    if (c_.block_size > 0 && (p == first || p % c_.block_size == 0)) {
      const int last = p / c_.block_size * c_.block_size + c_.block_size - 1;
      const float* block_mean = mean(cache_slot(pages, last), kv);
      bias = dot(query, block_mean, d);
      finite_mean =
          std::all_of(block_mean, block_mean + d, [](float v) { return std::isfinite(v); });
    }
    const std::uint8_t* code_p = code(cache_slot(pages, p), kv);
    Score sum;
    double magnitude = 0;
    if (c_.block_size > 0) {
      sum = bias;
      magnitude = std::abs(bias.value) + bias.bound;
    }
    for (int s = 0; s < m; ++s) {
      const Score& entry = lut[s * ksub() + code_p[s]];
      sum.value += entry.value;
      sum.bound += entry.bound;
      magnitude += std::abs(entry.value) + entry.bound;
    }
    // m additions at most.
    sum.bound += gamma(m) * magnitude;
    if (!finite_mean) sum.value = std::nan("");
    if (!std::isfinite(sum.value)) sum.bound = 0;
    scores.push_back(sum);
  }
  return scores;
}

OracleRow Oracle::row(const Cache& cache, const Pages& pages, int slot, bool built, int n,
                      int list_head, const float* queries) const {
  OracleRow r;
  r.n = n;
  r.first = r.end = std::max(c_.sink_size, c_.encode_from);
  if (n == 0) return r;
  auto add = [&](int from, int to) {
    for (int p = from; p < to; ++p) r.list.push_back(p);
  };
  if (n <= dense_limit()) {
    r.kind = Kind::dense;
    add(0, n);
    return r;
  }
  r.kind = built ? Kind::sparse : Kind::not_built;
  add(0, c_.sink_size);
  if (built) {
    r.end = n - c_.window_size;
    std::vector<std::vector<Score>> by_head;
    for (int g = 0; g < list_group(); ++g) {
      by_head.push_back(pq_scores(pages, slot, list_head * list_group() + g,
                                  queries + g * c_.head_dim, r.first, r.end));
    }
    const Reduction reduction(c_, std::move(by_head));
    for (int i = 0; i < r.end - r.first; ++i) r.scores.push_back(reduction.score(i));
    auto best = [](std::vector<int> of, const std::vector<Score>& by, int first, int count) {
      std::stable_sort(of.begin(), of.end(),
                       [&](int a, int b) { return rank(by[a - first]) > rank(by[b - first]); });
      of.resize(std::min<std::size_t>(of.size(), count));
      std::sort(of.begin(), of.end());
      return of;
    };
    std::vector<int> heavy(r.end - r.first);
    std::iota(heavy.begin(), heavy.end(), r.first);
    heavy = best(heavy, r.scores, r.first, c_.refine_factor * c_.heavy_size);
    if (c_.refine_factor > 1) {
      const int kv = list_head * list_group() / group();
      for (int p = r.first; p < r.end; ++p) {
        std::vector<Score> products;
        for (int g = 0; g < list_group(); ++g) {
          products.push_back(
              dot(queries + g * c_.head_dim, cache.key(cache_slot(pages, p), kv), c_.head_dim));
        }
        r.exact.push_back(reduction.exact(products));
      }
      heavy = best(heavy, r.exact, r.first, c_.heavy_size);
    }
    r.list.insert(r.list.end(), heavy.begin(), heavy.end());
  }
  add(std::max(c_.sink_size, n - c_.window_size), n);
  return r;
}

bool Oracle::sequence(const std::vector<Pages>& tables, const HostBatch& batch, int b,
                      std::uint32_t* bits) const {
  const int slot = batch.slot(b), n = batch.length(b, 0), count = batch.count(b);
  if (slot < 0) return false;
  if (slot >= c_.max_sequences) *bits |= kSlotOutOfRange;
  if (count < 0 || count > batch.query_tokens) *bits |= kQueryCountOutOfRange;
  if (n < 0 || n > c_.max_seq_len) *bits |= kLengthOutOfRange;
  if (*bits != 0 || count == 0) return false;
  if (c_.page_size > 0) {
    // Every page below the longest length that one of the rows may have.
    int longest = n;
    for (int t = 1; t < count; ++t) {
      const int at = batch.length(b, t);
      if (at <= c_.max_seq_len && at <= n + batch.query_tokens - 1 &&
          at >= batch.length(b, t - 1)) {
        longest = std::max(longest, at);
      }
    }
    for (int page = 0; page * page_size() < longest; ++page) {
      if (tables[b][page] < 0 || tables[b][page] >= num_pages()) *bits |= kPageOutOfRange;
    }
  }
  return *bits == 0;
}

void Oracle::append(const Cache& cache, const std::vector<Pages>& tables, const HostBatch& batch,
                    std::vector<std::uint32_t>* bits) {
  bits->assign(batch.batch_size, 0);
  for (int b = 0; b < batch.batch_size; ++b) {
    if (!sequence(tables, batch, b, &(*bits)[b])) continue;
    encode(cache, tables[b], batch.slot(b), batch.length(b, 0), false);
  }
}

std::vector<OracleRow> Oracle::next(const Cache& cache, const std::vector<Pages>& tables,
                                    const HostBatch& batch, const std::vector<float>& queries,
                                    std::vector<std::uint32_t>* bits) {
  const int tokens = batch.query_tokens;
  bits->assign(batch.batch_size, 0);
  std::vector<OracleRow> rows(static_cast<std::size_t>(batch.batch_size) * tokens * list_heads());
  for (int b = 0; b < batch.batch_size; ++b) {
    if (!sequence(tables, batch, b, &(*bits)[b])) continue;
    const int slot = batch.slot(b), n0 = batch.length(b, 0);
    encode(cache, tables[b], slot, n0, false);
    for (int t = 0; t < batch.count(b); ++t) {
      const int n = batch.length(b, t);
      const int before = t == 0 ? n : batch.length(b, t - 1);
      if (n < n0 || n > n0 + tokens - 1 || n < before || n > c_.max_seq_len) {
        (*bits)[b] |= kLengthOutOfRange;
        continue;
      }
      if (n > dense_limit() && !built_[slot]) (*bits)[b] |= kNotBuilt;
      for (int h = 0; h < list_heads(); ++h) {
        const std::size_t i = (static_cast<std::size_t>(b) * tokens + t) * list_heads() + h;
        rows[i] = row(cache, tables[b], slot, built_[slot], n, h,
                      queries.data() + i * list_group() * c_.head_dim);
      }
    }
  }
  return rows;
}

namespace {

std::string message(const char* what, int position, double a, double b) {
  char text[200];
  std::snprintf(text, sizeof text, "%s: position %d (%.9g, %.9g)", what, position, a, b);
  return text;
}

}  // namespace

std::string compare(const IndexerConfig& c, const OracleRow& row,
                    const std::vector<std::int32_t>& list, bool exact) {
  if (list == row.list) return {};
  if (list.size() != row.list.size()) {
    return "length " + std::to_string(list.size()) + ", expected " +
           std::to_string(row.list.size());
  }
  std::vector<int> extra, missing;
  std::set_difference(list.begin(), list.end(), row.list.begin(), row.list.end(),
                      std::back_inserter(extra));
  std::set_difference(row.list.begin(), row.list.end(), list.begin(), list.end(),
                      std::back_inserter(missing));
  if (extra.empty()) return "not ascending or repeated entries";
  for (int p : extra) {
    if (p < row.first || p >= row.end)
      return message("listed, no candidate", p, row.first, row.end);
  }
  for (int p : missing) {
    if (p < row.first || p >= row.end) return message("not listed though sink or window", p, 0, 0);
  }
  if (exact) return message("listed wrongly (exact inputs)", extra[0], missing[0], 0);

  // float32 sees every score within its bound of ours. A key is surely not on the shortlist where
  // that many surely score above it, and surely is where fewer may reach it.
  const std::ptrdiff_t shortlist = std::ptrdiff_t{c.refine_factor} * c.heavy_size;
  std::vector<double> lows, highs;
  for (const Score& s : row.scores) lows.push_back(rank_low(s)), highs.push_back(rank_high(s));
  std::sort(lows.begin(), lows.end());
  std::sort(highs.begin(), highs.end());
  auto possible = [&](int p) {
    const double high = rank_high(row.scores[p - row.first]);
    return lows.end() - std::upper_bound(lows.begin(), lows.end(), high) < shortlist;
  };
  auto certain = [&](int p) {
    const double low = rank_low(row.scores[p - row.first]);
    return highs.end() - std::lower_bound(highs.begin(), highs.end(), low) - 1 < shortlist;
  };
  const std::vector<Score>& final_scores = c.refine_factor > 1 ? row.exact : row.scores;
  for (int p : extra) {
    if (!possible(p)) {
      return message("not among the best", p, rank(row.scores[p - row.first]),
                     lows[lows.size() - static_cast<std::size_t>(shortlist)]);
    }
  }
  for (int a : extra) {
    for (int b : missing) {
      const Score &sa = final_scores[a - row.first], &sb = final_scores[b - row.first];
      if (c.refine_factor > 1 && !certain(b)) continue;
      if (rank_high(sa) < rank_low(sb)) {
        return message("a better key is left out", b, rank(sb), rank(sa));
      }
      // NaN and infinities are exact: they tie, and the lower position wins.
      if (sa.bound == 0 && sb.bound == 0 && rank(sa) == rank(sb) && b < a) {
        return message("a tie went to the higher position", a, b, rank(sa));
      }
    }
  }
  return {};
}

}  // namespace quarry::test
