// SPDX-License-Identifier: Apache-2.0
//
// The C ABI over the C++ API. c_convert.h checks and translates structs, the Indexer all else.
#include "quarry/c_api.h"

#include <cstring>
#include <new>

#include "c_convert.h"
#include "call.h"
#include "log.h"
#include "quarry/quarry.h"

struct quarry_indexer {
  quarry::Indexer indexer;
};

namespace quarry {
namespace {

using c_abi::check_choices;
using c_abi::Choice;
using c_abi::from_c;
using c_abi::give;
using c_abi::take;
using c_abi::to_c;

static_assert(sizeof(quarry_status) == 256);

quarry_code finish(const Status& from, quarry_status* to) noexcept {
  const auto code = static_cast<quarry_code>(from.code());
  if (to != nullptr) {
    to->code = code;
    static_assert(Status::capacity() <= sizeof to->detail);
    std::strncpy(to->detail, from.detail(), sizeof to->detail);  // zeroes the rest
  }
  return code;
}

/// `*bytes` is written also where the call is refused: it says what the call takes.
Status save(const Indexer& indexer, const quarry_save_args* given, Stream stream) {
  quarry_save_args a;
  quarry_save_args_init(&a);
  if (Status s = take("args", given, &a); !s.ok()) return s;
  if (a.bytes == nullptr) return Status(StatusCode::invalid_argument, "args.bytes is null");
  if (reinterpret_cast<std::uintptr_t>(a.bytes) % alignof(std::uint64_t) != 0) {
    return Status(StatusCode::invalid_argument, "args.bytes is %p, must be aligned to %zu bytes",
                  static_cast<const void*>(a.bytes), alignof(std::uint64_t));
  }
  std::size_t bytes = *a.bytes;
  const Status s = indexer.save(
      {a.slot, a.length, a.block_table, from_c(a.workspace), a.data, a.capacity, &bytes}, stream);
  *a.bytes = bytes;
  return s;
}

Status create(const quarry_config* given_config, const quarry_create_args* given,
              quarry_indexer** out) {
  if (out == nullptr) return Status(StatusCode::invalid_argument, "out is null");
  IndexerConfig config;
  if (Status s = from_c(given_config, &config); !s.ok()) return s;
  quarry_create_args a;
  quarry_create_args_init(&a);
  if (given != nullptr) {
    if (Status s = take("args", given, &a); !s.ok()) return s;
  }
  const Choice choices[] = {{"reserved", a.reserved, 0}};
  if (Status s = check_choices("args", choices); !s.ok()) return s;
  auto* made = new (std::nothrow) quarry_indexer;
  if (made == nullptr) return Status(StatusCode::out_of_memory, "no host memory for the Indexer");
  Status s = Indexer::create(config, {static_cast<Backend>(a.backend), a.ordinal},
                             {a.num_threads, a.index_memory, a.index_memory_bytes}, &made->indexer);
  if (s.ok()) {
    *out = made;
  } else {
    delete made;
  }
  return s;
}

Stream stream_of(quarry_stream stream) { return static_cast<Stream>(stream); }

/// A call with arguments of its own struct.
template <typename Args, typename CArgs>
quarry_code call_with(const char* name, quarry_indexer* indexer, const CArgs* given,
                      Status (Indexer::*member)(const Args&, Stream) noexcept, quarry_stream stream,
                      quarry_status* status) noexcept {
  const Call call(name);
  if (indexer == nullptr) {
    return finish(Status(StatusCode::invalid_argument, "indexer is null"), status);
  }
  Args args;
  if (Status s = from_c(given, &args); !s.ok()) return finish(s, status);
  return finish((indexer->indexer.*member)(args, stream_of(stream)), status);
}

/// Any other call.
template <typename Handle, typename Body>
quarry_code call_on(const char* name, Handle* indexer, quarry_status* status,
                    const Body& body) noexcept {
  const Call call(name);
  if (indexer == nullptr) {
    return finish(Status(StatusCode::invalid_argument, "indexer is null"), status);
  }
  return finish(body(indexer->indexer), status);
}

}  // namespace
}  // namespace quarry

using namespace quarry;  // NOLINT: what follows is C's

const char* quarry_version(void) noexcept { return QUARRY_VERSION_STRING; }

uint32_t quarry_abi_version(void) noexcept { return QUARRY_C_ABI_VERSION; }

const char* quarry_code_name(quarry_code code) noexcept {
  return to_string(static_cast<StatusCode>(code));
}

int32_t quarry_backend_available(int32_t backend) noexcept {
  return backend_available(static_cast<Backend>(backend)) ? 1 : 0;
}

quarry_code quarry_default_config(quarry_config* out, quarry_status* status) noexcept {
  const Call call("default_config");
  return finish(give("out", to_c(IndexerConfig{}), out), status);
}

quarry_code quarry_recommended_config(int32_t head_dim, quarry_config* out,
                                      quarry_status* status) noexcept {
  const Call call("recommended_config");
  return finish(give("out", to_c(IndexerConfig::recommended(head_dim)), out), status);
}

quarry_code quarry_resolve(const quarry_config* config, int32_t backend, quarry_config* out,
                           quarry_status* status) noexcept {
  const Call call("resolve");
  IndexerConfig c;
  if (Status s = from_c(config, &c); !s.ok()) return finish(s, status);
  if (Status s = resolve(c, static_cast<Backend>(backend), &c); !s.ok()) return finish(s, status);
  return finish(give("out", to_c(c), out), status);
}

quarry_code quarry_memory_requirements(const quarry_config* config, int32_t backend,
                                       quarry_memory* out, quarry_status* status) noexcept {
  const Call call("memory_requirements");
  IndexerConfig c;
  if (Status s = from_c(config, &c); !s.ok()) return finish(s, status);
  MemoryRequirements m;
  if (Status s = memory_requirements(c, static_cast<Backend>(backend), &m); !s.ok()) {
    return finish(s, status);
  }
  const quarry_memory value{0,
                            0,
                            m.index_bytes,
                            m.next_workspace_bytes,
                            m.build_workspace_bytes,
                            m.alignment,
                            m.code_bytes_per_key,
                            m.mean_bytes_per_key,
                            m.codebook_bytes,
                            m.transfer_workspace_bytes};
  return finish(give("out", value, out), status);
}

quarry_code quarry_create(const quarry_config* config, const quarry_create_args* args,
                          quarry_indexer** out, quarry_status* status) noexcept {
  const Call call("create");
  return finish(create(config, args, out), status);
}

void quarry_destroy(quarry_indexer* indexer) noexcept { delete indexer; }

quarry_code quarry_build(quarry_indexer* indexer, const quarry_build_args* args,
                         quarry_stream stream, quarry_status* status) noexcept {
  return call_with<BuildArgs>("build", indexer, args, &Indexer::build, stream, status);
}

quarry_code quarry_next(quarry_indexer* indexer, const quarry_next_args* args, quarry_stream stream,
                        quarry_status* status) noexcept {
  return call_with<NextArgs>("next", indexer, args, &Indexer::next, stream, status);
}

quarry_code quarry_append(quarry_indexer* indexer, const quarry_append_args* args,
                          quarry_stream stream, quarry_status* status) noexcept {
  return call_with<AppendArgs>("append", indexer, args, &Indexer::append, stream, status);
}

quarry_code quarry_set_codebook(quarry_indexer* indexer, const quarry_codebook_args* args,
                                quarry_stream stream, quarry_status* status) noexcept {
  return call_with<CodebookArgs>("set_codebook", indexer, args, &Indexer::set_codebook, stream,
                                 status);
}

quarry_code quarry_truncate(quarry_indexer* indexer, const int32_t* slots, const int32_t* lengths,
                            int32_t count, quarry_stream stream, quarry_status* status) noexcept {
  return call_on("truncate", indexer, status, [&](Indexer& it) {
    return it.truncate(slots, lengths, count, stream_of(stream));
  });
}

quarry_code quarry_reset(quarry_indexer* indexer, int32_t slot, quarry_stream stream,
                         quarry_status* status) noexcept {
  return call_on("reset", indexer, status,
                 [&](Indexer& it) { return it.reset(slot, stream_of(stream)); });
}

quarry_code quarry_stats(quarry_indexer* indexer, const quarry_stats_args* args,
                         quarry_stream stream, quarry_status* status) noexcept {
  return call_with<StatsArgs>("stats", indexer, args, &Indexer::stats, stream, status);
}

quarry_code quarry_attach(quarry_indexer* indexer, const quarry_attach_args* args,
                          quarry_stream stream, quarry_status* status) noexcept {
  return call_with<AttachArgs>("attach", indexer, args, &Indexer::attach, stream, status);
}

quarry_code quarry_copy_pages(quarry_indexer* indexer, const int32_t* from_pages,
                              const int32_t* to_pages, int32_t count, quarry_stream stream,
                              quarry_status* status) noexcept {
  return call_on("copy_pages", indexer, status, [&](Indexer& it) {
    return it.copy_pages(from_pages, to_pages, count, stream_of(stream));
  });
}

quarry_code quarry_fork(quarry_indexer* indexer, const quarry_fork_args* args, quarry_stream stream,
                        quarry_status* status) noexcept {
  return call_with<ForkArgs>("fork", indexer, args, &Indexer::fork, stream, status);
}

quarry_code quarry_save(const quarry_indexer* indexer, const quarry_save_args* args,
                        quarry_stream stream, quarry_status* status) noexcept {
  return call_on("save", indexer, status,
                 [&](const Indexer& it) { return save(it, args, stream_of(stream)); });
}

quarry_code quarry_restore(quarry_indexer* indexer, const quarry_restore_args* args,
                           quarry_stream stream, quarry_status* status) noexcept {
  return call_with<RestoreArgs>("restore", indexer, args, &Indexer::restore, stream, status);
}

quarry_code quarry_read_saved(const void* data, uint64_t bytes, quarry_saved_sequence* out,
                              quarry_status* status) noexcept {
  const Call call("read_saved");
  SavedSequence saved;
  if (Status s = read_saved(data, bytes, &saved); !s.ok()) return finish(s, status);
  const quarry_saved_sequence value{0, 0, saved.length, saved.has_codebook ? 1 : 0,
                                    saved.codebook_hash};
  return finish(give("out", value, out), status);
}

quarry_code quarry_codes(const quarry_indexer* indexer, int32_t slot, int32_t first, int32_t count,
                         const int32_t* block_table, uint8_t* out, quarry_stream stream,
                         quarry_status* status) noexcept {
  return call_on("codes", indexer, status, [&](const Indexer& it) {
    return it.codes(slot, first, count, block_table, out, stream_of(stream));
  });
}

quarry_code quarry_codebook(const quarry_indexer* indexer, int32_t slot, float* codebooks,
                            float* phi, quarry_stream stream, quarry_status* status) noexcept {
  return call_on("codebook", indexer, status, [&](const Indexer& it) {
    return it.codebook(slot, codebooks, phi, stream_of(stream));
  });
}

uint64_t quarry_workspace_bytes(const quarry_indexer* indexer, int32_t batch_size,
                                int32_t query_tokens) noexcept {
  return indexer == nullptr ? 0 : indexer->indexer.workspace_bytes(batch_size, query_tokens);
}

uint64_t quarry_stats_workspace_bytes(const quarry_indexer* indexer, int32_t batch_size,
                                      int32_t query_tokens, int32_t sample_every) noexcept {
  if (indexer == nullptr) return 0;
  return indexer->indexer.stats_workspace_bytes(batch_size, query_tokens, sample_every);
}

uint64_t quarry_saved_bytes(const quarry_indexer* indexer, int32_t length) noexcept {
  return indexer == nullptr ? 0 : indexer->indexer.saved_bytes(length);
}

uint64_t quarry_codebook_id(const quarry_indexer* indexer, int32_t slot) noexcept {
  return indexer == nullptr ? 0 : indexer->indexer.codebook_id(slot);
}

int32_t quarry_shareable_positions(const quarry_indexer* indexer, int32_t length) noexcept {
  return indexer == nullptr ? 0 : indexer->indexer.shareable_positions(length);
}

int32_t quarry_list_heads(const quarry_indexer* indexer) noexcept {
  return indexer == nullptr ? 0 : indexer->indexer.list_heads();
}

int32_t quarry_max_list_length(const quarry_indexer* indexer) noexcept {
  return indexer == nullptr ? 0 : indexer->indexer.max_list_length();
}

quarry_code quarry_get_config(const quarry_indexer* indexer, quarry_config* out,
                              quarry_status* status) noexcept {
  return call_on("config", indexer, status,
                 [&](const Indexer& it) { return give("out", to_c(it.config()), out); });
}

void quarry_set_log_callback(quarry_log_callback callback, void* user, int32_t most) noexcept {
  set_log_callbacks(nullptr, callback, user, most);
}
