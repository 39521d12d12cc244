// SPDX-License-Identifier: Apache-2.0
#include "decode.h"

#include <algorithm>
#include <cctype>
#include <cstring>

namespace quarry::emulator {
namespace {

size_t round_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

size_t number(std::string_view text, unsigned line) {
  uint64_t value = 0;
  if (!literal(trim(text), Type{'u', 64, false}, &value)) {
    syntax_error(line, "number expected, not '" + std::string(text) + "'");
  }
  return value;
}

}  // namespace

Declaration declaration(std::string_view text, unsigned line) {
  Declaration d;
  const size_t bracket = text.find_first_of("[<");
  const std::vector<std::string_view> parts = words(text.substr(0, bracket));
  bool pointer = false;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i] == ".align" && i + 1 < parts.size()) {
      const size_t align = number(parts[++i], line);
      if (!pointer) d.align = align;
    } else if (parts[i] == ".ptr" || parts[i] == ".global" || parts[i] == ".shared") {
      pointer = true;  // from here: what a parameter points to
    } else if (parts[i][0] == '.') {
      d.type = type_of(parts[i].substr(1));
      if (!d.type) syntax_error(line, "type '" + std::string(parts[i]) + "'");
    } else if (d.name.empty()) {
      d.name = parts[i];
    } else {
      syntax_error(line, "declaration '" + std::string(text) + "'");
    }
  }
  if (d.name.empty() || !d.type) syntax_error(line, "declaration '" + std::string(text) + "'");
  if (bracket != std::string_view::npos) {
    const size_t end = text.find_first_of("]>", bracket);
    if (end == std::string_view::npos || !trim(text.substr(end + 1)).empty()) {
      syntax_error(line, "declaration '" + std::string(text) + "'");
    }
    d.array = true;
    const std::string_view inside = trim(text.substr(bracket + 1, end - bracket - 1));
    d.unsized = inside.empty();
    d.elements = d.unsized ? 0 : number(inside, line);
  }
  return d;
}

Opcode::Opcode(const Statement& s) : name(s.opcode[0]) {
  for (size_t i = 1; i < s.opcode.size(); ++i) {
    const Type type = type_of(s.opcode[i]);
    if (type) {
      types.push_back(type);
    } else {
      modifiers.push_back(s.opcode[i]);
    }
  }
}

bool Opcode::take(std::string_view modifier) {
  const auto it = std::find(modifiers.begin(), modifiers.end(), modifier);
  if (it == modifiers.end()) return false;
  modifiers.erase(it);
  return true;
}

Decoder::Decoder(const ModuleText& module, std::string_view name)
    : module_(module), program_(std::make_unique<Program>()) {
  const FunctionText& f = module.functions.find(name)->second;
  program_->name = name;
  line_ = f.line;
  program_->constants.resize(sizeof(Mask) * kLanes);  // at 0: true, and an all-ones word
  std::memset(program_->constants.data(), 0xFF, program_->constants.size());
  const std::vector<std::string_view> limits = words(f.directives);
  for (size_t i = 0; i < limits.size(); ++i) {
    if (limits[i] == ".maxntid") {
      size_t product = 1;
      for (++i; i < limits.size() && limits[i][0] != '.'; ++i) {
        for (const std::string_view n : split_operands(limits[i])) product *= number(n, line_);
      }
      --i;
      program_->threads = static_cast<unsigned>(product);
    } else if (limits[i] == ".minnctapersm" || limits[i] == ".maxclusterrank") {
      ++i;
    } else {
      fail("directive '" + std::string(limits[i]) + "'");
    }
  }
  Scope parameters;
  for (const std::string_view text : split_operands(f.parameters)) {
    const Declaration d = declaration(text.substr(text.find(".param") + 6), line_);
    const size_t align = std::max<size_t>(d.align, d.type.bits / 8);
    const size_t at = round_up(program_->argument_bytes, align);
    program_->arguments.emplace_back(at, d.bytes());
    program_->argument_bytes = at + d.bytes();
    parameters[std::string(d.name)] = {Symbol::Kind::parameter, d.type, at, 0};
  }
  body(f, std::move(parameters), true);
  program_->dynamic_shared_base = round_up(program_->shared_bytes, dynamic_align_);
  compact_registers(*program_);
}

void Decoder::body(const FunctionText& f, Scope bound, bool entry) {
  if (scopes_.size() > 16) fail("calls nested too deep: recursion?");
  scopes_.push_back({std::move(bound)});
  Frame frame;
  frame.entry = entry;
  for (const Statement& s : statements(f.body, f.body_line)) {
    line_ = s.line;
    switch (s.kind) {
      case Statement::Kind::open:
        scopes_.back().emplace_back();
        break;
      case Statement::Kind::close:
        if (scopes_.back().size() == 1) fail("'}' without its '{'");
        scopes_.back().pop_back();
        break;
      case Statement::Kind::label:
        if (!frame.labels.emplace(s.text, static_cast<uint32_t>(program_->code.size())).second) {
          fail("label " + std::string(s.text) + " twice");
        }
        break;
      case Statement::Kind::directive:
        directive(s.text);
        break;
      case Statement::Kind::instruction:
        instruction(s, frame);
        break;
    }
  }
  if (entry) {  // running off the end is a return
    Instruction in;
    in.kind = Kind::exit;
    in.line = line_;
    program_->code.push_back(in);
  }
  for (size_t i = 0; i < frame.jumps.size(); ++i) {
    const auto& [from, label] = frame.jumps[i];
    const auto to = frame.labels.find(label);
    if (to == frame.labels.end()) syntax_error(program_->code[from].line, "label " + label);
    program_->code[from].target = to->second;
  }
  for (const uint32_t from : frame.returns) {
    program_->code[from].target = static_cast<uint32_t>(program_->code.size());
  }
  scopes_.pop_back();
}

void Decoder::directive(std::string_view text) {
  const std::string_view word = text.substr(0, text.find_first_of(" \t"));
  const std::string_view rest = trim(text.substr(word.size()));
  if (word == ".pragma") {
    constexpr std::string_view used = "\"used_bytes_mask ";
    uint64_t mask = 0;
    if (rest.substr(0, used.size()) == used &&
        literal(trim(rest.substr(used.size(), rest.size() - used.size() - 1)), Type{'u', 64, false},
                &mask)) {
      used_ = static_cast<uint32_t>(mask);
    }
    return;
  }
  if (word == ".reg") {
    // ".reg .b32 a, b": the type stands once.
    const size_t end = rest.find_first_of(" \t");
    const std::string type(rest.substr(0, end));
    for (const std::string_view name : split_operands(rest.substr(std::min(end, rest.size())))) {
      const std::string one = type + " " + std::string(name);
      Declaration d = declaration(one, line_);
      declare_registers(d);
    }
    return;
  }
  const Declaration d = declaration(rest, line_);
  const size_t align = std::max<size_t>(d.align, d.type.bits / 8);
  Symbol symbol{Symbol::Kind::local, d.type, 0, 0};
  if (word == ".local" || word == ".param") {
    symbol.at = place_local(d.bytes(), align);
  } else if (word == ".shared") {
    symbol.kind = Symbol::Kind::shared;
    symbol.at = place_shared(d.bytes(), align);
  } else {
    fail("directive '" + std::string(word) + "'");
  }
  scopes_.back().back()[std::string(d.name)] = symbol;
}

void Decoder::declare_registers(const Declaration& d) {
  if (d.type.bits == 8) fail("8-bit register");
  const unsigned count = d.array ? static_cast<unsigned>(d.elements) : 1;
  Symbol symbol{Symbol::Kind::reg, d.type, add_register(d.type.bits, count), 0};
  if (d.array) symbol.count = count;
  // A range is stored under its prefix and '<', which no name holds.
  scopes_.back().back()[std::string(d.name) + (d.array ? "<" : "")] = symbol;
}

uint32_t Decoder::add_register(unsigned bits, unsigned count) {
  const size_t each = bits == 1 ? sizeof(Mask) : size_t{kLanes} * bits / 8;
  const size_t begin = round_up(program_->register_bytes, bits == 1 ? sizeof(Mask) : 64);
  program_->register_bytes = begin + each * count;
  if (program_->register_bytes > UINT32_MAX) fail("too many registers");
  program_->registers.push_back({static_cast<uint32_t>(begin), static_cast<uint32_t>(each), count});
  return static_cast<uint32_t>(begin);
}

uint64_t Decoder::place_shared(size_t bytes, size_t align) {
  const size_t at = round_up(program_->shared_bytes, align);
  program_->shared_bytes = at + bytes;
  return kOwnWindow + at;
}

uint64_t Decoder::place_local(size_t bytes, size_t align) {
  const size_t at = round_up(program_->local_bytes, align);
  program_->local_bytes = at + bytes;
  return at;
}

void Decoder::instruction(const Statement& s, Frame& frame) {
  Opcode op(s);
  Instruction in;
  in.line = s.line;
  in.used = used_;
  used_ = ~0u;
  if (!s.guard.empty()) in.guard = predicate(s.guard, &in.guard_flip);
  const auto jump = [&](std::vector<uint32_t>* returns) {
    in.kind = Kind::branch;
    if (returns != nullptr) returns->push_back(static_cast<uint32_t>(program_->code.size()));
    program_->code.push_back(in);
  };
  op.take("uni");
  if (op.name == "bra") {
    expect(s, 1, 1);
    frame.jumps.emplace_back(program_->code.size(), std::string(s.operands[0]));
    jump(nullptr);
  } else if (op.name == "ret" && !frame.entry) {
    jump(&frame.returns);
  } else if (op.name == "call") {
    if (!s.guard.empty()) fail("guarded call");
    call(s);
  } else if (decode_integer(*this, s, op, in) || decode_bits(*this, s, op, in) ||
             decode_float(*this, s, op, in) || decode_half(*this, s, op, in) ||
             decode_compare(*this, s, op, in) || decode_move(*this, s, op, in) ||
             decode_convert(*this, s, op, in) || decode_memory(*this, s, op, in) ||
             decode_atomic(*this, s, op, in) || decode_warp(*this, s, op, in) ||
             decode_matrix(*this, s, op, in) || decode_control(*this, s, op, in)) {
    program_->code.push_back(in);
  } else {
    std::string all;
    for (const std::string_view w : s.opcode) all += (all.empty() ? "" : ".") + std::string(w);
    fail("instruction '" + all + "' is not known");
  }
  if (!op.modifiers.empty()) {
    fail("modifier '" + std::string(op.modifiers[0]) + "' of " + std::string(op.name));
  }
}

// The body at the place of the call: no recursion, and lanes meet again right after it.
void Decoder::call(const Statement& s) {
  const auto inner = [](std::string_view text) {
    return text.size() > 1 && text[0] == '(' ? split_operands(text.substr(1, text.size() - 2))
                                             : std::vector<std::string_view>();
  };
  size_t next = 0;
  std::vector<std::string_view> returns, arguments;
  if (next < s.operands.size() && s.operands[next][0] == '(') returns = inner(s.operands[next++]);
  if (next >= s.operands.size()) fail("call of nothing");
  const std::string_view name = s.operands[next++];
  if (next < s.operands.size() && s.operands[next][0] == '(') arguments = inner(s.operands[next++]);
  const auto f = module_.functions.find(name);
  if (f == module_.functions.end()) fail("call of unknown function " + std::string(name));
  Scope bound;
  const auto bind = [&](std::string_view formal_text, const std::vector<std::string_view>& actual) {
    const std::vector<std::string_view> formal = split_operands(formal_text);
    if (formal.size() != actual.size()) fail("call with another number of parameters");
    for (size_t i = 0; i < formal.size(); ++i) {
      const size_t space = formal[i].find(".param");
      if (space == std::string_view::npos) fail("function parameter in a register");
      const Declaration d = declaration(formal[i].substr(space + 6), line_);
      const Symbol symbol = find(actual[i]);
      if (symbol.kind != Symbol::Kind::local) fail("argument " + std::string(actual[i]));
      bound[std::string(d.name)] = symbol;
    }
  };
  bind(f->second.returns, returns);
  bind(f->second.parameters, arguments);
  const unsigned line = line_;
  body(f->second, std::move(bound), false);
  line_ = line;
}

}  // namespace quarry::emulator
