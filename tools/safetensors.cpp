// SPDX-License-Identifier: Apache-2.0
#include "safetensors.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "error.h"

namespace quarry::tools {
namespace {

using Json = nlohmann::json;

static_assert(std::endian::native == std::endian::little, "tensor data is little-endian");

// The format's own limit; a header is held in memory whole.
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;
constexpr std::size_t kMaxRank = 16;

struct DtypeBits {
  const char* name;
  std::uint64_t bits;
};

constexpr DtypeBits kDtypes[] = {{"F64", 64},    {"I64", 64},    {"U64", 64},    {"C64", 64},
                                 {"F32", 32},    {"I32", 32},    {"U32", 32},    {"F16", 16},
                                 {"BF16", 16},   {"I16", 16},    {"U16", 16},    {"I8", 8},
                                 {"U8", 8},      {"BOOL", 8},    {"F8_E4M3", 8}, {"F8_E5M2", 8},
                                 {"F8_E8M0", 8}, {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F4", 4}};

/// Bits an element, 0 for an unknown dtype.
std::uint64_t bits_of(std::string_view dtype) {
  for (const DtypeBits& d : kDtypes) {
    if (dtype == d.name) return d.bits;
  }
  return 0;
}

/// Bytes of shape x dtype; nothing where it overflows or is not whole bytes.
std::optional<std::uint64_t> bytes_of(const std::vector<std::int64_t>& shape, std::uint64_t bits) {
  std::uint64_t total = bits;
  for (const std::int64_t extent : shape) {
    if (__builtin_mul_overflow(total, static_cast<std::uint64_t>(extent), &total)) return {};
  }
  if (total % 8 != 0) return {};
  return total / 8;
}

/// First pass over the header: refuses what the document parser would accept in silence, a
/// name given twice and nesting deeper than the format has.
class HeaderGuard : public nlohmann::json_sax<Json> {
 public:
  const std::string& why() const { return why_; }

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return push(); }
  bool end_object() override { return pop(); }
  bool start_array(std::size_t) override { return push(); }
  bool end_array() override { return pop(); }
  bool key(string_t& name) override {
    if (names_.back().insert(name).second) return true;
    why_ = "the header names '" + printable(name) + "' twice";
    return false;
  }
  bool parse_error(std::size_t position, const std::string&, const Json::exception&) override {
    why_ = "the header is not JSON (at byte " + std::to_string(position) + " of it)";
    return false;
  }

 private:
  bool push() {
    constexpr std::size_t kDeepest = 3;  // header, tensor, shape
    if (names_.size() == kDeepest) {
      why_ = "the header is nested too deeply";
      return false;
    }
    names_.emplace_back();
    return true;
  }
  bool pop() {
    names_.pop_back();
    return true;
  }

  std::vector<std::set<std::string>> names_;
  std::string why_;
};

/// A list of non-negative integers below 2^63, or nothing. Floats, negative numbers and
/// numbers past 64 bits are not unsigned to the parser.
std::optional<std::vector<std::int64_t>> integers(const Json& value, std::size_t at_most) {
  if (!value.is_array() || value.size() > at_most) return {};
  std::vector<std::int64_t> out;
  for (const Json& entry : value) {
    if (!entry.is_number_unsigned()) return {};
    const auto number = entry.get<std::uint64_t>();
    if (number > static_cast<std::uint64_t>(INT64_MAX)) return {};
    out.push_back(static_cast<std::int64_t>(number));
  }
  return out;
}

}  // namespace

std::string describe_shape(const std::vector<std::int64_t>& shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return out + "]";
}

std::string describe(const TensorInfo& tensor) {
  return tensor.dtype + " " + describe_shape(tensor.shape);
}

SafetensorsFile::SafetensorsFile(const std::string& path) : path_(path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) refuse("no such file");
  if (std::filesystem::is_directory(status)) refuse("is a directory, not a safetensors file");
  if (!std::filesystem::is_regular_file(status)) refuse("is not a regular file");
  const std::uint64_t size = std::filesystem::file_size(path, error);
  if (error) refuse(error.message());
  errno = 0;
  file_.open(path, std::ios::binary);
  if (!file_) refuse(std::string("cannot be opened: ") + std::strerror(errno));

  std::uint64_t header_bytes = 0;
  if (size < sizeof header_bytes) {
    refuse("is not a safetensors file: " + std::to_string(size) +
           " bytes, the header's length alone takes 8");
  }
  if (!file_.read(reinterpret_cast<char*>(&header_bytes), sizeof header_bytes)) {
    refuse("cannot be read");
  }
  if (header_bytes > size - sizeof header_bytes) {
    refuse("truncated: a header of " + std::to_string(header_bytes) + " bytes in a file of " +
           std::to_string(size));
  }
  if (header_bytes > kMaxHeaderBytes) {
    refuse("a header of " + std::to_string(header_bytes) + " bytes, at most " +
           std::to_string(kMaxHeaderBytes));
  }
  std::string header(header_bytes, '\0');
  if (!file_.read(header.data(), static_cast<std::streamsize>(header_bytes))) {
    refuse("cannot be read");
  }
  parse_header(header, sizeof header_bytes + header_bytes, size);
  check_layout(sizeof header_bytes + header_bytes, size);
}

void SafetensorsFile::refuse(const std::string& why) const {
  throw BadInput(printable(path_) + ": " + why);
}

void SafetensorsFile::parse_header(const std::string& header, std::uint64_t data_start,
                                   std::uint64_t file_size) {
  if (header.empty() || header.front() != '{') refuse("the header is not a JSON object");
  HeaderGuard guard;
  if (!Json::sax_parse(header, &guard)) refuse(guard.why());
  const Json json = Json::parse(header, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) refuse("the header is not a JSON object");

  const std::uint64_t data_bytes = file_size - data_start;
  for (const auto& [name, entry] : json.items()) {
    const std::string label = "tensor '" + printable(name) + "'";
    if (!entry.is_object()) refuse(label + ": its entry is not an object");
    if (name == "__metadata__") {
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string()) refuse("__metadata__ '" + printable(key) + "' is not a string");
        metadata_[key] = value.get<std::string>();
      }
      continue;
    }
    TensorInfo tensor;
    tensor.name = name;
    const auto dtype = entry.find("dtype");
    if (dtype == entry.end() || !dtype->is_string()) refuse(label + ": has no dtype");
    tensor.dtype = dtype->get<std::string>();
    const std::uint64_t bits = bits_of(tensor.dtype);
    if (bits == 0) refuse(label + ": dtype '" + printable(tensor.dtype) + "' is not known");

    const auto shape = entry.find("shape");
    if (shape == entry.end()) refuse(label + ": has no shape");
    const auto extents = integers(*shape, kMaxRank);
    if (!extents) refuse(label + ": shape is not a list of at most 16 non-negative integers");
    tensor.shape = *extents;

    const auto offsets = entry.find("data_offsets");
    if (offsets == entry.end()) refuse(label + ": has no data_offsets");
    const auto range = integers(*offsets, 2);
    if (!range || range->size() != 2) {
      refuse(label + ": data_offsets are not two non-negative integers");
    }
    const auto begin = static_cast<std::uint64_t>((*range)[0]);
    const auto end = static_cast<std::uint64_t>((*range)[1]);
    if (begin > end || end > data_bytes) {
      refuse(label + ": data_offsets [" + std::to_string(begin) + ", " + std::to_string(end) +
             "] in " + std::to_string(data_bytes) + " bytes of data");
    }
    const auto bytes = bytes_of(tensor.shape, bits);
    if (!bytes) refuse(label + ": " + describe(tensor) + " has no size in bytes");
    if (*bytes != end - begin) {
      refuse(label + ": " + describe(tensor) + " takes " + std::to_string(*bytes) +
             " bytes, its data_offsets span " + std::to_string(end - begin));
    }
    tensor.offset = data_start + begin;
    tensor.bytes = *bytes;
    tensors_.push_back(std::move(tensor));
  }
}

void SafetensorsFile::check_layout(std::uint64_t data_start, std::uint64_t file_size) const {
  std::vector<const TensorInfo*> order;
  for (const TensorInfo& tensor : tensors_) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const TensorInfo* a, const TensorInfo* b) {
    return a->offset != b->offset ? a->offset < b->offset : a->bytes < b->bytes;
  });
  // The format allows no holes: bytes that no tensor owns could hide another file.
  std::uint64_t at = data_start;
  const TensorInfo* before = nullptr;
  for (const TensorInfo* tensor : order) {
    if (tensor->offset < at) {
      refuse("tensors '" + printable(before->name) + "' and '" + printable(tensor->name) +
             "' overlap");
    }
    if (tensor->offset > at) {
      refuse(std::to_string(tensor->offset - at) + " bytes before tensor '" +
             printable(tensor->name) + "' belong to no tensor");
    }
    at = tensor->offset + tensor->bytes;
    before = tensor;
  }
  if (at != file_size) {
    refuse(std::to_string(file_size - at) + " bytes at the end belong to no tensor");
  }
}

const TensorInfo* SafetensorsFile::find(std::string_view name) const noexcept {
  for (const TensorInfo& tensor : tensors_) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

std::vector<std::byte> SafetensorsFile::read(const TensorInfo& tensor) {
  std::vector<std::byte> bytes(tensor.bytes);
  read(tensor, 0, tensor.bytes, bytes.data());
  return bytes;
}

void SafetensorsFile::read(const TensorInfo& tensor, std::uint64_t first, std::uint64_t count,
                           std::byte* out) {
  if (first > tensor.bytes || count > tensor.bytes - first) {
    throw Error(kExitInternal, "tensor '" + printable(tensor.name) + "' is read past its end");
  }
  file_.clear();
  file_.seekg(static_cast<std::streamoff>(tensor.offset + first));
  // The file may have shrunk since its header was checked.
  if (!file_.read(reinterpret_cast<char*>(out), static_cast<std::streamsize>(count))) {
    refuse("tensor '" + printable(tensor.name) + "' cannot be read");
  }
}

void write_safetensors(const std::string& path, std::vector<TensorSource> tensors,
                       const std::map<std::string, std::string>& metadata) {
  // Wide elements first, so that every tensor is aligned for its own.
  std::sort(tensors.begin(), tensors.end(), [](const TensorSource& a, const TensorSource& b) {
    const std::uint64_t wa = bits_of(a.dtype), wb = bits_of(b.dtype);
    return wa != wb ? wa > wb : a.name < b.name;
  });
  Json header = Json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::vector<std::uint64_t> sizes;
  std::uint64_t at = 0;
  for (const TensorSource& tensor : tensors) {
    const auto bytes = bytes_of(tensor.shape, bits_of(tensor.dtype));
    if (!bytes || bits_of(tensor.dtype) == 0 || header.contains(tensor.name)) {
      throw Error(kExitInternal, "tensor '" + tensor.name + "' cannot be written");
    }
    header[tensor.name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {at, at + *bytes}}};
    sizes.push_back(*bytes);
    at += *bytes;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');

  errno = 0;
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  const std::uint64_t header_bytes = text.size();
  file.write(reinterpret_cast<const char*>(&header_bytes), sizeof header_bytes);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    file.write(static_cast<const char*>(tensors[i].data), static_cast<std::streamsize>(sizes[i]));
  }
  file.close();
  if (!file) {
    throw Error(kExitInternal, printable(path) + ": cannot be written: " + std::strerror(errno));
  }
}

}  // namespace quarry::tools
