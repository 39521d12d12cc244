// SPDX-License-Identifier: Apache-2.0
#pragma once

// From PTX statements to a Program: names to register offsets, labels to places, calls inlined.

#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "machine.h"
#include "text.h"

namespace quarry::emulator {

// A function as it stands in the text.
struct FunctionText {
  unsigned line = 0, body_line = 0;
  std::string_view returns, parameters, directives, body;
  bool entry = false;
};

struct Variable {
  enum class Where { global, shared, dynamic_shared };
  Where where = Where::global;
  size_t bytes = 0, align = 1;
  std::byte* memory = nullptr;  // global
};

struct ModuleText {
  std::map<std::string, FunctionText, std::less<>> functions;
  std::map<std::string, Variable, std::less<>> variables;
};

// A declaration such as ".align 8 .b8 name[40]" or ".reg .b32 %r<80>".
struct Declaration {
  std::string_view name;
  Type type;
  size_t align = 0, elements = 1;
  bool array = false, unsized = false;
  size_t bytes() const { return elements * (type.bits / 8); }
};
Declaration declaration(std::string_view text, unsigned line);

// An opcode taken apart: what no decoder takes is an error.
struct Opcode {
  std::string_view name;
  std::vector<std::string_view> modifiers;
  std::vector<Type> types;
  explicit Opcode(const Statement& s);
  bool take(std::string_view modifier);
};

struct Symbol {
  enum class Kind { none, reg, shared, local, parameter, global };
  Kind kind = Kind::none;
  Type type;
  uint64_t at = 0;     // offset of register or memory, or an address
  unsigned count = 0;  // reg: how many of them, `name` being the prefix
};

class Decoder {
 public:
  Decoder(const ModuleText& module, std::string_view name);
  std::unique_ptr<Program> take() { return std::move(program_); }

  // Operands. Registers must have the type's width; literals become constants.
  Operand source(std::string_view text, Type type);
  Operand source_of_any_width(std::string_view text, unsigned* bits);
  Operand destination(std::string_view text, unsigned bits);
  Operand destination_of_any_width(std::string_view text, unsigned* bits);
  Operand predicate(std::string_view text, Mask* flip);
  // "[base+offset]" into from[index], offset and wide_address.
  void address(std::string_view text, Instruction& in, unsigned index);
  // "{a, b}" to its parts, another operand to itself.
  static std::vector<std::string_view> parts(std::string_view text);
  Operand constant(unsigned bits, uint64_t value);
  Operand special(Special which);
  Symbol find(std::string_view name);
  // One destination, then sources of these types; checks how many there are.
  void fill(Instruction& in, const Statement& s, Type to, std::initializer_list<Type> from);
  void expect(const Statement& s, size_t least, size_t most);
  [[noreturn]] void fail(const std::string& cause) { syntax_error(line_, cause); }

 private:
  using Scope = std::unordered_map<std::string, Symbol>;
  struct Frame {
    std::unordered_map<std::string, uint32_t> labels;
    std::vector<std::pair<uint32_t, std::string>> jumps;
    std::vector<std::pair<uint32_t, unsigned>> jump_lines;
    std::vector<uint32_t> returns;
    bool entry = false;
  };

  void entry_parameters(const FunctionText& f);
  void body(const FunctionText& f, Scope bound, bool entry);
  void directive(std::string_view text);
  void declare_registers(const Declaration& d);
  void instruction(const Statement& s, Frame& frame);
  void call(const Statement& s);
  uint64_t place_shared(size_t bytes, size_t align);
  uint64_t place_local(size_t bytes, size_t align);
  uint32_t add_register(unsigned bits, unsigned count);

  const ModuleText& module_;
  std::unique_ptr<Program> program_;
  std::vector<std::vector<Scope>> scopes_;          // a stack for each function being inlined
  std::unordered_map<std::string, Symbol> shared_;  // the module's, once used
  size_t dynamic_align_ = 16;                       ///< of the dynamic shared memory
  std::map<std::pair<unsigned, uint64_t>, uint32_t> constants_;
  std::map<Special, uint32_t> specials_;
  unsigned line_ = 0;
  uint32_t used_ = ~0u;  // of the next load
};

// The state space an opcode names; generic without.
Space take_space(Opcode& op);

// Each takes the opcodes it knows: fills `in` and returns true, or returns false.
bool decode_integer(Decoder& d, const Statement& s, Opcode& op, Instruction& in);
bool decode_bits(Decoder& d, const Statement& s, Opcode& op, Instruction& in);
bool decode_float(Decoder& d, const Statement& s, Opcode& op, Instruction& in);
bool decode_half(Decoder& d, const Statement& s, Opcode& op, Instruction& in);
bool decode_compare(Decoder& d, const Statement& s, Opcode& op, Instruction& in);
bool decode_move(Decoder& d, const Statement& s, Opcode& op, Instruction& in);
bool decode_convert(Decoder& d, const Statement& s, Opcode& op, Instruction& in);
bool decode_memory(Decoder& d, const Statement& s, Opcode& op, Instruction& in);
bool decode_atomic(Decoder& d, const Statement& s, Opcode& op, Instruction& in);
bool decode_warp(Decoder& d, const Statement& s, Opcode& op, Instruction& in);
bool decode_matrix(Decoder& d, const Statement& s, Opcode& op, Instruction& in);
bool decode_control(Decoder& d, const Statement& s, Opcode& op, Instruction& in);

// Lets registers that are never live together share their place.
void compact_registers(Program& program);

}  // namespace quarry::emulator
