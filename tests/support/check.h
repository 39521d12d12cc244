// SPDX-License-Identifier: Apache-2.0
//
// A second look at a list that shares nothing with the oracle but the data: is it well formed,
// and does no candidate left out score above one listed? Scores are taken as q . (mean +
// reconstruction) from the library's own codes, without a LUT and without a sort of all keys.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "group_scores.h"
#include "oracle.h"

namespace quarry::test {

/// What a row must look like whatever the scores are. `list` is the whole row up to
/// max_list_length(), `length` its list length.
inline std::string check_structure(const IndexerConfig& c, const std::vector<std::int32_t>& row,
                                   int length, int n, bool built) {
  const int max_list = static_cast<int>(row.size());
  const int window_from = std::max(c.sink_size, n - c.window_size);
  const bool dense = n <= std::max(c.dense_threshold, c.sink_size + c.heavy_size + c.window_size);
  if (length < 0 || length > max_list) return "length " + std::to_string(length);
  for (int i = length; i < max_list; ++i) {
    if (row[i] != -1) return "entry " + std::to_string(i) + " past the length is not -1";
  }
  for (int i = 0; i < length; ++i) {
    if (row[i] < 0 || row[i] >= n) return "entry out of range: " + std::to_string(row[i]);
    if (i > 0 && row[i] <= row[i - 1]) return "not ascending at " + std::to_string(i);
  }
  const int candidates = std::max(0, n - c.window_size - c.sink_size);
  const int heavy = built ? std::min(c.heavy_size, candidates) : 0;
  const int expected = dense ? n : c.sink_size + heavy + (n - window_from);
  if (length != expected) {
    return "length " + std::to_string(length) + ", must be " + std::to_string(expected);
  }
  if (dense) return {};  // n ascending entries below n: all of them
  for (int p = 0; p < c.sink_size; ++p) {
    if (row[p] != p) return "sink incomplete";
  }
  for (int p = window_from; p < n; ++p) {
    if (row[length - (n - p)] != p) return "window incomplete";
  }
  return {};
}

/// Everything check_order() needs of one sparse row.
struct OrderInput {
  const IndexerConfig* config;
  const Cache* cache;
  const Pages* pages;
  const Codebook* codebook;
  const std::uint8_t* codes;  ///< [n, Hkv, m] from position encode_from, as Indexer::codes() gave
  const float* queries;       ///< [heads of the list, d]
  int heads, kv, n;
  bool exact;  ///< small integers: float32 adds them without rounding
};

inline std::string check_order(const OrderInput& in, const std::vector<std::int32_t>& list) {
  const IndexerConfig& c = *in.config;
  const int d = c.head_dim, m = c.num_subspaces, dsub = d / m, ksub = 1 << c.bits;
  const int dcent = dsub + (c.metric == Metric::inner_product ? 1 : 0);
  const int kv = in.kv;
  const int page = c.page_size > 0 ? c.page_size : c.max_seq_len;
  auto key = [&](int p) {
    return in.cache->key(static_cast<std::int64_t>((*in.pages)[p / page]) * page + p % page, kv);
  };
  const double unit = in.exact ? 0.0 : (2.0 * d + m + 8) * 0x1p-24 * 1.01;
  const double tiny = in.exact ? 0.0 : d * 0x1p-147;
  const int first = c.sink_size, end = std::max(in.n - c.window_size, first);

  // Every head's scores by itself, and what makes two positions' equal: block and codes.
  std::vector<std::vector<Score>> by_head(in.heads);
  std::vector<std::vector<int>> groups(end - first);
  for (int head = 0; head < in.heads; ++head) {
    const float* query = in.queries + head * d;
    // q rotated, and the magnitudes that its rounding error scales with.
    std::vector<double> q(d), weight(d);
    for (int j = 0; j < d; ++j) {
      q[j] = query[j];
      weight[j] = std::abs(q[j]);
      if (in.codebook->query_rotation.empty()) continue;
      q[j] = weight[j] = 0;
      for (int i = 0; i < d; ++i) {
        const double term =
            static_cast<double>(query[i]) *
            in.codebook->query_rotation[(static_cast<std::size_t>(kv) * d + i) * d + j];
        q[j] += term;
        weight[j] += std::abs(term);
      }
    }
    std::vector<double> mean(d);
    int mean_block = -1;
    bool mean_finite = true;
    for (int p = first; p < end; ++p) {
      double value = 0, magnitude = 0;
      std::vector<int> group{0};
      if (c.block_size > 0) {
        const int block = p / c.block_size;
        group[0] = block;
        if (block != mean_block) {
          mean_block = block;
          const int begin = std::max(c.encode_from, block * c.block_size);
          const int block_end = (block + 1) * c.block_size;
          mean_finite = true;
          for (int i = 0; i < d; ++i) {
            float sum = 0;
            for (int k = begin; k < block_end; ++k) sum += key(k)[i];
            mean[i] = round_to(c.mean_dtype, sum / static_cast<float>(block_end - begin));
            mean_finite = mean_finite && std::isfinite(mean[i]);
          }
        }
        for (int i = 0; i < d; ++i) {
          value += query[i] * mean[i];
          magnitude += std::abs(query[i] * mean[i]);
        }
      }
      const std::uint8_t* code =
          in.codes + (static_cast<std::size_t>(p - c.encode_from) * c.num_kv_heads + kv) * m;
      for (int s = 0; s < m; ++s) {
        group.push_back(code[s]);
        const float* centroid = in.codebook->centroids.data() +
                                ((static_cast<std::size_t>(kv) * m + s) * ksub + code[s]) * dcent;
        for (int j = 0; j < dsub; ++j) {
          value += q[s * dsub + j] * centroid[j];
          magnitude += weight[s * dsub + j] * std::abs(static_cast<double>(centroid[j]));
        }
      }
      if (!mean_finite) value = std::nan("");
      by_head[head].push_back({value, std::isfinite(value) ? unit * magnitude + tiny : 0});
      groups[p - first] = group;
    }
  }
  const Reduction reduction(c, std::move(by_head));
  auto without_bound = [&](Score score) { return in.exact ? Score{score.value, 0} : score; };

  struct Candidate {
    int position;
    bool listed;
    double low, high;  ///< rank under the worst rounding either way
  };
  std::vector<Candidate> candidates;
  std::map<std::vector<int>, int> skipped;  // (block, codes) -> lowest position left out
  std::size_t at = 0;
  for (int p = first; p < end; ++p) {
    while (at < list.size() && list[at] < p) ++at;
    const bool listed = at < list.size() && list[at] == p;
    const Score score = without_bound(reduction.score(p - first));
    // Same block, same codes: the same float32 score, so positions must be taken in order.
    if (c.refine_factor == 1) {
      std::vector<int>& group = groups[p - first];
      if (!std::isfinite(score.value)) {
        group.assign(1, std::isnan(score.value) ? -3 : score.value < 0 ? -2 : -1);
      }
      if (!listed) {
        skipped.emplace(group, p);
      } else if (const auto it = skipped.find(group); it != skipped.end()) {
        return "a tie went to position " + std::to_string(p) + " past " +
               std::to_string(it->second);
      }
    }
    candidates.push_back({p, listed, rank_low(score), rank_high(score)});
  }

  if (c.refine_factor == 1) {
    double best_out = -1e308, worst_in = 1e308;
    int out = -1, inside = -1;
    for (const Candidate& k : candidates) {
      if (k.listed && k.high < worst_in) worst_in = k.high, inside = k.position;
      if (!k.listed && k.low > best_out) best_out = k.low, out = k.position;
    }
    if (out >= 0 && inside >= 0 && best_out > worst_in) {
      return "position " + std::to_string(out) + " scores above listed " + std::to_string(inside);
    }
    if (in.exact) {
      for (const Candidate& k : candidates) {
        if (k.listed && k.low == best_out && k.position > out) {
          return "a tie went to position " + std::to_string(k.position) + " past " +
                 std::to_string(out);
        }
      }
    }
    return {};
  }
  // With refine: who is listed was shortlisted, and no key that surely was shortlisted has a
  // higher q.k than one listed.
  std::vector<double> lows, highs;
  for (const Candidate& k : candidates) lows.push_back(k.low), highs.push_back(k.high);
  std::sort(lows.begin(), lows.end());
  std::sort(highs.begin(), highs.end());
  const std::ptrdiff_t shortlist = static_cast<std::ptrdiff_t>(c.refine_factor) * c.heavy_size;
  auto exact_score = [&](int p) {
    std::vector<Score> products;
    for (int head = 0; head < in.heads; ++head) {
      double value = 0, magnitude = 0;
      for (int i = 0; i < d; ++i) {
        const double product = static_cast<double>(in.queries[head * d + i]) * key(p)[i];
        value += product;
        magnitude += std::abs(product);
      }
      products.push_back({value, std::isfinite(value) ? unit * magnitude + d * 0x1p-147 : 0});
    }
    return reduction.exact(products);
  };
  double worst_in = 1e308, best_out = -1e308;
  for (const Candidate& k : candidates) {
    const std::ptrdiff_t surely_better =
        lows.end() - std::upper_bound(lows.begin(), lows.end(), k.high);
    const std::ptrdiff_t maybe_better =
        highs.end() - std::lower_bound(highs.begin(), highs.end(), k.low) - 1;
    if (k.listed && surely_better >= shortlist) {
      return "position " + std::to_string(k.position) + " cannot be among the shortlist";
    }
    if (k.listed) worst_in = std::min(worst_in, rank_high(exact_score(k.position)));
    if (!k.listed && maybe_better < shortlist) {
      best_out = std::max(best_out, rank_low(exact_score(k.position)));
    }
  }
  if (best_out > worst_in) return "after refine a better key is left out";
  return {};
}

}  // namespace quarry::test
