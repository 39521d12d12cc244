// SPDX-License-Identifier: Apache-2.0
#include "statistics.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>

namespace quarry::emulator {
namespace {

struct Book {
  std::mutex mutex;
  std::map<std::string, Counters> kernels;
};

void write_book();

Book& book() {
  static auto* const b = [] {
    auto* made = new Book;  // outlives what runs at exit
    std::atexit(write_book);
    return made;
  }();
  return *b;
}

void write_book() {
  std::FILE* file = std::fopen(std::getenv("QUARRY_EMULATOR_STATISTICS"), "a");
  if (file == nullptr) return;
  const std::lock_guard lock(book().mutex);
  for (const auto& [name, c] : book().kernels) {
    const auto n = [](uint64_t v) { return static_cast<unsigned long long>(v); };
    std::fprintf(file,
                 "%s launches %llu warp_instructions %llu lane_instructions %llu "
                 "shared_accesses %llu shared_wavefronts %llu sectors_read %llu "
                 "sectors_written %llu\n",
                 name.c_str(), n(c.launches), n(c.instructions), n(c.lane_instructions),
                 n(c.shared_accesses), n(c.shared_wavefronts), n(c.sectors_read),
                 n(c.sectors_written));
  }
  std::fclose(file);
}

}  // namespace

bool statistics_wanted() {
  static const bool wanted = std::getenv("QUARRY_EMULATOR_STATISTICS") != nullptr;
  return wanted;
}

void add_counters(const std::string& name, const Counters& more) {
  const std::lock_guard lock(book().mutex);
  Counters& c = book().kernels[name];
  c.launches += more.launches;
  c.instructions += more.instructions;
  c.lane_instructions += more.lane_instructions;
  c.shared_accesses += more.shared_accesses;
  c.shared_wavefronts += more.shared_wavefronts;
  c.sectors_read += more.sectors_read;
  c.sectors_written += more.sectors_written;
}

void count_shared(Counters& c, const std::byte* const* places, Mask lanes, size_t bytes) {
  ++c.shared_accesses;
  const unsigned at_once = bytes <= 4 ? kLanes : bytes <= 8 ? kLanes / 2 : kLanes / 4;
  for (unsigned begin = 0; begin < kLanes; begin += at_once) {
    std::array<std::vector<uintptr_t>, 32> banks;
    for (unsigned lane = begin; lane < begin + at_once; ++lane) {
      if (((lanes >> lane) & 1u) == 0) continue;
      const uintptr_t first = reinterpret_cast<uintptr_t>(places[lane]) / 4;
      for (uintptr_t word = first; word < first + (bytes + 3) / 4; ++word) {
        auto& bank = banks[word % 32];
        if (std::find(bank.begin(), bank.end(), word) == bank.end()) bank.push_back(word);
      }
    }
    size_t most = 0;
    for (const auto& bank : banks) most = std::max(most, bank.size());
    c.shared_wavefronts += most;
  }
}

void count_global(Counters& c, const std::byte* const* places, Mask lanes, size_t bytes,
                  bool write) {
  std::vector<uintptr_t> sectors;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if (((lanes >> lane) & 1u) == 0) continue;
    const auto at = reinterpret_cast<uintptr_t>(places[lane]);
    for (uintptr_t s = at / 32; s <= (at + bytes - 1) / 32; ++s) sectors.push_back(s);
  }
  std::sort(sectors.begin(), sectors.end());
  const auto end = std::unique(sectors.begin(), sectors.end());
  (write ? c.sectors_written : c.sectors_read) += static_cast<uint64_t>(end - sectors.begin());
}

}  // namespace quarry::emulator
