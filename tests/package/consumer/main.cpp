// SPDX-License-Identifier: Apache-2.0
//
// create, build and next on the CPU through the installed headers and library; prints the list
// length. Exit code 0 if all is as it must be.
#include <quarry/quarry.h>

#include <cstdio>
#include <memory>
#include <vector>

namespace {

int fail(const char* what, const quarry::Status& status) {
  std::fprintf(stderr, "%s: %s: %s\n", what, quarry::to_string(status.code()), status.detail());
  return 1;
}

}  // namespace

int main() {
  constexpr std::int32_t kHeads = 2, kDim = 16, kPositions = 600;
  quarry::IndexerConfig config;
  config.num_query_heads = config.num_kv_heads = kHeads;
  config.head_dim = kDim;
  config.max_seq_len = 1024;
  config.bits = 4;
  config.sink_size = 4;
  config.heavy_size = 8;
  config.window_size = 16;

  quarry::MemoryRequirements memory;
  quarry::Status status = memory_requirements(config, quarry::Backend::cpu, &memory);
  if (!status.ok()) return fail("memory_requirements", status);
  quarry::Indexer indexer;
  status = quarry::Indexer::create(config, {}, {}, &indexer);
  if (!status.ok()) return fail("create", status);

  std::vector<float> keys(std::size_t{kPositions} * kHeads * kDim), queries(kHeads * kDim);
  std::uint32_t state = 1;
  for (float& x : keys) {
    state = state * 1664525u + 1013904223u;
    x = static_cast<float>(state >> 24) - 128.0f;
  }
  for (float& x : queries) x = 1.0f;

  std::size_t bytes = memory.build_workspace_bytes + memory.next_workspace_bytes + 256;
  std::vector<unsigned char> block(bytes);
  void* scratch = block.data();
  std::align(256, bytes - 256, scratch, bytes);

  quarry::BuildArgs build;
  build.length = kPositions - 1;
  build.keys.data = keys.data();
  build.keys.page_stride = kPositions * kHeads * kDim;
  build.keys.slot_stride = kHeads * kDim;
  build.keys.head_stride = kDim;
  build.workspace = {scratch, bytes};
  status = indexer.build(build, nullptr);
  if (!status.ok()) return fail("build", status);

  const std::int32_t length = kPositions;
  const std::int32_t stride = indexer.max_list_length();
  std::vector<std::int32_t> lists(static_cast<std::size_t>(stride) * kHeads), lengths(kHeads);
  quarry::NextArgs next;
  next.batch.batch_size = 1;
  next.batch.lengths = &length;
  next.keys = build.keys;
  next.queries.data = queries.data();
  next.queries.batch_stride = next.queries.token_stride = kHeads * kDim;
  next.queries.head_stride = kDim;
  next.workspace = build.workspace;
  next.indices = lists.data();
  next.index_stride = stride;
  next.list_lengths = lengths.data();
  status = indexer.next(next, nullptr);
  if (!status.ok()) return fail("next", status);

  std::printf("quarry %s: list of %d positions\n", QUARRY_VERSION_STRING, lengths[0]);
  if (lengths[0] != 4 + 8 + 16 || lists[0] != 0 || lists[27] != kPositions - 1) return 1;

  // The cuda backend is there exactly where the package says so, whether or not a device is.
  status = memory_requirements(config, quarry::Backend::cuda, &memory);
  if (status.ok() != (EXPECT_CUDA != 0)) return fail("memory_requirements(cuda)", status);
  std::printf("cuda backend %s, device %s\n", EXPECT_CUDA ? "linked" : "not built",
              quarry::backend_available(quarry::Backend::cuda) ? "present" : "absent");
  return 0;
}
