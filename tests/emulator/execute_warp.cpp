// SPDX-License-Identifier: Apache-2.0
// What the lanes of a warp do together: shfl, vote, match, redux, bar.warp; and the control of
// lanes, warps and blocks: exit, barriers. The scheduler has gathered the lanes before these run.
#include <algorithm>

#include "alu.h"
#include "decode.h"

namespace quarry::emulator {
namespace {

enum Shuffle : uint8_t { kUp, kDown, kButterfly, kIndex };

void shuffle(Warp& w, const Instruction& in, Mask lanes) {
  const auto* a = w.in<uint32_t>(in.from[0]);
  const auto* b = w.in<uint32_t>(in.from[1]);
  const auto* c = w.in<uint32_t>(in.from[2]);
  uint32_t out[kLanes] = {};
  Mask valid = 0;
  for (Mask rest = lanes; rest != 0; rest &= rest - 1) {
    const int i = std::countr_zero(rest);
    const int segment = static_cast<int>(c[i] >> 8) & 31;
    const int clamp = static_cast<int>(c[i]) & 31;
    const int by = static_cast<int>(b[i]) & 31;
    const int lowest = i & segment;
    const int bound = lowest | (clamp & ~segment);
    int from = 0;
    bool in_range = false;
    switch (in.mode) {
      case kUp:
        from = i - by;
        in_range = from >= bound;
        break;
      case kDown:
        from = i + by;
        in_range = from <= bound;
        break;
      case kButterfly:
        from = i ^ by;
        in_range = from <= bound;
        break;
      default:
        from = lowest | (by & ~segment);
        in_range = from <= bound;
    }
    if (!in_range) from = i;
    valid |= Mask{in_range} << i;
    out[i] = a[from];
  }
  auto* d = w.out<uint32_t>(in.to[0]);
  each_lane(lanes, [&](unsigned i) { d[i] = out[i]; });
  if (in.count == 2) w.set_predicate(in.to[1], lanes, valid);
}

enum Vote : uint8_t { kAll, kAny, kUniform, kBallot };

void vote(Warp& w, const Instruction& in, Mask lanes) {
  const Mask yes = (w.predicate(in.from[0]) ^ in.flip) & lanes;
  if (in.mode == kBallot) {
    auto* d = w.out<uint32_t>(in.to[0]);
    each_lane(lanes, [=](unsigned i) { d[i] = yes; });
    return;
  }
  const bool all = yes == lanes;
  const bool result = in.mode == kAll ? all : in.mode == kAny ? yes != 0 : all || yes == 0;
  w.set_predicate(in.to[0], lanes, result ? kFull : 0);
}

template <class U, bool All>
void match(Warp& w, const Instruction& in, Mask lanes) {
  const U* a = w.in<U>(in.from[0]);
  uint32_t out[kLanes] = {};
  Mask same_everywhere = 0;
  for (Mask rest = lanes; rest != 0; rest &= rest - 1) {
    const int i = std::countr_zero(rest);
    for (Mask others = lanes; others != 0; others &= others - 1) {
      const int k = std::countr_zero(others);
      if (a[k] == a[i]) out[i] |= 1u << k;
    }
    if (out[i] == lanes) same_everywhere |= 1u << i;
    if (All && out[i] != lanes) out[i] = 0;
  }
  auto* d = w.out<uint32_t>(in.to[0]);
  each_lane(lanes, [&](unsigned i) { d[i] = out[i]; });
  if (in.count == 2) w.set_predicate(in.to[1], lanes, same_everywhere);
}

enum Redux : uint8_t { kSum, kLeast, kMost, kLeastSigned, kMostSigned, kAnd, kOr, kXor };

void redux(Warp& w, const Instruction& in, Mask lanes) {
  const auto* a = w.in<uint32_t>(in.from[0]);
  uint32_t out = a[std::countr_zero(lanes)];
  for (Mask rest = lanes & (lanes - 1); rest != 0; rest &= rest - 1) {
    const uint32_t v = a[std::countr_zero(rest)];
    const auto x = static_cast<int32_t>(out);
    const auto y = static_cast<int32_t>(v);
    switch (in.mode) {
      case kSum:
        out += v;
        break;
      case kLeast:
        out = std::min(out, v);
        break;
      case kMost:
        out = std::max(out, v);
        break;
      case kLeastSigned:
        out = static_cast<uint32_t>(std::min(x, y));
        break;
      case kMostSigned:
        out = static_cast<uint32_t>(std::max(x, y));
        break;
      case kAnd:
        out &= v;
        break;
      case kOr:
        out |= v;
        break;
      default:
        out ^= v;
    }
  }
  auto* d = w.out<uint32_t>(in.to[0]);
  each_lane(lanes, [=](unsigned i) { d[i] = out; });
}

void active(Warp& w, const Instruction& in, Mask lanes) {
  auto* d = w.out<uint32_t>(in.to[0]);
  each_lane(lanes, [=](unsigned i) { d[i] = lanes; });
}

void nothing(Warp& /*w*/, const Instruction& /*in*/, Mask /*lanes*/) {}

constexpr Type kU32{'u', 32, false};

// "d|p" where the second may be missing.
void result_and_predicate(Decoder& d, std::string_view text, Instruction& in) {
  const size_t bar = text.find('|');
  in.to[0] = d.destination(trim(text.substr(0, bar)), 32);
  if (bar == std::string_view::npos) return;
  in.count = 2;
  in.to[1] = d.destination(trim(text.substr(bar + 1)), 1);
}

void collective(Decoder& d, Instruction& in, std::string_view mask) {
  in.kind = Kind::collective;
  in.has_mask = true;
  in.from[kMaskOperand] = d.source(mask, kU32);
}

Mask take_one(Opcode& op, std::initializer_list<std::string_view> names) {
  Mask i = 0;
  for (const std::string_view name : names) {
    if (op.take(name)) return i;
    ++i;
  }
  return kFull;
}

bool decode_collective(Decoder& d, const Statement& s, Opcode& op, Instruction& in) {
  if (op.types.size() != 1 || !op.take("sync")) return false;
  const Type type = op.types[0];
  Mask mode = 0;
  if (op.name == "shfl") {
    if (type.bits != 32) return false;
    mode = take_one(op, {"up", "down", "bfly", "idx"});
    d.expect(s, 5, 5);
    result_and_predicate(d, s.operands[0], in);
    for (unsigned k = 0; k < 3; ++k) in.from[k] = d.source(s.operands[1 + k], kU32);
    in.run = shuffle;
  } else if (op.name == "vote") {
    mode = take_one(op, {"all", "any", "uni", "ballot"});
    d.expect(s, 3, 3);
    in.to[0] = d.destination(s.operands[0], mode == kBallot ? 32 : 1);
    in.from[0] = d.predicate(s.operands[1], &in.flip);
    in.run = vote;
  } else if (op.name == "match") {
    const bool all = take_one(op, {"any", "all"}) == 1;
    d.expect(s, 3, 3);
    result_and_predicate(d, s.operands[0], in);
    in.from[0] = d.source(s.operands[1], type);
    in.run = type.bits == 32 ? (all ? match<uint32_t, true> : match<uint32_t, false>)
                             : (all ? match<uint64_t, true> : match<uint64_t, false>);
  } else {  // redux
    if (type.bits != 32 || type.is_float()) return false;
    mode = take_one(op, {"add", "min", "max", "", "", "and", "or", "xor"});
    if ((mode == kLeast || mode == kMost) && type.is_signed()) mode += kLeastSigned - kLeast;
    d.expect(s, 3, 3);
    in.to[0] = d.destination(s.operands[0], 32);
    in.from[0] = d.source(s.operands[1], type);
    in.run = redux;
  }
  if (mode == kFull) d.fail("mode of " + std::string(op.name));
  in.mode = static_cast<uint8_t>(mode);
  collective(d, in, s.operands.back());
  return true;
}

}  // namespace

bool decode_warp(Decoder& d, const Statement& s, Opcode& op, Instruction& in) {
  if (op.name == "shfl" || op.name == "vote" || op.name == "match" || op.name == "redux") {
    return decode_collective(d, s, op, in);
  }
  if (op.name == "activemask") {
    d.expect(s, 1, 1);
    in.to[0] = d.destination(s.operands[0], 32);
    in.run = active;
    return true;
  }
  if (op.name == "bar" && op.take("warp")) {
    if (!op.take("sync")) return false;
    d.expect(s, 1, 1);
    collective(d, in, s.operands[0]);
    in.same_place = false;
    in.run = nothing;
    return true;
  }
  return false;
}

bool decode_control(Decoder& d, const Statement& s, Opcode& op, Instruction& in) {
  if (op.name == "exit" || op.name == "ret") {
    in.kind = Kind::exit;
    return true;
  }
  if (op.name == "trap" || op.name == "brkpt") {
    in.kind = Kind::trap;
    return true;
  }
  if (op.name == "nanosleep") {
    in.run = nothing;
    return true;
  }
  if (op.name == "barrier" && op.take("cluster")) {
    in.kind = op.take("arrive") ? Kind::cluster_arrive : Kind::cluster_wait;
    if (in.kind == Kind::cluster_wait && !op.take("wait")) return false;
    for (const char* hint : {"aligned", "release", "acquire", "relaxed"}) op.take(hint);
    return true;
  }
  if (op.name != "bar" && op.name != "barrier") return false;
  const bool aligned = op.take("aligned") || op.name == "bar";
  op.take("cta");
  in.same_place = aligned;
  size_t next = 0;
  size_t last = s.operands.size();
  if (op.take("red")) {
    in.kind = Kind::barrier;
    in.reduction = op.take("and")    ? Reduction::all
                   : op.take("or")   ? Reduction::any
                   : op.take("popc") ? Reduction::count
                                     : Reduction::none;
    if (in.reduction == Reduction::none) d.fail("reduction of a barrier");
    d.expect(s, 3, 4);
    in.to[0] = d.destination(s.operands[next++], in.reduction == Reduction::count ? 32 : 1);
    in.from[2] = d.predicate(s.operands[--last], &in.flip);
  } else if (op.take("sync")) {
    in.kind = Kind::barrier;
    d.expect(s, 1, 2);
  } else if (op.take("arrive")) {
    in.kind = Kind::barrier_arrive;
    d.expect(s, 2, 2);
  } else {
    return false;
  }
  in.from[0] = d.source(s.operands[next++], kU32);
  in.count = 1;
  if (next < last) {
    in.count = 2;  // with a number of threads
    in.from[1] = d.source(s.operands[next++], kU32);
  }
  return true;
}

}  // namespace quarry::emulator
