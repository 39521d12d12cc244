// SPDX-License-Identifier: Apache-2.0
#include "trace.h"

#include <cstdint>
#include <string>
#include <vector>

#include "half.h"
#include "trace_file.h"

namespace quarry::tools {
namespace {

constexpr std::int64_t kAny = -1;  // an extent that the caller checks or takes

class Loader {
 public:
  explicit Loader(const std::string& path) : file_(path) {}

  Trace load(bool values) {
    Trace trace = file_.header();
    trace.k = file_.keys();
    trace.q = file_.floats("q", {trace.queries, trace.hq, trace.d});
    file_.read_positions(&trace.q_pos);
    if (values && file_.find("v") != nullptr) {
      trace.v = file_.floats("v", {trace.n, trace.hkv, trace.d});
    }
    if (file_.find("q_train") != nullptr) {
      trace.q_train = file_.floats("q_train", {trace.train_queries, trace.hq, trace.d});
    }
    load_model(trace, trace.model);
    return trace;
  }

 private:
  void load_model(const Trace& trace, Model& model) {
    if (const TensorInfo* info = file_.find("codebooks")) {
      const TypedArray array = file_.floats("codebooks", {trace.hkv, kAny, kAny, kAny});
      if (array.empty()) file_.refuse("codebooks: is empty, " + describe(*info));
      model.subspaces = file_.extent(*info, 1);
      model.ksub = file_.extent(*info, 2);
      model.dcent = file_.extent(*info, 3);
      model.codebooks = widen(array);
    }
    if (const TensorInfo* info = file_.find("phi")) {
      const TypedArray array = file_.floats("phi", {trace.hkv, kAny});
      if (!model.codebooks.empty() && file_.extent(*info, 1) != model.subspaces) {
        file_.refuse("phi: is " + describe(*info) + ", codebooks have " +
                     std::to_string(model.subspaces) + " subspaces");
      }
      model.phi = widen(array);
    }
    const bool has_rotation = file_.find("rotation") != nullptr;
    if (has_rotation != (file_.find("query_rotation") != nullptr)) {
      file_.refuse(has_rotation ? "has rotation without query_rotation"
                                : "has query_rotation without rotation");
    }
    if (has_rotation) {
      model.rotation = widen(file_.floats("rotation", {trace.hkv, trace.d, trace.d}));
      model.query_rotation = widen(file_.floats("query_rotation", {trace.hkv, trace.d, trace.d}));
    }
  }

  TraceFile file_;
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

void widen_keys(const Trace& trace, const void* from, std::int64_t count, float* out) {
  const std::int64_t d = trace.d, rows = count * trace.hkv;
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::size_t scales = trace.k_scale.size();
    const auto head = static_cast<std::size_t>(row % trace.hkv);
    const float scale = scales == 0 ? 1.0f : trace.k_scale[scales == 1 ? 0 : head];
    for (std::int64_t i = row * d; i < (row + 1) * d; ++i) {
      out[i] = scaled_element(from, trace.k.dtype, scale, i);
    }
  }
}

std::vector<float> widen_keys(const Trace& trace) {
  std::vector<float> out(trace.k.bytes.size() /
                         static_cast<std::size_t>(dtype_size(trace.k.dtype)));
  widen_keys(trace, trace.k.bytes.data(), trace.n, out.data());
  return out;
}

Trace load_trace(const std::string& path, bool values) { return Loader(path).load(values); }

}  // namespace quarry::tools
