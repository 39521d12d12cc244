// SPDX-License-Identifier: Apache-2.0
#include "log.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <mutex>

namespace quarry {
namespace {

constexpr std::int32_t kSilent = -1;

// The level is read without the lock; whoever then finds the callback gone says nothing.
std::atomic<std::int32_t> most_said{kSilent};

// Held while the callback runs: messages come one at a time, and set_log_callback() waits for
// the one under way. Recursive, so that a callback may set another.
std::recursive_mutex mutex;
LogCallback callback_set = nullptr;
LogCallbackInC callback_in_c = nullptr;
void* callback_user = nullptr;

thread_local bool in_callback = false;

}  // namespace

const char* to_string(LogLevel level) noexcept {
  switch (level) {
    case LogLevel::error:
      return "error";
    case LogLevel::warning:
      return "warning";
    case LogLevel::info:
      return "info";
    case LogLevel::debug:
      return "debug";
  }
  return "unknown";
}

void set_log_callback(LogCallback callback, void* user, LogLevel most) noexcept {
  set_log_callbacks(callback, nullptr, user, static_cast<std::int32_t>(most));
}

void set_log_callbacks(LogCallback callback, LogCallbackInC in_c, void* user,
                       std::int32_t most) noexcept {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  callback_set = callback;
  callback_in_c = in_c;
  callback_user = user;
  const bool silent = callback == nullptr && in_c == nullptr;
  most_said.store(silent ? kSilent : most, std::memory_order_relaxed);
}

bool log_enabled(LogLevel level) noexcept {
  return static_cast<std::int32_t>(level) <= most_said.load(std::memory_order_relaxed);
}

void log_message(LogLevel level, const char* format, ...) noexcept {
  if (!log_enabled(level) || in_callback) return;
  char text[512];
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);

  const std::lock_guard<std::recursive_mutex> lock(mutex);
  if (!log_enabled(level)) return;
  in_callback = true;
  try {
    if (callback_set != nullptr) {
      callback_set(level, text, callback_user);
    } else {
      callback_in_c(static_cast<std::int32_t>(level), text, callback_user);
    }
  } catch (...) {  // NOLINT(bugprone-empty-catch): a log must not fail the call it tells of
  }
  in_callback = false;
}

void log_created(const IndexerConfig& c, const Device& device,
                 const MemoryRequirements& memory) noexcept {
  if (!log_enabled(LogLevel::info)) return;
  char cache[64] = "contiguous";
  if (c.page_size > 0) {
    std::snprintf(cache, sizeof cache, "%lld pages of %d", static_cast<long long>(c.num_pages),
                  c.page_size);
  }
  char blocks[48] = "no blocks";
  if (c.block_size > 0) {
    std::snprintf(blocks, sizeof blocks, "blocks of %d with %s means", c.block_size,
                  to_string(c.mean_dtype));
  }
  log_message(LogLevel::info,
              "create: %s %d, heads %d/%d x %d, %d x %d positions (%s), %d query tokens; m=%d b=%d "
              "%s, %s%s%s; list %d + %d + %d refine %d, dense to %d, %s; index %zu bytes, "
              "workspace of next %zu, of build %zu",
              to_string(device.backend), device.ordinal, c.num_query_heads, c.num_kv_heads,
              c.head_dim, c.max_sequences, c.max_seq_len, cache, c.max_query_tokens,
              c.num_subspaces, c.bits, to_string(c.metric), blocks, c.rotation ? ", rotated" : "",
              c.shared_codebook ? ", one codebook for all" : "", c.sink_size, c.heavy_size,
              c.window_size, c.refine_factor, c.dense_threshold, to_string(c.algorithm),
              memory.index_bytes, memory.next_workspace_bytes, memory.build_workspace_bytes);
}

void log_built(const BuildArgs& args, bool trained) noexcept {
  log_message(trained ? LogLevel::info : LogLevel::debug, "build: slot %d, %d positions, %s",
              args.slot, args.length, trained ? "trained and encoded" : "encoded");
}

}  // namespace quarry
