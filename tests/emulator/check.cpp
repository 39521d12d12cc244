// SPDX-License-Identifier: Apache-2.0
// The checks of QUARRY_EMULATOR_CHECK: known memory, written memory, races in shared memory.
#include "check.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string_view>

#include "memory.h"
#include "statistics.h"

namespace quarry::emulator {
namespace {

struct Region {
  size_t bytes = 0;
  bool own = false;              // a module's variable
  std::vector<uint8_t> written;  // empty: all of it
};

struct Registry {
  std::mutex mutex;
  std::map<const std::byte*, Region> regions;
  size_t registered = 0;  // by register_memory
};

Registry& registry() {
  static auto* const r = new Registry;  // outlives whatever frees memory at exit
  return *r;
}

bool keeps_regions() { return (watch_wanted() & (kWatchMemory | kWatchInit)) != 0; }

void add(void* begin, size_t bytes, bool own, bool initialised) {
  if (!keeps_regions() || bytes == 0) return;
  Region region;
  region.bytes = bytes;
  region.own = own;
  if (!initialised && (watch_wanted() & kWatchInit) != 0) region.written.assign(bytes, 0);
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  r.regions[static_cast<const std::byte*>(begin)] = std::move(region);
  if (!own) ++r.registered;
}

std::map<const std::byte*, Region>::iterator region_of(Registry& r, const std::byte* p) {
  auto it = r.regions.upper_bound(p);
  if (it == r.regions.begin()) return r.regions.end();
  --it;
  return static_cast<size_t>(p - it->first) < it->second.bytes ? it : r.regions.end();
}

}  // namespace

void register_memory(void* begin, size_t bytes, bool initialised) {
  add(begin, bytes, false, initialised);
}
void register_variable(void* begin, size_t bytes) { add(begin, bytes, true, true); }

void forget_memory(void* begin) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  const auto it = r.regions.find(static_cast<const std::byte*>(begin));
  if (it == r.regions.end()) return;
  if (!it->second.own) --r.registered;
  r.regions.erase(it);
}
void forget_variable(void* begin) { forget_memory(begin); }

void mark_written(const void* begin, size_t bytes) {
  if (!keeps_regions()) return;
  size_t at = 0;
  consult(static_cast<const std::byte*>(begin), bytes, 0, true, &at);
}

Known consult(const std::byte* begin, size_t bytes, uint64_t read, bool write, size_t* at) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  *at = 0;
  if (r.registered == 0) return Known::yes;
  const auto it = region_of(r, begin);
  if (it == r.regions.end()) return Known::no;
  Region& region = it->second;
  const auto offset = static_cast<size_t>(begin - it->first);
  if (region.bytes - offset < bytes) {
    *at = region.bytes - offset;
    return Known::no;
  }
  if (region.written.empty()) return Known::yes;
  uint8_t* marks = region.written.data() + offset;
  for (size_t i = 0; read != 0 && i < bytes; ++i) {
    if (((read >> std::min<size_t>(i, 63)) & 1u) == 0 || marks[i] != 0) continue;
    *at = i;
    return Known::unwritten;
  }
  if (write) std::memset(marks, 1, bytes);
  return Known::yes;
}

namespace {

struct Toucher {
  Touch touch;
  uint32_t acquire = 0;
};

Toucher toucher(const Warp& w, const Instruction& in, unsigned lane) {
  const Cluster& cluster = *w.block->cluster;
  Toucher t;
  t.touch.thread = w.block->rank << 10 | (w.index * kLanes + lane);
  t.touch.epoch = w.block->epoch;
  t.touch.order = w.order;
  t.touch.line = in.line;
  t.touch.atomic = in.access == Access::atomic;
  const bool between = ((w.arrived >> lane) & 1u) != 0;  // arrived, not yet waited
  t.acquire = static_cast<uint32_t>(between ? w.phase[lane] : cluster.phase);
  t.touch.release = t.acquire + (between ? 1 : 0);
  return t;
}

// Whether `old` comes before `now` by a barrier or is the same lane's.
bool ordered(const Touch& old, const Toucher& now) {
  if (old.line == 0 || old.release < now.acquire) return true;
  const uint32_t difference = old.thread ^ now.touch.thread;
  const bool same_block = difference >> 10 == 0;
  if (same_block && old.epoch < now.touch.epoch) return true;
  const bool same_warp = difference >> 5 == 0 && !old.several_warps;
  if (same_warp && old.order < now.touch.order) return true;
  return difference == 0 && !old.several_warps && !old.several_lanes;
}

[[noreturn]] void race(const Warp& w, const Instruction& in, unsigned lane, const Touch& old,
                       bool old_write, size_t offset) {
  fault(w, in.line, lane,
        "race at shared byte " + std::to_string(offset) + ": also " +
            (old_write ? "written" : "read") + " at line " + std::to_string(old.line) +
            " by thread " + std::to_string(old.thread & 1023u) + " of rank " +
            std::to_string(old.thread >> 10) + " with no barrier between");
}

std::byte byte_of(const Warp& w, const Instruction& in, unsigned lane, size_t i) {
  const Operand o = in.from[1 + i / in.bytes];
  return *(w.base[o.pool] + o.offset + lane * (in.register_bits / 8u) + i % in.bytes);
}

// Whether what this lane writes is there already, or comes from the other lane of the same store.
bool same_value(const Warp& w, const Instruction& in, unsigned lane, const Touch& old,
                const std::byte* p, size_t i) {
  if (in.access != Access::write) return false;
  const std::byte value = byte_of(w, in, lane, i);
  const bool same_warp = (old.thread ^ (w.block->rank << 10 | (w.index * kLanes))) >> 5 == 0;
  if (same_warp && old.line == in.line && old.order == w.order) {
    return byte_of(w, in, old.thread & 31u, i) == value;
  }
  return p[i] == value;
}

void touch_shared(Warp& w, const Instruction& in, unsigned lane, const std::byte* p, size_t bytes,
                  bool read, bool write) {
  Cluster& cluster = *w.block->cluster;
  const auto at = static_cast<size_t>(p - cluster.begin);
  Block& block = *cluster.blocks[at / cluster.stride];
  const size_t offset = at % cluster.stride;
  const Toucher now = toucher(w, in, lane);
  for (size_t i = 0; i < bytes; ++i) {
    if (read && i < 32 && ((in.used >> i) & 1u) == 0) continue;
    const size_t b = offset + i;
    if ((w.watch & kWatchInit) != 0) {
      if (read && block.shadow.written[b] == 0) {
        fault(w, in.line, lane,
              "shared byte " + std::to_string(b) + " is read but was not written");
      }
      if (write) block.shadow.written[b] = 1;
    }
    if ((w.watch & kWatchRace) == 0) continue;
    Touch& last_write = block.shadow.writes[b];
    Touch& last_read = block.shadow.reads[b];
    const bool both_atomic = last_write.atomic && now.touch.atomic;
    if (!both_atomic && !ordered(last_write, now) &&
        !(write && same_value(w, in, lane, last_write, p, i))) {
      race(w, in, lane, last_write, true, b);
    }
    if (write) {
      if (!ordered(last_read, now)) race(w, in, lane, last_read, false, b);
      last_write = now.touch;
    } else {
      Touch merged = now.touch;
      if (!ordered(last_read, now)) {
        const bool same_warp = (last_read.thread ^ now.touch.thread) >> 5 == 0;
        merged.several_warps = last_read.several_warps || !same_warp;
        merged.several_lanes = true;
      }
      last_read = merged;
    }
  }
}

void touch_global(const Warp& w, const Instruction& in, unsigned lane, const std::byte* p,
                  size_t bytes, bool read, bool write) {
  size_t at = 0;
  const bool init = (w.watch & kWatchInit) != 0;
  const uint64_t wanted = !read || !init ? 0 : bytes <= 32 ? in.used : ~uint64_t{0};
  const Known known = consult(p, bytes, wanted, write, &at);
  if (known == Known::yes || (known == Known::no && (w.watch & kWatchMemory) == 0)) return;
  char text[32];
  std::snprintf(text, sizeof text, "%p", static_cast<const void*>(p + at));
  fault(w, in.line, lane,
        std::string(known == Known::no ? "address outside known memory: "
                                       : "memory read but not written: ") +
            text);
}

std::byte* place(Warp& w, const Instruction& in, unsigned lane, size_t bytes) {
  switch (in.space) {
    case Space::shared:
      return address<Space::shared>(w, in, lane, 0, bytes);
    case Space::generic:
      return address<Space::generic>(w, in, lane, 0, bytes);
    default:
      return address<Space::global>(w, in, lane, 0, bytes);
  }
}

bool is_own(const Warp& w, const std::byte* p) {  // local memory or a parameter, met generically
  const auto inside = [p](const std::vector<std::byte>& v) {
    return !v.empty() && p >= v.data() && p < v.data() + v.size();
  };
  return inside(w.block->local) || inside(w.block->cluster->grid->parameters);
}

}  // namespace

void watch_access(Warp& w, const Instruction& in, Mask lanes) {
  if (in.space == Space::host) return;
  const size_t bytes = in.access == Access::copy
                           ? in.bytes
                           : size_t{in.bytes} * (in.access == Access::matrix ? 1u : in.count);
  const bool read =
      in.access == Access::read || in.access == Access::matrix || in.access == Access::atomic;
  const bool write =
      in.access == Access::write || in.access == Access::copy || in.access == Access::atomic;
  const Cluster& cluster = *w.block->cluster;
  const std::byte* places[kLanes] = {};
  Mask shared = 0;
  Mask global = 0;
  for (Mask rest = lanes; rest != 0; rest &= rest - 1) {
    const auto lane = static_cast<unsigned>(std::countr_zero(rest));
    const std::byte* p = place(w, in, lane, bytes);
    places[lane] = p;
    const auto at = static_cast<uint64_t>(p - cluster.begin);
    if (at < cluster.stride * cluster.blocks.size()) {
      shared |= Mask{1} << lane;
      if ((w.watch & (kWatchInit | kWatchRace)) != 0)
        touch_shared(w, in, lane, p, bytes, read, write);
    } else if (!is_own(w, p)) {
      global |= Mask{1} << lane;
      if ((w.watch & (kWatchInit | kWatchMemory)) != 0)
        touch_global(w, in, lane, p, bytes, read, write);
    }
  }
  const bool counts = (w.watch & kWatchCount) != 0;
  if (counts && shared != 0) count_shared(*cluster.grid->counters, places, shared, bytes);
  if (counts && global != 0) count_global(*cluster.grid->counters, places, global, bytes, write);
  if (in.access != Access::copy) return;
  Mask reading = 0;
  const std::byte* sources[kLanes] = {};
  size_t longest = 0;
  for (Mask rest = lanes; rest != 0; rest &= rest - 1) {
    const auto lane = static_cast<unsigned>(std::countr_zero(rest));
    const size_t length = std::min<size_t>(w.in<uint32_t>(in.from[2])[lane], in.bytes);
    if (length == 0) continue;
    sources[lane] =
        reinterpret_cast<const std::byte*>(w.in<uint64_t>(in.from[1])[lane] + in.target);
    reading |= Mask{1} << lane;
    longest = std::max(longest, length);
    if ((w.watch & (kWatchInit | kWatchMemory)) != 0) {
      touch_global(w, in, lane, sources[lane], length, true, false);
    }
  }
  if (counts && reading != 0) {
    count_global(*cluster.grid->counters, sources, reading, longest, false);
  }
}

namespace {

unsigned watch_of(std::string_view rest) {
  unsigned bits = statistics_wanted() ? unsigned{kWatchCount} : 0;
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    const std::string_view word = rest.substr(0, comma);
    if (word == "memory") {
      bits |= kWatchMemory;
    } else if (word == "race") {
      bits |= kWatchRace;
    } else if (word == "init") {
      bits |= kWatchInit;
    } else if (word == "all") {
      bits |= kWatchMemory | kWatchRace | kWatchInit;
    } else {
      throw std::runtime_error("QUARRY_EMULATOR_CHECK: '" + std::string(word) +
                               "' is none of memory, race, init, all");
    }
    rest = comma == std::string_view::npos ? "" : rest.substr(comma + 1);
  }
  return bits;
}

std::string_view environment(const char* name) {
  const char* const text = std::getenv(name);
  return text != nullptr ? text : "";
}

std::atomic<unsigned>& watch_setting() {
  static std::atomic<unsigned> setting{watch_of(environment("QUARRY_EMULATOR_CHECK"))};
  return setting;
}
std::atomic<uint64_t>& seed_setting() {
  static std::atomic<uint64_t> setting{
      std::strtoull(std::string(environment("QUARRY_EMULATOR_SEED")).c_str(), nullptr, 10)};
  return setting;
}

}  // namespace

unsigned watch_wanted() { return watch_setting(); }
uint64_t seed_wanted() { return seed_setting(); }
void set_checks(std::string_view checks) { watch_setting() = watch_of(checks); }
void set_seed(uint64_t seed) { seed_setting() = seed; }

}  // namespace quarry::emulator
