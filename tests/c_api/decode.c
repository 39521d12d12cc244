/* SPDX-License-Identifier: Apache-2.0 */
#include "decode.h"

#include <stdio.h>

void decode_config(quarry_config* config) {
  config->num_query_heads = DECODE_QUERY_HEADS;
  config->num_kv_heads = DECODE_KV_HEADS;
  config->head_dim = DECODE_DIM;
  config->max_sequences = DECODE_SEQUENCES;
  config->max_seq_len = DECODE_MAX_LEN;
  config->num_subspaces = DECODE_SUBSPACES;
  config->bits = 4;
  config->block_size = 16;
  config->sink_size = 16;
  config->heavy_size = 24;
  config->window_size = 32;
  config->dense_threshold = 16 + 24 + 32;
  config->seed = 5;
}

static int failed(decode_io* io, int number, const char* call, const quarry_status* status) {
  snprintf(io->detail, sizeof io->detail, "%s: %s: %s", call, quarry_code_name(status->code),
           status->detail);
  return number;
}

static quarry_key_view view(const decode_io* io) {
  quarry_key_view keys;
  memset(&keys, 0, sizeof keys);
  keys.data = io->keys;
  keys.dtype = QUARRY_DTYPE_FLOAT32;
  keys.head_stride = DECODE_DIM;
  keys.slot_stride = DECODE_KV_HEADS * DECODE_DIM;
  keys.page_stride = DECODE_MAX_LEN * keys.slot_stride;
  return keys;
}

static int run(decode_io* io, quarry_indexer* indexer) {
  quarry_status status;
  quarry_workspace workspace;
  workspace.data = io->workspace;
  workspace.bytes = io->workspace_bytes;

  for (int32_t slot = 0; slot < DECODE_SEQUENCES; ++slot) {
    quarry_build_args build;
    quarry_build_args_init(&build);
    build.slot = slot;
    build.length = DECODE_PREFILL;
    build.keys = view(io);
    build.workspace = workspace;
    build.device_status = io->device_status;
    if (quarry_build(indexer, &build, io->stream, &status) != QUARRY_OK) {
      return failed(io, 3, "build", &status);
    }
  }

  for (int step = 0; step < DECODE_STEPS; ++step) {
    quarry_batch batch;
    memset(&batch, 0, sizeof batch);
    batch.batch_size = DECODE_SEQUENCES;
    batch.query_tokens = 1;
    batch.slots = io->slots;
    batch.lengths = io->lengths + step * DECODE_SEQUENCES;
    if (step == 5) {
      if (quarry_truncate(indexer, io->slots, io->fallen, 1, io->stream, &status) != QUARRY_OK) {
        return failed(io, 4, "truncate", &status);
      }
    }
    if (step == 8) { /* twice the same encode: the second finds nothing to do */
      quarry_append_args append;
      quarry_append_args_init(&append);
      append.batch = batch;
      append.keys = view(io);
      append.workspace = workspace;
      if (quarry_append(indexer, &append, io->stream, &status) != QUARRY_OK) {
        return failed(io, 5, "append", &status);
      }
    }
    quarry_next_args next;
    quarry_next_args_init(&next);
    next.batch = batch;
    next.keys = view(io);
    next.queries.data = io->queries + (size_t)step * DECODE_ROWS * DECODE_DIM;
    next.queries.dtype = QUARRY_DTYPE_FLOAT32;
    next.queries.head_stride = DECODE_DIM;
    next.queries.token_stride = next.queries.batch_stride = DECODE_QUERY_HEADS * DECODE_DIM;
    next.workspace = workspace;
    next.indices = io->indices + (size_t)step * DECODE_ROWS * DECODE_MAX_LIST;
    next.index_stride = DECODE_MAX_LIST;
    next.list_lengths = io->list_lengths + step * DECODE_ROWS;
    next.device_status = io->device_status;
    if (quarry_next(indexer, &next, io->stream, &status) != QUARRY_OK) {
      return failed(io, 6, "next", &status);
    }
  }

  if (quarry_codebook(indexer, 1, io->codebook, NULL, io->stream, &status) != QUARRY_OK) {
    return failed(io, 7, "codebook", &status);
  }
  if (quarry_codes(indexer, 0, 16, DECODE_PREFILL - 16, NULL, io->codes, io->stream, &status) !=
      QUARRY_OK) {
    return failed(io, 8, "codes", &status);
  }
  /* Slot 0 gets slot 1's codebook, then forgets it. */
  quarry_codebook_args codebook;
  quarry_codebook_args_init(&codebook);
  codebook.slot = 0;
  codebook.codebooks = io->codebook;
  if (quarry_set_codebook(indexer, &codebook, io->stream, &status) != QUARRY_OK) {
    return failed(io, 9, "set_codebook", &status);
  }
  if (quarry_reset(indexer, 0, io->stream, &status) != QUARRY_OK) {
    return failed(io, 10, "reset", &status);
  }
  return 0;
}

int decode(decode_io* io) {
  quarry_status status;
  quarry_config config;
  QUARRY_C_HEADER(&config);
  if (quarry_default_config(&config, &status) != QUARRY_OK) {
    return failed(io, 1, "default_config", &status);
  }
  decode_config(&config);
  quarry_create_args args;
  quarry_create_args_init(&args);
  args.backend = io->backend;
  quarry_indexer* indexer = NULL;
  if (quarry_create(&config, &args, &indexer, &status) != QUARRY_OK) {
    return failed(io, 2, "create", &status);
  }
  int result = run(io, indexer);
  if (result == 0 && quarry_max_list_length(indexer) > DECODE_MAX_LIST) result = 11;
  if (result == 0 && quarry_list_heads(indexer) != DECODE_QUERY_HEADS) result = 12;
  quarry_destroy(indexer);
  return result;
}
