// SPDX-License-Identifier: Apache-2.0
#include "trace.h"

#include <cstring>
#include <optional>

#include "error.h"
#include "half.h"
#include "safetensors.h"

namespace quarry::tools {
namespace {

constexpr std::int64_t kAny = -1;  // an extent that the caller checks or takes

class Loader {
 public:
  explicit Loader(const std::string& path) : file_(path) {}

  Trace load(bool values) {
    Trace trace;
    trace.metadata = file_.metadata();
    load_keys_and_queries(trace);
    load_positions(trace);
    if (values && find("v") != nullptr) trace.v = floats("v", {trace.n, trace.hkv, trace.d});
    if (const TensorInfo* info = find("q_train")) {
      trace.q_train = floats("q_train", {kAny, trace.hq, trace.d});
      trace.train_queries = extent(*info, 0);
    }
    load_model(trace, trace.model);
    return trace;
  }

 private:
  const TensorInfo* find(const char* name) const { return file_.find(name); }

  [[noreturn]] void refuse(const std::string& why) const {
    throw BadInput(printable(file_.path()) + ": " + why);
  }

  const TensorInfo& require(const char* name) const {
    const TensorInfo* info = find(name);
    if (info == nullptr) refuse(std::string("has no tensor '") + name + "'");
    return *info;
  }

  std::int32_t extent(const TensorInfo& info, std::size_t axis) const {
    const std::int64_t value = info.shape[axis];
    if (value > INT32_MAX) refuse(info.name + ": " + describe(info) + " is too large");
    return static_cast<std::int32_t>(value);
  }

  void check_shape(const TensorInfo& info, const std::vector<std::int64_t>& expected) const {
    bool same = info.shape.size() == expected.size();
    for (std::size_t i = 0; same && i < expected.size(); ++i) {
      same = expected[i] == kAny || info.shape[i] == expected[i];
    }
    if (same) return;
    std::string text = describe_shape(expected);
    for (auto at = text.find("-1"); at != std::string::npos; at = text.find("-1")) {
      text.replace(at, 2, "any");
    }
    refuse(info.name + ": is " + describe(info) + ", expected shape " + text);
  }

  TypedArray floats(const char* name, const std::vector<std::int64_t>& shape) {
    const TensorInfo& info = require(name);
    TypedArray array;
    if (info.dtype == "F32") {
      array.dtype = DType::float32;
    } else if (info.dtype == "F16") {
      array.dtype = DType::float16;
    } else if (info.dtype == "BF16") {
      array.dtype = DType::bfloat16;
    } else {
      refuse(info.name + ": is " + describe(info) + ", expected F32, F16 or BF16");
    }
    check_shape(info, shape);
    array.bytes = file_.read(info);
    return array;
  }

  void load_keys_and_queries(Trace& trace) {
    const TensorInfo& k = require("k");
    const TensorInfo& q = require("q");
    check_shape(k, {kAny, kAny, kAny});
    trace.n = extent(k, 0);
    trace.hkv = extent(k, 1);
    trace.d = extent(k, 2);
    if (trace.n == 0 || trace.hkv == 0 || trace.d == 0) refuse("k: is empty, " + describe(k));
    check_shape(q, {kAny, kAny, trace.d});
    trace.queries = extent(q, 0);
    trace.hq = extent(q, 1);
    if (trace.queries == 0 || trace.hq == 0) refuse("q: is empty, " + describe(q));
    if (trace.hq % trace.hkv != 0) {
      refuse("q: " + std::to_string(trace.hq) + " query heads are not a multiple of " +
             std::to_string(trace.hkv) + " KV heads");
    }
    trace.k = floats("k", {trace.n, trace.hkv, trace.d});
    trace.q = floats("q", {trace.queries, trace.hq, trace.d});
  }

  void load_positions(Trace& trace) {
    const TensorInfo& info = require("q_pos");
    if (info.dtype != "I32") refuse("q_pos: is " + describe(info) + ", expected I32");
    check_shape(info, {trace.queries});
    const std::vector<std::byte> bytes = file_.read(info);
    trace.q_pos.resize(static_cast<std::size_t>(trace.queries));
    std::memcpy(trace.q_pos.data(), bytes.data(), bytes.size());
    std::int32_t before = -1;
    for (std::size_t t = 0; t < trace.q_pos.size(); ++t) {
      const std::int32_t position = trace.q_pos[t];
      const std::string label = "q_pos[" + std::to_string(t) + "]: " + std::to_string(position);
      if (position < 0 || position >= trace.n) {
        refuse(label + " is not a position of k, 0 .. " + std::to_string(trace.n - 1));
      }
      if (position <= before) {
        refuse(label + " does not ascend, " + std::to_string(before) + " came before");
      }
      before = position;
    }
  }

  void load_model(const Trace& trace, Model& model) {
    if (const TensorInfo* info = find("codebooks")) {
      const TypedArray array = floats("codebooks", {trace.hkv, kAny, kAny, kAny});
      if (array.empty()) refuse("codebooks: is empty, " + describe(*info));
      model.subspaces = extent(*info, 1);
      model.ksub = extent(*info, 2);
      model.dcent = extent(*info, 3);
      model.codebooks = widen(array);
    }
    if (const TensorInfo* info = find("phi")) {
      const TypedArray array = floats("phi", {trace.hkv, kAny});
      if (!model.codebooks.empty() && extent(*info, 1) != model.subspaces) {
        refuse("phi: is " + describe(*info) + ", codebooks have " +
               std::to_string(model.subspaces) + " subspaces");
      }
      model.phi = widen(array);
    }
    const bool has_rotation = find("rotation") != nullptr;
    if (has_rotation != (find("query_rotation") != nullptr)) {
      refuse(has_rotation ? "has rotation without query_rotation"
                          : "has query_rotation without rotation");
    }
    if (has_rotation) {
      model.rotation = widen(floats("rotation", {trace.hkv, trace.d, trace.d}));
      model.query_rotation = widen(floats("query_rotation", {trace.hkv, trace.d, trace.d}));
    }
  }

  SafetensorsFile file_;
};

}  // namespace

std::vector<float> widen(const TypedArray& array) {
  const std::size_t count = array.bytes.size() / static_cast<std::size_t>(dtype_size(array.dtype));
  std::vector<float> out(count);
  for (std::size_t i = 0; i < count; ++i) {
    out[i] = load_element(array.bytes.data(), array.dtype, static_cast<std::int64_t>(i));
  }
  return out;
}

Trace load_trace(const std::string& path, bool values) { return Loader(path).load(values); }

}  // namespace quarry::tools
