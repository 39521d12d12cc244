// SPDX-License-Identifier: Apache-2.0
#include "test_double.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <regex>
#include <stdexcept>

#include "test_kernels.h"

namespace quarry::emulator {
namespace {

using test::recording;

bool holds(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

class DoubleKernel : public Kernel {
 public:
  /// `entry` is the PTX from .entry to the next one.
  DoubleKernel(std::string kernel_name, const std::string& entry) : name(std::move(kernel_name)) {
    const std::string head = entry.substr(0, entry.find('{'));
    const std::regex parameter(R"(\.param \.(?:align \d+ \.b8 \w+\[(\d+)\]|[usbf](\d+)))");
    for (std::sregex_iterator i(head.begin(), head.end(), parameter), end; i != end; ++i) {
      bytes_.push_back((*i)[1].matched ? std::stoul((*i)[1]) : std::stoul((*i)[2]) / 8);
    }
    std::smatch found;
    if (std::regex_search(head, found, std::regex(R"(\.maxntid (\d+))"))) {
      threads_ = static_cast<unsigned>(std::stoul(found[1]));
    }
    // nvcc puts a kernel's shared arrays into its body.
    if (std::regex_search(entry, found, std::regex(R"(\.shared [^;]*\[(\d+)\];)"))) {
      shared_ = std::stoul(found[1]);
    }
  }
  std::size_t parameters() const override { return bytes_.size(); }
  std::size_t parameter_bytes(std::size_t i) const override { return bytes_[i]; }
  std::size_t static_shared() const override { return shared_; }
  unsigned max_threads() const override { return threads_; }

  const std::string name;

 private:
  std::vector<std::size_t> bytes_;
  unsigned threads_ = 1024;
  std::size_t shared_ = 0;
};

class DoubleModule : public Module {
 public:
  explicit DoubleModule(std::string text) {
    const std::regex entry(R"(\.entry (\w+))");
    for (std::sregex_iterator i(text.begin(), text.end(), entry), end; i != end; ++i) {
      const auto begin = static_cast<std::size_t>(i->position());
      std::string body = text.substr(begin, text.find(".entry", begin + 1) - begin);
      kernels_.emplace((*i)[1], std::make_unique<DoubleKernel>((*i)[1], body));
    }
    recording().modules.push_back(std::move(text));
  }
  const Kernel* kernel(std::string_view name) override {
    const auto found = kernels_.find(std::string(name));
    return found != kernels_.end() ? found->second.get() : nullptr;
  }
  void* variable(std::string_view /*name*/, std::size_t* /*bytes*/) override { return nullptr; }

 private:
  std::map<std::string, std::unique_ptr<DoubleKernel>> kernels_;
};

template <typename T>
T argument(const Launch& launch, std::size_t i) {
  T value;
  std::memcpy(&value, launch.arguments[i], sizeof value);
  return value;
}

}  // namespace

test::Recording& test::recording() {
  static Recording& all = *new Recording;
  return all;
}

std::unique_ptr<Module> Module::load(std::string text) {
  return std::make_unique<DoubleModule>(std::move(text));
}

void run(const Kernel& kernel, const Launch& launch) {
  const std::string& name = dynamic_cast<const DoubleKernel&>(kernel).name;
  recording().launches.push_back({name, launch});
  const int threads = static_cast<int>(launch.grid.x * launch.block.x);
  if (holds(name, "fill_with")) {
    const auto fill = argument<test::Fill>(launch, 0);
    const int first = argument<int>(launch, 1);
    for (int i = 0; i < std::min(threads, fill.count); ++i) fill.out[i] = first + i * fill.step;
  } else if (holds(name, "increment")) {
    const int count = std::min(threads, argument<int>(launch, 1));
    for (int i = 0; i < count; ++i) ++argument<int*>(launch, 0)[i];
  } else if (holds(name, "reverse_in_shared")) {
    int* data = argument<int*>(launch, 0);
    std::reverse(data, data + launch.block.x);
  } else if (holds(name, "bounded")) {
    for (unsigned i = 0; i < launch.block.x; ++i) {
      argument<int*>(launch, 0)[i] = static_cast<int>(launch.block.x);
    }
  } else {
    throw std::runtime_error("trap");
  }
}

void register_memory(void* begin, std::size_t bytes, bool initialised) {
  recording().live.push_back({begin, bytes, initialised});
}

void forget_memory(void* begin) {
  auto& live = recording().live;
  live.erase(std::find_if(live.begin(), live.end(), [&](auto& m) { return m.begin == begin; }));
}

void mark_written(const void* begin, std::size_t bytes) {
  recording().written.push_back({begin, bytes, true});
}

}  // namespace quarry::emulator
