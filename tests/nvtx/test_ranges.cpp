// SPDX-License-Identifier: Apache-2.0
//
// test_ranges INJECTION: a few calls, then what the profiler of injection.cpp saw of them. No
// GPU is needed: the ranges are the host's, on either backend.
#include <dlfcn.h>
#include <quarry/quarry.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  setenv("NVTX_INJECTION64_PATH", argv[1], 1);  // read at the first range
  quarry::IndexerConfig config;
  config.num_query_heads = config.num_kv_heads = 1;
  config.max_seq_len = 512;
  quarry::Indexer indexer;
  if (!quarry::Indexer::create(config, {}, {}, &indexer).ok()) return 3;
  // Refused or not, a call is a range.
  static_cast<void>(indexer.build({}, nullptr));
  static_cast<void>(indexer.next({}, nullptr));
  static_cast<void>(indexer.append({}, nullptr));
  static_cast<void>(indexer.reset(0, nullptr));

  void* library = dlopen(argv[1], RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) {
    std::fprintf(stderr, "NVTX did not load %s\n", argv[1]);
    return 4;
  }
  const auto ranges = reinterpret_cast<const char* (*)()>(dlsym(library, "quarry_test_ranges"));
  if (ranges == nullptr) return 5;
  std::printf("%s\n", ranges());
  // create() resolves the configuration on its way.
  return std::strcmp(ranges(), "create resolve . . build . next . append . reset . ") == 0 ? 0 : 1;
}
