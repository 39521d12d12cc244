#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# ./demo.sh: builds quarry and replays a real model's keys and queries through it, with the
# original scheme and with quarry's blocks, on the GPU where there is one.
set -euo pipefail
cd "$(dirname "$0")"

step() { printf '\n== %s\n' "$*"; }

jobs=$(nproc)
build=build/demo
trace=data/smollm2-l14-kjv.safetensors
calibration=data/smollm2-l14-gpl3.calibration.safetensors
mkdir -p "$build"

step "What the build needs"
scripts/install_deps.sh demo

step "Which backend"
source scripts/find_cuda.sh
device=cpu
cuda_flags=(-DQUARRY_CUDA=OFF)
if [[ -z "$gpu" ]]; then
  why="nvidia-smi shows no GPU"
elif ((gpu_cap < 80)); then
  why="$gpu has compute capability $gpu_cap, quarry needs 80 or later"
else
  if [[ -z "$nvcc" ]]; then
    echo "$gpu is here, but $nvcc_why: fetching a CUDA 13 compiler from PyPI into $build/cuda"
    if scripts/cuda_from_pypi.sh "$build/cuda" > "$build/cuda.txt"; then
      nvcc=$(tail -n 1 "$build/cuda.txt")
    fi
  fi
  if [[ -n "$nvcc" ]]; then
    device=cuda
    why="$gpu, compiled by $nvcc"
    cuda_flags=(-DQUARRY_CUDA=ON "-DCMAKE_CUDA_COMPILER=$nvcc"
                "-DQUARRY_CUDA_ARCHITECTURES=$gpu_cap")
  else
    why="$gpu is here, but $nvcc_why and none could be had from PyPI"
  fi
fi
echo "$device: $why"

configure() {
  # A changed compiler or backend in an old build folder would be refused by CMake.
  local stamp="${cuda_flags[*]}"
  if [[ "$(cat "$build/configured" 2> /dev/null)" != "$stamp" ]]; then
    rm -rf "$build/CMakeCache.txt" "$build/CMakeFiles"
  fi
  cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DQUARRY_BUILD_TESTS=OFF \
    -DQUARRY_BUILD_BENCH=OFF -DQUARRY_BUILD_EXAMPLES=OFF "${cuda_flags[@]}" > "$build/cmake.log" ||
    { cat "$build/cmake.log"; return 1; }
  echo "$stamp" > "$build/configured"
  cmake --build "$build" --target quarry-replay --parallel "$jobs"
}

step "Building with $jobs core(s) into $build"
if ! configure; then
  [[ "$device" == cuda ]] || exit 1
  echo "The CUDA build failed (see above); going on with the CPU."
  device=cpu why="the CUDA build failed" cuda_flags=(-DQUARRY_CUDA=OFF)
  configure
fi

# replay NAME OPTIONS...: leaves NAME.json, .txt and .svg.
replay() {
  local name=$1
  shift
  "$build/bin/quarry-replay" "$trace" --device "$device" --sink 16 --window 64 --heavy 128 "$@" \
    --json "$build/$name.json" --plot "$build/$name.svg" > "$build/$name.txt"
}

step "Replaying $trace on the $device backend"
echo "a layer of SmolLM2-135M reading a book: 4096 tokens of prompt, then decoding to 8192"
echo "the original scheme: PQ codes of the keys as they are, codebook from the prompt"
if ! replay original --block-size 0; then
  [[ "$device" == cuda ]] || exit 1
  echo "The device refused (see above); going on with the CPU."
  device=cpu why="the CUDA device refused"
  replay original --block-size 0
fi
echo "blocks: PQ codes of what differs from the mean of 64 neighbours"
replay blocks --block-size 64
echo "blocks and refine: the best 4 x 128 re-ranked by the exact inner product"
replay refine --block-size 64 --refine 4
echo "calibrated: codebook and rotation made once from another text (the GPL), none from the prompt"
replay calibrated --calibration "$calibration"
replay calibrated_refine --calibration "$calibration" --refine 4

# value NAME KEY: quarry-replay's JSON is flat, a line a key.
value() { sed -n "s/^ *\"$2\": *\([^,]*\),\{0,1\}\$/\1/p" "$build/$1.json"; }
row() {
  local name=$1 label=$2
  printf '%-28s %7.3f %7.3f %9.3f %11.1f %9.0f %9.0f\n' "$label" "$(value "$name" recall)" \
    "$(value "$name" mass)" "$(value "$name" output_error)" \
    "$(value "$name" index_bytes_per_key)" "$(value "$name" raw_keys_per_row)" \
    "$(value "$name" next_us_p50)"
}

step "128 heavy keys of up to 8192, backend $device ($why)"
export LC_ALL=C
printf '%-28s %7s %7s %9s %11s %9s %9s\n' "" recall mass "output" "index bytes" "raw keys" "next()"
printf '%-28s %7s %7s %9s %11s %9s %9s\n' "scheme" "" "" "error" "a key" "read" "p50 us"
row original "original, m=2 b=6"
row blocks "blocks of 64, m=2 b=6"
row refine "blocks of 64, refine 4"
row calibrated "calibrated, m=8 b=4"
row calibrated_refine "calibrated, refine 4"
printf '%-28s %7.3f %7.3f %9.3f %11s %9s %9s\n' "exact top-K (the ceiling)" 1 \
  "$(value refine oracle_mass)" "$(value refine oracle_output_error)" "-" "all" "-"
cat << 'END'

recall: share of the exact top-128 found. mass: attention that falls on the listed keys.
output error: |o - o_sparse| / |o|. raw keys read: by a row, beside the index.
END

printf '\nPicture of the replay (open it in a browser): %s\n' "$build/calibrated_refine.svg"
printf 'The same for the original scheme:              %s\n' "$build/original.svg"
