// SPDX-License-Identifier: Apache-2.0
// A launch: blocks made, run in turns, reported where they fail.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>
#include <stdexcept>

#include "machine.h"

namespace quarry::emulator {
namespace {

constexpr uint64_t kTurn = 100000;           // instructions of a warp before others have theirs
constexpr uint64_t kPatience = 4000000;      // of a cluster before the next one starts beside it
constexpr size_t kMemory = size_t{1} << 28;  // of clusters that run side by side

std::string text(Dim3 d) {
  return "(" + std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z) + ")";
}
Dim3 place(size_t linear, Dim3 of) {
  return {static_cast<unsigned>(linear % of.x), static_cast<unsigned>(linear / of.x % of.y),
          static_cast<unsigned>(linear / of.x / of.y)};
}
size_t volume(Dim3 d) { return size_t{d.x} * d.y * d.z; }
size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

std::byte* align_up(std::byte* p, uintptr_t to) {
  const auto at = reinterpret_cast<uintptr_t>(p);
  return p + ((to - at % to) % to);
}

uint32_t special_value(Special which, const Block& block, unsigned warp, unsigned lane) {
  const Launch& launch = block.cluster->grid->launch;
  const Dim3 thread = place(size_t{warp} * kLanes + lane, launch.block);
  const Dim3 cluster = {block.id.x / launch.cluster.x, block.id.y / launch.cluster.y,
                        block.id.z / launch.cluster.z};
  const Mask bit = Mask{1} << lane;
  switch (which) {
    case Special::tid_x:
      return thread.x;
    case Special::tid_y:
      return thread.y;
    case Special::tid_z:
      return thread.z;
    case Special::ntid_x:
      return launch.block.x;
    case Special::ntid_y:
      return launch.block.y;
    case Special::ntid_z:
      return launch.block.z;
    case Special::ctaid_x:
      return block.id.x;
    case Special::ctaid_y:
      return block.id.y;
    case Special::ctaid_z:
      return block.id.z;
    case Special::nctaid_x:
      return launch.grid.x;
    case Special::nctaid_y:
      return launch.grid.y;
    case Special::nctaid_z:
      return launch.grid.z;
    case Special::lane:
      return lane;
    case Special::warp:
      return warp;
    case Special::warps:
      return static_cast<unsigned>(block.warps.size());
    case Special::lt:
      return bit - 1;
    case Special::le:
      return bit | (bit - 1);
    case Special::eq:
      return bit;
    case Special::ge:
      return ~(bit - 1);
    case Special::gt:
      return ~(bit | (bit - 1));
    case Special::cluster_rank:
      return block.rank;
    case Special::cluster_size:
      return static_cast<unsigned>(volume(launch.cluster));
    case Special::cluster_x:
      return block.id.x % launch.cluster.x;
    case Special::cluster_y:
      return block.id.y % launch.cluster.y;
    case Special::cluster_z:
      return block.id.z % launch.cluster.z;
    case Special::ncluster_x:
      return launch.cluster.x;
    case Special::ncluster_y:
      return launch.cluster.y;
    case Special::ncluster_z:
      return launch.cluster.z;
    case Special::cluster_of_x:
      return cluster.x;
    case Special::cluster_of_y:
      return cluster.y;
    case Special::cluster_of_z:
      return cluster.z;
    case Special::dynamic_shared:
      return static_cast<uint32_t>(launch.dynamic_shared);
    case Special::dynamic_shared_begin:
      return kOwnWindow + static_cast<uint32_t>(block.cluster->grid->program->dynamic_shared_base);
    default:
      return 0;
  }
}

void start_warp(Block& block, unsigned index, size_t threads, std::byte* registers,
                std::byte* local) {
  const Grid& grid = *block.cluster->grid;
  const Program& program = *grid.program;
  Warp& w = block.warps[index];
  w = Warp{};
  w.block = &block;
  w.index = index;
  w.watch = grid.watch;
  w.base[0] = registers;
  w.base[1] = const_cast<std::byte*>(program.constants.data());
  const size_t lanes = std::min<size_t>(threads - size_t{index} * kLanes, kLanes);
  w.alive = lanes == kLanes ? kFull : (Mask{1} << lanes) - 1;
  for (const auto& [which, at] : program.specials) {
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      if (which == Special::parameters || which == Special::local) {
        const std::byte* base = which == Special::parameters
                                    ? grid.parameters.data()
                                    : local + lane * aligned(program.local_bytes);
        const auto value = reinterpret_cast<uint64_t>(base);
        std::memcpy(registers + at + lane * sizeof value, &value, sizeof value);
      } else {
        const uint32_t value = special_value(which, block, index, lane);
        std::memcpy(registers + at + lane * sizeof value, &value, sizeof value);
      }
    }
  }
}

void start(Cluster& cluster, Grid& grid, size_t index) {
  const Launch& launch = grid.launch;
  const Program& program = *grid.program;
  const size_t threads = volume(launch.block);
  const size_t warps = (threads + kLanes - 1) / kLanes;
  const size_t size = volume(launch.cluster);
  const Dim3 clusters = {launch.grid.x / launch.cluster.x, launch.grid.y / launch.cluster.y,
                         launch.grid.z / launch.cluster.z};
  const Dim3 at = place(index, clusters);
  cluster.grid = &grid;
  cluster.stride = (grid.shared_bytes + 1023) / 1024 * 1024 + 1024;
  cluster.memory.assign(cluster.stride * size + 1024, std::byte{0xCD});
  cluster.begin = align_up(cluster.memory.data(), 1024);
  cluster.phase = 0;
  cluster.alive = static_cast<unsigned>(threads * size);
  cluster.arrived = cluster.leaving = 0;
  cluster.blocks.resize(size);
  for (size_t rank = 0; rank < size; ++rank) {
    if (cluster.blocks[rank] == nullptr) cluster.blocks[rank] = std::make_unique<Block>();
    Block& block = *cluster.blocks[rank];
    const Dim3 in = place(rank, launch.cluster);
    block.cluster = &cluster;
    block.id = {at.x * launch.cluster.x + in.x, at.y * launch.cluster.y + in.y,
                at.z * launch.cluster.z + in.z};
    block.rank = static_cast<unsigned>(rank);
    block.alive = static_cast<unsigned>(threads);
    block.shared = cluster.begin + rank * cluster.stride;
    block.epoch = 0;
    std::fill(std::begin(block.barriers), std::end(block.barriers), Barrier{});
    if ((grid.watch & kWatchInit) != 0) block.shadow.written.assign(grid.shared_bytes, 0);
    if ((grid.watch & kWatchRace) != 0) {
      block.shadow.writes.assign(grid.shared_bytes, Touch{});
      block.shadow.reads.assign(grid.shared_bytes, Touch{});
    }
    const size_t registers = aligned(program.register_bytes);
    const size_t local = aligned(program.local_bytes) * kLanes;
    block.registers.resize(registers * warps + 64);
    block.local.resize(local * warps + 64);
    block.warps.resize(warps);
    for (unsigned w = 0; w < warps; ++w) {
      start_warp(block, w, threads, align_up(block.registers.data(), 64) + w * registers,
                 align_up(block.local.data(), 64) + w * local);
    }
  }
}

[[noreturn]] void deadlock(const Cluster& cluster) {
  const Program& program = *cluster.grid->program;
  std::string what = "kernel " + program.name + ": nothing can go on:";
  unsigned told = 0;
  for (const auto& block : cluster.blocks) {
    for (const Warp& w : block->warps) {
      for (Mask rest = w.alive; rest != 0 && told < 16; ++told) {
        const auto lane = static_cast<unsigned>(std::countr_zero(rest));
        Mask same = 0;
        for (unsigned k = 0; k < kLanes; ++k) {
          if (w.place[k] == w.place[lane]) same |= Mask{1} << k;
        }
        same &= rest;
        rest &= ~same;
        char lanes[16];
        std::snprintf(lanes, sizeof lanes, "%08x", same);
        const bool collected = ((w.collected >> lane) & 1u) != 0;
        const bool barred = ((w.barred >> lane) & 1u) != 0;
        what += "\n  block " + text(block->id) + " warp " + std::to_string(w.index) + " lanes " +
                lanes + " at PTX line " + std::to_string(program.code[w.place[lane]].line) +
                (collected ? " for lanes of their warp"
                 : barred  ? " for their block"
                           : " for their cluster");
      }
    }
  }
  throw std::runtime_error(what);
}

// Whether the cluster is done; every warp has had a turn.
bool round(Cluster& cluster, std::mt19937_64* random, uint64_t* executed) {
  std::vector<Warp*> order;
  for (const auto& block : cluster.blocks) {
    for (Warp& w : block->warps) {
      if (w.alive != 0) order.push_back(&w);
    }
  }
  if (random != nullptr) std::shuffle(order.begin(), order.end(), *random);
  uint64_t ran = 0;
  bool moved = false;
  bool done = true;
  for (Warp* w : order) {
    if (waits(*w)) continue;
    const uint64_t before = w->executed;
    turn(*w, random != nullptr ? 1 + (*random)() % 400 : kTurn);
    ran += w->executed - before;
    moved = true;
  }
  for (Warp* w : order) done = done && w->alive == 0;
  if (!done && !moved) deadlock(cluster);
  *executed += ran;
  return done;
}

void check(const Program& program, const Launch& launch) {
  const size_t threads = volume(launch.block);
  const auto refuse = [&](const std::string& cause) {
    throw std::runtime_error("kernel " + program.name + ": " + cause);
  };
  if (threads == 0 || volume(launch.grid) == 0 || volume(launch.cluster) == 0) {
    refuse("an empty grid, block or cluster");
  }
  if (threads > program.threads) {
    refuse(std::to_string(threads) + " threads a block, at most " +
           std::to_string(program.threads));
  }
  if (launch.grid.x % launch.cluster.x != 0 || launch.grid.y % launch.cluster.y != 0 ||
      launch.grid.z % launch.cluster.z != 0 || volume(launch.cluster) > 16) {
    refuse("cluster " + text(launch.cluster) + " of grid " + text(launch.grid));
  }
  if (program.dynamic_shared_base + launch.dynamic_shared >= kOwnWindow) refuse("shared memory");
}

}  // namespace

void fault(const Warp& w, uint32_t line, unsigned lane, const std::string& cause) {
  const Grid& grid = *w.block->cluster->grid;
  throw std::runtime_error("kernel " + grid.program->name + ", PTX line " + std::to_string(line) +
                           ", block " + text(w.block->id) + ", thread " +
                           text(place(size_t{w.index} * kLanes + lane, grid.launch.block)) + ": " +
                           cause);
}

void run(const Kernel& kernel, const Launch& launch) {
  const auto& program = dynamic_cast<const Program&>(kernel);
  check(program, launch);
  Grid grid;
  grid.program = &program;
  grid.launch = launch;
  grid.watch = watch_wanted();
  grid.shared_bytes = program.dynamic_shared_base + launch.dynamic_shared;
  Counters counters;
  counters.launches = 1;
  grid.counters = &counters;
  grid.parameters.resize(program.argument_bytes + 16);
  for (size_t i = 0; i < program.arguments.size(); ++i) {
    const auto& [at, bytes] = program.arguments[i];
    std::memcpy(grid.parameters.data() + at, launch.arguments[i], bytes);
  }
  const size_t clusters = volume(launch.grid) / volume(launch.cluster);
  const uint64_t seed = seed_wanted();
  std::mt19937_64 random(seed);
  std::vector<size_t> order(clusters);
  for (size_t i = 0; i < clusters; ++i) order[i] = i;
  if (seed != 0) std::shuffle(order.begin(), order.end(), random);

  const size_t warps = (volume(launch.block) + kLanes - 1) / kLanes * volume(launch.cluster);
  const size_t memory = aligned(program.register_bytes) * warps +
                        aligned(program.local_bytes) * kLanes * warps +
                        (grid.shared_bytes + 2048) * volume(launch.cluster);
  const size_t most = std::max<size_t>(kMemory / memory, 1);
  std::deque<std::unique_ptr<Cluster>> active;
  std::vector<std::unique_ptr<Cluster>> spare;
  size_t next = 0;
  uint64_t waited = 0;  // instructions since a cluster began or ended
  while (next < clusters || !active.empty()) {
    const bool more = active.empty() || waited > kPatience || (seed != 0 && active.size() < 4);
    if (more && next < clusters && active.size() < most) {
      std::unique_ptr<Cluster> cluster;
      if (spare.empty()) {
        cluster = std::make_unique<Cluster>();
      } else {
        cluster = std::move(spare.back());
        spare.pop_back();
      }
      start(*cluster, grid, order[next++]);
      active.push_back(std::move(cluster));
      waited = 0;
    }
    for (auto it = active.begin(); it != active.end();) {
      if (round(**it, seed != 0 ? &random : nullptr, &waited)) {
        spare.push_back(std::move(*it));
        it = active.erase(it);
        waited = 0;
      } else {
        ++it;
      }
    }
  }
  if ((grid.watch & kWatchCount) != 0) add_counters(program.name, counters);
}

}  // namespace quarry::emulator
