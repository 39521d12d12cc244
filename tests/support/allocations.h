// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace quarry::test {

/// Counts what any thread takes from operator new while one lives. Programs that link
/// allocations.cpp replace operator new; under a sanitizer, which has its own, nothing counts.
class AllocationWatch {
 public:
  AllocationWatch();
  ~AllocationWatch();
  AllocationWatch(const AllocationWatch&) = delete;
  AllocationWatch& operator=(const AllocationWatch&) = delete;

  static long count();  ///< of all watches of the program so far
  static bool works();
};

}  // namespace quarry::test
