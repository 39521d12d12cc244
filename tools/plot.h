// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "replay.h"
#include "report.h"
#include "trace.h"

namespace quarry::tools {

/// A replay as one picture (SVG, self-contained): recall and attention mass along the
/// decode against the exact top-K, latency of next(), and which positions were listed when.
std::string plot(const Trace& trace, const ReplayResult& result, const Report& report,
                 const Setting& setting);

}  // namespace quarry::tools
