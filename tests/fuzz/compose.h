// SPDX-License-Identifier: Apache-2.0
//
// Safetensors files that are sound, or nearly: bytes alone seldom get past the header.
#pragma once

#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "error.h"
#include "memory_file.h"
#include "safetensors.h"

namespace quarry::fuzz {

struct TensorPlan {
  const char* name;
  const char* dtype;
  std::vector<std::int64_t> shape;
};

/// Elements are small floats, or what the input says; int32 ascend from 0 or so.
inline std::vector<std::uint8_t> elements(FuzzedDataProvider& in, const std::string& dtype,
                                          std::size_t bytes) {
  std::vector<std::uint8_t> out = in.ConsumeBytes<std::uint8_t>(in.ConsumeIntegralInRange(
      std::size_t{0}, std::min<std::size_t>(bytes, in.ConsumeBool() ? 64 : 0)));
  out.resize(bytes, 0);
  if (dtype == "I32") {
    for (std::size_t i = 0; i + 4 <= bytes; i += 4) out[i] = static_cast<std::uint8_t>(i / 4);
    if (bytes >= 4 && in.ConsumeBool()) out[bytes - 1] = in.ConsumeIntegral<std::uint8_t>();
  }
  return out;
}

/// Writes the planned tensors; each may be left out, of another dtype or of another shape.
inline void compose(FuzzedDataProvider& in, std::vector<TensorPlan> plans,
                    const std::map<std::string, std::string>& metadata, const std::string& path) {
  static const char* const kDtypes[] = {"F32", "F16", "BF16", "I32", "U8", "F64", "F4", "BOOL"};
  constexpr std::size_t kMost = 1 << 16;
  std::vector<tools::TensorSource> tensors;
  std::vector<std::vector<std::uint8_t>> data;
  for (TensorPlan& plan : plans) {
    const auto change = in.ConsumeIntegralInRange<int>(0, 15);
    if (change == 1) continue;
    std::string dtype = plan.dtype;
    if (change == 2) dtype = in.PickValueInArray(kDtypes);
    if (change == 3 && !plan.shape.empty()) {
      plan.shape[in.ConsumeIntegralInRange<std::size_t>(0, plan.shape.size() - 1)] =
          in.ConsumeIntegralInRange<std::int64_t>(0, 40);
    }
    if (change == 4) plan.shape.push_back(in.ConsumeIntegralInRange<std::int64_t>(0, 2));
    if (change == 5 && !plan.shape.empty()) plan.shape.pop_back();
    if (change == 6 && dtype == "F32") dtype = "BF16";
    std::size_t count = 1;
    for (const std::int64_t extent : plan.shape) count *= static_cast<std::size_t>(extent);
    const std::size_t width = dtype == "F64" ? 8 : dtype == "F16" || dtype == "BF16" ? 2 : 4;
    if (count * width > kMost) continue;
    std::size_t bytes = count * width;
    if (dtype == "U8" || dtype == "BOOL" || dtype == "F8_E4M3") bytes = count;
    if (dtype == "F4") bytes = count / 2;
    data.push_back(elements(in, dtype, bytes));
    tensors.push_back({plan.name, dtype, plan.shape, nullptr});
  }
  for (std::size_t i = 0; i < tensors.size(); ++i) tensors[i].data = data[i].data();
  tools::write_safetensors(path, tensors, metadata);
}

}  // namespace quarry::fuzz
