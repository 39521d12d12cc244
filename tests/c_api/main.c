/* SPDX-License-Identifier: Apache-2.0
 *
 * A C program on the CPU: a decode, then sequences that share pages, move and are measured. Exit
 * code 0 if every list is as it must be. */
#include <stdio.h>
#include <stdlib.h>

#include "decode.h"
#include "life.h"

static float pseudo(uint32_t* state) {
  *state = *state * 1664525u + 1013904223u;
  return (float)(int32_t)(*state >> 8) / 8388608.0f - 1.0f;
}

static void* zeroed(size_t bytes) {
  const size_t rounded = (bytes + 255) / 256 * 256;
  void* memory = aligned_alloc(256, rounded);
  if (memory == NULL) exit(99);
  return memset(memory, 0, rounded);
}

static int run_decode(void) {
  decode_io io;
  memset(&io, 0, sizeof io);
  io.backend = QUARRY_BACKEND_CPU;
  const size_t key_count = (size_t)DECODE_SEQUENCES * DECODE_MAX_LEN * DECODE_KV_HEADS * DECODE_DIM;
  const size_t query_count = (size_t)DECODE_STEPS * DECODE_ROWS * DECODE_DIM;
  float* keys = zeroed(key_count * sizeof(float));
  float* queries = zeroed(query_count * sizeof(float));
  uint32_t state = 1;
  for (size_t i = 0; i < key_count; ++i) keys[i] = pseudo(&state);
  for (size_t i = 0; i < query_count; ++i) queries[i] = pseudo(&state);
  int32_t lengths[DECODE_STEPS * DECODE_SEQUENCES];
  for (int step = 0; step < DECODE_STEPS; ++step) {
    lengths[step * 2] = DECODE_PREFILL + 1 + step;
    lengths[step * 2 + 1] = DECODE_PREFILL + 1 + 3 * step;
  }
  const int32_t slots[2] = {1, 0}, fallen[1] = {DECODE_PREFILL};
  uint32_t device_status[2] = {0, 0};
  io.keys = keys;
  io.queries = queries;
  io.lengths = lengths;
  io.slots = slots;
  io.fallen = fallen;
  io.workspace_bytes = 16u << 20;
  io.workspace = zeroed(io.workspace_bytes);
  io.indices = zeroed(sizeof(int32_t) * DECODE_STEPS * DECODE_ROWS * DECODE_MAX_LIST);
  io.list_lengths = zeroed(sizeof(int32_t) * DECODE_STEPS * DECODE_ROWS);
  io.device_status = device_status;
  io.codebook =
      zeroed(sizeof(float) * DECODE_KV_HEADS * DECODE_SUBSPACES * DECODE_KSUB * DECODE_DSUB);
  io.codes = zeroed((size_t)DECODE_PREFILL * DECODE_KV_HEADS * DECODE_SUBSPACES);

  const int result = decode(&io);
  if (result != 0) {
    fprintf(stderr, "call %d: %s\n", result, io.detail);
    return 1;
  }
  if ((device_status[0] | device_status[1]) != 0) return 2;
  for (int row = 0; row < DECODE_STEPS * DECODE_ROWS; ++row) {
    const int32_t* list = io.indices + row * DECODE_MAX_LIST;
    const int32_t length = io.list_lengths[row];
    const int32_t n = lengths[row / DECODE_ROWS * 2 + row % DECODE_ROWS / DECODE_QUERY_HEADS];
    if (length != 16 + 24 + 32 || list[0] != 0 || list[length - 1] != n - 1) {
      fprintf(stderr, "row %d: length %d, last %d, n %d\n", row, length, list[length - 1], n);
      return 3;
    }
    for (int32_t i = 1; i < length; ++i) {
      if (list[i] <= list[i - 1]) return 4;
    }
  }
  printf("quarry %s (C ABI %u): %d lists\n", quarry_version(), quarry_abi_version(),
         DECODE_STEPS * DECODE_ROWS);
  free(keys);
  free(queries);
  free(io.workspace);
  free(io.indices);
  free(io.list_lengths);
  free(io.codebook);
  free(io.codes);
  return 0;
}

static int run_life(void) {
  life_input* in = zeroed(sizeof *in);
  life_output* out = zeroed(sizeof *out);
  life_fill(in);
  uint32_t state = 7;
  float* queries = in->queries[0];
  float* keys = in->keys[0];
  for (size_t i = 0; i < sizeof in->queries / sizeof(float); ++i) queries[i] = pseudo(&state);
  for (size_t i = 0; i < sizeof in->keys / sizeof(float); ++i) keys[i] = pseudo(&state);
  life_copy_keys(in);
  life_io io;
  memset(&io, 0, sizeof io);
  io.backend = QUARRY_BACKEND_CPU;
  io.in = in;
  io.out = out;
  io.workspace_bytes = 16u << 20;
  io.workspace = zeroed(io.workspace_bytes);
  io.saved_capacity = 1u << 20;
  io.saved = zeroed(io.saved_capacity);

  const int result = life(&io);
  if (result != 0) {
    fprintf(stderr, "life %d: %s\n", result, io.detail);
    return 5;
  }
  for (int row = 0; row < LIFE_ROWS; ++row) {
    const int32_t* list = out->indices[0] + row * LIFE_LIST;
    const int32_t* table = in->tables[row / LIFE_QUERY_HEADS];
    if (out->list_lengths[1][row] != LIFE_LIST) return 6;
    for (int i = 0; i < LIFE_LIST; ++i) {
      const int32_t at = table[list[i] / LIFE_PAGE] * LIFE_PAGE + list[i] % LIFE_PAGE;
      if (out->physical[1][row * LIFE_LIST + i] != at) return 7;
    }
  }
  if (memcmp(out->indices[0], out->indices[1], sizeof out->indices[0]) != 0) return 8;
  for (int i = 0; i < LIFE_SAMPLES; ++i) {
    if (out->recall[i].exact != LIFE_HEAVY || out->recall[i].found <= 0) return 9;
  }
  printf("%d sequences, %llu bytes saved, drift %g, recall %g\n", LIFE_SEQUENCES,
         (unsigned long long)io.saved_bytes, (double)out->drift[0].ratio,
         (double)out->recall[0].recall);
  free(in);
  free(out);
  free(io.workspace);
  free(io.saved);
  return 0;
}

int main(void) {
  const int result = run_decode();
  return result != 0 ? result : run_life();
}
