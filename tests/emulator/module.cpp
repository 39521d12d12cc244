// SPDX-License-Identifier: Apache-2.0
// A PTX file's outer level: functions found, variables laid out; kernels decoded on demand.

#include <cctype>
#include <cstring>
#include <mutex>
#include <stdexcept>

#include "check.h"
#include "decode.h"

namespace quarry::emulator {
namespace {

// Comments to blanks; lines stay lines.
void blank_comments(std::string& text) {
  for (size_t i = 0; i + 1 < text.size(); ++i) {
    if (text[i] != '/' || (text[i + 1] != '/' && text[i + 1] != '*')) continue;
    const bool block = text[i + 1] == '*';
    size_t end = block ? text.find("*/", i + 2) : text.find('\n', i);
    end = end == std::string::npos ? text.size() : block ? end + 2 : end;
    for (; i < end; ++i) {
      if (text[i] != '\n') text[i] = ' ';
    }
  }
}

class LoadedModule final : public Module {
 public:
  explicit LoadedModule(std::string text) : text_(std::move(text)) {
    blank_comments(text_);
    scan();
  }
  ~LoadedModule() override {
    for (const auto& [name, v] : parsed_.variables) {
      if (v.memory != nullptr) forget_variable(v.memory);
    }
  }

  const Kernel* kernel(std::string_view name) override {
    const std::lock_guard lock(mutex_);
    const auto known = programs_.find(name);
    if (known != programs_.end()) return known->second.get();
    const auto f = parsed_.functions.find(name);
    if (f == parsed_.functions.end() || !f->second.entry) return nullptr;
    auto program = Decoder(parsed_, name).take();
    return programs_.emplace(std::string(name), std::move(program)).first->second.get();
  }

  void* variable(std::string_view name, size_t* bytes) override {
    const auto v = parsed_.variables.find(name);
    if (v == parsed_.variables.end() || v->second.where != Variable::Where::global) return nullptr;
    if (bytes != nullptr) *bytes = v->second.bytes;
    return v->second.memory;
  }

 private:
  void skip_space() {
    for (; at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_])) != 0; ++at_) {
      line_ += text_[at_] == '\n';
    }
  }
  // Up to one of the stops, which is left; counts lines.
  std::string_view until(const char* stops) {
    const size_t begin = at_;
    while (at_ < text_.size() && std::strchr(stops, text_[at_]) == nullptr) {
      line_ += text_[at_++] == '\n';
    }
    if (at_ == text_.size()) syntax_error(line_, "end of text inside a statement");
    return std::string_view(text_).substr(begin, at_ - begin);
  }
  std::string_view enclosed(char open, char close) {
    skip_space();
    if (at_ == text_.size() || text_[at_] != open) syntax_error(line_, "bracket expected");
    const size_t begin = ++at_;
    for (int depth = 1; at_ < text_.size(); ++at_) {
      const char c = text_[at_];
      line_ += c == '\n';
      if (c == open) ++depth;
      if (c == close && --depth == 0) {
        return std::string_view(text_).substr(begin, at_++ - begin);
      }
    }
    syntax_error(line_, "bracket without its end");
  }

  void scan() {
    for (skip_space(); at_ < text_.size(); skip_space()) {
      const std::string_view rest = std::string_view(text_).substr(at_);
      const std::string_view word = rest.substr(0, rest.find_first_of(" \t\n\r"));
      if (word == ".version" || word == ".target" || word == ".address_size" || word == ".file") {
        until("\n");
      } else if (word == ".visible" || word == ".weak" || word == ".extern") {
        extern_ = word == ".extern";
        at_ += word.size();
        continue;
      } else if (word == ".entry" || word == ".func") {
        at_ += word.size();
        function(word == ".entry");
      } else if (word == ".global" || word == ".const" || word == ".shared") {
        at_ += word.size();
        variable_statement(word == ".shared");
      } else if (word == ".pragma") {
        until(";");
        ++at_;
      } else {
        syntax_error(line_, "'" + std::string(word) + "' is not known at the outer level");
      }
      extern_ = false;
    }
  }

  void function(bool entry) {
    FunctionText f;
    f.entry = entry;
    skip_space();
    f.line = line_;
    if (!entry && text_[at_] == '(') f.returns = enclosed('(', ')');
    skip_space();
    const std::string name(trim(until("({;")));
    if (text_[at_] == '(') f.parameters = enclosed('(', ')');
    f.directives = until("{;");
    if (text_[at_] == ';') {  // a prototype
      ++at_;
      return;
    }
    skip_space();
    f.body_line = line_;
    f.body = enclosed('{', '}');
    parsed_.functions[name] = f;
  }

  void variable_statement(bool shared) {
    const unsigned line = line_;
    const std::string_view head = until("=;");
    const Declaration d = declaration(head, line);
    Variable v;
    v.align = std::max<size_t>(d.align, d.type.bits / 8);
    v.bytes = d.bytes();
    std::string_view initial;
    if (text_[at_] == '=') {
      ++at_;
      skip_space();
      initial = text_[at_] == '{' ? enclosed('{', '}') : until(";");
      until(";");
    }
    ++at_;
    const std::string name(d.name);
    if (shared) {
      v.where = d.unsized ? Variable::Where::dynamic_shared : Variable::Where::shared;
    } else {
      if (extern_) syntax_error(line, "extern variable " + name);
      // Over-aligned as a GPU's are; freed with the module.
      storage_.push_back(std::make_unique<std::byte[]>(v.bytes + 256));
      const auto p = reinterpret_cast<uintptr_t>(storage_.back().get());
      v.memory = storage_.back().get() + ((256 - p % 256) % 256);
      initialise(v, d, initial, line);
      register_variable(v.memory, v.bytes);
    }
    parsed_.variables[name] = v;
  }

  void initialise(const Variable& v, const Declaration& d, std::string_view values, unsigned line) {
    const size_t bytes = d.type.bits / 8;
    size_t i = 0;
    for (const std::string_view value : split_operands(values)) {
      uint64_t bits = 0;
      if (i >= d.elements || !literal(value, d.type, &bits)) {
        syntax_error(line, "initial value '" + std::string(value) + "' of " + std::string(d.name));
      }
      std::memcpy(v.memory + i++ * bytes, &bits, bytes);
    }
  }

  std::string text_;
  size_t at_ = 0;
  unsigned line_ = 1;
  bool extern_ = false;
  ModuleText parsed_;
  std::vector<std::unique_ptr<std::byte[]>> storage_;
  std::mutex mutex_;
  std::map<std::string, std::unique_ptr<Program>, std::less<>> programs_;
};

}  // namespace

std::unique_ptr<Module> Module::load(std::string text) {
  return std::make_unique<LoadedModule>(std::move(text));
}

}  // namespace quarry::emulator
