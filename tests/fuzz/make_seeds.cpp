// SPDX-License-Identifier: Apache-2.0
//
// make_seeds DATA_DIR OUT_DIR: small files that the readers accept, made of the goldens in
// DATA_DIR, for the fuzzers to start from: OUT_DIR/{safetensors,trace,calibration,next}/.
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>

#include "calibration.h"
#include "safetensors.h"

namespace {

using namespace quarry;
namespace fs = std::filesystem;

/// The first `extent` entries of axis 0 of a tensor.
struct Slice {
  std::vector<std::byte> bytes;
  tools::TensorSource source;
};

Slice slice(tools::SafetensorsFile& file, const char* name, std::int64_t extent) {
  const tools::TensorInfo& info = *file.find(name);
  Slice out{file.read(info), {info.name, info.dtype, info.shape, nullptr}};
  const auto rows = static_cast<std::size_t>(info.shape[0]);
  out.bytes.resize(out.bytes.size() / rows * static_cast<std::size_t>(extent));
  out.source.shape[0] = extent;
  return out;
}

/// A trace of a golden's first positions and first query, its model with it.
void trace_seed(const fs::path& golden, const fs::path& out) {
  tools::SafetensorsFile file(golden.string());
  constexpr std::int64_t kPositions = 3;
  std::vector<Slice> parts;
  parts.push_back(slice(file, "k", kPositions));
  parts.push_back(slice(file, "q", 1));
  for (const char* name : {"phi", "codebooks"}) {
    const tools::TensorInfo* info = file.find(name);
    if (info != nullptr && info->bytes < 8192) {
      parts.push_back(slice(file, name, info->shape[0]));
    }
  }
  std::vector<tools::TensorSource> sources;
  for (Slice& part : parts) {
    part.source.data = part.bytes.data();
    sources.push_back(part.source);
  }
  const std::int32_t last = kPositions - 1;
  sources.push_back({"q_pos", "I32", {1}, &last});
  tools::write_safetensors(out.string(), sources, file.metadata());
}

void calibration_seed(const fs::path& out, bool rotation, Metric metric) {
  tools::LayerCalibration it;
  IndexerConfig c;
  c.num_query_heads = 2;
  c.num_kv_heads = 1;
  c.head_dim = 8;
  c.num_subspaces = 2;
  c.bits = 2;
  c.block_size = 16;
  c.sink_size = c.encode_from = 4;
  c.rotation = rotation;
  c.metric = metric;
  it.config = c;
  it.model.subspaces = 2;
  it.model.ksub = 4;
  it.model.dcent = metric == Metric::inner_product ? 5 : 4;
  it.model.codebooks.assign(static_cast<std::size_t>(2 * 4 * it.model.dcent), 0.5f);
  if (metric == Metric::inner_product) it.model.phi.assign(2, 1.0f);
  if (rotation) {
    it.model.rotation.assign(64, 0.0f);
    for (std::size_t i = 0; i < 8; ++i) it.model.rotation[i * 9] = 1.0f;
    it.model.query_rotation = it.model.rotation;
  }
  it.layer = "3";
  it.traces = 1;
  tools::save_calibration(out.string(), it);
}

void bytes_seed(const fs::path& out, std::uint32_t seed, std::size_t size, char first) {
  std::ofstream file(out, std::ios::binary);
  file.put(first);
  for (std::size_t i = 0; i < size; ++i) {
    seed = seed * 1664525u + 1013904223u;
    file.put(static_cast<char>(seed >> 24));
  }
}

int run(const fs::path& data, const fs::path& out) {
  for (const char* target : {"safetensors", "trace", "calibration", "next"}) {
    fs::create_directories(out / target);
  }
  int count = 0;
  for (const auto& entry : fs::directory_iterator(data)) {
    if (entry.path().extension() != ".safetensors") continue;
    trace_seed(entry.path(), out / "trace" / entry.path().filename());
    fs::copy_file(out / "trace" / entry.path().filename(),
                  out / "safetensors" / entry.path().filename(),
                  fs::copy_options::overwrite_existing);
    ++count;
  }
  if (count == 0) {
    std::fprintf(stderr, "no goldens in %s\n", data.c_str());
    return 1;
  }
  for (const bool rotation : {false, true}) {
    for (const Metric metric : {Metric::euclidean, Metric::inner_product}) {
      calibration_seed(out / "calibration" /
                           (std::string(rotation ? "rotation-" : "plain-") + to_string(metric)),
                       rotation, metric);
    }
  }
  for (std::uint32_t i = 0; i < 32; ++i) {
    bytes_seed(out / "trace" / ("composed-" + std::to_string(i)), i, 200 + 10 * i, 'S');
    bytes_seed(out / "calibration" / ("composed-" + std::to_string(i)), i, 200 + 10 * i, 'S');
    bytes_seed(out / "next" / ("random-" + std::to_string(i)), i, 200 + 40 * i, 'N');
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: make_seeds DATA_DIR OUT_DIR\n");
    return 2;
  }
  try {
    return run(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
