#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# scripts/fuzz.sh [TARGET]...: builds the fuzzers of tests/fuzz with clang and runs each of them
# (safetensors, trace, calibration, next, or those named) for FUZZ_SECONDS (60), two at a time.
# FUZZ_BUILD names another build folder. What a fuzzer finds stays in it, as found/TARGET/.
set -euo pipefail
cd "$(dirname "$0")/.."

build=${FUZZ_BUILD:-build/fuzz}
seconds=${FUZZ_SECONDS:-60}
targets=("$@")
[[ $# -gt 0 ]] || targets=(safetensors trace calibration next)

mkdir -p "$build"
cmake --preset fuzz -B "$build" > "$build/configure.log" || { cat "$build/configure.log"; exit 1; }
cmake --build "$build" --target fuzzers --parallel "$(nproc)"
rm -rf "$build/seeds" "$build/found"
"$build/bin/make_seeds" tests/data "$build/seeds"

one() {
  local target=$1 corpus=$build/corpus/$1 found=$build/found/$1
  mkdir -p "$corpus" "$found"
  local options=(-max_total_time="$seconds" -rss_limit_mb=1024 -timeout=20 -max_len=16384
                 -artifact_prefix="$found/" -print_final_stats=1)
  [[ $target == next ]] || options+=(-dict=tests/fuzz/safetensors.dict)
  if ! OMP_NUM_THREADS=1 ASAN_OPTIONS=allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
       "$build/bin/fuzz_$target" "${options[@]}" "$corpus" "$build/seeds/$target" \
       > "$build/$target.log" 2>&1; then
    tail -60 "$build/$target.log"
    echo "fuzz_$target: FAILED; the input is in $found, the log is $build/$target.log"
    return 1
  fi
  echo "fuzz_$target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$build/$target.log") inputs" \
       "in $seconds s, nothing found"
}

status=0
for ((i = 0; i < ${#targets[@]}; i += 2)); do
  pids=()
  for target in "${targets[@]:i:2}"; do
    one "$target" & pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || status=1; done
done
exit "$status"
