// SPDX-License-Identifier: Apache-2.0
//
// What the tools' command lines have in common: named choices, refusals on one line, exit codes.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <map>
#include <string>

#include "error.h"
#include "quarry/config.h"

namespace quarry::tools {

/// An option whose value is one of a few names.
template <typename T>
CLI::Option* add_choice(CLI::App& app, const char* flag, T& target,
                        const std::map<std::string, T>& names, const char* help) {
  std::string shown, initial;
  for (const auto& [name, value] : names) {
    shown += (shown.empty() ? "" : "|") + name;
    if (value == target) initial = name;
  }
  return app
      .add_option_function<std::string>(
          flag, [&target, names](const std::string& name) { target = names.at(name); }, help)
      ->check(CLI::Validator(
          [names, shown](std::string& name) {
            return names.count(name) > 0 ? std::string()
                                         : "'" + printable(name) + "' is not one of " + shown;
          },
          ""))
      ->type_name(shown)
      ->default_str(initial);
}

/// --metric and --mean, as both tools have them.
CLI::Option* add_metric(CLI::App& app, Metric& target);
CLI::Option* add_mean(CLI::App& app, DType& target);

/// Throws Error (internal) where the file cannot be written.
void write_text(const std::string& path, const std::string& text);

/// Writes to stdout. Throws Error (internal) where that fails.
void print(const std::string& text);

/// A tool's main(): parses, then calls `run`. Whatever is thrown becomes one line on stderr
/// behind the app's name and an exit code; bad arguments are kExitBadInput.
int run_tool(CLI::App& app, int argc, char** argv, const std::function<void()>& run) noexcept;

}  // namespace quarry::tools
