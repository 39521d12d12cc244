// SPDX-License-Identifier: Apache-2.0
//
// A captured sequence of one layer, as quarry-replay and quarry-calibrate read it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "quarry/tensor.h"

namespace quarry::tools {

/// Elements as the file holds them; empty where the trace has no such tensor.
struct TypedArray {
  std::vector<std::byte> bytes;
  DType dtype = DType::float32;
  bool empty() const noexcept { return bytes.empty(); }
};

/// What an index of the layer needs to encode and score, widened to float32. Any part may
/// be empty; the rotations are both there or none.
struct Model {
  std::vector<float> codebooks;  ///< [hkv, m, ksub, dcent]
  std::int32_t subspaces = 0, ksub = 0, dcent = 0;
  std::vector<float> phi;             ///< [hkv, m]
  std::vector<float> rotation;        ///< [hkv, d, d]
  std::vector<float> query_rotation;  ///< [hkv, d, d]
  /// [hkv]: of the keys the codebooks were made from, 0 where unknown; a calibration's alone.
  std::vector<float> quantization_error;
};

/// A checked trace. Shapes agree with each other; values are whatever the file holds.
struct Trace {
  std::int32_t n = 0;        ///< positions
  std::int32_t hkv = 0;      ///< KV heads
  std::int32_t hq = 0;       ///< query heads, a multiple of hkv
  std::int32_t d = 0;        ///< head dimension
  std::int32_t queries = 0;  ///< T, at least 1

  TypedArray k;                     ///< [n, hkv, d], float8_e4m3 or what else a trace may hold
  std::vector<float> k_scale;       ///< of float8_e4m3 keys: none, 1, or hkv
  TypedArray q;                     ///< [T, hq, d]
  std::vector<std::int32_t> q_pos;  ///< [T], strictly ascending, 0 .. n-1
  TypedArray v;                     ///< [n, hkv, d], optional
  TypedArray q_train;               ///< [T0, hq, d], optional
  std::int32_t train_queries = 0;   ///< T0

  Model model;                                  ///< optional: used instead of training
  std::map<std::string, std::string> metadata;  ///< as the file has it, e.g. "layer"
};

/// Reads and checks `path`. Tensors it does not know are ignored, and `v` where `values` is
/// false. Throws BadInput, one
/// line naming the file, the tensor and what is wrong with it.
Trace load_trace(const std::string& path, bool values = true);

/// All elements as float32 (exact for every dtype a trace may have).
std::vector<float> widen(const TypedArray& array);

/// The keys' values: float32(k), or float32(k) * k_scale rounded once.
std::vector<float> widen_keys(const Trace& trace);

/// The same of `count` positions of k at `from`, as the file holds them, to out[count][hkv][d].
void widen_keys(const Trace& trace, const void* from, std::int64_t count, float* out);

}  // namespace quarry::tools
