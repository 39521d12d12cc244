// SPDX-License-Identifier: Apache-2.0
#include "quarry/calibrate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <string>

#include <omp.h>

#include "half.h"
#include "moment_sum.h"
#include "quarry/indexer.h"

namespace quarry {
namespace {

using Matrix = Eigen::MatrixXd;
using Vector = Eigen::VectorXd;

constexpr std::int64_t kHoldOut = 16;  // every 16th block is held out of training
constexpr double kFloor = 1e-4;        // of the largest eigenvalue

/// The traces' encoded positions as one numbered set, a trace after the other.
class Residuals {
 public:
  Residuals(const IndexerConfig& config, const std::vector<CalibrationTrace>& traces)
      : config_(config), traces_(traces) {
    for (const CalibrationTrace& trace : traces) {
      const std::int64_t block = std::max(config.block_size, 1);
      const std::int64_t end = trace.keys.count / block * block;
      ends_.push_back(count() + std::max<std::int64_t>(end - config.encode_from, 0));
    }
  }

  std::int64_t count() const { return ends_.empty() ? 0 : ends_.back(); }

  /// Blocks (of 64 keys where the configuration has none) in turn: are they held out?
  bool held_out(std::int64_t i) const {
    const auto [trace, position] = locate(i);
    const std::int64_t block = config_.block_size > 0 ? config_.block_size : 64;
    return (position / block) % kHoldOut == kHoldOut - 1;
  }

  /// The mean that a reader of ascending positions of one head computed last.
  struct Mean {
    std::int64_t trace = -1, block = -1;
    std::vector<float> values;
  };

  /// Key i of `head` less its block's mean as the index would store it; false if not finite.
  bool get(std::int64_t i, std::int32_t head, Mean* mean, float* out) const {
    const auto [t, position] = locate(i);
    const HostVectors& keys = traces_[static_cast<std::size_t>(t)].keys;
    load(keys, position, head, out);
    if (config_.block_size > 0) {
      const std::int64_t block = position / config_.block_size;
      if (mean->trace != t || mean->block != block) {
        mean->values.resize(static_cast<std::size_t>(config_.head_dim));
        block_mean(keys, block, head, mean->values.data());
        mean->trace = t;
        mean->block = block;
      }
      for (std::size_t j = 0; j < mean->values.size(); ++j) out[j] -= mean->values[j];
    }
    return std::all_of(out, out + config_.head_dim, [](float x) { return std::isfinite(x); });
  }

 private:
  struct Place {
    std::int64_t trace, position;
  };
  Place locate(std::int64_t i) const {
    const auto it = std::upper_bound(ends_.begin(), ends_.end(), i);
    const std::int64_t trace = it - ends_.begin();
    const std::int64_t before = trace == 0 ? 0 : ends_[static_cast<std::size_t>(trace - 1)];
    return {trace, i - before + config_.encode_from};
  }

  static float scale_of(const HostVectors& v, std::int32_t head) {
    return v.scales == nullptr ? 1.0f : v.scales[v.num_scales == 1 ? 0 : head];
  }

  void load(const HostVectors& v, std::int64_t row, std::int32_t head, float* out) const {
    const std::int64_t at = row * v.row_stride + head * v.head_stride;
    const float scale = scale_of(v, head);
    for (std::int32_t j = 0; j < config_.head_dim; ++j) {
      out[j] = scaled_element(v.data, v.dtype, scale, at + j);
    }
  }

  /// The contract's mean: float32 in ascending position, rounded to mean_dtype.
  void block_mean(const HostVectors& keys, std::int64_t block, std::int32_t head,
                  float* mean) const {
    const std::int64_t end = (block + 1) * config_.block_size;
    const std::int64_t first =
        std::max<std::int64_t>(block * config_.block_size, config_.encode_from);
    const float scale = scale_of(keys, head);
    for (std::int32_t j = 0; j < config_.head_dim; ++j) {
      float sum = 0;
      for (std::int64_t p = first; p < end; ++p) {
        const std::int64_t at = p * keys.row_stride + head * keys.head_stride + j;
        sum += scaled_element(keys.data, keys.dtype, scale, at);
      }
      alignas(float) std::byte stored[sizeof(float)];
      store_element(stored, config_.mean_dtype, 0, sum / static_cast<float>(end - first));
      mean[j] = load_element(stored, config_.mean_dtype, 0);
    }
  }

  const IndexerConfig& config_;
  const std::vector<CalibrationTrace>& traces_;
  std::vector<std::int64_t> ends_;
};

Status check(const IndexerConfig& c, const std::vector<CalibrationTrace>& traces,
             const QueryMoments* moments) {
  if (traces.empty()) return Status(StatusCode::invalid_argument, "traces is empty");
  for (std::size_t i = 0; i < traces.size(); ++i) {
    const CalibrationTrace& t = traces[i];
    const std::string name = "traces[" + std::to_string(i) + "].";
    if (Status s = check_vectors((name + "keys").c_str(), t.keys, c.num_kv_heads, c.head_dim, true);
        !s.ok()) {
      return s;
    }
    std::int64_t queries = 0;
    for (const HostVectors& q : t.queries) {
      if (Status s = check_vectors((name + "queries").c_str(), q, c.num_query_heads, c.head_dim);
          !s.ok()) {
        return s;
      }
      queries += q.count;
    }
    if (c.rotation && queries == 0 && moments == nullptr) {
      return Status(StatusCode::invalid_argument,
                    "traces[%zu].queries is empty, a rotation needs queries", i);
    }
  }
  if (!c.rotation || moments == nullptr) return {};
  if (moments->num_kv_heads() != c.num_kv_heads || moments->head_dim() != c.head_dim) {
    return Status(StatusCode::invalid_argument,
                  "options.query_moments are of %d KV heads of %d, config says %d of %d",
                  moments->num_kv_heads(), moments->head_dim(), c.num_kv_heads, c.head_dim);
  }
  for (std::int32_t h = 0; h < c.num_kv_heads; ++h) {
    if (moments->count(h) > 0) continue;
    return Status(StatusCode::invalid_argument,
                  "options.query_moments have no finite query of KV head %d in an array that "
                  "ended, a rotation needs queries",
                  h);
  }
  return {};
}

/// What the queries of all traces come to.
Status sum_queries(const IndexerConfig& c, const std::vector<CalibrationTrace>& traces,
                   QueryMoments* out) {
  if (Status s = QueryMoments::create(c, out); !s.ok()) return s;
  for (const CalibrationTrace& trace : traces) {
    for (const HostVectors& q : trace.queries) {
      if (Status s = out->add(q); !s.ok()) return s;
    }
  }
  return {};
}

/// Covariance of the residuals of a KV head, those held out left out.
Matrix residual_covariance(const IndexerConfig& c, const Residuals& residuals, std::int32_t kv) {
  std::vector<float> x(static_cast<std::size_t>(c.head_dim));
  Residuals::Mean mean;
  Vector total = Vector::Zero(c.head_dim);
  MomentSum sum(c.head_dim);
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < residuals.count(); ++i) {
    if (residuals.held_out(i) || !residuals.get(i, kv, &mean, x.data())) continue;
    auto column = sum.next();
    for (std::int32_t j = 0; j < c.head_dim; ++j) column[j] = x[static_cast<std::size_t>(j)];
    total += column;
    sum.push();
    ++count;
  }
  const double n = static_cast<double>(std::max<std::int64_t>(count, 1));
  return sum.take() / n - total * total.transpose() / (n * n);
}

/// Which column each principal axis becomes: the largest eigenvalue goes to the subspace with
/// the smallest product so far that has room.
std::vector<std::int32_t> deal(const Vector& descending, std::int32_t m) {
  const auto d = static_cast<std::int32_t>(descending.size());
  const double least = std::max(descending[0] * 1e-12, 1e-300);
  std::vector<double> product(static_cast<std::size_t>(m), 0.0);  // logarithms
  std::vector<std::int32_t> filled(static_cast<std::size_t>(m), 0), column;
  for (std::int32_t i = 0; i < d; ++i) {
    std::size_t best = static_cast<std::size_t>(m);
    for (std::size_t s = 0; s < product.size(); ++s) {
      if (filled[s] == d / m) continue;
      if (best == product.size() || product[s] < product[best]) best = s;
    }
    column.push_back(static_cast<std::int32_t>(best) * (d / m) + filled[best]++);
    product[best] += std::log(std::max(descending[i], least) / least);
  }
  return column;
}

struct Rotation {
  Matrix forward, inverse_transpose;  // row vectors: x' = x . forward
};

Rotation make_rotation(const IndexerConfig& c, const Matrix& queries, const Matrix& covariance) {
  const std::int32_t d = c.head_dim;
  const Eigen::SelfAdjointEigenSolver<Matrix> q(queries);
  const double largest = std::max(q.eigenvalues()[d - 1], 1e-300);
  const Vector root = q.eigenvalues().cwiseMax(kFloor * largest).cwiseSqrt();
  const Matrix white = q.eigenvectors() * root.asDiagonal() * q.eigenvectors().transpose();
  const Matrix unwhite =
      q.eigenvectors() * root.cwiseInverse().asDiagonal() * q.eigenvectors().transpose();
  const Eigen::SelfAdjointEigenSolver<Matrix> axes(white * covariance * white);
  // Eigen sorts in ascending order; an axis' sign is fixed so that the result is one.
  const Vector descending = axes.eigenvalues().reverse();
  const std::vector<std::int32_t> column = deal(descending, c.num_subspaces);
  Matrix basis(d, d);
  for (std::int32_t i = 0; i < d; ++i) {
    Vector axis = axes.eigenvectors().col(d - 1 - i);
    Eigen::Index at = 0;
    axis.cwiseAbs().maxCoeff(&at);
    basis.col(column[static_cast<std::size_t>(i)]) = axis[at] < 0 ? Vector(-axis) : axis;
  }
  return {white * basis, unwhite * basis};
}

void copy_rows(const Matrix& from, float* to) {
  for (Eigen::Index i = 0; i < from.rows(); ++i) {
    for (Eigen::Index j = 0; j < from.cols(); ++j) {
      to[i * from.cols() + j] = static_cast<float>(from(i, j));
    }
  }
}

/// x' = x . rotation, up to rounding what the index encodes.
void rotate(const float* rotation, std::int32_t d, const float* x, float* out) {
  std::fill(out, out + d, 0.0f);
  for (std::int32_t i = 0; i < d; ++i) {
    for (std::int32_t j = 0; j < d; ++j) out[j] += x[i] * rotation[i * d + j];
  }
}

/// Residuals of evenly spaced positions, all of them held out or none, rotated: [n, Hkv, d].
/// A position with a non-finite key of some head has NaN there, which k-means leaves out.
std::vector<float> sample(const IndexerConfig& c, const Residuals& residuals,
                          const std::vector<float>& rotation, bool held_out, std::int64_t most,
                          std::int32_t threads) {
  std::vector<std::int64_t> positions;
  for (std::int64_t i = 0; i < residuals.count(); ++i) {
    if (residuals.held_out(i) == held_out) positions.push_back(i);
  }
  const auto total = static_cast<std::int64_t>(positions.size());
  const std::int64_t count = std::min(total, most);
  const std::int64_t d = c.head_dim;
  std::vector<float> out(static_cast<std::size_t>(count * c.num_kv_heads * d), NAN);
  // Taken here: no exception may leave a parallel region. A head's positions ascend.
  std::vector<float> scratch(static_cast<std::size_t>(c.num_kv_heads * d));
  std::vector<Residuals::Mean> means(static_cast<std::size_t>(c.num_kv_heads));
  for (Residuals::Mean& mean : means) mean.values.resize(static_cast<std::size_t>(d));
#pragma omp parallel for schedule(static) num_threads(threads)
  for (std::int32_t h = 0; h < c.num_kv_heads; ++h) {
    float* x = scratch.data() + h * d;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t from = positions[static_cast<std::size_t>(i * total / count)];
      if (!residuals.get(from, h, &means[static_cast<std::size_t>(h)], x)) continue;
      float* to = out.data() + (i * c.num_kv_heads + h) * d;
      if (rotation.empty()) {
        std::copy(x, x + d, to);
      } else {
        rotate(rotation.data() + h * d * d, c.head_dim, x, to);
      }
    }
  }
  return out;
}

/// An index of the samples themselves: their k-means is an Indexer's.
Status train_codebooks(const IndexerConfig& config, const std::vector<float>& samples,
                       std::int32_t num_threads, Calibration* out) {
  IndexerConfig c = config;
  const std::int64_t row = std::int64_t{c.num_kv_heads} * c.head_dim;
  c.num_query_heads = c.num_kv_heads;
  c.max_sequences = c.max_query_tokens = 1;
  c.max_seq_len =
      std::max(1, static_cast<std::int32_t>(static_cast<std::int64_t>(samples.size()) / row));
  c.page_size = 0;
  c.num_pages = 0;
  c.block_size = c.sink_size = c.window_size = c.encode_from = 0;
  c.rotation = c.shared_codebook = false;
  c.heavy_size = c.refine_factor = 1;
  c.gqa_reduction = GqaReduction::per_head;
  c.algorithm = Algorithm::automatic;
  MemoryRequirements need;
  if (Status s = memory_requirements(c, Backend::cpu, &need); !s.ok()) return s;
  Indexer indexer;
  Resources resources;
  resources.num_threads = num_threads;
  if (Status s = Indexer::create(c, Device{}, resources, &indexer); !s.ok()) return s;
  std::vector<std::byte> scratch(need.build_workspace_bytes + need.alignment);
  void* data = scratch.data();
  std::size_t space = scratch.size();
  std::align(need.alignment, need.build_workspace_bytes, data, space);
  BuildArgs build;
  build.length = static_cast<std::int32_t>(static_cast<std::int64_t>(samples.size()) / row);
  build.keys.data = samples.data();
  build.keys.page_stride = build.keys.slot_stride = row;
  build.keys.head_stride = c.head_dim;
  build.workspace = {data, need.build_workspace_bytes};
  if (Status s = indexer.build(build, nullptr); !s.ok()) return s;
  const std::int32_t dcent =
      c.head_dim / c.num_subspaces + (c.metric == Metric::inner_product ? 1 : 0);
  const auto tables = static_cast<std::size_t>(c.num_kv_heads * c.num_subspaces);
  out->codebooks.resize(tables * static_cast<std::size_t>(dcent) << c.bits);
  if (c.metric == Metric::inner_product) out->phi.resize(tables);
  return indexer.codebook(0, out->codebooks.data(), out->phi.empty() ? nullptr : out->phi.data(),
                          nullptr);
}

/// Squared distance of the samples to their nearest centroids (the first dsub coordinates,
/// which alone score) over their squared norm: of each KV head, then of all together.
std::vector<double> relative_errors(const IndexerConfig& c, const std::vector<float>& samples,
                                    const Calibration& calibration, std::int32_t threads) {
  const std::int32_t dsub = c.head_dim / c.num_subspaces, ksub = 1 << c.bits;
  const std::int32_t dcent = dsub + (c.metric == Metric::inner_product ? 1 : 0);
  const auto vectors = static_cast<std::int64_t>(samples.size()) / dsub;
  const std::int64_t tables = std::int64_t{c.num_kv_heads} * c.num_subspaces;
  std::vector<double> errors(static_cast<std::size_t>(tables)), norms(errors.size());
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (std::int64_t table = 0; table < tables; ++table) {
    const float* book = calibration.codebooks.data() + table * ksub * dcent;
    double error = 0, norm = 0;
    for (std::int64_t v = table; v < vectors; v += tables) {
      const float* x = samples.data() + v * dsub;
      double nearest = INFINITY, own = 0, length = 0;
      for (std::int32_t j = 0; j < dsub; ++j) length += double{x[j]} * x[j];
      if (!std::isfinite(length)) continue;
      for (std::int32_t k = 0; k < ksub; ++k) {
        double squared = 0, extra = 0;
        for (std::int32_t j = 0; j < dsub; ++j) {
          const double difference = double{x[j]} - book[k * dcent + j];
          squared += difference * difference;
        }
        if (dcent > dsub) {
          const double phi = calibration.phi[static_cast<std::size_t>(table)];
          const double difference = std::sqrt(std::max(phi - length, 0.0)) - book[k * dcent + dsub];
          extra = difference * difference;
        }
        if (squared + extra < nearest) {
          nearest = squared + extra;
          own = squared;
        }
      }
      error += own;
      norm += length;
    }
    errors[static_cast<std::size_t>(table)] = error;
    norms[static_cast<std::size_t>(table)] = norm;
  }
  const auto ratio = [&](std::int64_t first, std::int64_t count) {
    const double norm = std::accumulate(norms.begin() + first, norms.begin() + first + count, 0.0);
    if (!(norm > 0)) return std::numeric_limits<double>::quiet_NaN();
    return std::accumulate(errors.begin() + first, errors.begin() + first + count, 0.0) / norm;
  };
  std::vector<double> result;
  for (std::int64_t h = 0; h < c.num_kv_heads; ++h) {
    result.push_back(ratio(h * c.num_subspaces, c.num_subspaces));
  }
  result.push_back(ratio(0, tables));
  return result;
}

Status run(const IndexerConfig& config, const std::vector<CalibrationTrace>& traces,
           const CalibrationOptions& options, Calibration* out) {
  IndexerConfig c;
  if (Status s = resolve(config, Backend::cpu, &c); !s.ok()) return s;
  if (Status s = check(c, traces, options.query_moments); !s.ok()) return s;
  const auto report = [&](const char* what, double done) {
    if (options.progress != nullptr) options.progress(what, done, options.user);
  };
  const std::int32_t threads =
      options.num_threads > 0 ? options.num_threads : omp_get_max_threads();
  const Residuals residuals(c, traces);
  Calibration result;
  result.keys = residuals.count();
  const auto d = static_cast<std::size_t>(c.head_dim);
  const auto heads = static_cast<std::size_t>(c.num_kv_heads);
  if (c.rotation) {
    QueryMoments summed;
    const QueryMoments* moments = options.query_moments;
    if (moments == nullptr) {
      if (Status s = sum_queries(c, traces, &summed); !s.ok()) return s;
      moments = &summed;
    }
    Matrix moment(c.head_dim, c.head_dim);
    result.rotation.resize(heads * d * d);
    result.query_rotation.resize(heads * d * d);
    for (std::int32_t h = 0; h < c.num_kv_heads; ++h) {
      report("rotation", 0.5 * h / c.num_kv_heads);
      if (Status s = moments->second_moment(h, moment.data()); !s.ok()) return s;
      result.queries = moments->count(h);
      const Rotation r = make_rotation(c, moment, residual_covariance(c, residuals, h));
      const std::size_t at = static_cast<std::size_t>(h) * d * d;
      copy_rows(r.forward, result.rotation.data() + at);
      copy_rows(r.inverse_transpose, result.query_rotation.data() + at);
    }
  }
  report("k-means", 0.5);
  const std::int64_t most = 256ll << c.bits;
  const std::vector<float> samples = sample(c, residuals, result.rotation, false, most, threads);
  result.sampled_keys = static_cast<std::int64_t>(samples.size() / (heads * d));
  if (Status s = train_codebooks(c, samples, options.num_threads, &result); !s.ok()) return s;
  report("held-out error", 0.9);
  std::vector<double> error = relative_errors(c, samples, result, threads);
  result.train_error = error.back();
  error.pop_back();
  for (const double e : error) {
    result.quantization_error.push_back(e > 0 ? static_cast<float>(e) : 0.0f);
  }
  result.held_out_error =
      relative_errors(c, sample(c, residuals, result.rotation, true, most, threads), result,
                      threads)
          .back();
  report("done", 1.0);
  *out = std::move(result);
  return {};
}

}  // namespace

Status check_vectors(const char* name, const HostVectors& v, std::int64_t heads, std::int64_t d,
                     bool keys) {
  const auto dtype = static_cast<std::int32_t>(v.dtype);
  const bool shaped = v.count >= 0 && v.row_stride >= d && v.head_stride >= (heads > 1 ? d : 0);
  if (dtype < 0 || dtype > (keys ? 3 : 2) || !shaped || (v.data == nullptr && v.count > 0)) {
    return Status(StatusCode::invalid_argument,
                  "%s: data %p, dtype %d, count %lld, row_stride %lld, head_stride %lld do not "
                  "fit %lld heads of %lld",
                  name, v.data, dtype, static_cast<long long>(v.count),
                  static_cast<long long>(v.row_stride), static_cast<long long>(v.head_stride),
                  static_cast<long long>(heads), static_cast<long long>(d));
  }
  const bool none = v.scales == nullptr && v.num_scales == 0;
  const bool fit = v.scales != nullptr && v.dtype == DType::float8_e4m3 &&
                   (v.num_scales == 1 || v.num_scales == heads);
  if (none || fit) return {};
  return Status(StatusCode::invalid_argument,
                "%s: scales %p, num_scales %d do not fit %lld heads of %s", name,
                static_cast<const void*>(v.scales), v.num_scales, static_cast<long long>(heads),
                to_string(v.dtype));
}

Status calibrate(const IndexerConfig& config, const std::vector<CalibrationTrace>& traces,
                 const CalibrationOptions& options, Calibration* out) noexcept {
  if (out == nullptr) return Status(StatusCode::invalid_argument, "out is null");
  if (options.num_threads < 0 || options.num_threads > 4096) {
    return Status(StatusCode::invalid_argument, "options.num_threads is %d, must be 0..4096",
                  options.num_threads);
  }
  try {
    return run(config, traces, options, out);
  } catch (const std::bad_alloc&) {
    return Status(StatusCode::out_of_memory, "no host memory for the calibration");
  } catch (...) {
    return Status(StatusCode::invalid_argument, "the eigenproblem failed");
  }
}

}  // namespace quarry
