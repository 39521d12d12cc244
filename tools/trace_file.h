// SPDX-License-Identifier: Apache-2.0
//
// A trace's file, its shapes checked, its vectors read part by part.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "safetensors.h"
#include "trace.h"

namespace quarry::tools {

/// Holds the file's header and nothing else. All that it refuses is a BadInput, one line naming
/// the file, the tensor and what is wrong with it.
class TraceFile {
 public:
  /// Opens `path` and checks k, q, q_pos and, where they are, k_scale and q_train against each
  /// other.
  explicit TraceFile(const std::string& path);

  /// Shapes, dtypes, k_scale and metadata; its arrays are empty and it has no model.
  const Trace& header() const noexcept { return header_; }

  /// Checks the values of q_pos, and appends them to `*out` where it is not null.
  void read_positions(std::vector<std::int32_t>* out);

  /// Rows `first` .. `first + count - 1` of k [n, hkv, d], q [T, hq, d] or q_train [T0, hq, d],
  /// as the file holds them.
  void read_keys(std::int64_t first, std::int64_t count, std::byte* out);
  void read_queries(std::int64_t first, std::int64_t count, std::byte* out);
  void read_train_queries(std::int64_t first, std::int64_t count, std::byte* out);

  const TensorInfo* find(const char* name) const { return file_.find(name); }
  const TensorInfo& require(const char* name) const;
  /// The dtype of a float tensor of that shape; an extent of -1 is any. `float8`: it may be
  /// float8_e4m3, as keys may.
  DType check_floats(const char* name, const std::vector<std::int64_t>& shape,
                     bool float8 = false) const;
  /// Such a tensor, whole.
  TypedArray floats(const char* name, const std::vector<std::int64_t>& shape);
  /// k, whole.
  TypedArray keys();
  std::int32_t extent(const TensorInfo& info, std::size_t axis) const;
  [[noreturn]] void refuse(const std::string& why) const;

 private:
  void check_keys_and_queries();
  void read_key_scale();
  void check_shape(const TensorInfo& info, const std::vector<std::int64_t>& expected) const;
  void read_rows(const char* name, std::int64_t first, std::int64_t count, std::byte* out);

  SafetensorsFile file_;
  Trace header_;
};

}  // namespace quarry::tools
