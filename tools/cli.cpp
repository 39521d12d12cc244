// SPDX-License-Identifier: Apache-2.0
#include "cli.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <new>

#include "quarry/version.h"

namespace quarry::tools {
namespace {

int fail(const CLI::App& app, int exit_code, const char* line) {
  std::fprintf(stderr, "%s: %s\n", app.get_name().c_str(), line);
  return exit_code;
}

}  // namespace

CLI::Option* add_metric(CLI::App& app, Metric& target) {
  return add_choice<Metric>(
      app, "--metric", target,
      {{"euclidean", Metric::euclidean}, {"inner_product", Metric::inner_product}},
      "How keys are compared with centroids");
}

CLI::Option* add_mean(CLI::App& app, DType& target) {
  return add_choice<DType>(app, "--mean", target,
                           {{"float32", DType::float32},
                            {"float16", DType::float16},
                            {"bfloat16", DType::bfloat16},
                            {"float8_e4m3", DType::float8_e4m3}},
                           "Type of the stored block means");
}

void write_text(const std::string& path, const std::string& text) {
  errno = 0;
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  if (!file) {
    throw Error(kExitInternal, printable(path) + ": cannot be written: " + std::strerror(errno));
  }
}

void print(const std::string& text) {
  if (std::fputs(text.c_str(), stdout) < 0 || std::fflush(stdout) != 0) {
    throw Error(kExitInternal, "stdout cannot be written");
  }
}

int run_tool(CLI::App& app, int argc, char** argv, const std::function<void()>& run) noexcept {
  try {
    app.set_version_flag("--version", QUARRY_VERSION_STRING);
    try {
      app.parse(argc, argv);
    } catch (const CLI::Success& e) {
      return app.exit(e);  // --help, --version
    } catch (const CLI::ParseError& e) {
      return fail(app, kExitBadInput, (std::string(e.what()) + " (see --help)").c_str());
    }
    run();
    return 0;
  } catch (const Error& e) {
    return fail(app, e.exit_code(), e.what());
  } catch (const std::bad_alloc&) {
    return fail(app, kExitInternal, "out of memory");
  } catch (const std::exception& e) {
    return fail(app, kExitInternal, e.what());
  } catch (...) {
    return fail(app, kExitInternal, "an unknown error");
  }
}

}  // namespace quarry::tools
