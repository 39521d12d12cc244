// SPDX-License-Identifier: Apache-2.0
#pragma once

// Runs PTX on the host: what lets the CUDA backend's tests run, slowly, where there is no GPU.
//
// Memory is the host's: a device pointer is a host pointer. One launch runs to its end before
// run() returns; blocks run one after another (the blocks of a cluster together), warps of a block
// in turns, lanes of a warp together where they agree. Nothing here says anything about time.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace quarry::emulator {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

struct Launch {
  Dim3 grid, block, cluster;
  size_t dynamic_shared = 0;               // bytes
  const void* const* arguments = nullptr;  // one pointer a kernel parameter, as cudaLaunchKernel
};

class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual size_t parameters() const = 0;               // how many
  virtual size_t parameter_bytes(size_t i) const = 0;  // size of the i-th
  virtual size_t static_shared() const = 0;            // bytes
  virtual unsigned max_threads() const = 0;            // .maxntid product, 1024 without
};

class Module {
 public:
  // Takes one PTX file's text. Kernels are parsed when first asked for. Throws std::runtime_error
  // naming line and cause where the text is not understood: nothing is skipped silently.
  static std::unique_ptr<Module> load(std::string text);
  virtual ~Module() = default;
  // The kernel of this mangled name, or nullptr.
  virtual const Kernel* kernel(std::string_view name) = 0;
  // The address of a .global or .const variable, or nullptr; its size in *bytes.
  virtual void* variable(std::string_view name, size_t* bytes) = 0;
};

// Runs a launch to its end. Throws std::runtime_error (kernel, line of PTX, block, thread, cause)
// on what a GPU would call an error: an access outside known memory where checking is on, a
// misaligned one, a barrier not all threads can reach, trap.
void run(const Kernel& kernel, const Launch& launch);

// Memory the kernels may touch, for the checks: [begin, begin + bytes). With none registered,
// global accesses are not checked. `initialised` false: reading a byte before it was written is an
// error (memory checks on).
void register_memory(void* begin, size_t bytes, bool initialised);
void forget_memory(void* begin);
// Tells the checks that the host (a copy, a memset) wrote these bytes.
void mark_written(const void* begin, size_t bytes);

// What is checked besides the bounds and alignment of shared memory, as QUARRY_EMULATOR_CHECK names
// it: a list, with commas, of
//   memory  global accesses lie inside registered memory
//   init    no byte of registered or shared memory is read before it was written
//   race    no two threads touch a byte of shared memory, one writing another value, without a
//           barrier between (atomics are exempt among themselves)
//   all     all of them
// These two take the place of the environment from now on; memory registered earlier is not known
// to checks that were off then.
void set_checks(std::string_view checks);
// QUARRY_EMULATOR_SEED: 0 runs blocks and warps in ascending order; another number mixes the order
// of blocks and the length of warps' turns, so that a missing barrier shows.
void set_seed(uint64_t seed);
// QUARRY_EMULATOR_STATISTICS=FILE: at exit a line a kernel is appended to FILE: launches,
// instructions of warps and lanes, instructions on shared memory and the wavefronts they would take
// (more than one each where banks conflict or accesses are wide), sectors of 32 bytes of global
// memory read and written, each counted once an instruction.

}  // namespace quarry::emulator
