// SPDX-License-Identifier: Apache-2.0
//
// The inner loops of selection, dispatched at run time.
#pragma once

#include <cstdint>

namespace quarry::cpu {

/// Appends to keys[] and positions[] the entries of scores[i .. count) whose selection_key()
/// is above `threshold`, in ascending order of i: positions[] gets base + i. Stops as soon
/// as fewer than 64 of the `room` places are left. *found is how many were appended; returns
/// the first i that was not looked at.
std::int32_t scan_above(const float* scores, std::int32_t base, std::int32_t i, std::int32_t count,
                        std::uint32_t threshold, std::int32_t room, std::uint32_t* keys,
                        std::int32_t* positions, std::int32_t* found);

/// keys[i] = selection_key(scores[i]), i < count.
void selection_keys(const float* scores, std::int32_t count, std::uint32_t* keys);

/// A key that at least k of keys[0 .. count) reach, 1 <= k <= count, and, where ties allow, at
/// most `most`. With most = k it is the k-th largest.
std::uint32_t kth_key(const std::uint32_t* keys, std::int32_t count, std::int32_t k,
                      std::int32_t most);

/// Moves the entries with a key of at least `least` to the front, in order; returns how many.
std::int32_t keep_from(std::uint32_t least, std::int32_t count, std::uint32_t* keys,
                       std::int32_t* positions);

}  // namespace quarry::cpu
