// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>
#include <quarry/c_api.h>

#include <cstring>
#include <string>

namespace quarry::test {

/// The defaults, in a struct of `size` bytes as far as the library may know.
inline quarry_config config_of(std::uint32_t size = sizeof(quarry_config)) {
  quarry_config config;
  std::memset(&config, 0x5b, sizeof config);
  QUARRY_C_HEADER(&config);
  config.struct_size = size;
  quarry_status status;
  EXPECT_EQ(quarry_default_config(&config, &status), QUARRY_OK) << status.detail;
  return config;
}

inline void expect_refused(quarry_code code, const quarry_status& status, quarry_code expected,
                           const std::string& named) {
  EXPECT_EQ(code, expected) << status.detail;
  EXPECT_EQ(status.code, code);
  EXPECT_NE(std::string(status.detail).find(named), std::string::npos)
      << "'" << status.detail << "' does not name " << named;
}

}  // namespace quarry::test
