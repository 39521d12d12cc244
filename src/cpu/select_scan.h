// SPDX-License-Identifier: Apache-2.0
//
// The inner loop of stage select, dispatched at run time: the few scores above a threshold.
#pragma once

#include <cstdint>

namespace quarry::cpu {

/// Appends to keys[] and positions[] the entries of scores[i .. count) whose selection_key()
/// is above `threshold`, in ascending order of i: positions[] gets the index i. Stops as soon
/// as fewer than 64 of the `room` places are left. *found is how many were appended; returns
/// the first i that was not looked at.
std::int32_t scan_above(const float* scores, std::int32_t i, std::int32_t count,
                        std::uint32_t threshold, std::int32_t room, std::uint32_t* keys,
                        std::int32_t* positions, std::int32_t* found);

}  // namespace quarry::cpu
