/* SPDX-License-Identifier: Apache-2.0
 *
 * Sequences that share pages, fork, are saved, restored and measured, through the C API and
 * written in C: called by a C program and by the comparison with the C++ API. */
#ifndef QUARRY_TESTS_LIFE_H_
#define QUARRY_TESTS_LIFE_H_

#include <quarry/c_api.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
  LIFE_SEQUENCES = 3,
  LIFE_QUERY_HEADS = 4,
  LIFE_KV_HEADS = 2,
  LIFE_DIM = 32,
  LIFE_MAX_LEN = 320,
  LIFE_PAGE = 16,
  LIFE_PAGES = 40,
  LIFE_TABLE = LIFE_MAX_LEN / LIFE_PAGE,
  LIFE_PREFILL = 200, /* sequence 0's; 192 of them are in whole pages */
  LIFE_HEAVY = 24,
  LIFE_LIST = 16 + LIFE_HEAVY + 32,
  LIFE_COPIED = 3,
  LIFE_ROWS = LIFE_SEQUENCES * LIFE_QUERY_HEADS,
  LIFE_SAMPLE_EVERY = 2,
  LIFE_SAMPLES = LIFE_ROWS / LIFE_SAMPLE_EVERY
};

typedef struct life_input {
  int32_t tables[LIFE_SEQUENCES][LIFE_TABLE];
  int32_t lengths[2][LIFE_SEQUENCES]; /* of two steps */
  int32_t prefill, attached;          /* LIFE_PREFILL, and the slot that attaches as much */
  int32_t from_pages[LIFE_COPIED], to_pages[LIFE_COPIED];
  float baseline[LIFE_KV_HEADS];
  float queries[2][LIFE_ROWS * LIFE_DIM];
  float keys[LIFE_PAGES][LIFE_PAGE * LIFE_KV_HEADS * LIFE_DIM];
} life_input;

typedef struct life_output {
  int64_t physical64[LIFE_ROWS * LIFE_LIST]; /* of the first step, without positions */
  int32_t physical[3]
                  [LIFE_ROWS * LIFE_LIST];   /* of both steps, and the second once more, restored */
  int32_t indices[2][LIFE_ROWS * LIFE_LIST]; /* of the last two */
  int32_t list_lengths[3][LIFE_ROWS];
  quarry_drift_stats drift[LIFE_SEQUENCES * LIFE_KV_HEADS]; /* of the second step */
  quarry_recall_stats recall[LIFE_SAMPLES];
  uint32_t counter;
  uint32_t device_status[LIFE_SEQUENCES];
  float codebook[LIFE_KV_HEADS * 32 * 16];
} life_output;

typedef struct life_io {
  int32_t backend;
  quarry_stream stream;
  const life_input* in; /* device memory */
  life_output* out;     /* device memory, zeroed */
  void* workspace;      /* device memory */
  uint64_t workspace_bytes;
  void* saved; /* host memory */
  uint64_t saved_capacity, saved_bytes;
  quarry_saved_sequence header; /* of what was saved */
  char detail[512];             /* what failed */
} life_io;

void life_config(quarry_config* config);

/* All but queries and keys, in host memory; and the engine's part of copying pages, once the
 * keys are there. */
void life_fill(life_input* in);
void life_copy_keys(life_input* in);

/* 0, or the number of what failed. */
int life(life_io* io);

#ifdef __cplusplus
}
#endif

#endif
