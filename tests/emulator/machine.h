// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the interpreter's files share: decoded instructions and the state of warps, blocks and
// clusters. Registers are arrays of 32 lanes; a predicate is one word with a bit a lane.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ptx.h"

namespace quarry::emulator {

constexpr unsigned kLanes = 32;
using Mask = uint32_t;  // a bit a lane
constexpr Mask kFull = 0xFFFFFFFFu;

// Addresses in shared space: a block's own window, then those of its cluster's ranks. The first
// lies above 0 so that a null pointer is caught.
constexpr unsigned kWindowBits = 24;
constexpr uint32_t kOwnWindow = 1u << kWindowBits;
constexpr uint32_t window_of(unsigned rank) { return (rank + 2) << kWindowBits; }

// Where a register's lanes (or a constant's, which are broadcast) begin.
struct Operand {
  uint32_t offset = 0;
  uint32_t pool = 1;  // 0: the warp's registers, 1: the kernel's constants (at 0: all ones)
};

enum class Kind : uint8_t {
  plain,           // run() and on
  branch,          // to target
  exit,            // the lanes are done
  collective,      // run() once all lanes named by the mask operand (or all live) are here
  barrier,         // bar.sync, bar.red
  barrier_arrive,  // bar.arrive
  cluster_arrive,
  cluster_wait,
  trap,
};

enum class Space : uint8_t { generic, global, shared, host };  // host: parameters, local memory

// How a memory instruction touches memory, for the checks.
enum class Access : uint8_t { none, read, write, atomic, copy, matrix };

enum class Reduction : uint8_t { none, any, all, count };

struct Warp;
struct Instruction;
using Handler = void (*)(Warp&, const Instruction&, Mask);

struct Instruction {
  Handler run = nullptr;
  Operand guard;  // a predicate: a constant that is all ones where there is none
  Operand to[4];
  Operand from[10];
  int64_t offset = 0;  // of the address operand, or the instruction's own immediate
  uint32_t target = 0;
  uint32_t line = 0;
  uint32_t used = ~0u;  // bytes of a load that matter (the compiler's used_bytes_mask)
  Mask guard_flip = 0;  // all ones: the guard is negated
  Mask flip = 0;        // all ones: the (first) predicate source is negated
  Kind kind = Kind::plain;
  Space space = Space::generic;
  Access access = Access::none;
  Reduction reduction = Reduction::none;
  bool has_mask = false;      // collective: from[kMaskOperand] names the lanes
  bool same_place = true;     // collective: its lanes meet at one instruction
  uint8_t count = 1;          // elements of a vector access
  uint8_t bytes = 0;          // of one element in memory
  uint8_t register_bits = 0;  // of one element's register
  bool wide_address = true;   // the address operand has 64 bits
  uint8_t mode = 0;           // what the handler makes of it
};
constexpr unsigned kMaskOperand = 9;

enum class Special : uint8_t {
  tid_x,
  tid_y,
  tid_z,
  ntid_x,
  ntid_y,
  ntid_z,
  ctaid_x,
  ctaid_y,
  ctaid_z,
  nctaid_x,
  nctaid_y,
  nctaid_z,
  lane,
  warp,
  warps,
  lt,
  le,
  eq,
  ge,
  gt,
  cluster_rank,
  cluster_size,
  cluster_x,
  cluster_y,
  cluster_z,
  ncluster_x,
  ncluster_y,
  ncluster_z,
  cluster_of_x,
  cluster_of_y,
  cluster_of_z,
  dynamic_shared,
  dynamic_shared_begin,
  parameters,
  local,
};

struct RegisterRange {
  uint32_t begin = 0, bytes = 0, count = 0;  // bytes: of one register's lanes
};

// A kernel with everything resolved: what a launch runs.
struct Program final : Kernel {
  std::string name;
  std::vector<Instruction> code;
  std::vector<std::byte> constants;
  size_t register_bytes = 0;
  std::vector<RegisterRange> registers;                // as declared, before compact_registers()
  std::vector<std::pair<Special, uint32_t>> specials;  // and where their lanes begin
  std::vector<std::pair<size_t, size_t>> arguments;    // offset and size in the parameter buffer
  size_t argument_bytes = 0;
  size_t shared_bytes = 0;         // static
  size_t dynamic_shared_base = 0;  // where the extern array begins
  size_t local_bytes = 0;          // a lane
  unsigned threads = 1024;

  size_t parameters() const override { return arguments.size(); }
  size_t parameter_bytes(size_t i) const override { return arguments.at(i).second; }
  size_t static_shared() const override { return shared_bytes; }
  unsigned max_threads() const override { return threads; }
};

struct Block;

struct Warp {
  std::byte* base[2] = {};  // registers, constants
  Block* block = nullptr;
  unsigned index = 0;
  unsigned watch = 0;  // bits of Watch: what memory accesses tell besides

  uint32_t pc = 0;              // of the lanes in `current`
  Mask current = 0;             // lanes that run now
  uint32_t other = UINT32_MAX;  // lowest place of the other runnable lanes
  Mask alive = 0;
  Mask collected = 0;           // wait for other lanes of the warp
  Mask barred = 0;              // wait for other warps of the block
  Mask clustered = 0;           // wait for other blocks of the cluster
  Mask arrived = 0;             // have arrived at the cluster's barrier and not yet waited
  uint32_t place[kLanes] = {};  // of lanes not in `current`
  Mask needs[kLanes] = {};      // of collected lanes
  uint64_t phase[kLanes] = {};  // of the cluster's barrier, at arrival
  uint8_t barrier[kLanes] = {};
  uint32_t order = 0;     // counts collectives: what orders lanes for the race check
  uint64_t executed = 0;  // instructions
  bool spun = false;      // the last turn ended with its budget

  template <class T>
  const T* in(Operand o) const {
    return reinterpret_cast<const T*>(base[o.pool] + o.offset);
  }
  template <class T>
  T* out(Operand o) {
    return reinterpret_cast<T*>(base[0] + o.offset);
  }
  Mask predicate(Operand o) const { return *in<Mask>(o); }
  void set_predicate(Operand o, Mask lanes, Mask value) {
    Mask* p = out<Mask>(o);
    *p = (*p & ~lanes) | (value & lanes);
  }
};

struct Barrier {
  unsigned arrived = 0, expected = 0;  // threads; expected 0: all of the block
  unsigned count = 0;                  // of true predicates
};

// What the race check knows of one byte of shared memory.
struct Touch {
  uint32_t thread = 0;   // in the cluster: block rank, warp, lane
  uint32_t epoch = 0;    // of the block's barriers
  uint32_t release = 0;  // of the cluster's barriers
  uint32_t order = 0;    // of the warp's collectives
  uint32_t line = 0;     // 0: never
  bool several_lanes = false, several_warps = false, atomic = false;
};

struct Shadow {
  std::vector<uint8_t> written;
  std::vector<Touch> writes, reads;
};

struct Cluster;

struct Block {
  Cluster* cluster = nullptr;
  Dim3 id;
  unsigned rank = 0;
  unsigned alive = 0;  // threads
  std::byte* shared = nullptr;
  std::vector<Warp> warps;
  std::vector<std::byte> registers, local;
  Barrier barriers[16];
  uint32_t epoch = 0;
  Shadow shadow;
};

struct Grid;

struct Cluster {
  Grid* grid = nullptr;
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::byte> memory;  // every block's shared memory, with gaps
  std::byte* begin = nullptr;
  size_t stride = 0;
  uint64_t phase = 0;
  unsigned alive = 0, arrived = 0, leaving = 0;
};

struct Grid {
  const Program* program = nullptr;
  Launch launch;
  size_t shared_bytes = 0;
  std::vector<std::byte> parameters;
  struct Counters* counters = nullptr;
  unsigned watch = 0;
};

enum Watch : unsigned {
  kWatchMemory = 1,
  kWatchRace = 2,
  kWatchInit = 4,
  kWatchCount = 8,
};

// What is counted of a kernel where QUARRY_EMULATOR_STATISTICS names a file.
struct Counters {
  uint64_t launches = 0, instructions = 0, lane_instructions = 0;
  uint64_t shared_accesses = 0, shared_wavefronts = 0, sectors_read = 0, sectors_written = 0;
};

// Throws with kernel, line, block and, for lane < 32, thread.
[[noreturn]] void fault(const Warp& warp, uint32_t line, unsigned lane, const std::string& cause);

// Called before a memory access of these lanes where warp.watch is set: the checks and counts.
void watch_access(Warp& warp, const Instruction& in, Mask lanes);

// As the environment or set_checks() and set_seed() have it.
unsigned watch_wanted();
uint64_t seed_wanted();
// To those of the kernel's name, which are written to the statistics file at exit.
void add_counters(const std::string& name, const Counters& more);

// Runs a warp until it waits, is done, or has run `budget` instructions.
void turn(Warp& warp, uint64_t budget);
inline bool waits(const Warp& w) {
  return (w.alive & ~(w.collected | w.barred | w.clustered)) == 0;
}

}  // namespace quarry::emulator
