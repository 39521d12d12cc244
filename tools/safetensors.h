// SPDX-License-Identifier: Apache-2.0
//
// The safetensors format (https://github.com/huggingface/safetensors): 8 bytes of header
// length, a JSON header, the tensors' bytes. The file is not trusted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace quarry::tools {

/// One tensor as the header describes it, already checked against the file.
struct TensorInfo {
  std::string name;
  std::string dtype;  ///< as the format spells it: "F32", "F16", "BF16", "I32", "U8", ...
  std::vector<std::int64_t> shape;
  std::uint64_t offset = 0;  ///< from the start of the file
  std::uint64_t bytes = 0;   ///< exactly shape x dtype
};

/// "F16 [8192, 3, 64]".
std::string describe(const TensorInfo& tensor);
std::string describe_shape(const std::vector<std::int64_t>& shape);

/// A file whose header has been checked whole: every tensor lies inside the data, has the
/// size its shape and dtype say, and overlaps no other; together they fill the data.
class SafetensorsFile {
 public:
  /// Throws BadInput, one line with the path, for anything else than a sound file.
  explicit SafetensorsFile(const std::string& path);

  const std::string& path() const noexcept { return path_; }
  /// Ascending by name.
  const std::vector<TensorInfo>& tensors() const noexcept { return tensors_; }
  const std::map<std::string, std::string>& metadata() const noexcept { return metadata_; }
  /// Null where there is no such tensor.
  const TensorInfo* find(std::string_view name) const noexcept;

  /// A copy of the tensor's bytes, aligned for any element type wherever it lies in the
  /// file.
  std::vector<std::byte> read(const TensorInfo& tensor);
  /// `count` of the tensor's bytes from its byte `first` on, which it must have.
  void read(const TensorInfo& tensor, std::uint64_t first, std::uint64_t count, std::byte* out);

 private:
  void parse_header(const std::string& header, std::uint64_t data_start, std::uint64_t file_size);
  void check_layout(std::uint64_t data_start, std::uint64_t file_size) const;
  [[noreturn]] void refuse(const std::string& why) const;

  std::string path_;
  std::ifstream file_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
};

/// A tensor to be written; `data` holds shape x dtype bytes, little-endian.
struct TensorSource {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;
  const void* data = nullptr;
};

/// Writes a file whose bytes depend on its arguments' values alone, not on their order.
/// Throws Error (internal) where the file cannot be written.
void write_safetensors(const std::string& path, std::vector<TensorSource> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace quarry::tools
