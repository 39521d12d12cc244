// SPDX-License-Identifier: Apache-2.0
//
// The reader of untrusted files: what is sound is read back whole, and every way to lie is
// refused with one line that names the file.
#include "safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "error.h"

namespace quarry::tools {
namespace {

using testing::HasSubstr;

class SafetensorsTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    path_ = testing::TempDir() + "quarry_" + std::to_string(getpid()) + "_" + test->name();
  }
  void TearDown() override { std::filesystem::remove(path_); }

  void write_bytes(const std::string& bytes) { std::ofstream(path_, std::ios::binary) << bytes; }
  void write_file(const std::string& header, std::size_t data_bytes) {
    write_file_of_length(header.size(), header, data_bytes);
  }
  void write_file_of_length(std::uint64_t length, const std::string& header,
                            std::size_t data_bytes) {
    std::string bytes(sizeof length, '\0');
    std::memcpy(bytes.data(), &length, sizeof length);
    write_bytes(bytes + header + std::string(data_bytes, '\1'));
  }
  /// The line the file is refused with, "" where it is accepted.
  std::string refusal() {
    try {
      SafetensorsFile file(path_);
    } catch (const BadInput& e) {
      EXPECT_THAT(e.what(), HasSubstr(path_.substr(0, 70)));
      EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos);
      return e.what();
    }
    return "";
  }

  std::string path_;
};

TEST_F(SafetensorsTest, RoundTrip) {
  const std::vector<std::uint8_t> bytes = {1, 2, 3};
  const std::vector<float> floats = {1.5f, -2.0f, 0.25f, 4.0f};
  write_safetensors(path_, {{"b", "U8", {3}, bytes.data()}, {"a", "F32", {2, 2}, floats.data()}},
                    {{"note", "x"}});
  SafetensorsFile file(path_);
  ASSERT_EQ(file.tensors().size(), 2u);
  EXPECT_EQ(file.metadata().at("note"), "x");
  const TensorInfo* a = file.find("a");
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(describe(*a), "F32 [2, 2]");
  const auto read = file.read(*a);
  ASSERT_EQ(read.size(), 16u);
  EXPECT_EQ(std::memcmp(read.data(), floats.data(), 16), 0);
  const auto read_bytes = file.read(*file.find("b"));
  EXPECT_EQ(std::memcmp(read_bytes.data(), bytes.data(), 3), 0);
  EXPECT_EQ(file.find("c"), nullptr);
}

TEST_F(SafetensorsTest, WriterDependsOnContentAlone) {
  const std::vector<std::uint8_t> b = {1, 2, 3, 4};
  const auto slurp = [&] {
    std::ifstream in(path_, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  write_safetensors(path_, {{"x", "U8", {4}, b.data()}, {"y", "I32", {1}, b.data()}});
  const std::string first = slurp();
  write_safetensors(path_, {{"y", "I32", {1}, b.data()}, {"x", "U8", {4}, b.data()}});
  EXPECT_EQ(slurp(), first);
  EXPECT_EQ(first.size() % 8, 0u);
}

TEST_F(SafetensorsTest, UnalignedDataIsCopied) {
  const std::string header = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                             R"("f":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})";
  write_file(header, 9);
  SafetensorsFile file(path_);
  const auto read = file.read(*file.find("f"));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(read.data()) % alignof(float), 0u);
  EXPECT_EQ(read[0], std::byte{1});
}

TEST_F(SafetensorsTest, EmptyTensorsAndTrailingSpacesAreSound) {
  write_file(R"({"a":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]}}   )", 0);
  EXPECT_EQ(refusal(), "");
  write_file(R"({"s":{"dtype":"I64","shape":[],"data_offsets":[0,8]}})", 8);
  EXPECT_EQ(refusal(), "");
  write_file("{}", 0);
  EXPECT_EQ(refusal(), "");
}

TEST_F(SafetensorsTest, FilesThatAreNone) {
  EXPECT_THAT(refusal(), HasSubstr("no such file"));
  write_bytes("");
  EXPECT_THAT(refusal(), HasSubstr("not a safetensors file: 0 bytes"));
  write_bytes("x");
  EXPECT_THAT(refusal(), HasSubstr("not a safetensors file: 1 bytes"));
  path_ = testing::TempDir();
  EXPECT_THAT(refusal(), HasSubstr("is a directory"));
  path_ = "/dev/null";
  EXPECT_THAT(refusal(), HasSubstr("not a regular file"));
  path_ = testing::TempDir() + "quarry_no_such_file";
}

TEST_F(SafetensorsTest, HeaderLength) {
  write_file_of_length(100, "{}", 0);
  EXPECT_THAT(refusal(), HasSubstr("truncated: a header of 100 bytes"));
  write_file_of_length(UINT64_MAX, "{}", 0);
  EXPECT_THAT(refusal(), HasSubstr("truncated"));
  write_file_of_length(UINT64_MAX - 7, "{}", 0);
  EXPECT_THAT(refusal(), HasSubstr("truncated"));
  write_file_of_length(0, "", 0);
  EXPECT_THAT(refusal(), HasSubstr("not a JSON object"));
}

struct BadHeader {
  const char* name;
  std::string header;
  std::size_t data_bytes;
  const char* why;
};

std::string one(const std::string& entry) { return "{\"a\":" + entry + "}"; }

std::string entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return "{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}

const BadHeader kBadHeaders[] = {
    {"NotJson", "{\"a\":", 0, "not JSON"},
    {"Array", "[]", 0, "not a JSON object"},
    {"TrailingText", "{}x", 0, "not JSON"},
    {"InvalidUtf8", "{\"\xff\":1}", 0, "not JSON"},
    {"Deep", one("{\"shape\":[[1]]}"), 0, "nested too deeply"},
    {"VeryDeep", "{\"a\":" + std::string(100000, '['), 0, "nested too deeply"},
    {"NameTwice",
     "{\"a\":" + entry("U8", "[1]", "[0,1]") + ",\"a\":" + entry("U8", "[1]", "[1,2]") + "}", 2,
     "names 'a' twice"},
    {"DtypeTwice", one(R"({"dtype":"U8","dtype":"F32","shape":[1],"data_offsets":[0,1]})"), 1,
     "names 'dtype' twice"},
    {"EntryNoObject", one("3"), 0, "not an object"},
    {"NoDtype", one(R"({"shape":[1],"data_offsets":[0,1]})"), 1, "has no dtype"},
    {"DtypeNumber", one(R"({"dtype":3,"shape":[1],"data_offsets":[0,1]})"), 1, "has no dtype"},
    {"UnknownDtype", one(entry("F33", "[1]", "[0,4]")), 4, "dtype 'F33' is not known"},
    {"ControlCharacters", one(entry("\\n\\u001b[31m", "[1]", "[0,4]")), 4, "dtype '??[31m'"},
    {"NoShape", one(R"({"dtype":"U8","data_offsets":[0,1]})"), 1, "has no shape"},
    {"ShapeNegative", one(entry("U8", "[-1]", "[0,1]")), 1, "shape is not"},
    {"ShapeFloat", one(entry("U8", "[1.0]", "[0,1]")), 1, "shape is not"},
    {"ShapeString", one(entry("U8", "[\"1\"]", "[0,1]")), 1, "shape is not"},
    {"ShapePast64Bits", one(entry("U8", "[18446744073709551617]", "[0,1]")), 1, "shape is not"},
    {"ShapePast63Bits", one(entry("U8", "[9223372036854775808]", "[0,1]")), 1, "shape is not"},
    {"ShapeRank", one(entry("U8", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,1]")), 1,
     "shape is not"},
    {"ShapeOverflow", one(entry("F32", "[4294967296,4294967296]", "[0,4]")), 4, "no size in bytes"},
    // 2^61 float32 are 2^63 bytes: the product in bits wraps to 0.
    {"ShapeWraps", one(entry("F32", "[2305843009213693952]", "[0,0]")), 0, "no size in bytes"},
    {"SubByte", one(entry("F4", "[1]", "[0,1]")), 1, "no size in bytes"},
    {"NoOffsets", one(R"({"dtype":"U8","shape":[1]})"), 1, "has no data_offsets"},
    {"OneOffset", one(entry("U8", "[1]", "[0]")), 1, "not two"},
    {"ThreeOffsets", one(entry("U8", "[1]", "[0,1,1]")), 1, "not two"},
    {"OffsetsNegative", one(entry("U8", "[1]", "[-1,0]")), 1, "not two"},
    {"OffsetsFall", one(entry("U8", "[1]", "[1,0]")), 1, "data_offsets [1, 0]"},
    {"OffsetsPastEnd", one(entry("U8", "[9]", "[0,9]")), 8, "data_offsets [0, 9] in 8 bytes"},
    {"OffsetsHuge", one(entry("U8", "[1]", "[9223372036854775806,9223372036854775807]")), 8,
     "in 8 bytes"},
    {"SizeSmall", one(entry("F32", "[1]", "[0,8]")), 8, "takes 4 bytes"},
    {"SizeLarge", one(entry("F32", "[3]", "[0,8]")), 8, "takes 12 bytes"},
    {"Overlap",
     "{\"a\":" + entry("U8", "[4]", "[0,4]") + ",\"b\":" + entry("U8", "[4]", "[3,7]") + "}", 7,
     "'a' and 'b' overlap"},
    {"SamePlace",
     "{\"a\":" + entry("U8", "[4]", "[0,4]") + ",\"b\":" + entry("U8", "[4]", "[0,4]") + "}", 4,
     "overlap"},
    {"Inside",
     "{\"a\":" + entry("U8", "[4]", "[0,4]") + ",\"b\":" + entry("U8", "[1]", "[1,2]") + "}", 4,
     "overlap"},
    {"Hole", "{\"a\":" + entry("U8", "[1]", "[1,2]") + "}", 2, "belong to no tensor"},
    {"Trailing", one(entry("U8", "[1]", "[0,1]")), 5, "4 bytes at the end"},
    {"MetadataNumber", R"({"__metadata__":{"a":1}})", 0, "__metadata__ 'a' is not a string"},
    {"MetadataList", R"({"__metadata__":["a"]})", 0, "not an object"},
};

class BadHeaderTest : public SafetensorsTest, public testing::WithParamInterface<BadHeader> {
 protected:
  void SetUp() override {
    path_ = testing::TempDir() + "quarry_" + std::to_string(getpid()) + "_" + GetParam().name;
  }
};

TEST_P(BadHeaderTest, IsRefused) {
  write_file(GetParam().header, GetParam().data_bytes);
  EXPECT_THAT(refusal(), HasSubstr(GetParam().why));
}

INSTANTIATE_TEST_SUITE_P(All, BadHeaderTest, testing::ValuesIn(kBadHeaders),
                         [](const auto& param) { return param.param.name; });

TEST_F(SafetensorsTest, EveryTruncationIsRefused) {
  const std::vector<float> floats(8, 1.0f);
  write_safetensors(path_, {{"a", "F32", {8}, floats.data()}});
  const auto size = std::filesystem::file_size(path_);
  for (auto bytes = size; bytes-- > 0;) {
    std::filesystem::resize_file(path_, bytes);
    EXPECT_NE(refusal(), "") << bytes << " of " << size << " bytes";
  }
}

TEST_F(SafetensorsTest, EveryFlippedHeaderByteIsReadOrRefused) {
  const std::vector<float> floats(8, 1.0f);
  write_safetensors(path_, {{"a", "F32", {4}, floats.data()}, {"b", "F32", {4}, floats.data()}});
  std::ifstream in(path_, std::ios::binary);
  const std::string sound(std::istreambuf_iterator<char>(in), {});
  int accepted = 0, refused = 0;
  for (std::size_t at = 0; at < sound.size() - 32; ++at) {
    for (const int flip : {1, 2, 0x10, 0x80}) {
      std::string bytes = sound;
      bytes[at] = static_cast<char>(bytes[at] ^ flip);
      write_bytes(bytes);
      (refusal().empty() ? accepted : refused) += 1;
    }
  }
  EXPECT_GT(refused, accepted);
}

TEST_F(SafetensorsTest, UnwritablePath) {
  const float x = 1;
  EXPECT_THROW(write_safetensors("/no/such/folder/file", {{"a", "F32", {1}, &x}}), Error);
}

}  // namespace
}  // namespace quarry::tools
