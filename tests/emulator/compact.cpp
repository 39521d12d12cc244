// SPDX-License-Identifier: Apache-2.0
// The compiler's PTX names thousands of registers, each written once; laid out one by one they
// would not fit any cache. Those never live together share a place here.
//
// A register lives from its first to its last mention in the text. A loop it is mentioned in widens
// that to the whole loop, unless all its mentions lie inside and the first writes it: then, as
// PTX comes from SSA form, every path of an iteration writes it before reading. Lanes apart do not
// disturb one another: each has its own column.
#include <algorithm>
#include <map>

#include "decode.h"

namespace quarry::emulator {
namespace {

struct Life {
  uint32_t first = UINT32_MAX, last = 0;
  bool written_first = false;
  uint32_t at = 0, bytes = 0;  // where it lies now
};

using Lives = std::map<uint32_t, Life>;  // by place

void mention(Lives& lives, Operand o, uint32_t position, bool writes) {
  if (o.pool != 0) return;
  Life& life = lives.at(o.offset);
  if (life.first == UINT32_MAX) {
    life.first = position;
    life.written_first = writes;
  }
  life.last = position;
}

void widen_over_loops(const std::vector<Instruction>& code, Lives& lives) {
  std::vector<std::pair<uint32_t, uint32_t>> loops;
  for (uint32_t i = 0; i < code.size(); ++i) {
    if (code[i].kind == Kind::branch && code[i].target <= i) loops.emplace_back(code[i].target, i);
  }
  for (auto& [place, life] : lives) {
    if (life.first == UINT32_MAX) continue;
    for (bool again = true; again;) {
      again = false;
      for (const auto& [begin, end] : loops) {
        if (life.last < begin || life.first > end) continue;
        if (life.first <= begin && life.last >= end) continue;
        if (life.first >= begin && life.last <= end && life.written_first) continue;
        life.first = std::min(life.first, begin);
        life.last = std::max(life.last, end);
        again = true;
      }
    }
  }
}

}  // namespace

void compact_registers(Program& program) {
  Lives lives;
  for (const RegisterRange& range : program.registers) {
    for (uint32_t i = 0; i < range.count; ++i) {
      const uint32_t at = range.begin + i * range.bytes;
      lives[at] = {UINT32_MAX, 0, false, at, range.bytes};
    }
  }
  for (uint32_t i = 0; i < program.code.size(); ++i) {
    const Instruction& in = program.code[i];
    mention(lives, in.guard, i, false);
    for (const Operand& o : in.from) mention(lives, o, i, false);
    const bool certain = in.guard.pool == 1;
    for (const Operand& o : in.to) mention(lives, o, i, certain);
  }
  for (const auto& [which, at] : program.specials) {  // set before the first instruction
    lives.at(at).first = 0;
    lives.at(at).last = static_cast<uint32_t>(program.code.size());
  }
  widen_over_loops(program.code, lives);

  std::vector<Life*> order;
  for (auto& [place, life] : lives) {
    if (life.first != UINT32_MAX) order.push_back(&life);
  }
  std::stable_sort(order.begin(), order.end(),
                   [](const Life* a, const Life* b) { return a->first < b->first; });
  // Of each size: the places taken, by the end of who has them.
  std::map<uint32_t, std::multimap<uint32_t, uint32_t>> taken;
  std::map<uint32_t, uint32_t> new_place;
  size_t end = 0;
  for (Life* life : order) {
    auto& places = taken[life->bytes];
    uint32_t place = 0;
    if (!places.empty() && places.begin()->first < life->first) {
      place = places.begin()->second;
      places.erase(places.begin());
    } else {
      const size_t align = std::min<uint32_t>(life->bytes, 64);
      place = static_cast<uint32_t>((end + align - 1) / align * align);
      end = place + life->bytes;
    }
    places.emplace(life->last, place);
    new_place[life->at] = place;
  }
  const auto move = [&](Operand& o) {
    if (o.pool == 0) o.offset = new_place.at(o.offset);
  };
  for (Instruction& in : program.code) {
    move(in.guard);
    for (Operand& o : in.from) move(o);
    for (Operand& o : in.to) move(o);
  }
  for (auto& [which, at] : program.specials) at = new_place.at(at);
  program.register_bytes = end;
}

}  // namespace quarry::emulator
