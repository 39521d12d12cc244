/* SPDX-License-Identifier: Apache-2.0
 *
 * A decode through the C API, written in C: called by a C program and by the comparison with
 * the C++ API. */
#ifndef QUARRY_TESTS_DECODE_H_
#define QUARRY_TESTS_DECODE_H_

#include <quarry/c_api.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
  DECODE_SEQUENCES = 2,
  DECODE_QUERY_HEADS = 4,
  DECODE_KV_HEADS = 2,
  DECODE_DIM = 32,
  DECODE_MAX_LEN = 320,
  DECODE_PREFILL = 200,
  DECODE_STEPS = 12,
  DECODE_ROWS = DECODE_SEQUENCES * DECODE_QUERY_HEADS,
  DECODE_SUBSPACES = 4,
  DECODE_KSUB = 16,
  DECODE_DSUB = 8,
  DECODE_MAX_LIST = 16 + 24 + 32 + 20 /* room to spare */
};

/* All pointers but `detail` are device memory of the backend. */
typedef struct decode_io {
  int32_t backend;
  quarry_stream stream;
  const float* keys;      /* [2 slots][DECODE_MAX_LEN][KV heads][dim] */
  const float* queries;   /* [steps][2][query heads][dim] */
  const int32_t* lengths; /* [steps][2] */
  const int32_t* slots;   /* [2]: 1, 0 */
  const int32_t* fallen;  /* [1]: the length truncate() is given for slot 1 */
  void* workspace;
  uint64_t workspace_bytes; /* what is there */
  int32_t* indices;         /* [steps][rows][DECODE_MAX_LIST] */
  int32_t* list_lengths;    /* [steps][rows] */
  uint32_t* device_status;  /* [2] */
  float* codebook;          /* [KV heads][m][ksub][dsub] */
  uint8_t* codes;           /* [DECODE_PREFILL][KV heads][m] of slot 0 */
  char detail[512];         /* what failed */
} decode_io;

/* The configuration the decode uses, other than the default's. */
void decode_config(quarry_config* config);

/* build of both slots, steps of next() with one append() and one truncate() between them, slot
 * 1's codebook and its codes. 0, or the number of the failing call. */
int decode(decode_io* io);

#ifdef __cplusplus
}
#endif

#endif
