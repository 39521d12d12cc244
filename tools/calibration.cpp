// SPDX-License-Identifier: Apache-2.0
#include "calibration.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "error.h"
#include "key_sample.h"
#include "quarry/calibrate.h"

namespace quarry::tools {
namespace {

HostVectors vectors(const TypedArray& array, std::int32_t count, std::int32_t heads,
                    std::int32_t d) {
  return {array.bytes.data(), array.dtype, count, std::int64_t{heads} * d, d};
}

CalibrationTrace view(const Trace& trace, bool all_queries, std::int32_t positions) {
  CalibrationTrace out;
  out.keys = vectors(trace.k, positions, trace.hkv, trace.d);
  if (!trace.k_scale.empty()) {
    out.keys.scales = trace.k_scale.data();
    out.keys.num_scales = static_cast<std::int32_t>(trace.k_scale.size());
  }
  if (!trace.q_train.empty()) {
    out.queries.push_back(vectors(trace.q_train, trace.train_queries, trace.hq, trace.d));
  }
  if (all_queries) out.queries.push_back(vectors(trace.q, trace.queries, trace.hq, trace.d));
  return out;
}

Calibration run(const IndexerConfig& config, const std::vector<CalibrationTrace>& traces,
                std::int32_t threads, const CalibrationProgress& progress,
                const QueryMoments* moments = nullptr) {
  CalibrationOptions options;
  options.query_moments = moments;
  options.num_threads = threads;
  options.user = const_cast<CalibrationProgress*>(&progress);
  options.progress = [](const char*, double done, void* user) {
    const auto& call = *static_cast<CalibrationProgress*>(user);
    if (call) call(done);
  };
  Calibration out;
  check(calibrate(config, traces, options, &out), "calibration");
  return out;
}

Model to_model(const IndexerConfig& config, Calibration&& from) {
  Model model;
  model.codebooks = std::move(from.codebooks);
  model.subspaces = config.num_subspaces;
  model.ksub = 1 << config.bits;
  model.dcent =
      config.head_dim / config.num_subspaces + (config.metric == Metric::inner_product ? 1 : 0);
  model.phi = std::move(from.phi);
  model.rotation = std::move(from.rotation);
  model.query_rotation = std::move(from.query_rotation);
  model.quantization_error = std::move(from.quantization_error);
  return model;
}

void give_shape(const Trace& trace, IndexerConfig* config) {
  config->num_query_heads = trace.hq;
  config->num_kv_heads = trace.hkv;
  config->head_dim = trace.d;
  config->max_sequences = config->max_query_tokens = 1;
  config->max_seq_len = trace.n;
  config->page_size = 0;
  config->num_pages = 0;
}

std::string shape(const Trace& trace) {
  return std::to_string(trace.hq) + " query heads, " + std::to_string(trace.hkv) +
         " KV heads, d=" + std::to_string(trace.d);
}

std::string find(const std::map<std::string, std::string>& metadata, const char* key) {
  const auto it = metadata.find(key);
  return it == metadata.end() ? std::string() : printable(it->second);
}

void add_name(const std::string& name, std::string* names) {
  if (name.empty() || ("; " + *names + "; ").find("; " + name + "; ") != std::string::npos) return;
  *names += (names->empty() ? "" : "; ") + name;
}

std::string layer_text(const std::string& layer) {
  return layer.empty() ? "no 'layer' in its metadata" : "layer " + layer;
}

}  // namespace

void check_same_layer(const Trace& first, const std::string& first_name,
                      const std::vector<const Trace*>& traces,
                      const std::vector<std::string>& names) {
  const std::string layer = find(first.metadata, "layer");
  const std::string but = ", " + printable(first_name) + " has ";
  for (std::size_t i = 0; i < traces.size(); ++i) {
    const std::string has = printable(names[i]) + " has ";
    if (shape(*traces[i]) != shape(first)) {
      throw BadInput(has + shape(*traces[i]) + but + shape(first));
    }
    const std::string other = find(traces[i]->metadata, "layer");
    if (other != layer) {
      throw BadInput(has + layer_text(other) + but + layer_text(layer) +
                     ": a calibration is of one layer");
    }
  }
}

namespace {

/// Who the traces are, what they were asked for, and no calibration yet.
LayerCalibration describe_layer(IndexerConfig config, const std::vector<const Trace*>& traces,
                                const std::vector<std::string>& names) {
  LayerCalibration out;
  const Trace& first = *traces.front();
  check_same_layer(first, names.front(), traces, names);
  out.layer = find(first.metadata, "layer");
  for (const Trace* trace : traces) {
    add_name(find(trace->metadata, "model"), &out.source_model);
    add_name(find(trace->metadata, "text"), &out.text);
  }
  out.traces = static_cast<std::int64_t>(traces.size());
  give_shape(first, &config);
  check(resolve(config, Backend::cpu, &out.config), "configuration");
  return out;
}

void take(Calibration&& made, LayerCalibration* out) {
  out->keys = out->trace_keys = made.keys;
  out->sampled_keys = made.sampled_keys;
  out->queries = made.queries;
  out->train_error = made.train_error;
  out->held_out_error = made.held_out_error;
  out->model = to_model(out->config, std::move(made));
}

}  // namespace

LayerCalibration calibrate_traces(IndexerConfig config, const std::vector<const Trace*>& traces,
                                  const std::vector<std::string>& names, std::int32_t threads,
                                  const CalibrationProgress& progress) {
  LayerCalibration out = describe_layer(config, traces, names);
  std::vector<CalibrationTrace> views;
  for (const Trace* trace : traces) views.push_back(view(*trace, true, trace->n));
  take(run(out.config, views, threads, progress), &out);
  return out;
}

LayerCalibration calibrate_files(IndexerConfig config, const std::vector<std::string>& paths,
                                 std::int64_t max_keys, std::int32_t threads,
                                 const CalibrationProgress& progress) {
  std::vector<Trace> headers;
  for (const std::string& path : paths) headers.push_back(load_header(path));
  std::vector<const Trace*> pointers;
  for (const Trace& header : headers) pointers.push_back(&header);
  if (config.num_subspaces == 0) config.num_subspaces = std::max(1, headers.front().d / 8);
  LayerCalibration out = describe_layer(config, pointers, paths);
  const KeySample sample = read_keys(out.config, paths, headers, max_keys);
  QueryMoments moments;
  if (out.config.rotation) moments = read_query_moments(out.config, paths, headers);
  IndexerConfig sampled = out.config;
  sampled.encode_from = sample.encode_from;
  take(run(sampled, sample.views, threads, progress, &moments), &out);
  out.trace_keys = sample.trace_keys;
  if (!sample.whole) out.max_keys = max_keys;
  return out;
}

Model prompt_rotation(IndexerConfig config, const Trace& trace, std::int32_t prefill,
                      std::int32_t threads) {
  if (trace.q_train.empty()) {
    throw BadInput("--rotation query needs queries of the prompt, the trace has no q_train");
  }
  give_shape(trace, &config);
  config.rotation = true;
  IndexerConfig resolved;
  check(resolve(config, Backend::cpu, &resolved), "configuration");
  // Its codebooks are not used: build() trains on every key of the prompt, as without a
  // rotation.
  Calibration made = run(resolved, {view(trace, false, prefill)}, threads, {});
  Model model;
  model.rotation = std::move(made.rotation);
  model.query_rotation = std::move(made.query_rotation);
  return model;
}

void check_fits(const LayerCalibration& calibration, const std::string& path, const Trace& trace) {
  const auto same = [&](const char* what, std::int32_t theirs, std::int32_t ours) {
    if (theirs == ours) return;
    throw BadInput(printable(path) + ": " + what + " is " + std::to_string(theirs) +
                   ", the trace's is " + std::to_string(ours));
  };
  same("num_query_heads", calibration.config.num_query_heads, trace.hq);
  same("num_kv_heads", calibration.config.num_kv_heads, trace.hkv);
  same("head_dim", calibration.config.head_dim, trace.d);
  const std::string layer = find(trace.metadata, "layer");
  if (!layer.empty() && !calibration.layer.empty() && layer != calibration.layer) {
    throw BadInput(printable(path) + ": layer is " + calibration.layer + ", the trace's is " +
                   layer);
  }
}

}  // namespace quarry::tools
