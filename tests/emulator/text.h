// SPDX-License-Identifier: Apache-2.0
#pragma once

// PTX text cut into statements, and the types its opcodes name.

#include <string>
#include <string_view>
#include <vector>

namespace quarry::emulator {

struct Type {
  char kind = 0;  // b u s f, h (f16), g (bf16), p (pred), 0: none
  unsigned bits = 0;
  bool pair = false;  // f16x2, bf16x2, u16x2, s16x2: bits is 32
  bool is_signed() const { return kind == 's'; }
  bool is_float() const { return kind == 'f'; }
  explicit operator bool() const { return kind != 0; }
};
// The type a word such as "s32" names; none for another word.
Type type_of(std::string_view word);

struct Statement {
  enum class Kind { label, directive, instruction, open, close };
  Kind kind = Kind::instruction;
  unsigned line = 0;
  std::string_view text;                 // label: its name; directive: all of it
  std::string_view guard;                // "%p1", "!%p1" or empty
  std::vector<std::string_view> opcode;  // its words, between the dots
  std::vector<std::string_view> operands;
};

[[noreturn]] void syntax_error(unsigned line, const std::string& cause);

std::string_view trim(std::string_view text);
// At commas outside braces, brackets and parentheses; each trimmed.
std::vector<std::string_view> split_operands(std::string_view text);
std::vector<std::string_view> words(std::string_view text);
// A body (without its outer braces), comments already blanked, to statements.
std::vector<Statement> statements(std::string_view body, unsigned line);
// Integer or 0f/0d literal as bits of the given type; false where it is none.
bool literal(std::string_view text, Type type, uint64_t* bits);

}  // namespace quarry::emulator
