// SPDX-License-Identifier: Apache-2.0
// One warp's lanes, and who waits for whom. Every lane has its place; those at the lowest run until
// they fork, meet others or wait.
#include <algorithm>
#include <bit>

#include "machine.h"

namespace quarry::emulator {
namespace {

unsigned count(Mask lanes) { return static_cast<unsigned>(std::popcount(lanes)); }
unsigned first(Mask lanes) { return static_cast<unsigned>(std::countr_zero(lanes)); }

template <class F>
void each(Mask lanes, F f) {
  for (; lanes != 0; lanes &= lanes - 1) f(first(lanes));
}

void put(Warp& w, Mask lanes, uint32_t place) {
  each(lanes, [&](unsigned i) { w.place[i] = place; });
}

Mask runnable(const Warp& w) { return w.alive & ~(w.collected | w.barred | w.clustered); }

// The lanes at the lowest place; or, after a turn that ended without an end in sight (a lane may
// spin for one that stands further on), those at the highest.
void pick(Warp& w, bool highest = false) {
  const Mask lanes = runnable(w);
  w.current = 0;
  w.other = UINT32_MAX;
  if (lanes == 0) return;
  uint32_t best = w.place[first(lanes)];
  each(lanes, [&](unsigned i) {
    best = highest ? std::max(best, w.place[i]) : std::min(best, w.place[i]);
  });
  each(lanes, [&](unsigned i) {
    if (w.place[i] == best) {
      w.current |= Mask{1} << i;
    } else if (!highest) {
      w.other = std::min(w.other, w.place[i]);
    }
  });
  w.pc = best;
}

void park(Warp& w) {
  put(w, w.current, w.pc);
  w.current = 0;
}

const Instruction& at(const Warp& w, uint32_t place) {
  return w.block->cluster->grid->program->code[place];
}

// Runs the collectives all of whose lanes are there.
void gather(Warp& w) {
  for (Mask rest = w.collected; rest != 0;) {
    const unsigned i = first(rest);
    const Instruction& in = at(w, w.place[i]);
    Mask here = 0;
    each(w.collected, [&](unsigned k) {
      const bool meets =
          w.place[k] == w.place[i] || (!in.same_place && !at(w, w.place[k]).same_place);
      if (meets && w.needs[k] == w.needs[i]) here |= Mask{1} << k;
    });
    rest &= ~here;
    if ((w.needs[i] & w.alive & ~here) != 0) continue;
    in.run(w, in, here);
    each(here, [&](unsigned k) { ++w.place[k]; });
    w.collected &= ~here;
    ++w.order;
  }
}

void collect(Warp& w, const Instruction& in, Mask lanes) {
  const auto* masks = w.in<Mask>(in.from[kMaskOperand]);
  const auto mask_of = [&](unsigned i) { return in.has_mask ? masks[i] : kFull; };
  const Mask mask = mask_of(first(lanes));
  bool alike = true;
  each(lanes, [&](unsigned i) {
    alike = alike && mask_of(i) == mask;
    if (((mask_of(i) >> i) & 1u) == 0) fault(w, in.line, i, "lane is not in its own mask");
  });
  if (alike && (mask & w.alive) == lanes) {
    in.run(w, in, lanes);
    ++w.pc;
    ++w.order;
    return;
  }
  const Mask others = w.current & ~lanes;
  put(w, others, w.pc + 1);
  put(w, lanes, w.pc);
  each(lanes, [&](unsigned i) { w.needs[i] = mask_of(i); });
  w.collected |= lanes;
  gather(w);
  pick(w);
}

void release(Block& block, unsigned id) {
  Barrier& b = block.barriers[id];
  const unsigned needed = b.expected != 0 ? b.expected : block.alive;
  if (b.arrived == 0 || b.arrived < needed) return;
  for (Warp& w : block.warps) {
    each(w.barred, [&](unsigned i) {
      if (w.barrier[i] != id) return;
      const Instruction& in = at(w, w.place[i]);
      const Mask lane = Mask{1} << i;
      if (in.reduction == Reduction::count) w.out<uint32_t>(in.to[0])[i] = b.count;
      if (in.reduction == Reduction::any) w.set_predicate(in.to[0], lane, b.count > 0 ? lane : 0);
      if (in.reduction == Reduction::all) {
        w.set_predicate(in.to[0], lane, b.count == b.arrived ? lane : 0);
      }
      ++w.place[i];
      w.barred &= ~lane;
    });
  }
  b = {};
  ++block.epoch;
}

void reach_barrier(Warp& w, const Instruction& in, Mask lanes) {
  Block& block = *w.block;
  const auto* ids = w.in<uint32_t>(in.from[0]);
  const uint32_t id = ids[first(lanes)];
  const uint32_t expected = in.count == 2 ? w.in<uint32_t>(in.from[1])[first(lanes)] : 0;
  each(lanes, [&](unsigned i) {
    if (ids[i] != id || id >= 16) fault(w, in.line, i, "barrier number");
  });
  if (in.count == 2 && (expected == 0 || expected % kLanes != 0)) {
    fault(w, in.line, first(lanes), "barrier of " + std::to_string(expected) + " threads");
  }
  each(w.barred, [&](unsigned i) {
    if (w.barrier[i] == id && in.same_place && w.place[i] != w.pc) {
      fault(w, in.line, i,
            "lanes of one warp wait at different places at one barrier (the other "
            "at line " +
                std::to_string(at(w, w.place[i]).line) + ")");
    }
  });
  Barrier& b = block.barriers[id];
  if (b.arrived != 0 && b.expected != expected) {
    fault(w, in.line, first(lanes), "barrier with two numbers of threads");
  }
  b.expected = expected;
  b.arrived += count(lanes);
  // A number of threads counts whole warps.
  if (expected != 0 && lanes == w.alive) b.arrived += kLanes - count(lanes);
  if (in.reduction != Reduction::none) {
    b.count += count((w.predicate(in.from[2]) ^ in.flip) & lanes);
  }
  put(w, w.current & ~lanes, w.pc + 1);
  if (in.kind == Kind::barrier) {
    put(w, lanes, w.pc);
    each(lanes, [&](unsigned i) { w.barrier[i] = static_cast<uint8_t>(id); });
    w.barred |= lanes;
  } else {
    put(w, lanes, w.pc + 1);
  }
  release(block, id);
  pick(w);
}

void release_cluster(Cluster& cluster) {
  if (cluster.arrived == 0 || cluster.arrived < cluster.alive) return;
  ++cluster.phase;
  cluster.arrived = 0;
  cluster.alive -= cluster.leaving;
  cluster.leaving = 0;
  for (const auto& block : cluster.blocks) {
    for (Warp& w : block->warps) {
      w.arrived &= ~w.clustered;
      each(w.clustered, [&](unsigned i) { ++w.place[i]; });
      w.clustered = 0;
    }
  }
}

void arrive_cluster(Warp& w, const Instruction& in, Mask lanes) {
  Cluster& cluster = *w.block->cluster;
  if ((w.arrived & lanes) != 0) {
    fault(w, in.line, first(w.arrived & lanes),
          "second arrival at the cluster's barrier without a wait");
  }
  w.arrived |= lanes;
  each(lanes, [&](unsigned i) { w.phase[i] = cluster.phase; });
  cluster.arrived += count(lanes);
  ++w.pc;
  park(w);
  release_cluster(cluster);
  pick(w);
}

void wait_cluster(Warp& w, const Instruction& in, Mask lanes) {
  const Cluster& cluster = *w.block->cluster;
  Mask waiting = 0;
  each(lanes, [&](unsigned i) {
    if (((w.arrived >> i) & 1u) == 0) fault(w, in.line, i, "wait for the cluster without arrival");
    if (w.phase[i] == cluster.phase) waiting |= Mask{1} << i;
  });
  w.arrived &= ~(lanes & ~waiting);
  put(w, w.current & ~waiting, w.pc + 1);
  put(w, waiting, w.pc);
  w.clustered |= waiting;
  pick(w);
}

void leave(Warp& w, Mask lanes) {
  Block& block = *w.block;
  Cluster& cluster = *block.cluster;
  put(w, w.current & ~lanes, w.pc + 1);
  w.current = 0;
  w.alive &= ~lanes;
  block.alive -= count(lanes);
  each(lanes, [&](unsigned i) {
    const bool arrived = ((w.arrived >> i) & 1u) != 0 && w.phase[i] == cluster.phase;
    (arrived ? cluster.leaving += 1 : cluster.alive -= 1);
  });
  if (w.collected != 0) gather(w);
  for (unsigned id = 0; id < 16; ++id) {
    if (block.barriers[id].expected == 0) release(block, id);
  }
  release_cluster(cluster);
  pick(w);
}

void branch(Warp& w, const Instruction& in, Mask taken) {
  const Mask rest = w.current & ~taken;
  if (taken == 0) {
    ++w.pc;
  } else if (rest == 0) {
    w.pc = in.target;
  } else {
    put(w, taken, in.target);
    put(w, rest, w.pc + 1);
    pick(w);
  }
}

}  // namespace

void turn(Warp& w, uint64_t budget) {
  if (w.current != 0) park(w);
  pick(w, w.spun);
  w.spun = false;
  const Instruction* code = w.block->cluster->grid->program->code.data();
  Counters* counters = (w.watch & kWatchCount) != 0 ? w.block->cluster->grid->counters : nullptr;
  const uint64_t limit = w.executed + budget;
  while (w.current != 0) {
    if (w.executed == limit) {
      park(w);
      // Only lanes that stand elsewhere can be what these wait for.
      const Mask lanes = runnable(w);
      each(lanes, [&](unsigned i) { w.spun = w.spun || w.place[i] != w.pc; });
      return;
    }
    const Instruction& in = code[w.pc];
    const Mask lanes = w.current & (w.predicate(in.guard) ^ in.guard_flip);
    ++w.executed;
    if (counters != nullptr) {
      ++counters->instructions;
      counters->lane_instructions += count(lanes);
    }
    if (in.kind == Kind::plain) {
      if (lanes != 0) in.run(w, in, lanes);
      ++w.pc;
    } else if (in.kind == Kind::branch) {
      branch(w, in, lanes);
    } else if (lanes == 0) {
      ++w.pc;
    } else {
      switch (in.kind) {
        case Kind::collective:
          collect(w, in, lanes);
          break;
        case Kind::barrier:
        case Kind::barrier_arrive:
          reach_barrier(w, in, lanes);
          break;
        case Kind::cluster_arrive:
          arrive_cluster(w, in, lanes);
          break;
        case Kind::cluster_wait:
          wait_cluster(w, in, lanes);
          break;
        case Kind::exit:
          leave(w, lanes);
          break;
        default:
          fault(w, in.line, first(lanes), "trap");
      }
    }
    if (w.pc >= w.other && w.current != 0) {
      park(w);
      pick(w);
    }
  }
}

}  // namespace quarry::emulator
