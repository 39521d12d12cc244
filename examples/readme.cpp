// SPDX-License-Identifier: Apache-2.0
//
// The example of README.md with an engine's buffers around it. A test compares what is between
// the two marks with the README's text.
#include <quarry/quarry.h>

#include <cmath>
#include <cstdio>
#include <memory>
#include <vector>

int main() {
  // Float keys [8192, 4, 64], of which 4097 are in the cache; a token's queries [4, 64].
  std::vector<float> cache(8192 * 4 * 64), queries(4 * 64);
  for (std::size_t i = 0; i < cache.size(); ++i) {
    cache[i] = std::sin(static_cast<float>(i * i % 9973));
  }
  for (std::size_t i = 0; i < queries.size(); ++i) queries[i] = std::cos(static_cast<float>(i));
  const std::int32_t length = 4097;
  std::vector<std::int32_t> lists(4 * 8192), list_lengths(4);
  std::vector<unsigned char> memory(64 << 20);
  void* aligned = memory.data();
  std::size_t bytes = memory.size();
  std::align(256, bytes / 2, aligned, bytes);
  const quarry::Workspace scratch{aligned, bytes};

  // README begin
  auto config = quarry::IndexerConfig::recommended(/*head_dim=*/64);
  config.num_query_heads = config.num_kv_heads = 4;
  config.max_seq_len = 8192;
  config.rotation = config.shared_codebook = false;  // not calibrated: train on the prompt
  quarry::Indexer indexer;                           // one layer's
  quarry::Status status = quarry::Indexer::create(config, {}, {}, &indexer);

  quarry::BuildArgs build;  // prefill: 4096 keys [position, head, dimension] are in the cache
  build.length = 4096;
  build.keys.data = cache.data();
  build.keys.page_stride = 8192 * 4 * 64;
  build.keys.slot_stride = 4 * 64;
  build.keys.head_stride = 64;
  build.workspace = scratch;  // memory_requirements() says how much
  if (status.ok()) status = indexer.build(build, nullptr);

  quarry::NextArgs next;  // decode: the engine has written key 4096, length is 4097
  next.batch.batch_size = 1;
  next.batch.lengths = &length;
  next.keys = build.keys;
  next.queries.data = queries.data();
  next.queries.batch_stride = next.queries.token_stride = 4 * 64;
  next.queries.head_stride = 64;
  next.workspace = scratch;
  next.indices = lists.data();  // a row a head: ascending positions, then -1
  next.index_stride = 8192;
  next.list_lengths = list_lengths.data();
  if (status.ok()) status = indexer.next(next, nullptr);
  // README end

  if (!status.ok()) {
    std::fprintf(stderr, "%s: %s\n", quarry::to_string(status.code()), status.detail());
    return 1;
  }
  std::printf("head 0 attends to %d of %d keys\n", list_lengths[0], length);
  return list_lengths[0] == 16 + 128 + 64 ? 0 : 1;
}
