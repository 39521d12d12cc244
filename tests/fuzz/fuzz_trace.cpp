// SPDX-License-Identifier: Apache-2.0
//
// Traces: bytes as they are, and files composed of nearly the right tensors. Refused, or what
// the replay relies on holds.
#include "compose.h"
#include "trace.h"

namespace {

using namespace quarry;
using fuzz::require;

void check_array(const tools::TypedArray& array, std::size_t count) {
  require(array.bytes.size() == count * static_cast<std::size_t>(dtype_size(array.dtype)));
  require(tools::widen(array).size() == count);
}

void check_trace(const tools::Trace& t) {
  require(t.n > 0 && t.hkv > 0 && t.hq > 0 && t.d > 0 && t.queries > 0 && t.hq % t.hkv == 0);
  const auto n = static_cast<std::size_t>(t.n), hkv = static_cast<std::size_t>(t.hkv),
             hq = static_cast<std::size_t>(t.hq), d = static_cast<std::size_t>(t.d);
  check_array(t.k, n * hkv * d);
  require(t.k_scale.empty() || t.k_scale.size() == 1 || t.k_scale.size() == hkv);
  require(t.k_scale.empty() || t.k.dtype == DType::float8_e4m3);
  require(tools::widen_keys(t).size() == n * hkv * d);
  check_array(t.q, static_cast<std::size_t>(t.queries) * hq * d);
  if (!t.v.empty()) check_array(t.v, n * hkv * d);
  check_array(t.q_train, static_cast<std::size_t>(t.train_queries) * hq * d);
  require(t.q_pos.size() == static_cast<std::size_t>(t.queries));
  for (std::size_t i = 0; i < t.q_pos.size(); ++i) {
    require(t.q_pos[i] < t.n && t.q_pos[i] >= 0 && (i == 0 || t.q_pos[i] > t.q_pos[i - 1]));
  }
  const tools::Model& m = t.model;
  if (!m.codebooks.empty()) {
    require(m.codebooks.size() == hkv * static_cast<std::size_t>(m.subspaces) *
                                      static_cast<std::size_t>(m.ksub) *
                                      static_cast<std::size_t>(m.dcent));
  }
  require(m.rotation.empty() || m.rotation.size() == hkv * d * d);
  require(m.rotation.size() == m.query_rotation.size());
}

void compose_trace(FuzzedDataProvider& in, const std::string& path) {
  const auto small = [&](std::int64_t most) {
    return in.ConsumeIntegralInRange<std::int64_t>(in.ConsumeBool() ? 1 : 0, most);
  };
  const std::int64_t n = small(12), hkv = small(3), hq = hkv * small(2), d = small(9),
                     queries = small(4), m = small(2), ksub = small(4);
  const char* const dtypes[] = {"F32", "F16", "BF16"};
  const char* const dtype = in.PickValueInArray(dtypes);
  const bool float8 = in.ConsumeBool();
  fuzz::compose(in,
                {{"k", float8 ? "F8_E4M3" : dtype, {n, hkv, d}},
                 {float8 ? "k_scale" : "other", "F32", {in.ConsumeBool() ? 1 : hkv}},
                 {"q", "F32", {queries, hq, d}},
                 {"q_pos", "I32", {queries}},
                 {"v", dtype, {n, hkv, d}},
                 {"q_train", dtype, {small(5), hq, d}},
                 {"codebooks", "F32", {hkv, m, ksub, small(5)}},
                 {"phi", "F32", {hkv, m}},
                 {"rotation", "F32", {hkv, d, d}},
                 {"query_rotation", "F32", {hkv, d, d}},
                 {"else", "U8", {small(3)}}},
                {{"layer", in.ConsumeRandomLengthString(4)}}, path);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const bool raw = size == 0 || data[0] != 'S';
  try {
    const fuzz::MemoryFile file(data, raw ? size : 0);
    bool values = true;
    if (!raw) {
      FuzzedDataProvider in(data + 1, size - 1);
      values = in.ConsumeBool();
      try {
        compose_trace(in, file.path());
      } catch (const std::exception&) {
        return 0;  // no such file can be written: metadata that are no UTF-8
      }
    }
    check_trace(tools::load_trace(file.path(), values));
  } catch (const tools::BadInput&) {
  }
  return 0;
}
