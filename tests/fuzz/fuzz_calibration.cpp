// SPDX-License-Identifier: Apache-2.0
//
// Calibration files: bytes as they are, and files composed of nearly the right parts. Refused,
// or an Indexer can be given what was read, and saved it loads again.
#include <cmath>

#include "calibration.h"
#include "compose.h"
#include "quarry/quarry.h"

namespace {

using namespace quarry;
using fuzz::require;

void check_calibration(const tools::LayerCalibration& it) {
  const IndexerConfig& c = it.config;
  const auto heads = static_cast<std::size_t>(c.num_kv_heads),
             d = static_cast<std::size_t>(c.head_dim),
             m = static_cast<std::size_t>(c.num_subspaces);
  const std::size_t dcent = d / m + (c.metric == Metric::inner_product ? 1 : 0);
  require(it.model.codebooks.size() == heads * m * (std::size_t{1} << c.bits) * dcent);
  require(it.model.phi.size() == (c.metric == Metric::inner_product ? heads * m : 0));
  require(it.model.rotation.size() == (c.rotation ? heads * d * d : 0));
  require(it.model.query_rotation.size() == it.model.rotation.size());
  for (const float x : it.model.codebooks) require(std::isfinite(x));

  IndexerConfig use = c;
  use.shared_codebook = true;
  use.max_seq_len = 256;
  use.heavy_size = 4;
  MemoryRequirements memory;
  Indexer indexer;
  if (memory_requirements(use, Backend::cpu, &memory).ok() && memory.index_bytes < (4u << 20)) {
    require(Indexer::create(use, {}, {1}, &indexer).ok());
    CodebookArgs args;
    args.codebooks = it.model.codebooks.data();
    if (!it.model.phi.empty()) args.phi = it.model.phi.data();
    if (c.rotation) {
      args.rotation = it.model.rotation.data();
      args.query_rotation = it.model.query_rotation.data();
    }
    require(indexer.set_codebook(args, nullptr).ok());
  }
  const fuzz::MemoryFile copy;
  tools::save_calibration(copy.path(), it);
  const tools::LayerCalibration again = tools::load_calibration(copy.path());
  require(again.model.codebooks == it.model.codebooks && again.layer == it.layer);
  require(again.config.seed == c.seed && again.keys == it.keys);
}

void compose_calibration(FuzzedDataProvider& in, const std::string& path) {
  const auto pick = [&](std::int64_t usual, std::int64_t most) {
    return in.ConsumeIntegralInRange<int>(0, 7) == 0
               ? in.ConsumeIntegralInRange<std::int64_t>(0, most)
               : usual;
  };
  const std::int64_t heads = pick(1, 3), m = pick(2, 5), bits = pick(2, 9), d = pick(8, 24);
  const bool ip = in.ConsumeBool(), rotation = in.ConsumeBool();
  const std::int64_t dcent = (m > 0 ? d / m : 1) + (ip ? 1 : 0);
  std::map<std::string, std::string> metadata = {
      {"format", "quarry-calibration"},
      {"version", "1"},
      {"num_query_heads", std::to_string(heads * pick(1, 3))},
      {"num_kv_heads", std::to_string(heads)},
      {"head_dim", std::to_string(d)},
      {"num_subspaces", std::to_string(m)},
      {"bits", std::to_string(bits)},
      {"metric", ip ? "inner_product" : "euclidean"},
      {"block_size", std::to_string(pick(16, 1 << 30))},
      {"mean", "float16"},
      {"sink", std::to_string(pick(4, 64))},
      {"encode_from", std::to_string(pick(4, 64))},
      {"rotation", rotation ? "query" : "none"},
      {"iterations", std::to_string(pick(10, 5000))},
      {"seed", std::to_string(in.ConsumeIntegral<std::uint64_t>())},
      {"traces", "1"},
      {"keys", std::to_string(pick(100, INT64_MAX))},
      {"sampled_keys", "50"},
      {"queries", "7"},
      {"train_error", in.ConsumeBool() ? "0.25" : "unknown"},
      {"held_out_error", "1e-3"},
      {"layer", in.ConsumeRandomLengthString(3)}};
  if (in.ConsumeBool()) {  // one value of its own
    auto it = metadata.begin();
    std::advance(it, in.ConsumeIntegralInRange<std::size_t>(0, metadata.size() - 1));
    it->second = in.ConsumeRandomLengthString(12);
  }
  if (!rotation && in.ConsumeBool()) {
    fuzz::compose(in, {{"codebooks", "F32", {heads, m, std::int64_t{1} << bits, dcent}}}, metadata,
                  path);
    return;
  }
  std::vector<fuzz::TensorPlan> plans = {
      {"codebooks", "F32", {heads, m, std::int64_t{1} << bits, dcent}}};
  if (ip) plans.push_back({"phi", "F32", {heads, m}});
  if (rotation) plans.push_back({"rotation", "F32", {heads, d, d}});
  if (rotation) plans.push_back({"query_rotation", "F32", {heads, d, d}});
  fuzz::compose(in, std::move(plans), metadata, path);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const bool raw = size == 0 || data[0] != 'S';
  try {
    const fuzz::MemoryFile file(data, raw ? size : 0);
    if (!raw) {
      FuzzedDataProvider in(data + 1, size - 1);
      try {
        compose_calibration(in, file.path());
      } catch (const std::exception&) {
        return 0;  // no such file can be written: metadata that are no UTF-8
      }
    }
    check_calibration(tools::load_calibration(file.path()));
  } catch (const tools::BadInput&) {
  }
  return 0;
}
