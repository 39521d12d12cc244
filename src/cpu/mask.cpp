// SPDX-License-Identifier: Apache-2.0
//
// Stage mask: what each row is, and the bounds of its candidates.
#include "cpu/stages.h"

namespace quarry::cpu {

Status mask(const MaskParams& p, const Launch& launch) noexcept {
  (void)launch;  // a few instructions a row: threads would cost more than they bring
  for (std::int32_t b = 0; b < p.step.batch_size; ++b) {
    std::uint32_t bits = 0;
    for (std::int32_t t = 0; t < p.step.query_tokens; ++t) {
      const RowState row = row_state(p.index, p.step, p.step.states[b], b, t, &bits);
      RowState* out = p.rows + row_of(p.step, p.list_heads, b, t, 0);
      for (std::int32_t h = 0; h < p.list_heads; ++h) out[h] = row;
    }
    if (p.step.device_status != nullptr) p.step.device_status[b] |= bits;
  }
  return Status();
}

}  // namespace quarry::cpu
