// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "support/layers.h"

namespace quarry::bench {

/// Registers Faiss over codes of the workload's shape as `prefix`/faiss_IndexPQ/cpu or, with
/// fast_scan, `prefix`/faiss_IndexPQFastScan/cpu: one index a sequence and head, one query each,
/// inner product, K best. IndexPQ is exact ADC. Registers nothing in a build without Faiss.
void add_faiss(const std::string& prefix, const Workload& workload, bool fast_scan);

}  // namespace quarry::bench
