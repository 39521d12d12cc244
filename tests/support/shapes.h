// SPDX-License-Identifier: Apache-2.0
//
// Score distributions that break selections and the bounds of low-precision scores. A key is a
// centroid of each subspace, so its code is known, and a query's first coordinates pick the
// LUT: what a position scores is a matter of choice.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "random.h"
#include "scenario.h"

namespace quarry::test {

enum class ScoreShape {
  random,
  sorted,
  reversed,
  two_valued,
  geometric,   ///< each level half as common as the one below it
  tied,        ///< one score for all
  outlier,     ///< one entry dwarfs the others, one key has it
  unused,      ///< one entry dwarfs the others, no key has it
  narrow,      ///< differences of a few units in the last place
  cancelling,  ///< large entries of both signs, what is left is rounding
  infinite,    ///< LUT entries of +-infinity, their sums NaN
  overflow,    ///< finite entries whose sums pass float32's range, on the way or at the end
  denormal,
  nan,  ///< every score of every other query head is NaN
};
constexpr ScoreShape kScoreShapes[] = {
    ScoreShape::random,    ScoreShape::sorted,     ScoreShape::reversed, ScoreShape::two_valued,
    ScoreShape::geometric, ScoreShape::tied,       ScoreShape::outlier,  ScoreShape::unused,
    ScoreShape::narrow,    ScoreShape::cancelling, ScoreShape::infinite, ScoreShape::overflow,
    ScoreShape::denormal,  ScoreShape::nan};

inline const char* to_string(ScoreShape shape) {
  const char* const names[] = {"random",   "sorted",   "reversed", "two_valued", "geometric",
                               "tied",     "outlier",  "unused",   "narrow",     "cancelling",
                               "infinite", "overflow", "denormal", "nan"};
  return names[static_cast<int>(shape)];
}

/// Makes `world` one whose scores have the shape: its codebook (of all slots), the keys of every
/// slot and the queries of steps of one query token. Without blocks and rotation the keys are
/// exactly centroids; with them the shape is only approximate, and no less hard.
class ShapedScores {
 public:
  ShapedScores(World& world, ScoreShape shape, std::uint64_t seed)
      : world_(world), c_(world.config()), shape_(shape), random_(seed) {
    codebook_ = world.make_codebook(seed);
    const int m = c_.num_subspaces, ksub = 1 << c_.bits;
    for (int h = 0; h < c_.num_kv_heads; ++h) {
      for (int s = 0; s < m; ++s) {
        for (int id = 0; id < ksub; ++id) *centroid(h, s, id) = entry(s, id);
      }
    }
    world.set_codebook(-1, codebook_);
    fill_keys();
    fill_queries();
  }

 private:
  float* centroid(int head, int s, int id) {
    const int dcent = world_.oracle().dcent(), ksub = 1 << c_.bits;
    return codebook_.centroids.data() +
           ((static_cast<std::size_t>(head) * c_.num_subspaces + s) * ksub + id) * dcent;
  }

  float entry(int s, int id) {
    const int m = c_.num_subspaces, ksub = 1 << c_.bits;
    const float x = static_cast<float>(random_.normal());
    switch (shape_) {
      case ScoreShape::random:
      case ScoreShape::nan:
        return x;
      case ScoreShape::sorted:
        return std::ldexp(static_cast<float>(id), c_.bits * std::max(-6, -s));
      case ScoreShape::reversed:
        return -std::ldexp(static_cast<float>(id), c_.bits * std::max(-6, -s));
      case ScoreShape::two_valued:
        return s > 0 ? 0.0f : id % 2 == 0 ? -1.5f : 2.5f;
      case ScoreShape::geometric:
        return std::ldexp(1.0f, id % 40) * (s == 0 ? 1.0f : 0x1p-8f);
      case ScoreShape::tied:
        return 0.75f;
      case ScoreShape::outlier:
      case ScoreShape::unused:
        return id == ksub - 1 && s == 0 ? 1e30f : x;
      case ScoreShape::narrow:
        return s == 0 ? 1.0f : static_cast<float>(random_.integer(0, 6)) * 0x1p-24f;
      case ScoreShape::cancelling:
        return s < m / 2 ? std::ldexp(x, 20) : s < m / 2 * 2 ? -std::ldexp(x, 20) : x * 0x1p-20f;
      case ScoreShape::infinite:
        return random_.integer(0, 3 * ksub) == 0 ? (random_.integer(0, 1) == 0 ? 1e38f : -1e38f)
                                                 : x;
      case ScoreShape::overflow:
        return (random_.integer(0, 1) == 0 ? 1.0f : -1.0f) *
               static_cast<float>(1.0 + random_.uniform()) * 1.5e38f;
      case ScoreShape::denormal:
        return x * 0x1p-142f;
    }
    return 0;
  }

  int code(int slot, int position, int s) {
    const int ksub = 1 << c_.bits;
    switch (shape_) {
      case ScoreShape::sorted:
      case ScoreShape::reversed: {
        // Digits of the position, most significant first, in as many subspaces as hold it.
        int digits = 1;
        while (digits < c_.num_subspaces && std::ldexp(1.0, digits * c_.bits) < c_.max_seq_len) {
          ++digits;
        }
        if (s >= digits) return 0;
        const double scale = std::min(1.0, std::ldexp(1.0, digits * c_.bits) / c_.max_seq_len);
        const auto rank = static_cast<std::int64_t>(position * scale);
        return static_cast<int>(rank >> (digits - 1 - s) * c_.bits) & (ksub - 1);
      }
      case ScoreShape::geometric: {
        int level = 0;
        while (level + 1 < ksub && random_.integer(0, 1) == 0) ++level;
        return level;
      }
      case ScoreShape::outlier:
        if (s == 0 && position == c_.max_seq_len / 2 && slot == 0) return ksub - 1;
        [[fallthrough]];
      case ScoreShape::unused:
        return s == 0 ? random_.integer(0, ksub - 2) : random_.integer(0, ksub - 1);
      default:
        return random_.integer(0, ksub - 1);
    }
  }

  void fill_keys() {
    const int dsub = world_.oracle().dsub();
    for (int slot = 0; slot < c_.max_sequences; ++slot) {
      for (int p = 0; p < c_.max_seq_len; ++p) {
        for (int h = 0; h < c_.num_kv_heads; ++h) {
          float* key = world_.cache().keys.data() +
                       world_.cache().offset(world_.oracle().cache_slot(world_.pages(slot), p), h);
          for (int s = 0; s < c_.num_subspaces; ++s) {
            const float* from = centroid(h, s, code(slot, p, s));
            for (int j = 0; j < dsub; ++j) {
              key[s * dsub + j] = round_to(world_.setup().key_dtype, from[j]);
            }
          }
        }
      }
    }
  }

  void fill_queries() {
    const int dsub = world_.oracle().dsub(), group = c_.num_query_heads / c_.num_kv_heads;
    std::vector<float> queries(static_cast<std::size_t>(c_.max_sequences) * c_.num_query_heads *
                               c_.head_dim);
    for (int row = 0; row < c_.max_sequences * c_.num_query_heads; ++row) {
      const int g = row % c_.num_query_heads % group;
      float scale = g % 3 == 2 ? -0.5f : 1.0f;
      if (shape_ == ScoreShape::infinite) scale *= 10.0f;
      if (shape_ == ScoreShape::nan && row % 2 == 1)
        scale = std::numeric_limits<float>::quiet_NaN();
      for (int s = 0; s < c_.num_subspaces; ++s) {
        queries[static_cast<std::size_t>(row) * c_.head_dim + s * dsub] = scale;
      }
    }
    world_.use_queries(std::move(queries));
  }

  World& world_;
  const IndexerConfig c_;
  ScoreShape shape_;
  Random random_;
  Codebook codebook_;
};

}  // namespace quarry::test
