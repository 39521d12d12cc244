// SPDX-License-Identifier: Apache-2.0
//
// Bad arguments of attach, copy_pages, fork, save, restore and of physical indices: each gets a
// code and a detail that names it, and leaves the index as it was.
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "support/backends.h"
#include "support/scenario.h"
#include "validate.h"

namespace quarry::test {
namespace {

constexpr StatusCode kInvalid = StatusCode::invalid_argument;
constexpr StatusCode kRange = StatusCode::out_of_range;

template <class T>
T* moved(T* p, std::ptrdiff_t by) {
  return reinterpret_cast<T*>(reinterpret_cast<std::intptr_t>(p) + by);
}

struct Call {
  const char* named;
  StatusCode code;
  std::function<Status()> call;
};

/// An Indexer in the caller's memory, of which refused calls must leave every byte.
class Guarded {
 public:
  Guarded(Backend backend, const IndexerConfig& c)
      : config(c),
        backend_(backend),
        stream(backend),
        ints(backend, std::vector<std::int32_t>{0, 1, 2, 3, 4, 5, 6, 7}),
        table(backend, std::vector<std::int32_t>(64, 0)),
        status(backend, 8),
        centroids(backend, static_cast<std::size_t>(c.num_kv_heads) * c.head_dim * (1 << c.bits)) {
    EXPECT_TRUE(memory_requirements(c, backend, &need).ok());
    memory = std::make_unique<DeviceBytes>(backend, need.index_bytes);
    scratch = std::make_unique<DeviceBytes>(backend, need.transfer_workspace_bytes + 256);
    const Status s =
        Indexer::create(c, {backend, 0}, {0, memory->data(), need.index_bytes}, &indexer);
    EXPECT_TRUE(s.ok()) << s.detail();
    centroids.fill(0);
    status.fill(0);
  }

  void set_codebook(int slot) {
    CodebookArgs args;
    args.slot = slot;
    args.codebooks = centroids.data();
    ASSERT_TRUE(indexer.set_codebook(args, stream.get()).ok());
    stream.synchronize();
  }

  std::vector<std::uint8_t> snapshot() {
    stream.synchronize();
    std::vector<std::uint8_t> all(memory->bytes());
    memory->download(all.data(), all.size());
    return all;
  }

  void expect_refused(const Call& c) {
    const std::vector<std::uint8_t> before = snapshot();
    std::vector<std::uint64_t> ids;
    for (int slot = 0; slot < config.max_sequences; ++slot)
      ids.push_back(indexer.codebook_id(slot));
    const Status s = c.call();
    EXPECT_EQ(s.code(), c.code) << "for " << c.named << ": " << s.detail();
    EXPECT_NE(std::string(s.detail()).find(c.named), std::string::npos)
        << "for " << c.named << ": " << s.detail();
    EXPECT_TRUE(snapshot() == before) << c.named << ": a refused call changed something";
    for (int slot = 0; slot < config.max_sequences; ++slot) {
      EXPECT_EQ(indexer.codebook_id(slot), ids[slot]) << c.named;
    }
  }

  AttachArgs attach() {
    AttachArgs a;
    a.slots = ints.data();
    a.lengths = ints.data();
    a.count = 2;
    a.codebook_id = indexer.codebook_id(0);
    a.device_status = status.data();
    return a;
  }
  ForkArgs fork() {
    ForkArgs a;
    a.to_slot = 1;
    if (config.page_size > 0) a.from_block_table = a.to_block_table = table.data();
    return a;
  }
  SaveArgs save() {
    SaveArgs a;
    if (config.page_size > 0) a.block_table = table.data();
    a.workspace = {scratch->data(), need.transfer_workspace_bytes};
    saved.resize(indexer.saved_bytes(config.max_seq_len));
    a.data = saved.data();
    a.capacity = saved.size();
    a.bytes = &written;
    return a;
  }
  RestoreArgs restore() {
    RestoreArgs a;
    a.slot = 1;
    if (config.page_size > 0) a.block_table = table.data();
    a.workspace = {scratch->data(), need.transfer_workspace_bytes};
    a.data = saved.data();
    a.bytes = written;
    return a;
  }

  IndexerConfig config;
  Backend backend_;
  MemoryRequirements need;
  StreamHandle stream;
  DeviceBuffer<std::int32_t> ints, table;
  DeviceBuffer<std::uint32_t> status;
  DeviceBuffer<float> centroids;
  std::unique_ptr<DeviceBytes> memory, scratch;
  std::vector<std::uint8_t> saved;
  std::size_t written = 0;
  Indexer indexer;
};

IndexerConfig guarded_config(bool pages) {
  IndexerConfig c = small_config();
  c.max_sequences = 3;
  c.max_seq_len = 300;
  if (pages) use_pages(&c, 16);
  return c;
}

class LifeMisuse : public BackendTest {};

TEST_P(LifeMisuse, AttachRefusesByName) {
  Guarded g(GetParam(), guarded_config(true));
  const auto bad = [&](std::function<void(AttachArgs&)> change) {
    return [&g, change = std::move(change)] {
      AttachArgs a = g.attach();
      change(a);
      return g.indexer.attach(a, g.stream.get());
    };
  };
  using A = AttachArgs&;
  g.expect_refused({"codebook_id", kInvalid, bad([](A) {})});  // 0: no slot has one
  g.set_codebook(-1);
  const std::uint64_t first = g.indexer.codebook_id(0);
  g.set_codebook(1);
  const std::uint64_t second = g.indexer.codebook_id(1);
  const std::int32_t twice[] = {2, 2}, beyond[] = {0, 3}, mixed[] = {0, 1}, fine[] = {0, -5};
  const Call calls[] = {
      {"count", kRange, bad([](A a) { a.count = 0; })},
      {"count", kRange, bad([](A a) { a.count = -1; })},
      {"count", kRange, bad([](A a) { a.count = 4; })},
      {"lengths", kInvalid, bad([](A a) { a.lengths = nullptr; })},
      {"lengths", kInvalid, bad([](A a) { a.lengths = moved(a.lengths, 2); })},
      {"slots", kInvalid, bad([](A a) { a.slots = moved(a.slots, 1); })},
      {"device_status", kInvalid, bad([](A a) { a.device_status = moved(a.device_status, 2); })},
      {"host_slots", kInvalid, bad([&](A a) { a.host_slots = twice; })},
      {"host_slots", kRange, bad([&](A a) { a.host_slots = beyond; })},
      {"codebook_id", kInvalid, bad([&](A a) { a.host_slots = mixed; })},
      {"codebook_id", kInvalid, bad([&](A a) { a.host_slots = fine, a.codebook_id = second; })},
      {"codebook_id", kInvalid, bad([](A a) { a.slots = nullptr; })},  // slot 1 has another
      {"codebook_id", kInvalid, bad([](A a) { a.codebook_id = 0; })},
      {"codebook_id", kInvalid, bad([&](A a) { a.codebook_id = second + 1; })},
  };
  for (const Call& c : calls) g.expect_refused(c);
  AttachArgs good = g.attach();
  good.host_slots = fine;
  good.codebook_id = first;
  EXPECT_TRUE(g.indexer.attach(good, g.stream.get()).ok());
  g.stream.synchronize();
}

TEST_P(LifeMisuse, ForkAndCopyPagesRefuseByName) {
  for (const bool pages : {false, true}) {
    Guarded g(GetParam(), guarded_config(pages));
    g.set_codebook(0);
    const auto bad = [&](std::function<void(ForkArgs&)> change) {
      return [&g, change = std::move(change)] {
        ForkArgs a = g.fork();
        change(a);
        return g.indexer.fork(a, g.stream.get());
      };
    };
    using A = ForkArgs&;
    std::vector<Call> calls = {
        {"from_slot", kRange, bad([](A a) { a.from_slot = -1; })},
        {"from_slot", kRange, bad([](A a) { a.from_slot = 3; })},
        {"to_slot", kRange, bad([](A a) { a.to_slot = -1; })},
        {"to_slot", kRange, bad([](A a) { a.to_slot = 3; })},
        {"to_slot", kInvalid, bad([](A a) { a.to_slot = 0; })},
        {"length", kRange, bad([](A a) { a.length = -2; })},
        {"length", kRange, bad([](A a) { a.length = 301; })},
    };
    const auto copy = [&](const std::int32_t* from, const std::int32_t* to, std::int32_t count) {
      return
          [&g, from, to, count] { return g.indexer.copy_pages(from, to, count, g.stream.get()); };
    };
    const std::int32_t* ints = g.ints.data();
    if (pages) {
      calls.push_back(
          {"from_block_table", kInvalid, bad([](A a) { a.from_block_table = nullptr; })});
      calls.push_back({"to_block_table", kInvalid, bad([](A a) { a.to_block_table = nullptr; })});
      calls.push_back({"to_block_table", kInvalid,
                       bad([](A a) { a.to_block_table = moved(a.to_block_table, 1); })});
      calls.push_back({"count", kRange, copy(ints, ints, 0)});
      calls.push_back({"count", kRange, copy(ints, ints, -3)});
      calls.push_back(
          {"count", kRange, copy(ints, ints, static_cast<std::int32_t>(g.config.num_pages) + 1)});
      calls.push_back({"from_pages", kInvalid, copy(nullptr, ints, 1)});
      calls.push_back({"from_pages", kInvalid, copy(moved(ints, 2), ints, 1)});
      calls.push_back({"to_pages", kInvalid, copy(ints, nullptr, 1)});
      calls.push_back({"to_pages", kInvalid, copy(ints, moved(ints, 3), 1)});
    } else {
      calls.push_back(
          {"from_block_table", kInvalid, bad([&](A a) { a.from_block_table = g.table.data(); })});
      calls.push_back(
          {"to_block_table", kInvalid, bad([&](A a) { a.to_block_table = g.table.data(); })});
      calls.push_back({"page_size", kInvalid, copy(ints, ints, 1)});
    }
    for (const Call& c : calls) g.expect_refused(c);
    EXPECT_TRUE(g.indexer.fork(g.fork(), g.stream.get()).ok());
    EXPECT_EQ(g.indexer.codebook_id(1), g.indexer.codebook_id(0));
    g.stream.synchronize();
  }
}

TEST_P(LifeMisuse, SaveAndRestoreRefuseByName) {
  for (const bool pages : {false, true}) {
    Guarded g(GetParam(), guarded_config(pages));
    const auto save = [&](std::function<void(SaveArgs&)> change) {
      return [&g, change = std::move(change)] {
        SaveArgs a = g.save();
        change(a);
        return g.indexer.save(a, g.stream.get());
      };
    };
    const auto restore = [&](std::function<void(RestoreArgs&)> change) {
      return [&g, change = std::move(change)] {
        RestoreArgs a = g.restore();
        change(a);
        return g.indexer.restore(a, g.stream.get());
      };
    };
    g.expect_refused({"slot 0", StatusCode::not_built, save([](SaveArgs&) {})});
    g.set_codebook(0);
    ASSERT_TRUE(g.indexer.save(g.save(), g.stream.get()).ok());
    EXPECT_EQ(g.written, g.indexer.saved_bytes(0));
    std::vector<Call> calls = {
        {"slot", kRange, save([](SaveArgs& a) { a.slot = -1; })},
        {"slot", kRange, save([](SaveArgs& a) { a.slot = 3; })},
        {"slot 2", StatusCode::not_built, save([](SaveArgs& a) { a.slot = 2; })},
        {"length", kRange, save([](SaveArgs& a) { a.length = -2; })},
        {"length", kRange, save([](SaveArgs& a) { a.length = 301; })},
        {"bytes", kInvalid, save([](SaveArgs& a) { a.bytes = nullptr; })},
        {"data", kInvalid, save([](SaveArgs& a) { a.data = nullptr; })},
        {"capacity", kInvalid, save([&](SaveArgs& a) { a.capacity = g.written - 1; })},
        {"capacity", kInvalid, save([](SaveArgs& a) { a.capacity = 0, a.data = nullptr; })},
        {"block_table", kInvalid,
         save([&](SaveArgs& a) { a.block_table = pages ? nullptr : g.table.data(); })},
        {"slot", kRange, restore([](RestoreArgs& a) { a.slot = -1; })},
        {"slot", kRange, restore([](RestoreArgs& a) { a.slot = 3; })},
        {"data", kInvalid, restore([](RestoreArgs& a) { a.data = nullptr; })},
        {"bytes", kInvalid, restore([](RestoreArgs& a) { a.bytes = 0; })},
        {"total_bytes", kInvalid, restore([](RestoreArgs& a) { --a.bytes; })},
        {"block_table", kInvalid,
         restore([&](RestoreArgs& a) { a.block_table = pages ? nullptr : g.table.data(); })},
    };
    if (g.need.transfer_workspace_bytes > 0) {
      calls.push_back(
          {"workspace.data", kInvalid, save([](SaveArgs& a) { a.workspace.data = nullptr; })});
      calls.push_back({"workspace.bytes", StatusCode::workspace_too_small,
                       save([](SaveArgs& a) { --a.workspace.bytes; })});
      calls.push_back({"workspace.bytes", StatusCode::workspace_too_small,
                       restore([](RestoreArgs& a) { --a.workspace.bytes; })});
    }
    const std::size_t size = g.written;
    for (const Call& c : calls) {
      g.expect_refused(c);
      // A capacity that does not do says what would.
      EXPECT_EQ(g.written, size) << c.named;
    }
    ASSERT_TRUE(g.indexer.save(g.save(), g.stream.get()).ok());
    EXPECT_TRUE(g.indexer.restore(g.restore(), g.stream.get()).ok());
    EXPECT_NE(g.indexer.codebook_id(1), 0u);
    SavedSequence info;
    EXPECT_EQ(read_saved(g.saved.data(), g.written, nullptr).code(), kInvalid);
    EXPECT_EQ(read_saved(nullptr, 100, &info).code(), kInvalid);
    EXPECT_TRUE(read_saved(g.saved.data(), g.written, &info).ok());
    EXPECT_EQ(g.indexer.saved_bytes(-1), 0u);
    EXPECT_EQ(g.indexer.saved_bytes(301), 0u);
    EXPECT_EQ(g.indexer.shareable_positions(-1), 0);
    EXPECT_EQ(g.indexer.shareable_positions(301), 0);
  }
}

TEST_P(LifeMisuse, PhysicalIndicesAreRefusedByName) {
  IndexerConfig c = guarded_config(true);
  Scenario s;
  s.backend = GetParam();
  s.config = c;
  World world(s);
  world.set_codebook(-1);
  const int max_list = world.oracle().max_list();
  const std::size_t rows = static_cast<std::size_t>(c.num_query_heads);
  DeviceBuffer<std::int32_t> n(s.backend, std::vector<std::int32_t>{5}), lens(s.backend, rows);
  DeviceBuffer<std::int32_t> table(s.backend, world.pages(0));
  DeviceBuffer<std::int64_t> out(s.backend, rows * max_list);
  DeviceBytes scratch(s.backend, world.indexer().workspace_bytes(1, 1));
  NextArgs good;
  good.batch.batch_size = 1;
  good.batch.lengths = n.data();
  good.keys = world.key_view();
  good.keys.block_table = table.data();
  good.queries = world.query_view();
  good.workspace = {scratch.data(), scratch.bytes()};
  good.index_stride = max_list;
  good.list_lengths = lens.data();
  const auto refused = [&](const char* named, auto&& change) {
    NextArgs args = good;
    change(args);
    const Status status = world.indexer().next(args, world.launcher().stream());
    EXPECT_EQ(status.code(), kInvalid) << named;
    EXPECT_NE(std::string(status.detail()).find(named), std::string::npos) << status.detail();
  };
  auto* const narrow = reinterpret_cast<std::int32_t*>(out.data());
  refused("indices is null", [](NextArgs&) {});
  refused("physical_indices", [&](NextArgs& a) { a.physical_indices = moved(narrow, 2); });
  refused("physical_indices64", [&](NextArgs& a) { a.physical_indices64 = moved(out.data(), 4); });
  refused("index_stride", [&](NextArgs& a) {
    a.physical_indices = narrow;
    --a.index_stride;
  });
  NextArgs fine = good;
  fine.physical_indices = narrow;
  world.next(lengths({1, 0, 0}));
  EXPECT_TRUE(world.indexer().next(fine, world.launcher().stream()).ok());
  world.launcher().synchronize();
}

// Such a cache is too large to make here; what checks it needs no memory.
TEST(PhysicalIndices, BeyondInt32OnlyTheWideOnesDo) {
  IndexerConfig c = guarded_config(true), resolved_config;
  const std::int64_t fits = (std::int64_t{1} << 31) / c.page_size;
  alignas(256) static std::int64_t memory[64];
  for (const std::int64_t pages : {fits, fits + 1}) {
    c.num_pages = pages;
    ASSERT_TRUE(resolve(c, Backend::cpu, &resolved_config).ok());
    Plan plan;
    ASSERT_TRUE(make_plan(resolved_config, *stages_of(Backend::cpu), &plan).ok());
    std::vector<HostSlot> slots(3);
    NextArgs args;
    args.batch.batch_size = 1;
    args.batch.lengths = reinterpret_cast<const std::int32_t*>(memory);
    args.keys = {memory, DType::float32, 16 * 64, 64, 32, args.batch.lengths, 100};
    args.queries = {memory, DType::float32, 128, 128, 32};
    args.index_stride = plan.max_list;
    args.list_lengths = reinterpret_cast<std::int32_t*>(memory);
    args.physical_indices64 = memory;
    Status s = check_next(plan, resolved_config, args, slots.data());
    EXPECT_TRUE(s.ok()) << s.detail();
    args.physical_indices = args.list_lengths;
    s = check_next(plan, resolved_config, args, slots.data());
    EXPECT_EQ(s.ok(), pages == fits) << s.detail();
    if (s.ok()) continue;
    EXPECT_NE(std::string(s.detail()).find("physical_indices"), std::string::npos);
  }
}

TEST_P(LifeMisuse, AnEmptyIndexerRefusesEverything) {
  Guarded g(GetParam(), guarded_config(true));
  Indexer none;
  Stream s = g.stream.get();
  for (const Status& status :
       {none.attach(g.attach(), s), none.copy_pages(g.ints.data(), g.ints.data(), 1, s),
        none.fork(g.fork(), s), none.save(g.save(), s), none.restore(g.restore(), s)}) {
    EXPECT_EQ(status.code(), kInvalid);
    EXPECT_NE(std::string(status.detail()), "");
  }
  EXPECT_EQ(none.saved_bytes(1), 0u);
  EXPECT_EQ(none.shareable_positions(64), 0);
}

QUARRY_ON_EVERY_BACKEND(LifeMisuse);

}  // namespace
}  // namespace quarry::test
