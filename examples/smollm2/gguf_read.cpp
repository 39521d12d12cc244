// SPDX-License-Identifier: Apache-2.0
//
// Reading a GGUF header front to back.
#include "gguf.h"

#include <bit>
#include <cstring>
#include <optional>

#include "error.h"

namespace quarry::smollm2 {
namespace {

using tools::printable;

static_assert(std::endian::native == std::endian::little, "GGUF is little-endian");

constexpr std::uint64_t kMaxRank = 4;  // the format's own limit
constexpr std::uint64_t kDefaultAlignment = 32;

/// Metadata value types, by the format's ids.
enum ValueType : std::uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64
};

/// Bytes of a number, or the fewest a string takes; 0 for an unknown type.
std::uint64_t least_bytes(std::uint32_t type) {
  switch (type) {
    case kUint8:
    case kInt8:
    case kBool:
      return 1;
    case kUint16:
    case kInt16:
      return 2;
    case kUint32:
    case kInt32:
    case kFloat32:
      return 4;
    case kUint64:
    case kInt64:
    case kFloat64:
    case kString:
      return 8;
    default:
      return 0;
  }
}

std::optional<TensorType> tensor_type(std::uint32_t id) {
  for (const TensorType type :
       {TensorType::f32, TensorType::f16, TensorType::q4_1, TensorType::q8_0}) {
    if (id == static_cast<std::uint32_t>(type)) return type;
  }
  return {};
}

}  // namespace

/// Reads the header front to back; nothing is taken before it is known to be there.
class GgufFile::Reader {
 public:
  explicit Reader(GgufFile& file) : file_(file) {}

  void read_all() {
    if (left() < 4 || std::memcmp(take(4), "GGUF", 4) != 0) file_.refuse("is not a GGUF file");
    const auto version = number<std::uint32_t>("the version");
    if (version != 2 && version != 3) {
      file_.refuse("is GGUF version " + std::to_string(version) + ", 2 and 3 are read");
    }
    const auto tensors = number<std::uint64_t>("the number of tensors");
    const auto values = number<std::uint64_t>("the number of metadata entries");
    // Counts need no bound of their own: each entry takes bytes, and those run out.
    for (std::uint64_t i = 0; i < values; ++i) read_value();
    for (std::uint64_t i = 0; i < tensors; ++i) read_tensor();
    place_tensors();
  }

 private:
  std::uint64_t left() const { return file_.bytes_.size() - at_; }

  const std::byte* take(std::uint64_t bytes) {
    const std::byte* from = file_.bytes_.data() + at_;
    at_ += bytes;
    return from;
  }

  void need(std::uint64_t bytes, const std::string& what) const {
    if (bytes <= left()) return;
    file_.refuse("truncated: " + what + " takes " + std::to_string(bytes) + " bytes at byte " +
                 std::to_string(at_) + ", " + std::to_string(left()) + " are left");
  }

  template <typename T>
  T number(const std::string& what) {
    need(sizeof(T), what);
    T out;
    std::memcpy(&out, take(sizeof(T)), sizeof(T));
    return out;
  }

  std::string string(const std::string& what) {
    const auto length = number<std::uint64_t>("the length of " + what);
    need(length, what);
    return {reinterpret_cast<const char*>(take(length)), length};
  }

  Value scalar(std::uint32_t type, const std::string& what) {
    switch (type) {
      case kUint8:
        return std::uint64_t{number<std::uint8_t>(what)};
      case kUint16:
        return std::uint64_t{number<std::uint16_t>(what)};
      case kUint32:
        return std::uint64_t{number<std::uint32_t>(what)};
      case kUint64:
        return number<std::uint64_t>(what);
      case kInt8:
        return std::int64_t{number<std::int8_t>(what)};
      case kInt16:
        return std::int64_t{number<std::int16_t>(what)};
      case kInt32:
        return std::int64_t{number<std::int32_t>(what)};
      case kInt64:
        return number<std::int64_t>(what);
      case kFloat32:
        return double{number<float>(what)};
      case kFloat64:
        return number<double>(what);
      case kBool:
        return number<std::uint8_t>(what) != 0;
      case kString:
        return string(what);
      default:
        file_.refuse(what + " has the unknown type " + std::to_string(type));
    }
  }

  Value array(const std::string& what) {
    const auto type = number<std::uint32_t>("the element type of " + what);
    const auto count = number<std::uint64_t>("the length of " + what);
    const std::uint64_t element = least_bytes(type);
    if (element == 0) {
      file_.refuse(what + " is an array of the unknown type " + std::to_string(type));
    }
    if (count > left() / element) {
      file_.refuse("truncated: " + what + " has " + std::to_string(count) + " entries, " +
                   std::to_string(left()) + " bytes are left");
    }
    if (type != kString) {
      take(count * element);
      return {};
    }
    std::vector<std::string> out;
    out.reserve(count);
    for (std::uint64_t i = 0; i < count; ++i) out.push_back(string("an entry of " + what));
    return out;
  }

  void read_value() {
    const std::string key = string("a metadata key");
    const std::string what = "'" + printable(key) + "'";
    const auto type = number<std::uint32_t>("the type of " + what);
    Value value = type == kArray ? array(what) : scalar(type, what);
    if (!file_.values_.emplace(key, std::move(value)).second) {
      file_.refuse("names the metadata " + what + " twice");
    }
  }

  void read_tensor() {
    GgufTensor tensor;
    tensor.name = string("a tensor's name");
    const std::string what = "tensor '" + printable(tensor.name) + "'";
    const auto rank = number<std::uint32_t>("the rank of " + what);
    if (rank == 0 || rank > kMaxRank) {
      file_.refuse(what + " has rank " + std::to_string(rank) + ", 1 to 4 are possible");
    }
    std::uint64_t elements = 1;
    for (std::uint32_t i = 0; i < rank; ++i) {
      tensor.extents.push_back(number<std::uint64_t>("an extent of " + what));
      if (tensor.extents.back() == 0 ||
          __builtin_mul_overflow(elements, tensor.extents.back(), &elements)) {
        file_.refuse(what + " has extents of no or too many elements");
      }
    }
    const auto id = number<std::uint32_t>("the type of " + what);
    const auto type = tensor_type(id);
    if (!type) {
      file_.refuse(what + " has type " + std::to_string(id) +
                   "; F32 (0), F16 (1), Q4_1 (3) and Q8_0 (8) are read");
    }
    tensor.type = *type;
    const BlockLayout layout = block_layout(tensor.type);
    std::uint64_t bytes = 0;
    if (tensor.extents.front() % layout.elements != 0 ||
        __builtin_mul_overflow(elements / layout.elements, layout.bytes, &bytes)) {
      file_.refuse(what + ": " + describe(tensor) + " has no size in whole blocks of " +
                   std::to_string(layout.elements));
    }
    const auto offset = number<std::uint64_t>("the offset of " + what);
    const std::string name = tensor.name;
    if (!file_.tensors_.emplace(name, std::move(tensor)).second) {
      file_.refuse("names " + what + " twice");
    }
    places_.push_back({name, offset, bytes});
  }

  /// Offsets count from the header's end, rounded up to the alignment.
  void place_tensors() {
    std::uint64_t alignment = kDefaultAlignment;
    if (file_.values_.count("general.alignment") > 0) alignment = file_.number("general.alignment");
    if (alignment == 0 || (alignment & (alignment - 1)) != 0 || alignment > (1u << 20)) {
      file_.refuse("general.alignment is " + std::to_string(alignment) +
                   ", not a power of two up to 2^20");
    }
    const std::uint64_t start = (at_ + alignment - 1) / alignment * alignment;
    const std::uint64_t size = file_.bytes_.size();
    const std::uint64_t data = start > size ? 0 : size - start;
    for (const Place& place : places_) {
      if (place.offset % alignment != 0) {
        file_.refuse("tensor '" + printable(place.name) + "' starts at " +
                     std::to_string(place.offset) + ", not a multiple of " +
                     std::to_string(alignment));
      }
      if (place.offset > data || place.bytes > data - place.offset) {
        file_.refuse("truncated: tensor '" + printable(place.name) + "' takes " +
                     std::to_string(place.bytes) + " bytes at " + std::to_string(place.offset) +
                     " of " + std::to_string(data));
      }
      file_.tensors_.at(place.name).bytes =
          std::span(file_.bytes_).subspan(start + place.offset, place.bytes);
    }
  }

  struct Place {
    std::string name;
    std::uint64_t offset, bytes;
  };

  GgufFile& file_;
  std::uint64_t at_ = 0;
  std::vector<Place> places_;
};

GgufFile::GgufFile(std::string name, std::vector<std::byte> bytes)
    : name_(std::move(name)), bytes_(std::move(bytes)) {
  Reader(*this).read_all();
}

}  // namespace quarry::smollm2
