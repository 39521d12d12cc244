/* SPDX-License-Identifier: Apache-2.0 */
#include "life.h"

#include <stdio.h>

void life_config(quarry_config* config) {
  config->num_query_heads = LIFE_QUERY_HEADS;
  config->num_kv_heads = LIFE_KV_HEADS;
  config->head_dim = LIFE_DIM;
  config->max_sequences = LIFE_SEQUENCES;
  config->max_seq_len = LIFE_MAX_LEN;
  config->page_size = LIFE_PAGE;
  config->num_pages = LIFE_PAGES;
  config->num_subspaces = 4;
  config->bits = 4;
  config->block_size = 16;
  config->mean_dtype = QUARRY_DTYPE_FLOAT8_E4M3;
  config->sink_size = 16;
  config->heavy_size = LIFE_HEAVY;
  config->window_size = 32;
  config->dense_threshold = LIFE_LIST;
}

/* Sequence 1 shares ten pages and has copies of three more, 2 is forked off with twelve. */
void life_fill(life_input* in) {
  memset(in, 0, sizeof *in);
  for (int32_t page = 0; page < LIFE_TABLE; ++page) {
    in->tables[0][page] = page;
    in->tables[1][page] = page < 10 ? page : page + 10;
    in->tables[2][page] = page < 12 ? page : page + 18;
  }
  for (int32_t sequence = 0; sequence < LIFE_SEQUENCES; ++sequence) {
    in->lengths[0][sequence] = LIFE_PREFILL + 1 + sequence;
    in->lengths[1][sequence] = LIFE_PREFILL + 2 + 9 * sequence;
  }
  in->prefill = LIFE_PREFILL;
  in->attached = 1;
  for (int32_t i = 0; i < LIFE_COPIED; ++i) {
    in->from_pages[i] = in->tables[0][10 + i];
    in->to_pages[i] = in->tables[1][10 + i];
  }
  in->baseline[0] = 0.25f;
  in->baseline[1] = 0.5f;
}

void life_copy_keys(life_input* in) {
  for (int i = 0; i < LIFE_COPIED; ++i) {
    memcpy(in->keys[in->to_pages[i]], in->keys[in->from_pages[i]], sizeof in->keys[0]);
  }
  memcpy(in->keys[in->tables[2][12]], in->keys[in->tables[0][12]], sizeof in->keys[0]);
}

static int failed(life_io* io, int number, const char* call, const quarry_status* status) {
  snprintf(io->detail, sizeof io->detail, "%s: %s: %s", call, quarry_code_name(status->code),
           status->detail);
  return number;
}

static quarry_key_view view(const life_io* io) {
  quarry_key_view keys;
  memset(&keys, 0, sizeof keys);
  keys.data = io->in->keys[0];
  keys.dtype = QUARRY_DTYPE_FLOAT32;
  keys.head_stride = LIFE_DIM;
  keys.slot_stride = LIFE_KV_HEADS * LIFE_DIM;
  keys.page_stride = LIFE_PAGE * keys.slot_stride;
  keys.block_table = io->in->tables[0];
  keys.block_table_stride = LIFE_TABLE;
  return keys;
}

static quarry_workspace workspace(const life_io* io) {
  quarry_workspace out;
  out.data = io->workspace;
  out.bytes = io->workspace_bytes;
  return out;
}

/* Sequence 0 as the others will find it: the codebook it trained is everybody's. */
static int prompt(life_io* io, quarry_indexer* indexer) {
  quarry_status status;
  quarry_build_args build;
  quarry_build_args_init(&build);
  build.length = LIFE_PREFILL;
  build.keys = view(io);
  build.workspace = workspace(io);
  if (quarry_build(indexer, &build, io->stream, &status) != QUARRY_OK) {
    return failed(io, 3, "build", &status);
  }
  if (quarry_codebook(indexer, 0, io->out->codebook, NULL, io->stream, &status) != QUARRY_OK) {
    return failed(io, 4, "codebook", &status);
  }
  quarry_codebook_args codebook;
  quarry_codebook_args_init(&codebook);
  codebook.codebooks = io->out->codebook;
  codebook.baseline_error = io->in->baseline;
  if (quarry_set_codebook(indexer, &codebook, io->stream, &status) != QUARRY_OK) {
    return failed(io, 5, "set_codebook", &status);
  }
  quarry_append_args append;
  quarry_append_args_init(&append);
  append.batch.batch_size = 1;
  append.batch.lengths = &io->in->prefill;
  append.keys = view(io);
  append.workspace = workspace(io);
  if (quarry_append(indexer, &append, io->stream, &status) != QUARRY_OK) {
    return failed(io, 6, "append", &status);
  }
  return 0;
}

static int share(life_io* io, quarry_indexer* indexer) {
  quarry_status status;
  const uint64_t id = quarry_codebook_id(indexer, 0);
  if (id == 0 || quarry_codebook_id(indexer, 2) != id) return 10;
  if (quarry_shareable_positions(indexer, LIFE_PREFILL) != 192) return 11;
  if (quarry_copy_pages(indexer, io->in->from_pages, io->in->to_pages, LIFE_COPIED, io->stream,
                        &status) != QUARRY_OK) {
    return failed(io, 12, "copy_pages", &status);
  }
  const int32_t host_slot = 1;
  quarry_attach_args attach;
  quarry_attach_args_init(&attach);
  attach.slots = &io->in->attached;
  attach.lengths = &io->in->prefill;
  attach.count = 1;
  attach.codebook_id = id;
  attach.host_slots = &host_slot;
  attach.device_status = io->out->device_status;
  if (quarry_attach(indexer, &attach, io->stream, &status) != QUARRY_OK) {
    return failed(io, 13, "attach", &status);
  }
  attach.codebook_id = id + 1;
  if (quarry_attach(indexer, &attach, io->stream, &status) != QUARRY_INVALID_ARGUMENT) return 14;
  if (quarry_reset(indexer, 2, io->stream, &status) != QUARRY_OK) {
    return failed(io, 15, "reset", &status);
  }
  quarry_fork_args fork;
  quarry_fork_args_init(&fork);
  fork.to_slot = 2;
  fork.from_block_table = io->in->tables[0];
  fork.to_block_table = io->in->tables[2];
  if (quarry_fork(indexer, &fork, io->stream, &status) != QUARRY_OK) {
    return failed(io, 16, "fork", &status);
  }
  return quarry_codebook_id(indexer, 2) == id ? 0 : 17;
}

/* The `call`th next(); the first lists physical indices alone. */
static int step(life_io* io, quarry_indexer* indexer, int call) {
  quarry_status status;
  const int at = call == 0 ? 0 : 1;
  quarry_next_args next;
  quarry_next_args_init(&next);
  next.batch.batch_size = LIFE_SEQUENCES;
  next.batch.lengths = io->in->lengths[at];
  next.keys = view(io);
  next.queries.data = io->in->queries[at];
  next.queries.dtype = QUARRY_DTYPE_FLOAT32;
  next.queries.head_stride = LIFE_DIM;
  next.queries.token_stride = next.queries.batch_stride = LIFE_QUERY_HEADS * LIFE_DIM;
  next.workspace = workspace(io);
  next.indices = call == 0 ? NULL : io->out->indices[call - 1];
  next.index_stride = LIFE_LIST;
  next.list_lengths = io->out->list_lengths[call];
  next.device_status = io->out->device_status;
  next.physical_indices = io->out->physical[call];
  next.physical_indices64 = call == 0 ? io->out->physical64 : NULL;
  if (quarry_next(indexer, &next, io->stream, &status) != QUARRY_OK) {
    return failed(io, 20 + call, "next", &status);
  }
  if (call != 1) return 0;

  quarry_stats_args stats;
  quarry_stats_args_init(&stats);
  stats.batch = next.batch;
  stats.keys = next.keys;
  stats.workspace = workspace(io);
  stats.drift = io->out->drift;
  stats.recent_keys = 64;
  stats.recall = io->out->recall;
  stats.sample_every = LIFE_SAMPLE_EVERY;
  stats.sample_offset = 1;
  stats.sample_counter = &io->out->counter;
  stats.queries = next.queries;
  stats.indices = next.indices;
  stats.index_stride = LIFE_LIST;
  stats.list_lengths = next.list_lengths;
  stats.device_status = io->out->device_status;
  const uint64_t takes =
      quarry_stats_workspace_bytes(indexer, LIFE_SEQUENCES, 1, LIFE_SAMPLE_EVERY);
  if (takes == 0 || takes > io->workspace_bytes) return 23;
  if (quarry_stats(indexer, &stats, io->stream, &status) != QUARRY_OK) {
    return failed(io, 24, "stats", &status);
  }
  return 0;
}

/* Sequence 2 to host memory and back. */
static int move(life_io* io, quarry_indexer* indexer) {
  quarry_status status;
  quarry_save_args save;
  quarry_save_args_init(&save);
  save.slot = 2;
  save.block_table = io->in->tables[2];
  save.workspace = workspace(io);
  save.bytes = &io->saved_bytes;
  if (quarry_save(indexer, &save, io->stream, &status) != QUARRY_INVALID_ARGUMENT) return 30;
  if (io->saved_bytes != quarry_saved_bytes(indexer, LIFE_PREFILL + 2 + 9 * 2)) return 31;
  save.data = io->saved;
  save.capacity = io->saved_capacity;
  if (quarry_save(indexer, &save, io->stream, &status) != QUARRY_OK) {
    return failed(io, 32, "save", &status);
  }
  quarry_saved_sequence_init(&io->header);
  if (quarry_read_saved(io->saved, io->saved_bytes, &io->header, &status) != QUARRY_OK) {
    return failed(io, 33, "read_saved", &status);
  }
  if (quarry_reset(indexer, 2, io->stream, &status) != QUARRY_OK) {
    return failed(io, 34, "reset", &status);
  }
  if (quarry_codebook_id(indexer, 2) != 0) return 35;
  quarry_restore_args restore;
  quarry_restore_args_init(&restore);
  restore.slot = 2;
  restore.block_table = io->in->tables[2];
  restore.workspace = workspace(io);
  restore.data = io->saved;
  restore.bytes = io->saved_bytes;
  if (quarry_restore(indexer, &restore, io->stream, &status) != QUARRY_OK) {
    return failed(io, 36, "restore", &status);
  }
  return quarry_codebook_id(indexer, 2) != 0 ? 0 : 37;
}

int life(life_io* io) {
  quarry_status status;
  quarry_config config;
  QUARRY_C_HEADER(&config);
  if (quarry_default_config(&config, &status) != QUARRY_OK) {
    return failed(io, 1, "default_config", &status);
  }
  life_config(&config);
  quarry_create_args args;
  quarry_create_args_init(&args);
  args.backend = io->backend;
  quarry_indexer* indexer = NULL;
  if (quarry_create(&config, &args, &indexer, &status) != QUARRY_OK) {
    return failed(io, 2, "create", &status);
  }
  int result = prompt(io, indexer);
  if (result == 0) result = share(io, indexer);
  if (result == 0) result = step(io, indexer, 0);
  if (result == 0) result = step(io, indexer, 1);
  if (result == 0) result = move(io, indexer);
  if (result == 0) result = step(io, indexer, 2);
  quarry_destroy(indexer);
  return result;
}
