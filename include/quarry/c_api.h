/* SPDX-License-Identifier: Apache-2.0
 *
 * quarry for C and for whoever calls C. Shapes, units, ownership and stream order are those of
 * config.h, tensor.h and indexer.h, which this header names and does not repeat.
 *
 * Structs that may grow start with `struct_size` and `abi_version`; quarry_*_init() and
 * QUARRY_C_HEADER fill them in. A caller compiled against an older, smaller struct keeps
 * working: members beyond its struct_size take their defaults, and of an output only what fits
 * is written. A newer, larger one is served as long as what this library does not know is zero,
 * and else refused as unsupported. Structs without the two members never change.
 *
 * Every call returns a quarry_code; `status`, where not null, is filled in besides. No exception
 * leaves a call. "Device memory" is host memory on the CPU backend. */
#ifndef QUARRY_C_API_H_
#define QUARRY_C_API_H_

/* NOLINTBEGIN(modernize-deprecated-headers): C's own names */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
/* NOLINTEND(modernize-deprecated-headers) */

#include "quarry/version.h"

#if defined(__GNUC__) && defined(QUARRY_C_EXPORTS)
#define QUARRY_C_API __attribute__((visibility("default")))
#else
#define QUARRY_C_API
#endif

#ifdef __cplusplus
#define QUARRY_C_NOEXCEPT noexcept
extern "C" {
#else
#define QUARRY_C_NOEXCEPT
#endif

/* Raised when a struct changes other than by growing, or a function other than by being new. */
#define QUARRY_C_ABI_VERSION 1

typedef int32_t quarry_code;
enum {
  QUARRY_OK = 0,
  QUARRY_INVALID_ARGUMENT = 1,
  QUARRY_OUT_OF_RANGE = 2,
  QUARRY_UNSUPPORTED = 3,
  QUARRY_WORKSPACE_TOO_SMALL = 4,
  QUARRY_OUT_OF_MEMORY = 5,
  QUARRY_NOT_BUILT = 6,
  QUARRY_TOO_FEW_KEYS = 7,
  QUARRY_DEVICE_ERROR = 8
};

/* int32_t members take one of these. */
enum { /* dtype */
       QUARRY_DTYPE_FLOAT32 = 0,
       QUARRY_DTYPE_FLOAT16 = 1,
       QUARRY_DTYPE_BFLOAT16 = 2,
       QUARRY_DTYPE_FLOAT8_E4M3 = 3 /* mean_dtype and keys.dtype alone */
};
enum { QUARRY_METRIC_EUCLIDEAN = 0, QUARRY_METRIC_INNER_PRODUCT = 1 }; /* metric */
enum {
  QUARRY_ALGORITHM_AUTOMATIC = 0,
  QUARRY_ALGORITHM_STAGED = 1,
  QUARRY_ALGORITHM_SCAN = 2
};     /* algorithm */
enum { /* gqa_reduction */
       QUARRY_GQA_PER_HEAD = 0,
       QUARRY_GQA_SUM = 1,
       QUARRY_GQA_SOFTMAX_SUM = 2,
       QUARRY_GQA_MAX = 3
};
enum { QUARRY_BACKEND_CPU = 0, QUARRY_BACKEND_CUDA = 1 }; /* backend */
enum { QUARRY_LOG_ERROR = 0, QUARRY_LOG_WARNING = 1, QUARRY_LOG_INFO = 2, QUARRY_LOG_DEBUG = 3 };

/* Bits of device_status. */
enum {
  QUARRY_BIT_LENGTH_OUT_OF_RANGE = 1 << 0,
  QUARRY_BIT_SLOT_OUT_OF_RANGE = 1 << 1,
  QUARRY_BIT_PAGE_OUT_OF_RANGE = 1 << 2,
  QUARRY_BIT_NOT_BUILT = 1 << 3,
  QUARRY_BIT_TOO_FEW_KEYS = 1 << 4,
  QUARRY_BIT_QUERY_COUNT_OUT_OF_RANGE = 1 << 5,
  QUARRY_BIT_CODEBOOK_MISMATCH = 1 << 6
};

typedef struct quarry_status {
  quarry_code code;
  char detail[252]; /* one line, empty where the code is QUARRY_OK */
} quarry_status;

typedef struct quarry_indexer quarry_indexer; /* one layer's */

/* A cudaStream_t, or null; ignored by the CPU backend. */
typedef void* quarry_stream;

typedef struct quarry_config { /* IndexerConfig */
  uint32_t struct_size;
  uint32_t abi_version;
  int32_t num_query_heads;
  int32_t num_kv_heads;
  int32_t head_dim;
  int32_t max_sequences;
  int32_t max_query_tokens;
  int32_t max_seq_len;
  int64_t num_pages;
  int32_t page_size;
  int32_t num_subspaces;
  int32_t bits;
  int32_t metric;
  int32_t block_size;
  int32_t mean_dtype;
  int32_t rotation;        /* 0 or 1 */
  int32_t shared_codebook; /* 0 or 1 */
  int32_t sink_size;
  int32_t heavy_size;
  int32_t window_size;
  int32_t encode_from;
  int32_t dense_threshold;
  int32_t refine_factor;
  int32_t gqa_reduction;
  int32_t kmeans_iterations;
  uint64_t seed;
  int32_t algorithm;
  int32_t reserved; /* 0 */
  float softmax_scale;
  int32_t reserved_2; /* 0 */
} quarry_config;

typedef struct quarry_memory { /* MemoryRequirements */
  uint32_t struct_size;
  uint32_t abi_version;
  uint64_t index_bytes;
  uint64_t next_workspace_bytes;
  uint64_t build_workspace_bytes;
  uint64_t alignment;
  double code_bytes_per_key;
  double mean_bytes_per_key;
  uint64_t codebook_bytes;
  uint64_t transfer_workspace_bytes;
} quarry_memory;

typedef struct quarry_create_args { /* Device and Resources */
  uint32_t struct_size;
  uint32_t abi_version;
  int32_t backend;
  int32_t ordinal;
  int32_t num_threads;
  int32_t reserved; /* 0 */
  void* index_memory;
  uint64_t index_memory_bytes;
} quarry_create_args;

/* KeyView; its scales and num_scales are the key_scales and num_key_scales of what holds it. */
typedef struct quarry_key_view {
  const void* data;
  int64_t page_stride;
  int64_t slot_stride;
  int64_t head_stride;
  const int32_t* block_table;
  int64_t block_table_stride;
  int32_t dtype;
  int32_t reserved; /* 0 */
} quarry_key_view;

typedef struct quarry_query_view { /* QueryView */
  const void* data;
  int64_t batch_stride;
  int64_t token_stride;
  int64_t head_stride;
  int32_t dtype;
  int32_t reserved; /* 0 */
} quarry_query_view;

typedef struct quarry_batch { /* Batch */
  int32_t batch_size;
  int32_t query_tokens;
  const int32_t* slots;
  const int32_t* lengths;
  const int32_t* query_counts;
  const int32_t* host_slots;
  const int32_t* host_lengths;
} quarry_batch;

typedef struct quarry_workspace { /* Workspace */
  void* data;
  uint64_t bytes;
} quarry_workspace;

typedef struct quarry_build_args { /* BuildArgs */
  uint32_t struct_size;
  uint32_t abi_version;
  int32_t slot;
  int32_t length;
  quarry_key_view keys;
  quarry_workspace workspace;
  const float* rotation;
  const float* query_rotation;
  uint32_t* device_status;
  int32_t retrain;  /* 0 or 1 */
  int32_t reserved; /* 0 */
  const float* key_scales;
  int32_t num_key_scales;
  int32_t reserved_2; /* 0 */
} quarry_build_args;

typedef struct quarry_next_args { /* NextArgs */
  uint32_t struct_size;
  uint32_t abi_version;
  quarry_batch batch;
  quarry_key_view keys;
  quarry_query_view queries;
  quarry_workspace workspace;
  int32_t* indices;
  int64_t index_stride;
  int32_t* list_lengths;
  float* weights;
  float* dense_weights;
  int64_t dense_stride;
  const int32_t* previous_indices;
  const int32_t* previous_lengths;
  uint32_t* device_status;
  int32_t* physical_indices;
  int64_t* physical_indices64;
  const float* key_scales;
  int32_t num_key_scales;
  int32_t reserved; /* 0 */
} quarry_next_args;

typedef struct quarry_append_args { /* AppendArgs */
  uint32_t struct_size;
  uint32_t abi_version;
  quarry_batch batch;
  quarry_key_view keys;
  quarry_workspace workspace;
  uint32_t* device_status;
  const float* key_scales;
  int32_t num_key_scales;
  int32_t reserved; /* 0 */
} quarry_append_args;

typedef struct quarry_codebook_args { /* CodebookArgs */
  uint32_t struct_size;
  uint32_t abi_version;
  int32_t slot;
  int32_t reserved; /* 0 */
  const float* codebooks;
  const float* phi;
  const float* rotation;
  const float* query_rotation;
  const float* baseline_error;
} quarry_codebook_args;

typedef struct quarry_drift_stats { /* DriftStats, an element of device memory */
  float error;
  float baseline;
  float ratio;
  int32_t keys;
} quarry_drift_stats;

typedef struct quarry_recall_stats { /* RecallStats, an element of device memory */
  int32_t row;
  int32_t exact;
  int32_t found;
  float recall;
} quarry_recall_stats;

typedef struct quarry_stats_args { /* StatsArgs */
  uint32_t struct_size;
  uint32_t abi_version;
  quarry_batch batch;
  quarry_key_view keys;
  quarry_workspace workspace;
  quarry_drift_stats* drift;
  quarry_recall_stats* recall;
  int32_t recent_keys;
  int32_t sample_every;
  int32_t sample_offset;
  int32_t reserved; /* 0 */
  uint32_t* sample_counter;
  quarry_query_view queries;
  const int32_t* indices;
  int64_t index_stride;
  const int32_t* list_lengths;
  uint32_t* device_status;
  const float* key_scales;
  int32_t num_key_scales;
  int32_t reserved_2; /* 0 */
} quarry_stats_args;

typedef struct quarry_attach_args { /* AttachArgs */
  uint32_t struct_size;
  uint32_t abi_version;
  const int32_t* slots;
  const int32_t* lengths;
  int32_t count;
  int32_t reserved; /* 0 */
  uint64_t codebook_id;
  const int32_t* host_slots;
  uint32_t* device_status;
} quarry_attach_args;

typedef struct quarry_fork_args { /* ForkArgs */
  uint32_t struct_size;
  uint32_t abi_version;
  int32_t from_slot;
  int32_t to_slot;
  int32_t length;
  int32_t reserved; /* 0 */
  const int32_t* from_block_table;
  const int32_t* to_block_table;
} quarry_fork_args;

typedef struct quarry_save_args { /* SaveArgs */
  uint32_t struct_size;
  uint32_t abi_version;
  int32_t slot;
  int32_t length;
  const int32_t* block_table;
  quarry_workspace workspace;
  void* data;
  uint64_t capacity;
  uint64_t* bytes;
} quarry_save_args;

typedef struct quarry_restore_args { /* RestoreArgs */
  uint32_t struct_size;
  uint32_t abi_version;
  int32_t slot;
  int32_t reserved; /* 0 */
  const int32_t* block_table;
  quarry_workspace workspace;
  const void* data;
  uint64_t bytes;
} quarry_restore_args;

typedef struct quarry_saved_sequence { /* SavedSequence */
  uint32_t struct_size;
  uint32_t abi_version;
  int32_t length;
  int32_t has_codebook; /* 0 or 1 */
  uint64_t codebook_hash;
} quarry_saved_sequence;

/* The members that are not 0 or null in a struct of defaults. quarry_default_config() and
 * quarry_recommended_config() fill a quarry_config. */
#define QUARRY_C_HEADER(pointer)                      \
  ((void)((pointer)->struct_size = sizeof *(pointer), \
          (pointer)->abi_version = QUARRY_C_ABI_VERSION))
#define QUARRY_C_INIT(pointer) (memset((pointer), 0, sizeof *(pointer)), QUARRY_C_HEADER(pointer))
static inline void quarry_memory_init(quarry_memory* memory) { QUARRY_C_INIT(memory); }
static inline void quarry_create_args_init(quarry_create_args* args) { QUARRY_C_INIT(args); }
static inline void quarry_build_args_init(quarry_build_args* args) { QUARRY_C_INIT(args); }
static inline void quarry_next_args_init(quarry_next_args* args) {
  QUARRY_C_INIT(args);
  args->batch.query_tokens = 1;
}
static inline void quarry_append_args_init(quarry_append_args* args) {
  QUARRY_C_INIT(args);
  args->batch.query_tokens = 1;
}
static inline void quarry_codebook_args_init(quarry_codebook_args* args) {
  QUARRY_C_INIT(args);
  args->slot = -1;
}
static inline void quarry_stats_args_init(quarry_stats_args* args) {
  QUARRY_C_INIT(args);
  args->batch.query_tokens = 1;
  args->recent_keys = 256;
}
static inline void quarry_attach_args_init(quarry_attach_args* args) { QUARRY_C_INIT(args); }
static inline void quarry_fork_args_init(quarry_fork_args* args) {
  QUARRY_C_INIT(args);
  args->length = -1;
}
static inline void quarry_save_args_init(quarry_save_args* args) {
  QUARRY_C_INIT(args);
  args->length = -1;
}
static inline void quarry_restore_args_init(quarry_restore_args* args) { QUARRY_C_INIT(args); }
static inline void quarry_saved_sequence_init(quarry_saved_sequence* out) { QUARRY_C_INIT(out); }

/* The library's, which may be newer than this header: "0.1.0", and the ABI it serves. */
QUARRY_C_API const char* quarry_version(void) QUARRY_C_NOEXCEPT;
QUARRY_C_API uint32_t quarry_abi_version(void) QUARRY_C_NOEXCEPT;
/* "invalid_argument"; never null. */
QUARRY_C_API const char* quarry_code_name(quarry_code code) QUARRY_C_NOEXCEPT;
/* 1 where this build holds the backend and, for CUDA, a device is present, else 0. */
QUARRY_C_API int32_t quarry_backend_available(int32_t backend) QUARRY_C_NOEXCEPT;

/* Configurations. These read struct_size and abi_version of the struct they write:
 * QUARRY_C_HEADER(&config) first. `out` may be `config`. */
QUARRY_C_API quarry_code quarry_default_config(quarry_config* out,
                                               quarry_status* status) QUARRY_C_NOEXCEPT;
QUARRY_C_API quarry_code quarry_recommended_config(int32_t head_dim, quarry_config* out,
                                                   quarry_status* status) QUARRY_C_NOEXCEPT;
QUARRY_C_API quarry_code quarry_resolve(const quarry_config* config, int32_t backend,
                                        quarry_config* out,
                                        quarry_status* status) QUARRY_C_NOEXCEPT;
QUARRY_C_API quarry_code quarry_memory_requirements(const quarry_config* config, int32_t backend,
                                                    quarry_memory* out,
                                                    quarry_status* status) QUARRY_C_NOEXCEPT;

/* Null args: on the CPU, memory and threads by default. `*out` is written on success alone and
 * is the caller's to destroy. */
QUARRY_C_API quarry_code quarry_create(const quarry_config* config, const quarry_create_args* args,
                                       quarry_indexer** out,
                                       quarry_status* status) QUARRY_C_NOEXCEPT;
/* Null is fine. On CUDA the caller's work on the index must be done. */
QUARRY_C_API void quarry_destroy(quarry_indexer* indexer) QUARRY_C_NOEXCEPT;

QUARRY_C_API quarry_code quarry_build(quarry_indexer* indexer, const quarry_build_args* args,
                                      quarry_stream stream,
                                      quarry_status* status) QUARRY_C_NOEXCEPT;
QUARRY_C_API quarry_code quarry_next(quarry_indexer* indexer, const quarry_next_args* args,
                                     quarry_stream stream, quarry_status* status) QUARRY_C_NOEXCEPT;
QUARRY_C_API quarry_code quarry_append(quarry_indexer* indexer, const quarry_append_args* args,
                                       quarry_stream stream,
                                       quarry_status* status) QUARRY_C_NOEXCEPT;
QUARRY_C_API quarry_code quarry_set_codebook(quarry_indexer* indexer,
                                             const quarry_codebook_args* args, quarry_stream stream,
                                             quarry_status* status) QUARRY_C_NOEXCEPT;
QUARRY_C_API quarry_code quarry_truncate(quarry_indexer* indexer, const int32_t* slots,
                                         const int32_t* lengths, int32_t count,
                                         quarry_stream stream,
                                         quarry_status* status) QUARRY_C_NOEXCEPT;
QUARRY_C_API quarry_code quarry_reset(quarry_indexer* indexer, int32_t slot, quarry_stream stream,
                                      quarry_status* status) QUARRY_C_NOEXCEPT;
QUARRY_C_API quarry_code quarry_stats(quarry_indexer* indexer, const quarry_stats_args* args,
                                      quarry_stream stream,
                                      quarry_status* status) QUARRY_C_NOEXCEPT;
QUARRY_C_API quarry_code quarry_attach(quarry_indexer* indexer, const quarry_attach_args* args,
                                       quarry_stream stream,
                                       quarry_status* status) QUARRY_C_NOEXCEPT;
QUARRY_C_API quarry_code quarry_copy_pages(quarry_indexer* indexer, const int32_t* from_pages,
                                           const int32_t* to_pages, int32_t count,
                                           quarry_stream stream,
                                           quarry_status* status) QUARRY_C_NOEXCEPT;
QUARRY_C_API quarry_code quarry_fork(quarry_indexer* indexer, const quarry_fork_args* args,
                                     quarry_stream stream, quarry_status* status) QUARRY_C_NOEXCEPT;
/* With too small a capacity QUARRY_INVALID_ARGUMENT, and `*args->bytes` is what it takes. */
QUARRY_C_API quarry_code quarry_save(const quarry_indexer* indexer, const quarry_save_args* args,
                                     quarry_stream stream, quarry_status* status) QUARRY_C_NOEXCEPT;
QUARRY_C_API quarry_code quarry_restore(quarry_indexer* indexer, const quarry_restore_args* args,
                                        quarry_stream stream,
                                        quarry_status* status) QUARRY_C_NOEXCEPT;
/* Needs no indexer; quarry_saved_sequence_init(&out) first. */
QUARRY_C_API quarry_code quarry_read_saved(const void* data, uint64_t bytes,
                                           quarry_saved_sequence* out,
                                           quarry_status* status) QUARRY_C_NOEXCEPT;
QUARRY_C_API quarry_code quarry_codes(const quarry_indexer* indexer, int32_t slot, int32_t first,
                                      int32_t count, const int32_t* block_table, uint8_t* out,
                                      quarry_stream stream,
                                      quarry_status* status) QUARRY_C_NOEXCEPT;
QUARRY_C_API quarry_code quarry_codebook(const quarry_indexer* indexer, int32_t slot,
                                         float* codebooks, float* phi, quarry_stream stream,
                                         quarry_status* status) QUARRY_C_NOEXCEPT;

/* 0 for a null indexer, as for arguments out of range. */
QUARRY_C_API uint64_t quarry_workspace_bytes(const quarry_indexer* indexer, int32_t batch_size,
                                             int32_t query_tokens) QUARRY_C_NOEXCEPT;
QUARRY_C_API uint64_t quarry_stats_workspace_bytes(const quarry_indexer* indexer,
                                                   int32_t batch_size, int32_t query_tokens,
                                                   int32_t sample_every) QUARRY_C_NOEXCEPT;
QUARRY_C_API uint64_t quarry_saved_bytes(const quarry_indexer* indexer,
                                         int32_t length) QUARRY_C_NOEXCEPT;
QUARRY_C_API uint64_t quarry_codebook_id(const quarry_indexer* indexer,
                                         int32_t slot) QUARRY_C_NOEXCEPT;
QUARRY_C_API int32_t quarry_shareable_positions(const quarry_indexer* indexer,
                                                int32_t length) QUARRY_C_NOEXCEPT;
QUARRY_C_API int32_t quarry_list_heads(const quarry_indexer* indexer) QUARRY_C_NOEXCEPT;
QUARRY_C_API int32_t quarry_max_list_length(const quarry_indexer* indexer) QUARRY_C_NOEXCEPT;
/* The resolved configuration; `out` as for quarry_default_config(). */
QUARRY_C_API quarry_code quarry_get_config(const quarry_indexer* indexer, quarry_config* out,
                                           quarry_status* status) QUARRY_C_NOEXCEPT;

/* log.h. `message` is valid during the call alone; null for silence. */
typedef void (*quarry_log_callback)(int32_t level, const char* message, void* user);
QUARRY_C_API void quarry_set_log_callback(quarry_log_callback callback, void* user,
                                          int32_t most) QUARRY_C_NOEXCEPT;

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* QUARRY_C_API_H_ */
