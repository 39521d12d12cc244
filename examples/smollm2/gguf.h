// SPDX-License-Identifier: Apache-2.0
//
// The GGUF format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), versions 2 and 3:
// metadata, a table of tensors, their bytes. The file is not trusted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace quarry::smollm2 {

/// How elements of a tensor lie in the file, by the format's own ids. Others are refused.
enum class TensorType : std::uint32_t { f32 = 0, f16 = 1, q4_1 = 3, q8_0 = 8 };

/// Elements that are stored together, and what they take.
struct BlockLayout {
  const char* name;
  std::uint64_t elements;
  std::uint64_t bytes;
};
BlockLayout block_layout(TensorType type);

/// One tensor, already checked against the file.
struct GgufTensor {
  std::string name;
  TensorType type = TensorType::f32;
  std::vector<std::uint64_t> extents;  ///< fastest first: [in, out] for a projection
  std::span<const std::byte> bytes;    ///< exactly extents x type, inside the GgufFile
};

/// "Q4_1 [576, 192]".
std::string describe(const GgufTensor& tensor);

/// A file held in memory and checked whole: every string, array and tensor lies inside it,
/// no name comes twice, sizes agree with shapes.
class GgufFile {
 public:
  /// Both throw BadInput, one line with the name, for anything else than a sound file.
  static GgufFile load(const std::string& path);
  GgufFile(std::string name, std::vector<std::byte> bytes);

  GgufFile(GgufFile&&) = default;
  GgufFile& operator=(GgufFile&&) = default;
  GgufFile(const GgufFile&) = delete;  // tensors point into bytes_
  GgufFile& operator=(const GgufFile&) = delete;

  /// Throw BadInput where the key is missing or of another kind.
  std::uint64_t number(const std::string& key) const;
  double real(const std::string& key) const;
  const std::string& text(const std::string& key) const;
  const std::vector<std::string>& texts(const std::string& key) const;

  /// Throws BadInput where it is missing.
  const GgufTensor& tensor(const std::string& name) const;
  bool has_tensor(const std::string& name) const { return tensors_.count(name) > 0; }
  std::size_t tensor_count() const noexcept { return tensors_.size(); }

  [[noreturn]] void refuse(const std::string& why) const;

 private:
  /// Arrays of anything but strings are checked and dropped: nothing here reads one.
  using Value = std::variant<std::monostate, bool, std::uint64_t, std::int64_t, double, std::string,
                             std::vector<std::string>>;
  class Reader;

  const Value& value(const std::string& key) const;

  std::string name_;
  std::vector<std::byte> bytes_;
  std::map<std::string, Value> values_;
  std::map<std::string, GgufTensor> tensors_;
};

}  // namespace quarry::smollm2
