// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <new>
#include <utility>
#include <vector>

#include "half.h"
#include "moment_sum.h"
#include "quarry/calibrate.h"

namespace quarry {

struct QueryMoments::Impl {
  struct Head {
    explicit Head(std::int32_t d) : array(d), total(MomentSum::Matrix::Zero(d, d)) {}
    MomentSum array;  // of the array that has not ended
    MomentSum::Matrix total;
    std::int64_t in_array = 0, count = 0;
  };

  std::int32_t group = 0, d = 0;
  std::vector<Head> heads;

  void add(const HostVectors& q) {
    for (std::int64_t row = 0; row < q.count; ++row) {
      for (std::size_t h = 0; h < heads.size(); ++h) {
        for (std::int32_t g = 0; g < group; ++g) {
          const auto query_head = static_cast<std::int64_t>(h) * group + g;
          push(q, row * q.row_stride + query_head * q.head_stride, &heads[h]);
        }
      }
    }
  }

  void push(const HostVectors& q, std::int64_t at, Head* head) const {
    auto column = head->array.next();
    bool finite = true;
    for (std::int32_t j = 0; j < d; ++j) {
      column[j] = load_element(q.data, q.dtype, at + j);
      finite = finite && std::isfinite(column[j]);
    }
    if (!finite) return;
    head->array.push();
    ++head->in_array;
  }

  void end_array() {
    for (Head& head : heads) {
      head.total += head.array.take();
      head.count += std::exchange(head.in_array, 0);
    }
  }
};

QueryMoments::QueryMoments() noexcept = default;
QueryMoments::~QueryMoments() = default;
QueryMoments::QueryMoments(QueryMoments&&) noexcept = default;
QueryMoments& QueryMoments::operator=(QueryMoments&&) noexcept = default;

Status QueryMoments::create(const IndexerConfig& config, QueryMoments* out) noexcept {
  if (out == nullptr) return Status(StatusCode::invalid_argument, "out is null");
  IndexerConfig c;
  if (Status s = resolve(config, Backend::cpu, &c); !s.ok()) return s;
  try {
    auto impl = std::make_unique<Impl>();
    impl->group = c.num_query_heads / c.num_kv_heads;
    impl->d = c.head_dim;
    for (std::int32_t h = 0; h < c.num_kv_heads; ++h) impl->heads.emplace_back(c.head_dim);
    out->impl_ = std::move(impl);
  } catch (const std::bad_alloc&) {
    return Status(StatusCode::out_of_memory, "no host memory for the second moments");
  }
  return {};
}

Status QueryMoments::add(const HostVectors& queries, bool ends_array) noexcept {
  if (impl_ == nullptr)
    return Status(StatusCode::invalid_argument, "these moments are not created");
  const auto heads = static_cast<std::int64_t>(impl_->heads.size()) * impl_->group;
  if (Status s = check_vectors("queries", queries, heads, impl_->d); !s.ok()) return s;
  try {
    impl_->add(queries);
    if (ends_array) impl_->end_array();
  } catch (const std::bad_alloc&) {
    return Status(StatusCode::out_of_memory, "no host memory for the second moments");
  }
  return {};
}

std::int32_t QueryMoments::num_kv_heads() const noexcept {
  return impl_ == nullptr ? 0 : static_cast<std::int32_t>(impl_->heads.size());
}

std::int32_t QueryMoments::head_dim() const noexcept { return impl_ == nullptr ? 0 : impl_->d; }

std::int64_t QueryMoments::count(std::int32_t kv_head) const noexcept {
  if (kv_head < 0 || kv_head >= num_kv_heads()) return 0;
  return impl_->heads[static_cast<std::size_t>(kv_head)].count;
}

Status QueryMoments::second_moment(std::int32_t kv_head, double* out) const noexcept {
  if (kv_head < 0 || kv_head >= num_kv_heads()) {
    return Status(StatusCode::invalid_argument, "kv_head is %d, must be 0..%d", kv_head,
                  num_kv_heads() - 1);
  }
  if (out == nullptr) return Status(StatusCode::invalid_argument, "out is null");
  const Impl::Head& head = impl_->heads[static_cast<std::size_t>(kv_head)];
  const double n = static_cast<double>(std::max<std::int64_t>(head.count, 1));
  Eigen::Map<MomentSum::Matrix>(out, impl_->d, impl_->d) = head.total / n;
  return {};
}

}  // namespace quarry
