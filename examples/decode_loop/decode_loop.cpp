// SPDX-License-Identifier: Apache-2.0
//
// The smallest real engine loop on quarry: one layer of one sequence with a paged KV cache,
// calibrated codebooks, and attention that reads nothing but quarry's lists. On CUDA a step is
// one captured graph, replayed while the sequence grows. Every step is checked against dense
// attention: equal up to rounding while the lists hold every position, afterwards as close as the
// exact top-K comes.
//
//   example_decode_loop [cpu|cuda]    without an argument: all that are there

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "quarry/calibrate.h"
#include "step.h"

namespace {

constexpr std::int32_t kHq = 8, kHkv = 2, kD = 64, kPage = 16;
constexpr std::int32_t kPrompt = 100, kLength = 1536, kPages = kLength / kPage;

void check(const quarry::Status& status, const char* what) {
  if (status.ok()) return;
  throw std::runtime_error(std::string(what) + ": " + quarry::to_string(status.code()) + ": " +
                           status.detail());
}

/// Stands for the model: keys drift with their position and vary along few directions, as
/// real ones do, and every query looks for what is at one earlier position of its KV head.
struct Sequence {
  std::vector<float> keys, values, queries;  // [kLength, heads, kD]

  explicit Sequence(unsigned seed)
      : keys(kLength * kHkv * kD), values(keys.size()), queries(kLength * kHq * kD) {
    constexpr std::size_t kFactors = 8;
    std::mt19937 random(seed);
    std::mt19937 model(0);  // what is the same in every sequence
    std::normal_distribution<float> normal;
    std::vector<float> loadings(kHkv * kD * kFactors), own(keys.size());
    for (float& v : loadings) v = normal(model) / std::sqrt(static_cast<float>(kFactors));
    for (std::size_t row = 0; row < kLength * kHkv; ++row) {
      std::array<float, kFactors> factors;
      for (float& v : factors) v = normal(random);
      for (std::size_t i = row * kD; i < (row + 1) * kD; ++i) {
        const std::size_t at = i % (kHkv * kD);  // head and dimension
        for (std::size_t f = 0; f < kFactors; ++f) {
          own[i] += factors[f] * loadings[at * kFactors + f];
        }
        own[i] += 0.3f * normal(random);
        values[i] = normal(random);
        keys[i] =
            own[i] + 3 * std::sin(static_cast<float>(at) + 0.002f * static_cast<float>(row / kHkv));
      }
    }
    for (std::int32_t p = 0; p < kLength; ++p) {
      for (std::int32_t h = 0; h < kHq; ++h) {
        const auto sought = static_cast<std::int32_t>(random() % static_cast<unsigned>(p + 1));
        const std::int32_t from = (sought * kHkv + h / (kHq / kHkv)) * kD;
        for (std::int32_t i = 0; i < kD; ++i) {
          queries[static_cast<std::size_t>((p * kHq + h) * kD + i)] =
              1.5f * own[static_cast<std::size_t>(from + i)] + 0.3f * normal(random);
        }
      }
    }
  }
};

quarry::IndexerConfig make_config() {
  auto config = quarry::IndexerConfig::recommended(kD);
  config.num_query_heads = kHq;
  config.num_kv_heads = kHkv;
  config.max_seq_len = kLength;
  config.page_size = kPage;
  config.num_pages = kPages;
  config.heavy_size = 64;
  return config;
}

/// Once for every sequence to come, from another one.
quarry::Calibration calibrate(const quarry::IndexerConfig& config) {
  const Sequence other(1);
  quarry::CalibrationTrace trace;
  trace.keys = {other.keys.data(), quarry::DType::float32, kLength, kHkv * kD, kD};
  trace.queries = {{other.queries.data(), quarry::DType::float32, kLength, kHq * kD, kD}};
  quarry::Calibration out;
  quarry::CalibrationOptions options;
  options.num_threads = 1;
  check(quarry::calibrate(config, {trace}, options, &out), "calibrate");
  return out;
}

/// Memory of the backend's device that the host can touch too.
class Memory {
 public:
  explicit Memory(quarry::Backend backend) : backend_(backend) {}

  template <typename T>
  T* take(std::size_t count) {
    const std::size_t bytes = count * sizeof(T);
#if QUARRY_HAS_CUDA
    if (backend_ == quarry::Backend::cuda) {
      held_.push_back(allocate_managed(bytes));
      return static_cast<T*>(held_.back().get());
    }
#endif
    constexpr std::align_val_t kAlignment{256};
    held_.emplace_back(::operator new(bytes, kAlignment),
                       [](void* p) { ::operator delete(p, kAlignment); });
    return static_cast<T*>(held_.back().get());
  }
  template <typename T>
  T* copy(const std::vector<T>& from) {
    T* to = take<T>(from.size());
    std::copy(from.begin(), from.end(), to);
    return to;
  }
  /// Afterwards the host may touch what calls were given.
  void finish() const {
#if QUARRY_HAS_CUDA
    if (backend_ == quarry::Backend::cuda) finish_device();
#endif
  }

 private:
  [[maybe_unused]] quarry::Backend backend_;
  std::vector<std::shared_ptr<void>> held_;
};

/// Decodes kPrompt .. kLength - 1 on one backend; true where attention is what it must be.
bool decode(quarry::Backend backend) {
  const quarry::IndexerConfig config = make_config();
  const quarry::Calibration calibration = calibrate(config);
  const Sequence sequence(2);
  Memory memory(backend);

  quarry::Indexer indexer;
  quarry::Resources resources;
  resources.num_threads = 1;  // on the CPU: a step this small is not worth sharing
  check(quarry::Indexer::create(config, {backend, 0}, resources, &indexer), "create");
  quarry::MemoryRequirements needs;
  check(quarry::memory_requirements(config, backend, &needs), "memory_requirements");
  const std::size_t scratch = std::max(needs.next_workspace_bytes, needs.build_workspace_bytes);
  const quarry::Workspace workspace{memory.take<std::byte>(scratch), scratch};
  quarry::CodebookArgs codebook;
  codebook.codebooks = memory.copy(calibration.codebooks);
  codebook.rotation = memory.copy(calibration.rotation);
  codebook.query_rotation = memory.copy(calibration.query_rotation);
  check(indexer.set_codebook(codebook, nullptr), "set_codebook");
  memory.finish();

  // The cache: pages handed out in no particular order, as an allocator would after a while.
  std::vector<std::int32_t> table(kPages);
  for (std::int32_t i = 0; i < kPages; ++i) table[static_cast<std::size_t>(i)] = i * 5 % kPages;
  LayerStep step;
  step.query_heads = kHq;
  step.kv_heads = kHkv;
  step.d = kD;
  step.page_size = kPage;
  step.keys = memory.take<float>(sequence.keys.size());
  step.values = memory.take<float>(sequence.values.size());
  step.block_table = memory.copy(table);
  step.length = memory.copy(std::vector<std::int32_t>{0});
  float* k = memory.take<float>(kHkv * kD);
  float* v = memory.take<float>(kHkv * kD);
  float* q = memory.take<float>(kHq * kD);
  step.k = k;
  step.v = v;
  step.q = q;
  step.list_stride = indexer.max_list_length();
  std::int32_t* lists = memory.take<std::int32_t>(kHq * static_cast<std::size_t>(step.list_stride));
  std::int32_t* lengths = memory.take<std::int32_t>(kHq);
  step.lists = lists;
  step.list_lengths = lengths;
  step.out = memory.take<float>(kHq * kD);
  std::uint32_t* device_status = memory.copy(std::vector<std::uint32_t>{0});
  const auto load_token = [&](std::int32_t p) {
    std::copy_n(sequence.keys.data() + p * kHkv * kD, kHkv * kD, k);
    std::copy_n(sequence.values.data() + p * kHkv * kD, kHkv * kD, v);
    std::copy_n(sequence.queries.data() + p * kHq * kD, kHq * kD, q);
  };

  quarry::NextArgs next;
  next.batch.batch_size = 1;
  next.batch.lengths = step.length;  // device memory: the graph reads it at each replay
  next.keys.data = step.keys;
  next.keys.page_stride = kPage * kHkv * kD;
  next.keys.slot_stride = kHkv * kD;
  next.keys.head_stride = kD;
  next.keys.block_table = step.block_table;
  next.keys.block_table_stride = kPages;
  next.queries.data = step.q;
  next.queries.batch_stride = next.queries.token_stride = kHq * kD;
  next.queries.head_stride = kD;
  next.workspace = workspace;
  next.indices = lists;
  next.index_stride = step.list_stride;
  next.list_lengths = lengths;
  next.device_status = device_status;

  // Prefill: the engine attends to the prompt densely, quarry encodes it.
  for (std::int32_t p = 0; p < kPrompt; ++p) {
    load_token(p);
    append_token(step);  // host code: nothing runs on the device now
  }
  quarry::BuildArgs build;
  build.length = kPrompt;
  build.keys = next.keys;
  build.workspace = workspace;
  check(indexer.build(build, nullptr), "build");
  memory.finish();

  std::function<void()> run = [&] {
    append_token(step);
    check(indexer.next(next, nullptr), "next");
    sparse_attention(step);
  };
#if QUARRY_HAS_CUDA
  if (backend == quarry::Backend::cuda) {
    StepGraph graph(step, [&](quarry::Stream stream) { return indexer.next(next, stream); });
    run = [graph]() mutable { graph.replay(); };
  }
#endif

  double rounding = 0, by_quarry = 0, by_exact = 0;
  std::int64_t rows = 0;
  for (std::int32_t p = kPrompt; p < kLength; ++p) {
    load_token(p);
    run();
    for (std::int32_t h = 0; h < kHq; ++h) {
      const std::vector<double> score = scores(step, h);
      const std::vector<double> dense = attend(step, h, score, every_position(score));
      const double e = error(step.out + h * kD, dense);
      if (lengths[h] == p + 1) {
        rounding = std::max(rounding, e);
        continue;
      }
      by_quarry += e;
      by_exact += error(attend(step, h, score, exact_list(config, score)).data(), dense);
      ++rows;
    }
  }
  std::printf(
      "%s: %d to %d positions. Lists of all: error %.1e. %lld lists of %d: %.4f, of the exact "
      "top-K %.4f\n",
      quarry::to_string(backend), kPrompt, kLength, rounding, static_cast<long long>(rows),
      config.sink_size + config.heavy_size + config.window_size,
      by_quarry / static_cast<double>(rows), by_exact / static_cast<double>(rows));
  return *device_status == 0 && rounding < 1e-5 && by_quarry <= 1.1 * by_exact;
}

}  // namespace

int main(int argc, char** argv) try {
  constexpr int kSkipped = 77;
  const std::string only = argc > 1 ? argv[1] : "";
  if (argc > 2 || (!only.empty() && only != "cpu" && only != "cuda")) {
    std::fprintf(stderr, "usage: %s [cpu|cuda]\n", argv[0]);
    return 2;
  }
  bool good = true;
  if (only != "cuda") good = decode(quarry::Backend::cpu);
  if (only != "cpu") {
    if (quarry::backend_available(quarry::Backend::cuda)) {
      good = decode(quarry::Backend::cuda) && good;
    } else {
      std::printf("cuda: not built, or no device\n");
      if (only == "cuda") return kSkipped;
    }
  }
  return good ? 0 : 1;
} catch (const std::exception& e) {
  std::fprintf(stderr, "decode_loop: %s\n", e.what());
  return 1;
}
