// SPDX-License-Identifier: Apache-2.0
#include <cctype>
#include <cstring>

#include "decode.h"

namespace quarry::emulator {
namespace {

struct SpecialName {
  const char* name;
  Special which;
};
constexpr SpecialName kSpecials[] = {
    {"%tid.x", Special::tid_x},
    {"%tid.y", Special::tid_y},
    {"%tid.z", Special::tid_z},
    {"%ntid.x", Special::ntid_x},
    {"%ntid.y", Special::ntid_y},
    {"%ntid.z", Special::ntid_z},
    {"%ctaid.x", Special::ctaid_x},
    {"%ctaid.y", Special::ctaid_y},
    {"%ctaid.z", Special::ctaid_z},
    {"%nctaid.x", Special::nctaid_x},
    {"%nctaid.y", Special::nctaid_y},
    {"%nctaid.z", Special::nctaid_z},
    {"%laneid", Special::lane},
    {"%warpid", Special::warp},
    {"%nwarpid", Special::warps},
    {"%lanemask_lt", Special::lt},
    {"%lanemask_le", Special::le},
    {"%lanemask_eq", Special::eq},
    {"%lanemask_ge", Special::ge},
    {"%lanemask_gt", Special::gt},
    {"%cluster_ctarank", Special::cluster_rank},
    {"%cluster_nctarank", Special::cluster_size},
    {"%cluster_ctaid.x", Special::cluster_x},
    {"%cluster_ctaid.y", Special::cluster_y},
    {"%cluster_ctaid.z", Special::cluster_z},
    {"%cluster_nctaid.x", Special::ncluster_x},
    {"%cluster_nctaid.y", Special::ncluster_y},
    {"%cluster_nctaid.z", Special::ncluster_z},
    {"%clusterid.x", Special::cluster_of_x},
    {"%clusterid.y", Special::cluster_of_y},
    {"%clusterid.z", Special::cluster_of_z},
    {"%dynamic_smem_size", Special::dynamic_shared},
};

bool is_wide(Special s) { return s == Special::parameters || s == Special::local; }

}  // namespace

Symbol Decoder::find(std::string_view name) {
  const std::string exact(name);
  size_t digits = name.size();
  while (digits > 0 && std::isdigit(static_cast<unsigned char>(name[digits - 1])) != 0) --digits;
  const std::string prefix = std::string(name.substr(0, digits)) + "<";
  const std::vector<Scope>& stack = scopes_.back();
  for (size_t i = stack.size(); i-- > 0;) {
    auto it = stack[i].find(exact);
    if (it != stack[i].end()) return it->second;
    if (digits == name.size()) continue;
    it = stack[i].find(prefix);
    if (it == stack[i].end()) continue;
    Symbol symbol = it->second;
    const unsigned long index = std::stoul(std::string(name.substr(digits)));
    if (index >= symbol.count) fail("register " + exact + " is past its range");
    const unsigned bits = symbol.type.bits;
    symbol.at += index * (bits == 1 ? sizeof(Mask) : size_t{kLanes} * bits / 8);
    return symbol;
  }
  const auto v = module_.variables.find(name);
  if (v == module_.variables.end()) return {};
  const Variable& variable = v->second;
  if (variable.where == Variable::Where::global) {
    return {Symbol::Kind::global, {}, reinterpret_cast<uint64_t>(variable.memory), 0};
  }
  if (variable.where == Variable::Where::dynamic_shared) {
    // Where it begins is known at the end: after all static arrays.
    dynamic_align_ = std::max(dynamic_align_, variable.align);
    return {Symbol::Kind::shared, {}, 0, 0};
  }
  const auto known = shared_.find(exact);
  if (known != shared_.end()) return known->second;
  const Symbol symbol{Symbol::Kind::shared, {}, place_shared(variable.bytes, variable.align), 0};
  shared_.emplace(exact, symbol);
  return symbol;
}

Operand Decoder::constant(unsigned bits, uint64_t value) {
  if (bits == 1) bits = 32;
  if (bits < 64) value &= (uint64_t{1} << bits) - 1;
  const auto known = constants_.find({bits, value});
  if (known != constants_.end()) return {known->second, 1};
  std::vector<std::byte>& pool = program_->constants;
  const size_t bytes = bits / 8;
  const size_t at = (pool.size() + 63) / 64 * 64;
  pool.resize(at + bytes * kLanes);
  for (unsigned i = 0; i < kLanes; ++i) std::memcpy(pool.data() + at + i * bytes, &value, bytes);
  constants_[{bits, value}] = static_cast<uint32_t>(at);
  return {static_cast<uint32_t>(at), 1};
}

Operand Decoder::special(Special which) {
  const auto known = specials_.find(which);
  if (known != specials_.end()) return {known->second, 0};
  const uint32_t at = add_register(is_wide(which) ? 64 : 32, 1);
  specials_[which] = at;
  program_->specials.emplace_back(which, at);
  return {at, 0};
}

Operand Decoder::source_of_any_width(std::string_view text, unsigned* bits) {
  const Symbol symbol = find(text);
  if (symbol.kind == Symbol::Kind::reg) {
    *bits = symbol.type.bits;
    return {static_cast<uint32_t>(symbol.at), 0};
  }
  for (const SpecialName& s : kSpecials) {
    if (text != s.name) continue;
    *bits = 32;
    return special(s.which);
  }
  fail("operand '" + std::string(text) + "'");
}

Operand Decoder::source(std::string_view text, Type type) {
  uint64_t value = 0;
  if (literal(text, type, &value)) return constant(type.bits, value);
  unsigned bits = 0;
  const Operand operand = source_of_any_width(text, &bits);
  if (bits != type.bits) {
    fail("operand '" + std::string(text) + "' has " + std::to_string(bits) + " bits, not " +
         std::to_string(type.bits));
  }
  return operand;
}

Operand Decoder::destination_of_any_width(std::string_view text, unsigned* bits) {
  const Symbol symbol = find(text);
  if (symbol.kind != Symbol::Kind::reg) fail("destination '" + std::string(text) + "'");
  *bits = symbol.type.bits;
  return {static_cast<uint32_t>(symbol.at), 0};
}

Operand Decoder::destination(std::string_view text, unsigned bits) {
  unsigned have = 0;
  const Operand operand = destination_of_any_width(text, &have);
  if (have != bits) {
    fail("destination '" + std::string(text) + "' has " + std::to_string(have) + " bits, not " +
         std::to_string(bits));
  }
  return operand;
}

Operand Decoder::predicate(std::string_view text, Mask* flip) {
  *flip = 0;
  if (text[0] == '!') {
    *flip = kFull;
    text = trim(text.substr(1));
  }
  uint64_t value = 0;
  if (literal(text, Type{'s', 32, false}, &value)) {
    return constant(32, value != 0 ? uint64_t{kFull} : 0);
  }
  return source(text, Type{'p', 1, false});
}

void Decoder::address(std::string_view text, Instruction& in, unsigned index) {
  if (text.size() < 2 || text.front() != '[' || text.back() != ']') {
    fail("address expected, not '" + std::string(text) + "'");
  }
  text = trim(text.substr(1, text.size() - 2));
  const size_t plus = text.find('+');
  if (plus != std::string_view::npos) {
    uint64_t offset = 0;
    if (!literal(trim(text.substr(plus + 1)), Type{'s', 64, false}, &offset)) {
      fail("offset of '" + std::string(text) + "'");
    }
    in.offset = static_cast<int64_t>(offset);
    text = trim(text.substr(0, plus));
  }
  in.wide_address = true;
  const Symbol symbol = find(text);
  switch (symbol.kind) {
    case Symbol::Kind::reg:
      in.from[index] = {static_cast<uint32_t>(symbol.at), 0};
      in.wide_address = symbol.type.bits == 64;
      if (symbol.type.bits != 32 && symbol.type.bits != 64) fail("width of an address");
      return;
    case Symbol::Kind::shared:
      in.wide_address = false;
      if (symbol.at == 0) {
        in.from[index] = special(Special::dynamic_shared_begin);
      } else {
        in.from[index] = constant(32, symbol.at);
      }
      return;
    case Symbol::Kind::local:
      in.offset += static_cast<int64_t>(symbol.at);
      in.from[index] = special(Special::local);
      return;
    case Symbol::Kind::parameter:
      in.offset += static_cast<int64_t>(symbol.at);
      in.from[index] = special(Special::parameters);
      return;
    case Symbol::Kind::global:
      in.from[index] = constant(64, symbol.at);
      return;
    case Symbol::Kind::none:
      break;
  }
  uint64_t value = 0;
  if (!literal(text, Type{'u', 64, false}, &value)) fail("address '" + std::string(text) + "'");
  in.from[index] = constant(64, value);
}

std::vector<std::string_view> Decoder::parts(std::string_view text) {
  if (text.size() < 2 || text.front() != '{') return {text};
  return split_operands(text.substr(1, text.size() - 2));
}

void Decoder::expect(const Statement& s, size_t least, size_t most) {
  if (s.operands.size() >= least && s.operands.size() <= most) return;
  fail(std::to_string(s.operands.size()) + " operands of " + std::string(s.opcode[0]));
}

void Decoder::fill(Instruction& in, const Statement& s, Type to, std::initializer_list<Type> from) {
  expect(s, 1 + from.size(), 1 + from.size());
  in.to[0] = destination(s.operands[0], to.bits);
  size_t i = 0;
  for (const Type type : from) {
    in.from[i] = source(s.operands[i + 1], type);
    ++i;
  }
}

}  // namespace quarry::emulator
