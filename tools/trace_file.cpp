// SPDX-License-Identifier: Apache-2.0
#include "trace_file.h"

#include <algorithm>

#include "error.h"

namespace quarry::tools {
namespace {

constexpr std::int64_t kAny = -1;  // an extent that the caller checks or takes

}  // namespace

TraceFile::TraceFile(const std::string& path) : file_(path) {
  header_.metadata = file_.metadata();
  check_keys_and_queries();
  read_key_scale();
  const TensorInfo& positions = require("q_pos");
  if (positions.dtype != "I32") refuse("q_pos: is " + describe(positions) + ", expected I32");
  check_shape(positions, {header_.queries});
  if (const TensorInfo* info = find("q_train")) {
    header_.q_train.dtype = check_floats("q_train", {kAny, header_.hq, header_.d});
    header_.train_queries = extent(*info, 0);
  }
}

void TraceFile::refuse(const std::string& why) const {
  throw BadInput(printable(file_.path()) + ": " + why);
}

const TensorInfo& TraceFile::require(const char* name) const {
  const TensorInfo* info = find(name);
  if (info == nullptr) refuse(std::string("has no tensor '") + name + "'");
  return *info;
}

std::int32_t TraceFile::extent(const TensorInfo& info, std::size_t axis) const {
  const std::int64_t value = info.shape[axis];
  if (value > INT32_MAX) refuse(info.name + ": " + describe(info) + " is too large");
  return static_cast<std::int32_t>(value);
}

void TraceFile::check_shape(const TensorInfo& info,
                            const std::vector<std::int64_t>& expected) const {
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

DType TraceFile::check_floats(const char* name, const std::vector<std::int64_t>& shape,
                              bool float8) const {
  const TensorInfo& info = require(name);
  DType dtype{};
  if (info.dtype == "F32") {
    dtype = DType::float32;
  } else if (info.dtype == "F16") {
    dtype = DType::float16;
  } else if (info.dtype == "BF16") {
    dtype = DType::bfloat16;
  } else if (info.dtype == "F8_E4M3" && float8) {
    dtype = DType::float8_e4m3;
  } else {
    refuse(info.name + ": is " + describe(info) +
           (float8 ? ", expected F32, F16, BF16 or F8_E4M3" : ", expected F32, F16 or BF16"));
  }
  check_shape(info, shape);
  return dtype;
}

TypedArray TraceFile::floats(const char* name, const std::vector<std::int64_t>& shape) {
  TypedArray array;
  array.dtype = check_floats(name, shape);
  array.bytes = file_.read(require(name));
  return array;
}

TypedArray TraceFile::keys() {
  TypedArray array;
  array.dtype = header_.k.dtype;
  array.bytes = file_.read(require("k"));
  return array;
}

void TraceFile::read_key_scale() {
  const TensorInfo* info = find("k_scale");
  if (info == nullptr) return;
  if (header_.k.dtype != DType::float8_e4m3) {
    refuse("k_scale: k is " + describe(require("k")) + ", only F8_E4M3 has a scale");
  }
  const std::vector<std::int64_t>& shape = info->shape;
  const bool one = shape.empty() || (shape.size() == 1 && shape[0] == 1);
  if (info->dtype != "F32" || !(one || (shape.size() == 1 && shape[0] == header_.hkv))) {
    refuse("k_scale: is " + describe(*info) + ", expected F32 [1] or [" +
           std::to_string(header_.hkv) + "]");
  }
  header_.k_scale.resize(one ? 1 : static_cast<std::size_t>(header_.hkv));
  file_.read(*info, 0, info->bytes, reinterpret_cast<std::byte*>(header_.k_scale.data()));
}

void TraceFile::check_keys_and_queries() {
  Trace& trace = header_;
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
  trace.k.dtype = check_floats("k", {trace.n, trace.hkv, trace.d}, true);
  trace.q.dtype = check_floats("q", {trace.queries, trace.hq, trace.d});
}

void TraceFile::read_positions(std::vector<std::int32_t>* out) {
  constexpr std::int64_t kPart = 1 << 14;
  const TensorInfo& info = require("q_pos");
  std::vector<std::int32_t> part(
      static_cast<std::size_t>(std::min<std::int64_t>(header_.queries, kPart)));
  std::int32_t before = -1;
  for (std::int64_t first = 0; first < header_.queries; first += kPart) {
    part.resize(static_cast<std::size_t>(std::min(header_.queries - first, kPart)));
    file_.read(info, static_cast<std::uint64_t>(first) * sizeof(std::int32_t),
               part.size() * sizeof(std::int32_t), reinterpret_cast<std::byte*>(part.data()));
    for (std::size_t t = 0; t < part.size(); ++t) {
      const std::int32_t position = part[t];
      const std::string label = "q_pos[" + std::to_string(first + static_cast<std::int64_t>(t)) +
                                "]: " + std::to_string(position);
      if (position < 0 || position >= header_.n) {
        refuse(label + " is not a position of k, 0 .. " + std::to_string(header_.n - 1));
      }
      if (position <= before) {
        refuse(label + " does not ascend, " + std::to_string(before) + " came before");
      }
      before = position;
    }
    if (out != nullptr) out->insert(out->end(), part.begin(), part.end());
  }
}

void TraceFile::read_rows(const char* name, std::int64_t first, std::int64_t count,
                          std::byte* out) {
  const TensorInfo& info = require(name);
  const std::uint64_t row = info.bytes / static_cast<std::uint64_t>(info.shape[0]);
  file_.read(info, static_cast<std::uint64_t>(first) * row, static_cast<std::uint64_t>(count) * row,
             out);
}

void TraceFile::read_keys(std::int64_t first, std::int64_t count, std::byte* out) {
  read_rows("k", first, count, out);
}

void TraceFile::read_queries(std::int64_t first, std::int64_t count, std::byte* out) {
  read_rows("q", first, count, out);
}

void TraceFile::read_train_queries(std::int64_t first, std::int64_t count, std::byte* out) {
  read_rows("q_train", first, count, out);
}

}  // namespace quarry::tools
