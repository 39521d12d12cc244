// SPDX-License-Identifier: Apache-2.0
//
// What the C API refuses, and that it says which argument.
#include <gtest/gtest.h>

#include <string>

#include "decode.h"
#include "expect.h"
#include "support/device.h"

namespace quarry::test {
namespace {

class CApiMisuse : public testing::Test {
 protected:
  void SetUp() override {
    config_ = config_of();
    decode_config(&config_);
    quarry_status status;
    ASSERT_EQ(quarry_create(&config_, nullptr, &indexer_, &status), QUARRY_OK) << status.detail;
  }
  void TearDown() override { quarry_destroy(indexer_); }

  quarry_config config_{};
  quarry_indexer* indexer_ = nullptr;
};

TEST_F(CApiMisuse, NullHandlesAreRefused) {
  quarry_status s;
  quarry_build_args build;
  quarry_build_args_init(&build);
  quarry_next_args next;
  quarry_next_args_init(&next);
  quarry_append_args append;
  quarry_append_args_init(&append);
  quarry_codebook_args codebook;
  quarry_codebook_args_init(&codebook);
  quarry_config config = config_of();
  const std::int32_t one = 1;
  std::uint8_t byte = 0;
  float number = 0;
  const quarry_code bad = QUARRY_INVALID_ARGUMENT;
  expect_refused(quarry_build(nullptr, &build, nullptr, &s), s, bad, "indexer is null");
  expect_refused(quarry_next(nullptr, &next, nullptr, &s), s, bad, "indexer is null");
  expect_refused(quarry_append(nullptr, &append, nullptr, &s), s, bad, "indexer is null");
  expect_refused(quarry_set_codebook(nullptr, &codebook, nullptr, &s), s, bad, "indexer is null");
  expect_refused(quarry_truncate(nullptr, nullptr, &one, 1, nullptr, &s), s, bad,
                 "indexer is null");
  expect_refused(quarry_reset(nullptr, 0, nullptr, &s), s, bad, "indexer is null");
  expect_refused(quarry_codes(nullptr, 0, 0, 1, nullptr, &byte, nullptr, &s), s, bad,
                 "indexer is null");
  expect_refused(quarry_codebook(nullptr, 0, &number, nullptr, nullptr, &s), s, bad,
                 "indexer is null");
  expect_refused(quarry_get_config(nullptr, &config, &s), s, bad, "indexer is null");
  quarry_stats_args stats;
  quarry_stats_args_init(&stats);
  quarry_attach_args attach;
  quarry_attach_args_init(&attach);
  quarry_fork_args fork;
  quarry_fork_args_init(&fork);
  quarry_save_args save;
  quarry_save_args_init(&save);
  quarry_restore_args restore;
  quarry_restore_args_init(&restore);
  expect_refused(quarry_stats(nullptr, &stats, nullptr, &s), s, bad, "indexer is null");
  expect_refused(quarry_attach(nullptr, &attach, nullptr, &s), s, bad, "indexer is null");
  expect_refused(quarry_copy_pages(nullptr, &one, &one, 1, nullptr, &s), s, bad, "indexer is null");
  expect_refused(quarry_fork(nullptr, &fork, nullptr, &s), s, bad, "indexer is null");
  expect_refused(quarry_save(nullptr, &save, nullptr, &s), s, bad, "indexer is null");
  expect_refused(quarry_restore(nullptr, &restore, nullptr, &s), s, bad, "indexer is null");
  EXPECT_EQ(quarry_stats_workspace_bytes(nullptr, 1, 1, 1), 0u);
  EXPECT_EQ(quarry_saved_bytes(nullptr, 1), 0u);
  EXPECT_EQ(quarry_codebook_id(nullptr, 0), 0u);
  EXPECT_EQ(quarry_shareable_positions(nullptr, 64), 0);
  EXPECT_EQ(quarry_workspace_bytes(nullptr, 1, 1), 0u);
  EXPECT_EQ(quarry_list_heads(nullptr), 0);
  EXPECT_EQ(quarry_max_list_length(nullptr), 0);
  quarry_destroy(nullptr);

  expect_refused(quarry_build(indexer_, nullptr, nullptr, &s), s, bad, "args is null");
  expect_refused(quarry_next(indexer_, nullptr, nullptr, &s), s, bad, "args is null");
  expect_refused(quarry_append(indexer_, nullptr, nullptr, &s), s, bad, "args is null");
  expect_refused(quarry_set_codebook(indexer_, nullptr, nullptr, &s), s, bad, "args is null");
  expect_refused(quarry_get_config(indexer_, nullptr, &s), s, bad, "out is null");
  expect_refused(quarry_stats(indexer_, nullptr, nullptr, &s), s, bad, "args is null");
  expect_refused(quarry_attach(indexer_, nullptr, nullptr, &s), s, bad, "args is null");
  expect_refused(quarry_fork(indexer_, nullptr, nullptr, &s), s, bad, "args is null");
  expect_refused(quarry_save(indexer_, nullptr, nullptr, &s), s, bad, "args is null");
  expect_refused(quarry_save(indexer_, &save, nullptr, &s), s, bad, "bytes is null");
  expect_refused(quarry_restore(indexer_, nullptr, nullptr, &s), s, bad, "args is null");
  // Without a status there is still the code.
  EXPECT_EQ(quarry_next(indexer_, nullptr, nullptr, nullptr), QUARRY_INVALID_ARGUMENT);
}

TEST_F(CApiMisuse, WhatTheCppApiRefusesComesThrough) {
  quarry_status s;
  quarry_next_args next;
  quarry_next_args_init(&next);
  expect_refused(quarry_next(indexer_, &next, nullptr, &s), s, QUARRY_OUT_OF_RANGE,
                 "batch.batch_size");
  quarry_build_args build;
  quarry_build_args_init(&build);
  build.slot = DECODE_SEQUENCES;
  expect_refused(quarry_build(indexer_, &build, nullptr, &s), s, QUARRY_OUT_OF_RANGE, "slot");
  float number = 0;
  expect_refused(quarry_codebook(indexer_, 0, &number, nullptr, nullptr, &s), s, QUARRY_NOT_BUILT,
                 "slot 0");
  quarry_stats_args stats;
  quarry_stats_args_init(&stats);
  expect_refused(quarry_stats(indexer_, &stats, nullptr, &s), s, QUARRY_INVALID_ARGUMENT,
                 "drift and recall");
  quarry_drift_stats drift[DECODE_KV_HEADS];
  stats.drift = drift;
  stats.batch.batch_size = DECODE_SEQUENCES + 1;
  expect_refused(quarry_stats(indexer_, &stats, nullptr, &s), s, QUARRY_OUT_OF_RANGE,
                 "batch.batch_size is 3");
  EXPECT_EQ(quarry_stats_workspace_bytes(indexer_, 1, 1, -1), 0u);
  quarry_attach_args attach;
  quarry_attach_args_init(&attach);
  expect_refused(quarry_attach(indexer_, &attach, nullptr, &s), s, QUARRY_OUT_OF_RANGE, "count");
  const std::int32_t page = 0;
  expect_refused(quarry_copy_pages(indexer_, &page, &page, 1, nullptr, &s), s,
                 QUARRY_INVALID_ARGUMENT, "page_size");
  quarry_fork_args fork;
  quarry_fork_args_init(&fork);
  expect_refused(quarry_fork(indexer_, &fork, nullptr, &s), s, QUARRY_INVALID_ARGUMENT, "to_slot");
  quarry_memory memory;
  quarry_memory_init(&memory);
  ASSERT_EQ(quarry_memory_requirements(&config_, QUARRY_BACKEND_CPU, &memory, &s), QUARRY_OK);
  DeviceBytes scratch(Backend::cpu, memory.transfer_workspace_bytes);
  quarry_save_args save;
  quarry_save_args_init(&save);
  std::uint64_t bytes = 77;
  save.bytes = &bytes;
  save.workspace = {scratch.data(), scratch.bytes()};
  expect_refused(quarry_save(indexer_, &save, nullptr, &s), s, QUARRY_NOT_BUILT, "slot 0");
  EXPECT_EQ(bytes, 77u);
  quarry_restore_args restore;
  quarry_restore_args_init(&restore);
  restore.workspace = save.workspace;
  const unsigned char junk[256] = {1};
  restore.data = junk;
  restore.bytes = sizeof junk;
  expect_refused(quarry_restore(indexer_, &restore, nullptr, &s), s, QUARRY_INVALID_ARGUMENT,
                 "data: ");
  quarry_saved_sequence saved;
  quarry_saved_sequence_init(&saved);
  expect_refused(quarry_read_saved(junk, sizeof junk, &saved, &s), s, QUARRY_INVALID_ARGUMENT,
                 "data: ");
  expect_refused(quarry_read_saved(junk, 64, &saved, &s), s, QUARRY_INVALID_ARGUMENT,
                 "bytes is 64");
  expect_refused(quarry_read_saved(nullptr, 0, &saved, &s), s, QUARRY_INVALID_ARGUMENT, "data");
  // Success clears the detail.
  EXPECT_EQ(quarry_reset(indexer_, 0, nullptr, &s), QUARRY_OK);
  EXPECT_EQ(s.code, QUARRY_OK);
  EXPECT_STREQ(s.detail, "");
}

template <typename Args, typename Call>
void expect_header_checked(Args args, const Call& call) {
  quarry_status s;
  args.struct_size = 4;
  expect_refused(call(&args, &s), s, QUARRY_INVALID_ARGUMENT, "args.struct_size is 4");
  args.struct_size = sizeof args;
  args.abi_version = QUARRY_C_ABI_VERSION + 1;
  expect_refused(call(&args, &s), s, QUARRY_UNSUPPORTED, "args.abi_version");
}

template <typename Args, typename Call>
void expect_reserved_checked(Args args, const Call& call) {
  quarry_status s;
  args.reserved = 7;
  expect_refused(call(&args, &s), s, QUARRY_INVALID_ARGUMENT, "args.reserved is 7");
}

TEST_F(CApiMisuse, HeadersOfEveryCallsArgumentsAreChecked) {
  const auto check = [](const auto& args, const auto& call) {
    expect_header_checked(args, call);
    expect_reserved_checked(args, call);
  };
  quarry_stats_args stats;
  quarry_stats_args_init(&stats);
  check(stats, [&](auto* a, auto* s) { return quarry_stats(indexer_, a, nullptr, s); });
  quarry_attach_args attach;
  quarry_attach_args_init(&attach);
  check(attach, [&](auto* a, auto* s) { return quarry_attach(indexer_, a, nullptr, s); });
  quarry_fork_args fork;
  quarry_fork_args_init(&fork);
  check(fork, [&](auto* a, auto* s) { return quarry_fork(indexer_, a, nullptr, s); });
  quarry_restore_args restore;
  quarry_restore_args_init(&restore);
  check(restore, [&](auto* a, auto* s) { return quarry_restore(indexer_, a, nullptr, s); });
  quarry_save_args save;
  quarry_save_args_init(&save);
  expect_header_checked(save,
                        [&](auto* a, auto* s) { return quarry_save(indexer_, a, nullptr, s); });
}

TEST_F(CApiMisuse, FlagsAndReservedMembersAreRefusedByName) {
  quarry_status s;
  quarry_config resolved;
  QUARRY_C_HEADER(&resolved);
  quarry_config c = config_;
  c.rotation = 2;
  expect_refused(quarry_resolve(&c, 0, &resolved, &s), s, QUARRY_INVALID_ARGUMENT,
                 "config.rotation is 2");
  c = config_;
  c.reserved = 1;
  expect_refused(quarry_resolve(&c, 0, &resolved, &s), s, QUARRY_INVALID_ARGUMENT,
                 "config.reserved");
  c.reserved = 0;
  c.reserved_2 = 5;
  expect_refused(quarry_resolve(&c, 0, &resolved, &s), s, QUARRY_INVALID_ARGUMENT,
                 "config.reserved_2 is 5");
  c = config_;
  c.softmax_scale = -1;
  expect_refused(quarry_resolve(&c, 0, &resolved, &s), s, QUARRY_INVALID_ARGUMENT,
                 "config.softmax_scale is -1");
  c = config_;
  c.metric = 77;
  expect_refused(quarry_resolve(&c, 0, &resolved, &s), s, QUARRY_INVALID_ARGUMENT,
                 "config.metric is 77");
  expect_refused(quarry_resolve(&config_, 9, &resolved, &s), s, QUARRY_UNSUPPORTED, "backend");
  EXPECT_EQ(quarry_backend_available(9), 0);
  EXPECT_EQ(quarry_backend_available(QUARRY_BACKEND_CPU), 1);
  quarry_build_args build;
  quarry_build_args_init(&build);
  build.retrain = -1;
  expect_refused(quarry_build(indexer_, &build, nullptr, &s), s, QUARRY_INVALID_ARGUMENT,
                 "args.retrain is -1");
  build.retrain = 0;
  build.keys.reserved = 3;
  expect_refused(quarry_build(indexer_, &build, nullptr, &s), s, QUARRY_INVALID_ARGUMENT,
                 "keys.reserved is 3");
  quarry_create_args create;
  quarry_create_args_init(&create);
  create.num_threads = -1;
  quarry_indexer* none = nullptr;
  expect_refused(quarry_create(&config_, &create, &none, &s), s, QUARRY_INVALID_ARGUMENT,
                 "num_threads");
  EXPECT_EQ(none, nullptr);
}

}  // namespace
}  // namespace quarry::test
