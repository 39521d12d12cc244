// SPDX-License-Identifier: Apache-2.0
//
// The pieces of examples/smollm2 that need no model: the reader of untrusted GGUF files,
// dequantization against values worked out by hand, the tokenizer on a tiny vocabulary.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "dequantize.h"
#include "error.h"
#include "gguf.h"
#include "tokenizer.h"

namespace quarry::smollm2 {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using tools::BadInput;

/// A GGUF file being written.
class Bytes {
 public:
  template <typename T>
  Bytes& put(T value) {
    const auto* from = reinterpret_cast<const std::byte*>(&value);
    bytes_.insert(bytes_.end(), from, from + sizeof value);
    return *this;
  }
  Bytes& text(const std::string& value) {
    put<std::uint64_t>(value.size());
    for (const char c : value) put(c);
    return *this;
  }
  Bytes& header(std::uint64_t tensors, std::uint64_t values, std::uint32_t version = 3) {
    for (const char c : {'G', 'G', 'U', 'F'}) put(c);
    return put(version).put(tensors).put(values);
  }
  Bytes& tensor(const std::string& name, std::vector<std::uint64_t> extents, std::uint32_t type,
                std::uint64_t offset) {
    text(name).put(static_cast<std::uint32_t>(extents.size()));
    for (const std::uint64_t e : extents) put(e);
    return put(type).put(offset);
  }
  Bytes& fill(std::size_t count) {
    bytes_.resize(bytes_.size() + count, std::byte{1});
    return *this;
  }
  Bytes& align(std::size_t to) { return fill((to - bytes_.size() % to) % to); }
  const std::vector<std::byte>& get() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

enum : std::uint32_t { kU32 = 4, kF32 = 6, kText = 8, kArray = 9 };

Bytes sound() {
  Bytes b;
  b.header(2, 4);
  b.text("count").put(kU32).put(7u);
  b.text("share").put(kF32).put(0.5f);
  b.text("names").put(kArray).put(kText).put(std::uint64_t{2}).text("x").text("yz");
  b.text("kinds").put(kArray).put(kU32).put(std::uint64_t{3}).put(1u).put(2u).put(3u);
  b.tensor("a", {2, 3}, 0, 0).tensor("b", {64, 2}, 3, 32);
  return b.align(32).fill(32 + 4 * 20);
}

/// The line the bytes are refused with, "" where they are accepted.
std::string refusal(const Bytes& bytes) {
  try {
    const GgufFile file("f.gguf", bytes.get());
  } catch (const BadInput& e) {
    EXPECT_THAT(e.what(), HasSubstr("f.gguf: "));
    return e.what();
  }
  return "";
}

TEST(Gguf, ReadsWhatIsThere) {
  const GgufFile file("f.gguf", sound().get());
  EXPECT_EQ(file.number("count"), 7u);
  EXPECT_EQ(file.real("share"), 0.5);
  EXPECT_THAT(file.texts("names"), ElementsAre("x", "yz"));
  EXPECT_EQ(file.tensor_count(), 2u);
  EXPECT_EQ(describe(file.tensor("b")), "Q4_1 [64, 2]");
  EXPECT_EQ(file.tensor("b").bytes.size(), 80u);
  EXPECT_THROW(file.number("share"), BadInput);
  EXPECT_THROW(file.number("kinds"), BadInput);
  EXPECT_THROW(file.text("nothing"), BadInput);
  EXPECT_THROW(file.tensor("c"), BadInput);
}

TEST(Gguf, RefusesEveryPrefix) {
  const std::vector<std::byte> whole = sound().get();
  for (std::size_t size = 0; size < whole.size(); ++size) {
    std::vector<std::byte> cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_THROW(GgufFile("f.gguf", std::move(cut)), BadInput) << size;
  }
}

TEST(Gguf, RefusesByName) {
  constexpr std::uint64_t kHuge = UINT64_MAX;
  EXPECT_THAT(refusal(Bytes().fill(64)), HasSubstr("is not a GGUF file"));
  EXPECT_THAT(refusal(Bytes().header(0, 0, 1)), HasSubstr("version 1"));
  EXPECT_THAT(refusal(Bytes().header(0, 1).put(kHuge)), HasSubstr("truncated: a metadata key"));
  EXPECT_THAT(refusal(Bytes().header(kHuge, kHuge)), HasSubstr("truncated"));
  EXPECT_THAT(refusal(Bytes().header(0, 1).text("k").put(13u)), HasSubstr("unknown type 13"));
  EXPECT_THAT(refusal(Bytes().header(0, 1).text("k").put(kArray).put(kArray).put(kHuge)),
              HasSubstr("array of the unknown type 9"));
  EXPECT_THAT(refusal(Bytes().header(0, 1).text("k").put(kArray).put(kText).put(kHuge / 8)),
              HasSubstr("'k' has 2305843009213693951 entries"));
  EXPECT_THAT(refusal(Bytes().header(0, 2).text("k").put(kU32).put(1u).text("k").put(kU32).put(1u)),
              HasSubstr("'k' twice"));
  const auto tensor = [](std::vector<std::uint64_t> extents, std::uint32_t type,
                         std::uint64_t offset) {
    return refusal(Bytes().header(1, 0).tensor("t", extents, type, offset).align(32).fill(64));
  };
  EXPECT_EQ(tensor({16}, 0, 0), "");
  EXPECT_THAT(tensor({}, 0, 0), HasSubstr("rank 0"));
  EXPECT_THAT(tensor({1, 1, 1, 1, 1}, 0, 0), HasSubstr("rank 5"));
  EXPECT_THAT(tensor({4, 0}, 0, 0), HasSubstr("no or too many"));
  EXPECT_THAT(tensor({1ull << 40, 1ull << 40}, 0, 0), HasSubstr("no or too many"));
  EXPECT_THAT(tensor({1ull << 62}, 0, 0), HasSubstr("no size"));
  EXPECT_THAT(tensor({33}, 8, 0), HasSubstr("whole blocks of 32"));
  EXPECT_THAT(tensor({32}, 12, 0), HasSubstr("type 12"));
  EXPECT_THAT(tensor({17}, 0, 0), HasSubstr("takes 68 bytes at 0 of 64"));
  EXPECT_THAT(tensor({1}, 0, 33), HasSubstr("not a multiple of 32"));
  EXPECT_THAT(tensor({1}, 0, kHuge - 31), HasSubstr("truncated"));
  EXPECT_THAT(
      refusal(
          Bytes().header(2, 0).tensor("t", {1}, 0, 0).tensor("t", {1}, 0, 0).align(32).fill(32)),
      HasSubstr("'t' twice"));
  EXPECT_THAT(refusal(Bytes().header(0, 1).text("general.alignment").put(kU32).put(48u)),
              HasSubstr("48, not a power of two"));
}

TEST(Gguf, ChangedBytesNeverLeaveTheFile) {
  std::mt19937 random(1);
  int accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    std::vector<std::byte> bytes = sound().get();
    for (int j = 0; j < 1 + i % 4; ++j) {
      bytes[random() % bytes.size()] = static_cast<std::byte>(i % 3 == 0 ? 0xff : random());
    }
    try {
      const GgufFile file("f.gguf", bytes);
      for (const char* name : {"a", "b"}) {
        if (file.has_tensor(name)) dequantize(file.tensor(name));  // ASan watches
      }
      ++accepted;
    } catch (const BadInput&) {
    }
  }
  EXPECT_GT(accepted, 0);
  EXPECT_LT(accepted, 20000);
}

std::vector<float> dequantized(TensorType type, const Bytes& bytes) {
  GgufTensor tensor;
  tensor.type = type;
  tensor.bytes = bytes.get();
  return dequantize(tensor);
}

constexpr std::uint16_t kHalf = 0x3800, kQuarter = 0x3400, kMinusOne = 0xbc00;  // float16

TEST(Dequantize, Floats) {
  EXPECT_THAT(dequantized(TensorType::f32, Bytes().put(1.5f).put(-0.1f)), ElementsAre(1.5f, -0.1f));
  EXPECT_THAT(dequantized(TensorType::f16, Bytes().put(kHalf).put(std::uint16_t{0x8001})),
              ElementsAre(0.5f, -5.9604644775390625e-8f));
}

TEST(Dequantize, FourBitsWithAnOffset) {
  Bytes bytes;
  for (const std::uint16_t offset : {kMinusOne, kQuarter}) {
    bytes.put(kHalf).put(offset);
    for (unsigned i = 0; i < 16; ++i) bytes.put(static_cast<std::uint8_t>(i | (15 - i) << 4));
  }
  const std::vector<float> values = dequantized(TensorType::q4_1, bytes);
  ASSERT_EQ(values.size(), 64u);
  for (std::size_t i = 0; i < 16; ++i) {
    const float low = 0.5f * static_cast<float>(i), high = 0.5f * static_cast<float>(15 - i);
    EXPECT_EQ(values[i], low - 1);
    EXPECT_EQ(values[16 + i], high - 1);
    EXPECT_EQ(values[32 + i], low + 0.25f);
    EXPECT_EQ(values[48 + i], high + 0.25f);
  }
}

TEST(Dequantize, EightBits) {
  Bytes bytes;
  bytes.put(kQuarter);
  for (int i = 0; i < 32; ++i) bytes.put(static_cast<std::int8_t>(i == 31 ? -128 : 4 * i));
  const std::vector<float> values = dequantized(TensorType::q8_0, bytes);
  ASSERT_EQ(values.size(), 32u);
  for (std::size_t i = 0; i < 31; ++i) EXPECT_EQ(values[i], static_cast<float>(i));
  EXPECT_EQ(values[31], -32.0f);
}

TEST(Tokenizer, SplitsAsGpt2WithDigitsAlone) {
  EXPECT_THAT(split_words("I'll go"), ElementsAre("I", "'ll", " go"));
  EXPECT_THAT(split_words("a 42b"), ElementsAre("a", " ", "4", "2", "b"));
  EXPECT_THAT(split_words("x  y"), ElementsAre("x", " ", " y"));
  EXPECT_THAT(split_words("x \n\n y\n"), ElementsAre("x", " \n\n", " y", "\n"));
  EXPECT_THAT(split_words("end.\nAnd"), ElementsAre("end", ".", "\n", "And"));
  EXPECT_THAT(split_words("(a, 'b)"), ElementsAre("(", "a", ",", " '", "b", ")"));
  EXPECT_THAT(split_words("x   7"), ElementsAre("x", "   ", "7"));
  EXPECT_THAT(split_words(""), ElementsAre());
  EXPECT_THROW(split_words("caf\xc3\xa9"), BadInput);
}

// "\xc4\xa0" is U+0120, how GPT-2 writes a space.
const std::vector<std::string> kTokens = {"<end>",
                                          "a",
                                          "b",
                                          "c",
                                          "\xc4\xa0",
                                          "bc",
                                          "\xc4\xa0"
                                          "a",
                                          "ab",
                                          "abc"};
const std::vector<std::string> kMerges = {"b c", "\xc4\xa0 a", "a b", "ab c"};

TEST(Tokenizer, MergesTheMostUrgentFirst) {
  const Tokenizer tokenizer(kTokens, kMerges);
  EXPECT_THAT(tokenizer.encode("abc"), ElementsAre(1, 5));        // a bc: "b c" before "a b"
  EXPECT_THAT(tokenizer.encode("ab abc"), ElementsAre(7, 6, 5));  // never across words
  EXPECT_THAT(tokenizer.encode("bcbc"), ElementsAre(5, 5));
  EXPECT_THAT(tokenizer.encode(""), ElementsAre());
  EXPECT_EQ(tokenizer.decode(6), " a");
  EXPECT_EQ(tokenizer.decode(0), "<end>");
  EXPECT_EQ(tokenizer.decode(99), "");
}

TEST(Tokenizer, RefusesWhatItCannotHold) {
  const Tokenizer tokenizer(kTokens, kMerges);
  EXPECT_THROW(tokenizer.encode("abd"), BadInput);  // no token for d
  for (const char* merge : {"ab", "a d", "c b", " a", ""}) {
    EXPECT_THROW(Tokenizer(kTokens, {merge}), BadInput) << merge;
  }
}

}  // namespace
}  // namespace quarry::smollm2
