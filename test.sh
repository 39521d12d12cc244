#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# ./test.sh: builds quarry and runs every test this machine can; GPU tests where there is a GPU.
# TEST_BUILD names another build folder, arguments go to CMake's configure step.
set -euo pipefail
cd "$(dirname "$0")"

build=${TEST_BUILD:-build/test}
jobs=$(nproc)
scripts/install_deps.sh test
source scripts/find_cuda.sh
if [[ -n "$nvcc" ]]; then
  cuda_flags=(-DQUARRY_CUDA=ON "-DCMAKE_CUDA_COMPILER=$nvcc")
  [[ -z "$gpu_cap" ]] || cuda_flags+=("-DQUARRY_CUDA_ARCHITECTURES=$gpu_cap")
  echo "test.sh: with the CUDA backend ($nvcc); GPU: ${gpu:-none, its tests will be skipped}"
else
  cuda_flags=(-DQUARRY_CUDA=OFF)
  echo "test.sh: without the CUDA backend ($nvcc_why)"
fi

# Optimized, with assertions: NDEBUG is left out.
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
  -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O2 -g1" -DCMAKE_CUDA_FLAGS_RELWITHDEBINFO="-O3" \
  -DQUARRY_BUILD_BENCH=OFF "${cuda_flags[@]}" "$@"
cmake --build "$build" --parallel "$jobs"

echo
echo "test.sh: tests on the GPU"
ctest --test-dir "$build" --output-on-failure --no-label-summary -L gpu
[[ -n "$gpu" && -n "$nvcc" ]] || cat << 'END'

*** THE GPU TESTS DID NOT RUN: no GPU here, or no CUDA compiler ***

END
echo "test.sh: all other tests"
ctest --test-dir "$build" --output-on-failure --no-label-summary --parallel "$jobs" -LE gpu
