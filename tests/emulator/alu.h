// SPDX-License-Identifier: Apache-2.0
#pragma once

// Handlers made of a function of one lane's values. All lanes at once run as one loop the compiler
// can vectorise; the lane arrays either are one array or do not overlap.

#include <bit>
#include <cstdint>

#include "machine.h"

#if defined(__clang__)
#define QUARRY_LANES _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define QUARRY_LANES _Pragma("GCC ivdep")
#endif

namespace quarry::emulator {

template <class F>
inline void each_lane(Mask lanes, F f) {
  if (lanes == kFull) {
    QUARRY_LANES
    for (unsigned i = 0; i < kLanes; ++i) f(i);
  } else {
    for (; lanes != 0; lanes &= lanes - 1) f(static_cast<unsigned>(std::countr_zero(lanes)));
  }
}

template <class D, class A, class F>
Handler unary(F) {
  return [](Warp& w, const Instruction& in, Mask lanes) {
    D* d = w.out<D>(in.to[0]);
    const A* a = w.in<A>(in.from[0]);
    each_lane(lanes, [=](unsigned i) { d[i] = F{}(a[i]); });
  };
}

template <class D, class A, class B, class F>
Handler binary(F) {
  return [](Warp& w, const Instruction& in, Mask lanes) {
    D* d = w.out<D>(in.to[0]);
    const A* a = w.in<A>(in.from[0]);
    const B* b = w.in<B>(in.from[1]);
    each_lane(lanes, [=](unsigned i) { d[i] = F{}(a[i], b[i]); });
  };
}

template <class D, class A, class B, class C, class F>
Handler ternary(F) {
  return [](Warp& w, const Instruction& in, Mask lanes) {
    D* d = w.out<D>(in.to[0]);
    const A* a = w.in<A>(in.from[0]);
    const B* b = w.in<B>(in.from[1]);
    const C* c = w.in<C>(in.from[2]);
    each_lane(lanes, [=](unsigned i) { d[i] = F{}(a[i], b[i], c[i]); });
  };
}

template <class D, class A, class B, class C, class E, class F>
Handler quaternary(F) {
  return [](Warp& w, const Instruction& in, Mask lanes) {
    D* d = w.out<D>(in.to[0]);
    const A* a = w.in<A>(in.from[0]);
    const B* b = w.in<B>(in.from[1]);
    const C* c = w.in<C>(in.from[2]);
    const E* e = w.in<E>(in.from[3]);
    each_lane(lanes, [=](unsigned i) { d[i] = F{}(a[i], b[i], c[i], e[i]); });
  };
}

// The lanes where f holds.
template <class A, class F>
Mask compare_lanes(const A* a, const A* b, Mask lanes, F f) {
  Mask result = 0;
  if (lanes == kFull) {
    for (unsigned i = 0; i < kLanes; ++i) result |= Mask{f(a[i], b[i])} << i;
    return result;
  }
  for (Mask rest = lanes; rest != 0; rest &= rest - 1) {
    const unsigned i = static_cast<unsigned>(std::countr_zero(rest));
    result |= Mask{f(a[i], b[i])} << i;
  }
  return result;
}

}  // namespace quarry::emulator
