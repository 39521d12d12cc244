// SPDX-License-Identifier: Apache-2.0
//
// Any bytes as a safetensors file: refused, or every tensor is what its header says.
#include <exception>

#include "error.h"
#include "memory_file.h"
#include "safetensors.h"

namespace {

using namespace quarry;
using fuzz::require;

void read_all(const std::string& path) {
  tools::SafetensorsFile file(path);
  std::uint64_t total = 0;
  for (const tools::TensorInfo& tensor : file.tensors()) {
    require(file.find(tensor.name) == &tensor);
    require(!tools::describe(tensor).empty());
    const std::vector<std::byte> bytes = file.read(tensor);
    require(bytes.size() == tensor.bytes);
    total += tensor.bytes;
  }
  // What was read can be written, and reads back the same.
  if (total > (1u << 20)) return;
  std::vector<std::vector<std::byte>> data;
  std::vector<tools::TensorSource> sources;
  for (const tools::TensorInfo& tensor : file.tensors()) data.push_back(file.read(tensor));
  for (std::size_t i = 0; i < data.size(); ++i) {
    const tools::TensorInfo& tensor = file.tensors()[i];
    sources.push_back({tensor.name, tensor.dtype, tensor.shape, data[i].data()});
  }
  const fuzz::MemoryFile copy;
  tools::write_safetensors(copy.path(), sources, file.metadata());
  tools::SafetensorsFile again(copy.path());
  require(again.tensors().size() == sources.size() && again.metadata() == file.metadata());
  for (std::size_t i = 0; i < data.size(); ++i) {
    require(again.tensors()[i].name == sources[i].name);
    require(again.tensors()[i].shape == sources[i].shape);
    require(again.read(again.tensors()[i]) == data[i]);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::MemoryFile file(data, size);
  try {
    read_all(file.path());
  } catch (const tools::BadInput& refused) {
    require(std::string(refused.what()).find('\n') == std::string::npos);
  }
  return 0;
}
