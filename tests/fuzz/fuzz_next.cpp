// SPDX-License-Identifier: Apache-2.0
//
// Random configurations, and on those that create() takes random histories of calls with
// random arguments, on the CPU backend. Every buffer is of the exact size the contract names,
// on the heap, so that ASan sees a byte too far. What a call is given either reads and writes
// inside those buffers, or is what the host must refuse. Lists of accepted calls must be lists.
#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "memory_file.h"
#include "quarry/quarry.h"

namespace {

using namespace quarry;
using fuzz::require;

constexpr std::size_t kMostBytes = 2u << 20;  // of any one buffer

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};

/// `bytes` at an address aligned to 256 and not one more, as aligned_alloc() would round up to:
/// ASan guards the byte after them.
std::unique_ptr<void, FreeDeleter> aligned(std::size_t bytes) {
  void* p = nullptr;
  require(posix_memalign(&p, 256, std::max<std::size_t>(bytes, 1)) == 0);
  std::memset(p, 0x5b, std::max<std::size_t>(bytes, 1));
  return std::unique_ptr<void, FreeDeleter>(p);
}

class Fuzzer {
 public:
  Fuzzer(const std::uint8_t* data, std::size_t size) : in_(data, size) {}

  void run() {
    choose_config();
    MemoryRequirements memory;
    const Status sized = memory_requirements(config_, Backend::cpu, &memory);
    if (!sized.ok()) {
      require(sized.detail()[0] != 0);
      require(!Indexer::create(config_, {}, {1}, &indexer_).ok());
      return;
    }
    if (memory.index_bytes > kMostBytes || memory.next_workspace_bytes > kMostBytes ||
        memory.build_workspace_bytes > kMostBytes) {
      return;
    }
    auto index = aligned(memory.index_bytes);
    Resources resources{1, index.get(), memory.index_bytes};
    if (in_.ConsumeBool()) resources.index_memory = nullptr;
    require(Indexer::create(config_, {}, resources, &indexer_).ok());
    config_ = indexer_.config();
    memory_ = memory;
    if (!make_buffers()) return;
    for (int call = 0; call < 24 && in_.remaining_bytes() > 0; ++call) one_call();
  }

 private:
  int small(int low, int high) { return in_.ConsumeIntegralInRange<int>(low, high); }
  bool rarely() { return small(0, 31) == 31; }

  /// Mostly `usual`, now and then any int32: for the checks.
  std::int32_t wild(std::int32_t usual) {
    if (!rarely()) return usual;
    return in_.ConsumeBool() ? in_.ConsumeIntegral<std::int32_t>() : small(-2, 300);
  }
  /// For a stride or an extent that the buffers hold: mostly `most`, at times below it.
  std::int64_t at_most(std::int64_t most) {
    if (!rarely()) return most;
    return in_.ConsumeBool() ? in_.ConsumeIntegralInRange<std::int64_t>(INT64_MIN, most) : most - 1;
  }
  template <typename T>
  T* or_null(T* pointer) {
    return rarely() ? nullptr : pointer;
  }

  void choose_config() {
    IndexerConfig& c = config_;
    const int dsub = 1 << small(0, 4);
    c.num_subspaces = wild(small(1, 6));
    const int m = std::clamp(c.num_subspaces, 1, 8);
    c.head_dim = wild(m * dsub % 8 == 0 ? m * dsub : 8 * m);
    c.num_kv_heads = wild(small(1, 3));
    c.num_query_heads =
        wild(c.num_kv_heads > 0 && c.num_kv_heads < 4 ? c.num_kv_heads * small(1, 3) : 3);
    c.max_sequences = wild(small(1, 3));
    c.max_query_tokens = wild(small(1, 3));
    c.max_seq_len = wild(small(1, 160));
    c.bits = wild(small(1, 8));
    c.metric = static_cast<Metric>(wild(small(0, 1)));
    constexpr int kBlocks[] = {0, 0, 1, 2, 3, 4, 8, 16, 24};
    c.block_size = wild(in_.PickValueInArray(kBlocks));
    c.mean_dtype = static_cast<DType>(wild(small(0, 2)));
    c.rotation = in_.ConsumeBool();
    c.shared_codebook = in_.ConsumeBool();
    if (in_.ConsumeBool()) {
      constexpr int kPages[] = {1, 2, 4, 8, 12, 16, 24, 32, 48};
      c.page_size = wild(in_.PickValueInArray(kPages));
      c.num_pages = wild(small(1, 40));
    }
    c.sink_size = wild(small(0, 20));
    c.heavy_size = wild(small(1, 24));
    const int reach = std::clamp(c.block_size, 0, 64) + std::clamp(c.max_query_tokens, 1, 8) - 1;
    c.window_size = wild(reach + small(0, 8));
    c.encode_from = wild(small(-1, std::clamp(c.sink_size, 0, 20)));
    c.dense_threshold = wild(small(-1, 60));
    c.refine_factor = wild(small(1, 3));
    c.gqa_reduction = static_cast<GqaReduction>(small(0, 7) == 7 ? wild(small(0, 3)) : 0);
    c.kmeans_iterations = wild(small(1, 3));
    c.seed = in_.ConsumeIntegral<std::uint64_t>();
    c.algorithm = static_cast<Algorithm>(wild(small(0, 2)));
    if (c.kmeans_iterations > 4 && c.kmeans_iterations <= 1000) c.kmeans_iterations = 4;
  }

  /// Random numbers of the dtype, now and then any bits: NaN, infinity, denormals.
  void fill(std::vector<std::uint8_t>& bytes, DType dtype) {
    std::uint64_t state = in_.ConsumeIntegral<std::uint32_t>();
    const bool any = in_.ConsumeBool();
    const auto width = static_cast<std::size_t>(dtype_size(dtype));
    for (std::size_t at = 0; at + width <= bytes.size(); at += width) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      std::uint32_t bits = static_cast<std::uint32_t>(state >> 32);
      // An exponent near 1 in every dtype, unless any will do.
      if (!any || (bits & 15u) != 0) {
        const std::uint32_t sign = bits & 0x80000000u;
        if (dtype == DType::float32) bits = sign | 0x3f000000u | (bits & 0x00ffffffu);
        if (dtype == DType::float16) bits = (sign >> 16) | 0x3800u | (bits & 0x07ffu);
        if (dtype == DType::bfloat16) bits = (sign >> 16) | 0x3f00u | (bits & 0x00ffu);
      }
      std::memcpy(bytes.data() + at, &bits, width);
    }
  }

  bool make_buffers() {
    const IndexerConfig& c = config_;
    const std::int64_t b = c.max_sequences, t = c.max_query_tokens, d = c.head_dim;
    page_ = c.page_size > 0 ? c.page_size : c.max_seq_len;
    const std::int64_t pages = c.page_size > 0 ? c.num_pages : b;
    const int pad = small(0, 3);
    key_dtype_ = static_cast<DType>(small(0, 2));
    query_dtype_ = static_cast<DType>(small(0, 2));
    // Heads outermost in a page, or positions.
    const bool heads_out = in_.ConsumeBool();
    keys_.head_stride = heads_out ? page_ * (d + pad) : d + pad;
    keys_.slot_stride = heads_out ? d + pad : c.num_kv_heads * (d + pad);
    keys_.page_stride = page_ * c.num_kv_heads * (d + pad);
    keys_.dtype = key_dtype_;
    const std::int64_t key_bytes = pages * keys_.page_stride * dtype_size(key_dtype_);
    const std::int64_t list_heads = indexer_.list_heads();
    stride_ = indexer_.max_list_length() + pad;
    dense_stride_ = c.max_seq_len + pad;
    const std::int64_t rows = b * t * list_heads;
    if (key_bytes > std::int64_t{kMostBytes} || rows * dense_stride_ > 1 << 19) return false;
    key_bytes_.resize(static_cast<std::size_t>(key_bytes));
    fill(key_bytes_, key_dtype_);
    keys_.data = key_bytes_.data();
    queries_.head_stride = d + pad;
    queries_.token_stride = c.num_query_heads * (d + pad);
    queries_.batch_stride = t * queries_.token_stride;
    queries_.dtype = query_dtype_;
    query_bytes_.resize(
        static_cast<std::size_t>(b * queries_.batch_stride * dtype_size(query_dtype_)));
    fill(query_bytes_, query_dtype_);
    queries_.data = query_bytes_.data();

    slots_.resize(static_cast<std::size_t>(b));
    counts_.resize(static_cast<std::size_t>(b));
    lengths_.resize(static_cast<std::size_t>(b * t));
    status_.assign(static_cast<std::size_t>(b), 0);
    table_stride_ = (c.max_seq_len + page_ - 1) / page_ + pad;
    table_.resize(static_cast<std::size_t>(b * table_stride_));
    for (std::int32_t& page : table_) {
      page = wild(small(0, static_cast<int>(std::min<std::int64_t>(pages, 1000)) - 1));
    }
    for (auto* lists : {&indices_, &previous_}) {
      lists->assign(static_cast<std::size_t>(rows * stride_), -7);
    }
    for (auto* lens : {&list_lengths_, &previous_lengths_}) {
      lens->assign(static_cast<std::size_t>(rows), 0);
    }
    weights_.resize(static_cast<std::size_t>(rows * stride_));
    dense_.resize(static_cast<std::size_t>(rows * dense_stride_));

    const std::int64_t dsub = d / c.num_subspaces;
    const std::int64_t dcent = dsub + (c.metric == Metric::inner_product ? 1 : 0);
    const std::int64_t tables = std::int64_t{c.num_kv_heads} * c.num_subspaces;
    codebook_.resize(static_cast<std::size_t>(tables * (std::int64_t{1} << c.bits) * dcent));
    phi_.assign(static_cast<std::size_t>(tables), 4.0f);
    rotation_.resize(static_cast<std::size_t>(c.num_kv_heads * d * d));
    for (auto* numbers : {&codebook_, &rotation_}) {
      for (float& x : *numbers) x = static_cast<float>(small(-8, 8)) / 4.0f;
    }
    const std::size_t positions = static_cast<std::size_t>(c.max_seq_len);
    codes_.resize(positions * static_cast<std::size_t>(tables));
    return true;
  }

  KeyView keys() {
    KeyView k = keys_;
    k.data = or_null(k.data);
    k.page_stride = at_most(k.page_stride);
    k.slot_stride = at_most(k.slot_stride);
    k.head_stride = at_most(k.head_stride);
    if (rarely()) k.dtype = static_cast<DType>(small(3, 5));
    if ((config_.page_size > 0) != rarely()) {
      k.block_table = table_.data();
      k.block_table_stride = at_most(table_stride_);
    }
    return k;
  }

  Batch batch(bool append) {
    Batch b;
    b.batch_size = wild(small(1, config_.max_sequences));
    b.query_tokens = wild(append ? 1 : small(1, config_.max_query_tokens));
    const bool given = in_.ConsumeBool();
    std::int32_t slot = small(-1, config_.max_sequences - 1);
    for (std::int32_t& s : slots_) {
      s = wild(slot);  // distinct, or not: a breach of the contract, but no crash
      slot = slot + 1 < config_.max_sequences ? slot + 1 : 0;
    }
    for (std::int32_t& n : counts_) n = wild(small(0, std::max(1, b.query_tokens & 7)));
    std::int32_t n = small(0, config_.max_seq_len);
    for (std::size_t i = 0; i < lengths_.size(); ++i) {
      if (in_.ConsumeBool()) n = small(0, config_.max_seq_len);
      lengths_[i] = wild(n);
      if (in_.ConsumeBool() && n < config_.max_seq_len) ++n;
    }
    b.lengths = or_null(lengths_.data());
    if (given) b.slots = slots_.data();
    if (in_.ConsumeBool()) b.query_counts = counts_.data();
    if (in_.ConsumeBool()) {
      b.host_lengths = lengths_.data();
      if (given) b.host_slots = slots_.data();
    }
    return b;
  }

  /// Scratch of the exact size the call needs, or a byte less.
  Workspace workspace(std::size_t needed) {
    const std::size_t bytes = needed - (rarely() && needed > 0 ? 1 : 0);
    scratch_ = aligned(bytes);
    return {or_null(scratch_.get()), bytes};
  }

  void next() {
    NextArgs a;
    a.batch = batch(false);
    a.keys = keys();
    a.queries = queries_;
    a.queries.data = or_null(a.queries.data);
    a.queries.batch_stride = at_most(a.queries.batch_stride);
    a.queries.token_stride = at_most(a.queries.token_stride);
    a.queries.head_stride = at_most(a.queries.head_stride);
    a.workspace = workspace(indexer_.workspace_bytes(a.batch.batch_size, a.batch.query_tokens));
    a.indices = or_null(indices_.data());
    a.index_stride = at_most(stride_);
    a.list_lengths = or_null(list_lengths_.data());
    if (in_.ConsumeBool()) a.weights = weights_.data();
    if (in_.ConsumeBool()) a.dense_weights = dense_.data();
    a.dense_stride = at_most(dense_stride_);
    if (a.dense_weights != nullptr && in_.ConsumeBool()) {
      a.previous_indices = or_null(previous_.data());
      a.previous_lengths = or_null(previous_lengths_.data());
    }
    if (in_.ConsumeBool()) a.device_status = status_.data();
    std::fill(indices_.begin(), indices_.end(), -7);
    std::fill(list_lengths_.begin(), list_lengths_.end(), -7);
    const Status s = indexer_.next(a, nullptr);
    if (!s.ok()) {
      require(s.detail()[0] != 0);
      for (const std::int32_t x : indices_) require(x == -7);
      for (const std::int32_t x : list_lengths_) require(x == -7);
      return;
    }
    check_lists(a);
    previous_ = indices_;
    previous_lengths_ = list_lengths_;
    if (a.index_stride != stride_) {
      std::fill(previous_lengths_.begin(), previous_lengths_.end(), 0);
    }
  }

  void check_lists(const NextArgs& a) const {
    const std::int64_t rows =
        std::int64_t{a.batch.batch_size} * a.batch.query_tokens * indexer_.list_heads();
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int32_t* list = indices_.data() + row * a.index_stride;
      const std::int32_t length = list_lengths_[static_cast<std::size_t>(row)];
      const std::int32_t n = lengths_[static_cast<std::size_t>(row / indexer_.list_heads())];
      require(length >= 0 && length <= indexer_.max_list_length());
      for (std::int32_t i = 0; i < length; ++i) {
        require(list[i] >= 0 && list[i] < n && (i == 0 || list[i] > list[i - 1]));
      }
      for (std::int32_t i = length; i < indexer_.max_list_length(); ++i) require(list[i] == -1);
      if (a.weights == nullptr) continue;
      for (std::int32_t i = 0; i < indexer_.max_list_length(); ++i) {
        require(a.weights[row * a.index_stride + i] == (i < length ? 1.0f : 0.0f));
      }
    }
  }

  void one_call() {
    switch (small(0, 9)) {
      case 0:
      case 1: {
        BuildArgs a;
        a.slot = wild(small(0, config_.max_sequences - 1));
        a.length = wild(small(0, config_.max_seq_len));
        a.keys = keys();
        a.workspace = workspace(memory_.build_workspace_bytes);
        if (config_.rotation != rarely() && in_.ConsumeBool()) {
          a.rotation = rotation_.data();
          a.query_rotation = or_null(rotation_.data());
        }
        a.retrain = small(0, 3) == 0;
        if (in_.ConsumeBool()) a.device_status = status_.data();
        static_cast<void>(indexer_.build(a, nullptr));
        return;
      }
      case 2: {
        CodebookArgs a;
        a.slot = wild(config_.shared_codebook ? -1 : small(-1, config_.max_sequences - 1));
        a.codebooks = or_null(codebook_.data());
        if ((config_.metric == Metric::inner_product) != rarely()) a.phi = phi_.data();
        if (config_.rotation != rarely()) a.rotation = rotation_.data();
        if (config_.rotation != rarely()) a.query_rotation = rotation_.data();
        static_cast<void>(indexer_.set_codebook(a, nullptr));
        return;
      }
      case 3: {
        AppendArgs a;
        a.batch = batch(true);
        a.keys = keys();
        a.workspace = workspace(indexer_.workspace_bytes(a.batch.batch_size, 1));
        static_cast<void>(indexer_.append(a, nullptr));
        return;
      }
      case 4:
        for (std::int32_t& s : slots_) s = wild(small(-1, config_.max_sequences));
        for (std::int32_t& n : lengths_) n = wild(small(-1, config_.max_seq_len + 1));
        static_cast<void>(indexer_.truncate(in_.ConsumeBool() ? slots_.data() : nullptr,
                                            or_null(lengths_.data()),
                                            wild(small(1, config_.max_sequences)), nullptr));
        return;
      case 5:
        static_cast<void>(indexer_.reset(wild(small(0, config_.max_sequences - 1)), nullptr));
        return;
      case 6: {
        const std::int32_t first = wild(small(0, config_.max_seq_len));
        const std::int32_t count = wild(small(0, config_.max_seq_len));
        static_cast<void>(indexer_.codes(wild(small(0, config_.max_sequences - 1)), first, count,
                                         config_.page_size > 0 ? table_.data() : nullptr,
                                         or_null(codes_.data()), nullptr));
        return;
      }
      default:
        next();
    }
  }

  FuzzedDataProvider in_;
  IndexerConfig config_;
  MemoryRequirements memory_;
  Indexer indexer_;
  std::int32_t page_ = 0;
  DType key_dtype_ = DType::float32, query_dtype_ = DType::float32;
  KeyView keys_;
  QueryView queries_;
  std::int64_t stride_ = 0, dense_stride_ = 0, table_stride_ = 0;
  std::vector<std::uint8_t> key_bytes_, query_bytes_, codes_;
  std::vector<std::int32_t> slots_, counts_, lengths_, table_, indices_, previous_, list_lengths_,
      previous_lengths_;
  std::vector<std::uint32_t> status_;
  std::vector<float> weights_, dense_, codebook_, phi_, rotation_;
  std::unique_ptr<void, FreeDeleter> scratch_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size > 0) Fuzzer(data, size).run();
  return 0;
}
