// SPDX-License-Identifier: Apache-2.0
//
// A layer's calibration: how it is made from traces, and the file it is kept in.
//
// The file is safetensors: `codebooks` float32 [Hkv, m, ksub, dcent], with a rotation
// `rotation` and `query_rotation` float32 [Hkv, d, d], with inner_product `phi` float32
// [Hkv, m]; and `quantization_error` float32 [Hkv], the relative error of the keys trained on (0:
// unknown), which files of earlier versions lack. Its metadata name the format
// ("quarry-calibration"), its version ("1") and every parameter; a reader refuses any other format
// or version. Where not all keys were read they name the limit and what there was: `max_keys`
// and `trace_keys`.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "quarry/config.h"
#include "trace.h"

namespace quarry::tools {

/// A checked calibration, or one just made.
struct LayerCalibration {
  /// The layer's shape and the quantizer: what quarry::calibrate() takes of it.
  IndexerConfig config;
  Model model;
  std::string layer;               ///< empty where the traces did not say
  std::string source_model, text;  ///< of the traces, likewise

  std::int64_t traces = 0, keys = 0, sampled_keys = 0, queries = 0;
  double train_error = 0, held_out_error = 0;  ///< NaN: unknown
  /// The limit that left keys of the traces out, 0 where none were; and the keys of a KV head
  /// that an index of the whole traces would encode, of which `keys` were read.
  std::int64_t max_keys = 0, trace_keys = 0;
};

/// k-means iterations where none are asked for: three times an index's own default, as they
/// are paid for once.
inline constexpr std::int32_t kCalibrationIterations = 30;

/// Keys of a KV head that calibrate_files() reads at most where nothing else is asked for: four
/// times what k-means takes at the most. 512 MiB for 8 KV heads of 128 in 16 bits.
inline constexpr std::int64_t kCalibrationMaxKeys = 1 << 18;

/// `done` is a share of the whole in 0..1.
using CalibrationProgress = std::function<void(double done)>;

/// Calibrates with the quantizer of `config` on all keys and queries of the traces, whose
/// shapes and `layer` must agree; `names` are theirs, for refusals. The traces are held in
/// memory; beside them it takes 256 * ksub sampled keys and some matrices. Throws Error.
LayerCalibration calibrate_traces(IndexerConfig config, const std::vector<const Trace*>& traces,
                                  const std::vector<std::string>& names, std::int32_t threads,
                                  const CalibrationProgress& progress);

/// The same from files of any size, of which it holds no more than `max_keys` keys a KV head
/// (key_sample.h says which), the queries' second moments and what calibrate_traces() takes
/// beside the traces. The same bytes as calibrate_traces() where the traces' positions are no
/// more than `max_keys`. config.num_subspaces 0: one for 8 dimensions. Throws Error.
LayerCalibration calibrate_files(IndexerConfig config, const std::vector<std::string>& paths,
                                 std::int64_t max_keys, std::int32_t threads,
                                 const CalibrationProgress& progress);

/// Refuses, by name, traces that are not of the same shape and layer as `first`.
void check_same_layer(const Trace& first, const std::string& first_name,
                      const std::vector<const Trace*>& traces,
                      const std::vector<std::string>& names);

/// A rotation alone, from the prompt's own keys (positions below `prefill`) and q_train.
Model prompt_rotation(IndexerConfig config, const Trace& trace, std::int32_t prefill,
                      std::int32_t threads);

/// Equal calibrations give equal bytes. Throws Error (internal) where it cannot be written.
void save_calibration(const std::string& path, const LayerCalibration& calibration);

/// Reads and checks a file that is not trusted: format, version, every parameter against the
/// library's bounds, shapes against the parameters, values finite, the rotations each other's
/// inverse transpose. Throws BadInput, one line naming what is wrong.
LayerCalibration load_calibration(const std::string& path);

/// Refuses, by name, a calibration made for other heads, another head_dim or another layer.
void check_fits(const LayerCalibration& calibration, const std::string& path, const Trace& trace);

}  // namespace quarry::tools
