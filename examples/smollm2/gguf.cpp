// SPDX-License-Identifier: Apache-2.0
#include "gguf.h"

#include <filesystem>
#include <fstream>

#include "error.h"

namespace quarry::smollm2 {

using tools::BadInput;
using tools::printable;

BlockLayout block_layout(TensorType type) {
  switch (type) {
    case TensorType::f32:
      return {"F32", 1, 4};
    case TensorType::f16:
      return {"F16", 1, 2};
    case TensorType::q4_1:
      return {"Q4_1", 32, 20};  // float16 scale and offset, 32 x 4 bits
    case TensorType::q8_0:
      return {"Q8_0", 32, 34};  // float16 scale, 32 x int8
  }
  return {"unknown", 1, 0};
}

std::string describe(const GgufTensor& tensor) {
  std::string out = std::string(block_layout(tensor.type).name) + " [";
  for (std::size_t i = 0; i < tensor.extents.size(); ++i) {
    out += (i == 0 ? "" : ", ") + std::to_string(tensor.extents[i]);
  }
  return out + "]";
}

GgufFile GgufFile::load(const std::string& path) {
  std::error_code error;
  const std::uint64_t size = std::filesystem::file_size(path, error);
  if (error) throw BadInput(printable(path) + ": " + error.message());
  std::vector<std::byte> bytes(size);
  std::ifstream file(path, std::ios::binary);
  if (!file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(size))) {
    throw BadInput(printable(path) + ": cannot be read");
  }
  return {path, std::move(bytes)};
}

void GgufFile::refuse(const std::string& why) const {
  throw BadInput(printable(name_) + ": " + why);
}

const GgufFile::Value& GgufFile::value(const std::string& key) const {
  const auto it = values_.find(key);
  if (it == values_.end()) refuse("has no metadata '" + key + "'");
  return it->second;
}

std::uint64_t GgufFile::number(const std::string& key) const {
  if (const auto* v = std::get_if<std::uint64_t>(&value(key))) return *v;
  refuse("'" + key + "' is not an unsigned integer");
}

double GgufFile::real(const std::string& key) const {
  if (const auto* v = std::get_if<double>(&value(key))) return *v;
  refuse("'" + key + "' is not a floating-point number");
}

const std::string& GgufFile::text(const std::string& key) const {
  if (const auto* v = std::get_if<std::string>(&value(key))) return *v;
  refuse("'" + key + "' is not a string");
}

const std::vector<std::string>& GgufFile::texts(const std::string& key) const {
  if (const auto* v = std::get_if<std::vector<std::string>>(&value(key))) return *v;
  refuse("'" + key + "' is not an array of strings");
}

const GgufTensor& GgufFile::tensor(const std::string& name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) refuse("has no tensor '" + name + "'");
  return it->second;
}

}  // namespace quarry::smollm2
