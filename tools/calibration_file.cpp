// SPDX-License-Identifier: Apache-2.0
//
// Writing and, with suspicion, reading a calibration file.
#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>

#include "calibration.h"
#include "error.h"
#include "safetensors.h"

namespace quarry::tools {
namespace {

constexpr const char* kFormat = "quarry-calibration";
constexpr const char* kVersion = "1";

class Loader {
 public:
  explicit Loader(const std::string& path) : file_(path) {}

  LayerCalibration load() {
    if (text("format") != kFormat) {
      refuse(std::string("metadata 'format' is '") + printable(text("format")) + "', expected '" +
             kFormat + "' (quarry-calibrate writes it)");
    }
    if (text("version") != kVersion) {
      refuse(std::string("metadata 'version' is '") + printable(text("version")) +
             "', this program reads version " + kVersion);
    }
    LayerCalibration out;
    load_config(out);
    load_model(out.config, out.model);
    out.layer = printable(text("layer"));
    out.source_model = printable(text("model"));
    out.text = printable(text("text"));
    out.traces = number<std::int64_t>("traces");
    out.keys = number<std::int64_t>("keys");
    out.sampled_keys = number<std::int64_t>("sampled_keys");
    out.queries = number<std::int64_t>("queries");
    out.trace_keys = out.keys;
    if (!text("max_keys").empty()) {  // files of all keys lack both
      out.max_keys = number<std::int64_t>("max_keys");
      out.trace_keys = number<std::int64_t>("trace_keys");
    }
    out.train_error = error("train_error");
    out.held_out_error = error("held_out_error");
    return out;
  }

 private:
  [[noreturn]] void refuse(const std::string& why) const {
    throw BadInput(printable(file_.path()) + ": " + why);
  }

  /// Empty where the metadata lack it.
  std::string text(const char* key) const {
    const auto it = file_.metadata().find(key);
    return it == file_.metadata().end() ? std::string() : it->second;
  }

  template <typename T>
  T number(const char* key) const {
    const std::string value = text(key);
    T out{};
    const auto [end, code] = std::from_chars(value.data(), value.data() + value.size(), out);
    if (code != std::errc() || end != value.data() + value.size() || out < T{}) {
      refuse(std::string("metadata '") + key + "' is '" + printable(value) +
             "', expected a non-negative integer");
    }
    return out;
  }

  double error(const char* key) const {
    const std::string value = text(key);
    if (value == "unknown") return std::numeric_limits<double>::quiet_NaN();
    char* end = nullptr;
    const double out = std::strtod(value.c_str(), &end);
    if (value.empty() || *end != '\0' || !std::isfinite(out) || out < 0) {
      refuse(std::string("metadata '") + key + "' is '" + printable(value) +
             "', expected a non-negative number or 'unknown'");
    }
    return out;
  }

  template <typename T>
  T choice(const char* key, std::initializer_list<std::pair<const char*, T>> names) const {
    const std::string value = text(key);
    std::string shown;
    for (const auto& [name, meaning] : names) {
      if (value == name) return meaning;
      shown += (shown.empty() ? "" : ", ") + std::string(name);
    }
    refuse(std::string("metadata '") + key + "' is '" + printable(value) + "', expected one of " +
           shown);
  }

  void load_config(LayerCalibration& out) const {
    IndexerConfig c;
    c.num_query_heads = number<std::int32_t>("num_query_heads");
    c.num_kv_heads = number<std::int32_t>("num_kv_heads");
    c.head_dim = number<std::int32_t>("head_dim");
    c.num_subspaces = number<std::int32_t>("num_subspaces");
    c.bits = number<std::int32_t>("bits");
    c.metric = choice<Metric>(
        "metric", {{"euclidean", Metric::euclidean}, {"inner_product", Metric::inner_product}});
    c.block_size = number<std::int32_t>("block_size");
    c.mean_dtype = choice<DType>("mean", {{"float32", DType::float32},
                                          {"float16", DType::float16},
                                          {"bfloat16", DType::bfloat16},
                                          {"float8_e4m3", DType::float8_e4m3}});
    c.sink_size = number<std::int32_t>("sink");
    c.encode_from = number<std::int32_t>("encode_from");
    c.rotation = choice<bool>("rotation", {{"none", false}, {"query", true}});
    c.kmeans_iterations = number<std::int32_t>("iterations");
    c.seed = number<std::uint64_t>("seed");
    // The list's sizes are no part of a calibration: any that the rest admits.
    c.window_size = std::max(c.block_size, 1);
    c.heavy_size = 1;
    c.max_seq_len = 1 << 24;
    const Status status = resolve(c, Backend::cpu, &out.config);
    if (!status.ok()) refuse(std::string("metadata: ") + status.detail());
  }

  std::vector<float> tensor(const char* name, const std::vector<std::int64_t>& shape) {
    const TensorInfo* info = file_.find(name);
    if (info == nullptr) refuse(std::string("has no tensor '") + name + "'");
    if (info->dtype != "F32" || info->shape != shape) {
      refuse(std::string(name) + ": is " + describe(*info) + ", expected F32 " +
             describe_shape(shape));
    }
    const std::vector<std::byte> bytes = file_.read(*info);
    std::vector<float> out(bytes.size() / sizeof(float));
    std::memcpy(out.data(), bytes.data(), bytes.size());
    for (const float value : out) {
      if (!std::isfinite(value)) refuse(std::string(name) + ": holds a value that is not finite");
    }
    return out;
  }

  void absent(const char* name, const char* why) const {
    if (file_.find(name) != nullptr) refuse(std::string("has a tensor '") + name + "', but " + why);
  }

  void load_model(const IndexerConfig& c, Model& model) {
    const bool inner_product = c.metric == Metric::inner_product;
    model.subspaces = c.num_subspaces;
    model.ksub = 1 << c.bits;
    model.dcent = c.head_dim / c.num_subspaces + (inner_product ? 1 : 0);
    model.codebooks =
        tensor("codebooks", {c.num_kv_heads, model.subspaces, model.ksub, model.dcent});
    if (inner_product) {
      model.phi = tensor("phi", {c.num_kv_heads, model.subspaces});
    } else {
      absent("phi", "its metric is euclidean");
    }
    if (file_.find("quantization_error") != nullptr) {  // files before it lack it
      model.quantization_error = tensor("quantization_error", {c.num_kv_heads});
      for (const float value : model.quantization_error) {
        if (value < 0) refuse("quantization_error: holds a negative value");
      }
    }
    if (!c.rotation) {
      absent("rotation", "metadata 'rotation' is none");
      absent("query_rotation", "metadata 'rotation' is none");
      return;
    }
    model.rotation = tensor("rotation", {c.num_kv_heads, c.head_dim, c.head_dim});
    model.query_rotation = tensor("query_rotation", {c.num_kv_heads, c.head_dim, c.head_dim});
    for (std::int32_t h = 0; h < c.num_kv_heads; ++h) check_inverse(model, c.head_dim, h);
  }

  /// x . R . Q^T must be x again: checked for one x with parts of all directions, which costs
  /// d^2 where the product itself would cost d^3.
  void check_inverse(const Model& model, std::int32_t d, std::int32_t head) const {
    const auto at = static_cast<std::ptrdiff_t>(head) * d * d;
    const float* r = model.rotation.data() + at;
    const float* q = model.query_rotation.data() + at;
    std::vector<double> turned(static_cast<std::size_t>(d), 0.0), x(turned.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
      x[i] = std::cos(1.0 + static_cast<double>(i * i) * 0.37);
      for (std::size_t j = 0; j < x.size(); ++j) {
        turned[j] += x[i] * static_cast<double>(r[i * x.size() + j]);
      }
    }
    double difference = 0, norm = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      double back = 0;
      for (std::size_t j = 0; j < x.size(); ++j) {
        back += turned[j] * static_cast<double>(q[i * x.size() + j]);
      }
      difference += (back - x[i]) * (back - x[i]);
      norm += x[i] * x[i];
    }
    if (std::sqrt(difference / norm) < 1e-3) return;
    refuse("query_rotation of KV head " + std::to_string(head) +
           " is not the inverse transpose of its rotation");
  }

  SafetensorsFile file_;
};

std::string error_text(double value) {
  return std::isfinite(value) ? fmt::format("{:.6f}", value) : "unknown";
}

}  // namespace

LayerCalibration load_calibration(const std::string& path) { return Loader(path).load(); }

void save_calibration(const std::string& path, const LayerCalibration& calibration) {
  const IndexerConfig& c = calibration.config;
  const Model& model = calibration.model;
  std::vector<TensorSource> tensors = {{"codebooks",
                                        "F32",
                                        {c.num_kv_heads, model.subspaces, model.ksub, model.dcent},
                                        model.codebooks.data()}};
  if (!model.phi.empty()) {
    tensors.push_back({"phi", "F32", {c.num_kv_heads, model.subspaces}, model.phi.data()});
  }
  if (c.rotation) {
    const std::vector<std::int64_t> square = {c.num_kv_heads, c.head_dim, c.head_dim};
    tensors.push_back({"rotation", "F32", square, model.rotation.data()});
    tensors.push_back({"query_rotation", "F32", square, model.query_rotation.data()});
  }
  if (!model.quantization_error.empty()) {
    tensors.push_back(
        {"quantization_error", "F32", {c.num_kv_heads}, model.quantization_error.data()});
  }
  std::map<std::string, std::string> metadata = {
      {"format", kFormat},
      {"version", kVersion},
      {"num_query_heads", std::to_string(c.num_query_heads)},
      {"num_kv_heads", std::to_string(c.num_kv_heads)},
      {"head_dim", std::to_string(c.head_dim)},
      {"num_subspaces", std::to_string(c.num_subspaces)},
      {"bits", std::to_string(c.bits)},
      {"metric", to_string(c.metric)},
      {"block_size", std::to_string(c.block_size)},
      {"mean", to_string(c.mean_dtype)},
      {"sink", std::to_string(c.sink_size)},
      {"encode_from", std::to_string(c.encode_from)},
      {"rotation", c.rotation ? "query" : "none"},
      {"iterations", std::to_string(c.kmeans_iterations)},
      {"seed", std::to_string(c.seed)},
      {"traces", std::to_string(calibration.traces)},
      {"keys", std::to_string(calibration.keys)},
      {"sampled_keys", std::to_string(calibration.sampled_keys)},
      {"queries", std::to_string(calibration.queries)},
      {"train_error", error_text(calibration.train_error)},
      {"held_out_error", error_text(calibration.held_out_error)}};
  if (calibration.max_keys > 0) {
    metadata["max_keys"] = std::to_string(calibration.max_keys);
    metadata["trace_keys"] = std::to_string(calibration.trace_keys);
  }
  const auto add = [&](const char* key, const std::string& value) {
    if (!value.empty()) metadata[key] = value;
  };
  add("layer", calibration.layer);
  add("model", calibration.source_model);
  add("text", calibration.text);
  write_safetensors(path, std::move(tensors), metadata);
}

}  // namespace quarry::tools
