// SPDX-License-Identifier: Apache-2.0
#include "text.h"

#include <bit>
#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>

namespace quarry::emulator {
namespace {

bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }

Statement instruction(std::string_view text, unsigned line) {
  Statement s;
  s.line = line;
  if (text[0] == '@') {
    size_t end = 1;
    while (end < text.size() && !is_space(text[end])) ++end;
    s.guard = text.substr(1, end - 1);
    text = trim(text.substr(end));
  }
  size_t end = 0;
  while (end < text.size() && !is_space(text[end])) ++end;
  std::string_view opcode = text.substr(0, end);
  while (!opcode.empty()) {
    const size_t dot = opcode.find('.');
    // shared::cluster and the like are one word.
    s.opcode.push_back(opcode.substr(0, dot));
    if (dot == std::string_view::npos) break;
    opcode.remove_prefix(dot + 1);
  }
  s.operands = split_operands(trim(text.substr(end)));
  return s;
}

}  // namespace

void syntax_error(unsigned line, const std::string& cause) {
  throw std::runtime_error("PTX line " + std::to_string(line) + ": " + cause);
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

std::vector<std::string_view> split_operands(std::string_view text) {
  std::vector<std::string_view> out;
  int depth = 0;
  size_t begin = 0;
  for (size_t i = 0; i <= text.size(); ++i) {
    const char c = i < text.size() ? text[i] : ',';
    if (c == '{' || c == '[' || c == '(') ++depth;
    if (c == '}' || c == ']' || c == ')') --depth;
    if (c != ',' || (depth != 0 && i < text.size())) continue;
    const std::string_view part = trim(text.substr(begin, i - begin));
    if (!part.empty()) out.push_back(part);
    begin = i + 1;
  }
  return out;
}

std::vector<std::string_view> words(std::string_view text) {
  std::vector<std::string_view> out;
  size_t i = 0;
  while (i < text.size()) {
    while (i < text.size() && is_space(text[i])) ++i;
    const size_t begin = i;
    while (i < text.size() && !is_space(text[i])) ++i;
    if (i > begin) out.push_back(text.substr(begin, i - begin));
  }
  return out;
}

std::vector<Statement> statements(std::string_view body, unsigned line) {
  std::vector<Statement> out;
  size_t i = 0;
  const auto skip_space = [&] {
    for (; i < body.size() && is_space(body[i]); ++i) line += body[i] == '\n';
  };
  for (skip_space(); i < body.size(); skip_space()) {
    Statement s;
    s.line = line;
    if (body[i] == '{' || body[i] == '}' || body[i] == ';') {
      if (body[i] != ';') {
        s.kind = body[i] == '{' ? Statement::Kind::open : Statement::Kind::close;
        out.push_back(s);
      }
      ++i;
      continue;
    }
    const size_t begin = i;
    while (i < body.size() && body[i] != ';' && body[i] != ':' && body[i] != '\n') ++i;
    if (i < body.size() && body[i] == ':' && (i + 1 == body.size() || body[i + 1] != ':')) {
      s.kind = Statement::Kind::label;
      s.text = trim(body.substr(begin, i - begin));
      out.push_back(s);
      ++i;
      continue;
    }
    i = begin;
    // A .loc or .file line ends without a semicolon.
    const bool line_only = body.substr(i, 5) == ".loc\t" || body.substr(i, 5) == ".loc ";
    while (i < body.size() && body[i] != ';' && !(line_only && body[i] == '\n')) {
      line += body[i] == '\n';
      ++i;
    }
    const std::string_view text = trim(body.substr(begin, i - begin));
    if (i == body.size()) syntax_error(s.line, "statement without its semicolon");
    if (!line_only) ++i;
    if (line_only) continue;
    if (text[0] == '.') {
      s.kind = Statement::Kind::directive;
      s.text = text;
      out.push_back(s);
    } else {
      out.push_back(instruction(text, s.line));
    }
  }
  return out;
}

Type type_of(std::string_view word) {
  if (word == "pred") return {'p', 1, false};
  if (word == "f16") return {'h', 16, false};
  if (word == "bf16") return {'g', 16, false};
  if (word == "f16x2") return {'h', 32, true};
  if (word == "bf16x2") return {'g', 32, true};
  if (word == "u16x2") return {'u', 32, true};
  if (word == "s16x2") return {'s', 32, true};
  if (word.size() < 2 || word.size() > 3) return {};
  const char kind = word[0];
  const std::string_view bits = word.substr(1);
  if (kind != 'b' && kind != 'u' && kind != 's' && kind != 'f') return {};
  if (bits == "8" && kind != 'f') return {kind, 8, false};
  if (bits == "16" && kind != 'f') return {kind, 16, false};
  if (bits == "32") return {kind, 32, false};
  if (bits == "64") return {kind, 64, false};
  return {};
}

bool literal(std::string_view text, Type type, uint64_t* bits) {
  if (text.empty()) return false;
  const std::string s(text);
  char* end = nullptr;
  if (s[0] == '0' && s.size() > 2 && (s[1] == 'f' || s[1] == 'F' || s[1] == 'd' || s[1] == 'D')) {
    const bool single = s[1] == 'f' || s[1] == 'F';
    if (s.size() != (single ? 10u : 18u) || type.bits != (single ? 32u : 64u)) return false;
    *bits = std::strtoull(s.c_str() + 2, &end, 16);
    return *end == '\0';
  }
  const size_t first = s[0] == '-' || s[0] == '+' ? 1 : 0;
  if (first >= s.size() || std::isdigit(static_cast<unsigned char>(s[first])) == 0) return false;
  if (type.is_float()) {  // a decimal literal of a float type
    const double value = std::strtod(s.c_str(), &end);
    if (*end != '\0') return false;
    *bits = type.bits == 32 ? std::bit_cast<uint32_t>(static_cast<float>(value))
                            : std::bit_cast<uint64_t>(value);
    return true;
  }
  int base = 10;
  size_t digits = first;
  if (s.size() > first + 1 && s[first] == '0') {
    const char c = s[first + 1];
    base = c == 'x' || c == 'X' ? 16 : c == 'b' || c == 'B' ? 2 : 8;
    if (base != 8) digits += 2;
  }
  uint64_t value = std::strtoull(s.c_str() + digits, &end, base);
  if (*end == 'U') ++end;
  if (*end != '\0') return false;
  *bits = s[0] == '-' ? 0 - value : value;
  return true;
}

}  // namespace quarry::emulator
