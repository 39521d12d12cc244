// SPDX-License-Identifier: Apache-2.0
//
// The container that nvcc embeds, written here by hand: what is not understood is said.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "fatbin.h"

namespace quarry::emulator::test {
namespace {

using runtime::find_ptx;

struct Part {
  std::uint16_t kind;  // 1: PTX, 2: machine code
  std::uint32_t architecture;
  std::string payload;
  std::uint32_t compressed_bytes = 0;
};

/// What __cudaRegisterFatBinary() would be given.
class Container {
 public:
  explicit Container(const std::vector<Part>& parts) {
    put(0xba55ed50u);
    put(std::uint16_t{1});
    put(std::uint16_t{16});
    put(std::uint64_t{0});  // size, below
    for (const Part& part : parts) {
      std::string payload = part.payload;
      payload.resize((payload.size() + 8) / 8 * 8);  // NUL padding
      put(part.kind);
      put(std::uint16_t{0x101});
      put(std::uint32_t{64});
      put(std::uint64_t{payload.size()});
      put(part.compressed_bytes);
      put(std::uint32_t{64});
      put(std::uint32_t{0x90000});
      put(part.architecture);
      bytes.resize(bytes.size() + 32);
      bytes.insert(bytes.end(), payload.begin(), payload.end());
    }
    set(8, std::uint64_t{bytes.size() - 16});
  }
  template <typename T>
  void set(std::size_t at, T value) {
    std::memcpy(&bytes[at], &value, sizeof value);
  }
  std::string find(int compute_capability) {
    wrapper.data = bytes.data();
    return find_ptx(&wrapper, compute_capability);
  }
  std::string error(int compute_capability) {
    try {
      find(compute_capability);
    } catch (const std::runtime_error& e) {
      return e.what();
    }
    return "none";
  }

  struct {
    std::uint32_t magic = 0x466243b1, version = 1;
    const unsigned char* data = nullptr;
    void* unused = nullptr;
  } wrapper;
  std::vector<unsigned char> bytes;

 private:
  template <typename T>
  void put(T value) {
    bytes.resize(bytes.size() + sizeof value);
    set(bytes.size() - sizeof value, value);
  }
};

const std::string kPtx80 = ".version 9.0\n.target sm_80\n",
                  kPtx90 = ".version 9.0\n.target sm_90\n";

void expect_error(const std::string& got, const std::string& part) {
  EXPECT_NE(got.find(part), std::string::npos) << got << "\nlacks: " << part;
}

TEST(EmulatedFatbin, TheNewestPtxThatFitsIsTaken) {
  Container c({{1, 80, kPtx80}, {2, 90, "code"}, {1, 90, kPtx90}, {1, 100, ".version 9.0\n100"}});
  EXPECT_EQ(c.find(90), kPtx90);
  EXPECT_EQ(c.find(80), kPtx80);
}

TEST(EmulatedFatbin, WithoutPtxThatFitsItSaysWhatIsThere) {
  Container c({{2, 80, "code"}, {1, 90, kPtx90}});
  expect_error(c.error(80), "no PTX for compute capability 80 among: sm_80 compute_90");
}

TEST(EmulatedFatbin, CompressedPtxIsNamed) {
  Container c({{1, 90, "(\xb5/\xfd", 4}});
  expect_error(c.error(90), "--compress-mode=none");
}

TEST(EmulatedFatbin, AnotherLayoutIsAnError) {
  Container c({{1, 90, kPtx90}});
  Container d = c;
  d.wrapper.magic = 1;
  expect_error(d.error(90), "its wrapper begins with 0x1");
  d = c;
  d.wrapper.version = 2;
  expect_error(d.error(90), "its wrapper's version is 2");
  d = c;
  d.set(0, 0x12345678u);
  expect_error(d.error(90), "it begins with 0x12345678");
  d = c;
  d.set(4, std::uint16_t{2});
  expect_error(d.error(90), "its version is 2");
  d = c;
  d.set(6, std::uint16_t{8});
  expect_error(d.error(90), "its header is too short");
  d = c;
  d.set(16 + 4, std::uint32_t{8});
  expect_error(d.error(90), "does not fit");
  d = c;
  d.set(16 + 8, std::uint64_t{1} << 60);
  expect_error(d.error(90), "does not fit");
  d = c;
  d.set(8, std::uint64_t{20});
  expect_error(d.error(90), "an entry is cut off");
  Container e({{1, 90, "something else"}});
  expect_error(e.error(90), "no .version directive");
}

}  // namespace
}  // namespace quarry::emulator::test
