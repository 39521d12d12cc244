// SPDX-License-Identifier: Apache-2.0
//
// The engine's side of a step on CUDA: reference kernels, and the graph they are captured into.
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "step.h"

namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
  }
}

/// One block, so that every thread has read the length before one of them changes it.
__global__ void append_token_kernel(LayerStep step) {
  const std::int32_t position = *step.length;
  __syncthreads();
  const std::int32_t width = step.kv_heads * step.d;
  const std::int64_t to = step.offset(position, 0);
  for (std::int32_t i = static_cast<std::int32_t>(threadIdx.x); i < width;
       i += static_cast<std::int32_t>(blockDim.x)) {
    step.keys[to + i] = step.k[i];
    step.values[to + i] = step.v[i];
  }
  if (threadIdx.x == 0) *step.length = position + 1;
}

/// A block a query head; `scores` holds the list's.
__global__ void sparse_attention_kernel(LayerStep step) {
  extern __shared__ float scores[];
  const auto h = static_cast<std::int32_t>(blockIdx.x);
  const auto thread = static_cast<std::int32_t>(threadIdx.x);
  const auto threads = static_cast<std::int32_t>(blockDim.x);
  const std::int32_t kv_head = h / (step.query_heads / step.kv_heads);
  const std::int32_t* list = step.lists + std::int64_t{h} * step.list_stride;
  const std::int32_t length = step.list_lengths[h];
  const float scale = rsqrtf(static_cast<float>(step.d));

  for (std::int32_t e = thread; e < length; e += threads) {
    const float* key = step.keys + step.offset(list[e], kv_head);
    float sum = 0;
    for (std::int32_t i = 0; i < step.d; ++i) sum += step.q[h * step.d + i] * key[i];
    scores[e] = sum * scale;
  }
  __syncthreads();
  float largest = -INFINITY;
  for (std::int32_t e = 0; e < length; ++e) largest = fmaxf(largest, scores[e]);
  for (std::int32_t i = thread; i < step.d; i += threads) {
    float weights = 0, sum = 0;
    for (std::int32_t e = 0; e < length; ++e) {
      const float weight = expf(scores[e] - largest);
      weights += weight;
      sum += weight * step.values[step.offset(list[e], kv_head) + i];
    }
    step.out[h * step.d + i] = length > 0 ? sum / weights : 0.0f;
  }
}

}  // namespace

std::shared_ptr<void> allocate_managed(std::size_t bytes) {
  void* data = nullptr;
  check(cudaMallocManaged(&data, bytes), "cudaMallocManaged");
  return {data, [](void* p) { cudaFree(p); }};
}

void finish_device() { check(cudaDeviceSynchronize(), "device"); }

struct StepGraph::Impl {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;

  ~Impl() {
    if (executable != nullptr) cudaGraphExecDestroy(executable);
    if (graph != nullptr) cudaGraphDestroy(graph);
    if (stream != nullptr) cudaStreamDestroy(stream);
  }
};

StepGraph::StepGraph(const LayerStep& step,
                     const std::function<quarry::Status(quarry::Stream)>& next)
    : impl_(std::make_shared<Impl>()) {
  constexpr unsigned kThreads = 128;
  const auto shared = static_cast<std::size_t>(step.list_stride) * sizeof(float);
  constexpr std::size_t kSharedWithoutAsking = 48 * 1024;
  if (shared > kSharedWithoutAsking) throw std::runtime_error("lists are too long for this kernel");
  check(cudaStreamCreateWithFlags(&impl_->stream, cudaStreamNonBlocking), "cudaStreamCreate");
  check(cudaStreamBeginCapture(impl_->stream, cudaStreamCaptureModeThreadLocal), "begin capture");
  append_token_kernel<<<1, kThreads, 0, impl_->stream>>>(step);
  const quarry::Status status = next(impl_->stream);
  sparse_attention_kernel<<<static_cast<unsigned>(step.query_heads), kThreads, shared,
                            impl_->stream>>>(step);
  check(cudaStreamEndCapture(impl_->stream, &impl_->graph), "end capture");
  if (!status.ok()) throw std::runtime_error(std::string("next: ") + status.detail());
  check(cudaGraphInstantiate(&impl_->executable, impl_->graph, 0), "cudaGraphInstantiate");
}

void StepGraph::replay() {
  check(cudaGraphLaunch(impl_->executable, impl_->stream), "cudaGraphLaunch");
  check(cudaStreamSynchronize(impl_->stream), "step");
}
