// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "support/layers.h"

namespace quarry::bench {

/// Registers Faiss over codes of the workload's shape: one index a head, one query each,
/// inner product, K best. IndexPQ is exact ADC; fast_scan takes IndexPQFastScan. Registers
/// nothing in a build without Faiss.
void add_faiss(const Workload& workload, bool fast_scan);

}  // namespace quarry::bench
