// SPDX-License-Identifier: Apache-2.0
//
// The log callback: what is said at which level, silence, and threads.
#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "quarry/quarry.h"
#include "support/backends.h"
#include "support/scenario.h"

namespace quarry::test {
namespace {

using Messages = std::vector<std::pair<LogLevel, std::string>>;

void collect(LogLevel level, const char* message, void* user) {
  static_cast<Messages*>(user)->emplace_back(level, message);
}

/// Silence again, whatever a test does.
class Log : public BackendTest {
 protected:
  ~Log() override { set_log_callback(nullptr, nullptr); }
  void listen(LogLevel most) { set_log_callback(collect, &said_, most); }
  Messages take() { return std::exchange(said_, {}); }

  Messages said_;
};

TEST_P(Log, CreateSaysWhatWasResolvedAndWhatItTakes) {
  IndexerConfig c = small_config();
  c.block_size = 16;
  listen(LogLevel::info);
  Indexer indexer;
  ASSERT_TRUE(Indexer::create(c, {GetParam(), 0}, {}, &indexer).ok());
  const Messages said = take();
  ASSERT_EQ(said.size(), 1u);
  EXPECT_EQ(said[0].first, LogLevel::info);
  MemoryRequirements memory;
  ASSERT_TRUE(memory_requirements(c, GetParam(), &memory).ok());
  for (const std::string& part :
       {std::string("create: ") + to_string(GetParam()), "x " + std::to_string(c.head_dim),
        std::string("blocks of 16"), std::string(to_string(indexer.config().algorithm)),
        "dense to " + std::to_string(indexer.config().dense_threshold),
        "index " + std::to_string(memory.index_bytes) + " bytes",
        "build " + std::to_string(memory.build_workspace_bytes)}) {
    EXPECT_NE(said[0].second.find(part), std::string::npos) << said[0].second << " lacks " << part;
  }
  EXPECT_EQ(said[0].second.find('\n'), std::string::npos);
}

TEST_P(Log, BuildTellsTrainingFromEncoding) {
  Scenario s;
  s.backend = GetParam();
  s.config = small_config();
  World world(s);
  listen(LogLevel::debug);
  ASSERT_TRUE(world.build(0, 300).ok());
  Messages said = take();
  ASSERT_FALSE(said.empty());
  EXPECT_EQ(said[0], (std::pair{LogLevel::info,
                                std::string("build: slot 0, 300 positions, trained and encoded")}));
  world.set_codebook(0);
  take();
  ASSERT_TRUE(world.build(0, 310).ok());
  said = take();
  ASSERT_FALSE(said.empty());
  EXPECT_EQ(said[0],
            (std::pair{LogLevel::debug, std::string("build: slot 0, 310 positions, encoded")}));
}

TEST_P(Log, ARefusedCallSaysWhyAtDebugAlone) {
  Indexer indexer;
  ASSERT_TRUE(Indexer::create(small_config(), {GetParam(), 0}, {}, &indexer).ok());
  NextArgs next;
  listen(LogLevel::info);
  EXPECT_FALSE(indexer.next(next, nullptr).ok());
  EXPECT_TRUE(take().empty());
  listen(LogLevel::debug);
  const Status status = indexer.next(next, nullptr);
  const Messages said = take();
  ASSERT_EQ(said.size(), 1u);
  EXPECT_EQ(said[0].first, LogLevel::debug);
  EXPECT_EQ(said[0].second,
            std::string("next: ") + to_string(status.code()) + ": " + status.detail());
  // A configuration that create() refuses is create()'s, whoever found it.
  IndexerConfig c = small_config();
  c.bits = 9;
  EXPECT_FALSE(Indexer::create(c, {GetParam(), 0}, {}, &indexer).ok());
  ASSERT_EQ(said_.size(), 1u);
  EXPECT_EQ(take()[0].second.rfind("create: invalid_argument: config.bits is 9", 0), 0u);
  // A Status of the caller's own making is no call of ours.
  EXPECT_FALSE(Status(StatusCode::out_of_range, "mine").ok());
  EXPECT_TRUE(take().empty());
}

TEST_P(Log, AStepThatSucceedsSaysNothing) {
  Scenario s;
  s.backend = GetParam();
  s.config = small_config();
  World world(s);
  world.set_codebook(-1);
  world.next(lengths({300}));  // outputs and scratch are there now
  listen(LogLevel::debug);
  world.append(lengths({301}));
  world.next(lengths({302}));
  for (const auto& [level, message] : take()) {
    EXPECT_EQ(message.rfind("next", 0), std::string::npos) << message;
    EXPECT_EQ(message.rfind("append", 0), std::string::npos) << message;
  }
  EXPECT_EQ(world.error(), "");
}

QUARRY_ON_EVERY_BACKEND(Log);

/// Something that is refused.
void refuse() { EXPECT_FALSE(resolve({}, Backend::cpu, nullptr).ok()); }

TEST(LogCallback, SilentByDefaultAndAgain) {
  refuse();  // nobody to tell
  Messages said;
  set_log_callback(collect, &said, LogLevel::debug);
  refuse();
  EXPECT_EQ(said.size(), 1u);
  set_log_callback(nullptr, nullptr, LogLevel::debug);
  refuse();
  EXPECT_EQ(said.size(), 1u);
}

TEST(LogCallback, ExceptionsOfTheCallbackStayOut) {
  set_log_callback([](LogLevel, const char*, void*) { throw std::runtime_error("log"); }, nullptr,
                   LogLevel::debug);
  refuse();
  refuse();
  set_log_callback(nullptr, nullptr);
}

TEST(LogCallback, MayCallQuarryAndReplaceItself) {
  int calls = 0;
  set_log_callback(
      [](LogLevel, const char*, void* user) {
        ++*static_cast<int*>(user);
        refuse();  // dropped: no recursion
        set_log_callback(nullptr, nullptr);
      },
      &calls, LogLevel::debug);
  refuse();
  refuse();
  EXPECT_EQ(calls, 1);
}

// Messages come one at a time though threads speak at once, and a callback that was replaced is
// not called again: its user pointer may go.
TEST(LogCallback, ThreadsTakeTurns) {
  struct Listener {
    int inside = 0, calls = 0;  // no atomics: TSan is to see any two at once
    bool overlapped = false;
  };
  const LogCallback callback = [](LogLevel, const char*, void* user) {
    auto* it = static_cast<Listener*>(user);
    it->overlapped = it->overlapped || it->inside != 0;
    ++it->inside;
    ++it->calls;
    --it->inside;
  };
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      while (!stop.load()) refuse();
    });
  }
  int calls = 0;
  for (int round = 0; round < 200 || calls == 0; ++round) {
    auto listener = std::make_unique<Listener>();
    set_log_callback(callback, listener.get(), LogLevel::debug);
    std::this_thread::yield();
    set_log_callback(nullptr, nullptr);
    EXPECT_FALSE(listener->overlapped);
    calls += listener->calls;
  }
  stop.store(true);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace quarry::test
