#!/usr/bin/env bash
# Runs everything worth running on a GPU and leaves the results in OUTDIR:
#   bench/run_gpu.sh OUTDIR [tests] [sanitize] [replay] [bench]      (default: all four)
# Uses the binaries of BUILD_DIR (default build/cuda-quick), built beforehand:
#   cmake --preset cuda-quick && cmake --build --preset cuda-quick
#   cmake --build --preset cuda-quick --target bench_select_peers     (if CUB is to be beside)
# Exit status: 0 only if every part passed.
set -u
cd "$(dirname "$0")/.."
out=${1:?usage: bench/run_gpu.sh OUTDIR [tests] [sanitize] [replay] [bench]}
shift
parts=${*:-tests sanitize replay bench}
build=${BUILD_DIR:-build/cuda-quick}
mkdir -p "$out"
failed=0

note() { printf '\n== %s\n' "$*" | tee -a "$out/summary.txt"; }
run() { # run NAME COMMAND...: output to OUTDIR/NAME.txt, its end on the terminal
  local name=$1 begin=$SECONDS
  shift
  "$@" >"$out/$name.txt" 2>&1
  local rc=$?
  tail -n "${TAIL:-4}" "$out/$name.txt"
  echo "$name: exit $rc, $((SECONDS - begin)) s" | tee -a "$out/summary.txt"
  [ $rc -eq 0 ] || failed=1
}
has() { [[ " $parts " == *" $1 "* ]]; }

{
  echo "commit:  $(git rev-parse --short HEAD 2>/dev/null || echo "${QUARRY_COMMIT:-unknown}")"
  echo "command: bench/run_gpu.sh OUTDIR $parts"
  nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem --format=csv,noheader
} | tee "$out/summary.txt"

# shards NAME PROGRAM ARGUMENTS...: a GoogleTest program in SHARDS processes at once (most of a
# test's time is the oracle's, on the host).
shards() {
  local name=$1 pids=() i
  shift
  for ((i = 0; i < ${SHARDS:-8}; i++)); do
    GTEST_TOTAL_SHARDS=${SHARDS:-8} GTEST_SHARD_INDEX=$i OMP_NUM_THREADS=2 "$@" \
      >"$out/$name.$i.txt" 2>&1 &
    pids+=($!)
  done
  local rc=0 pid
  for pid in "${pids[@]}"; do wait "$pid" || rc=$?; done
  cat "$out/$name".[0-9]*.txt >"$out/$name.txt"
  rm -f "$out/$name".[0-9]*.txt
  return $rc
}
if has tests; then
  note "tests on the GPU"
  TAIL=2 run test_indexer shards test_indexer timeout 300 "$build/bin/test_indexer" \
    --gtest_filter='Cuda/*-Cuda/Soak*:Cuda/AllocationWatch*' --gtest_brief=1
  # By itself: it watches the device's free memory.
  run test_soak timeout 200 "$build/bin/test_indexer" --gtest_filter='Cuda/Soak*' --gtest_brief=1
  for t in unit misuse golden_api c_api live; do
    [ -x "$build/bin/test_$t" ] &&
      run "test_$t" timeout 300 "$build/bin/test_$t" --gpu --gtest_brief=1
  done
  run decode_loop timeout 100 "$build/bin/example_decode_loop" cuda
fi
if has sanitize; then
  note "compute-sanitizer"
  # racecheck is slow: it gets the cases of one launch mode that are quick under it.
  for tool in memcheck initcheck synccheck racecheck; do
    [ "$tool" = racecheck ] && SANITIZE_FILTER=${RACECHECK_FILTER:-'Cuda/CaseTable.*stream_d64*'}
    TAIL=2 run "sanitize_$tool" shards "sanitize_$tool" timeout "${SANITIZE_SECONDS:-300}" \
      compute-sanitizer --tool "$tool" --error-exitcode 9 "$build/bin/test_indexer" \
      --gtest_filter="${SANITIZE_FILTER:-Cuda/CaseTable.*}" --gtest_brief=1
  done
fi
if has replay; then
  note "replay of the bundled trace"
  for shape in "0 2 6 1" "64 2 6 1" "64 2 6 4" "64 8 4 1"; do
    read -r block m b refine <<<"$shape"
    for device in cpu cuda; do
      name="replay_b${block}_m${m}_b${b}_r${refine}_$device"
      TAIL=2 run "$name" "$build/bin/quarry-replay" data/smollm2-l14-kjv.safetensors \
        --device "$device" --block-size "$block" --subspaces "$m" --bits "$b" \
        --refine "$refine" --heavy 128 --sink 16 --window 64 --json "$out/$name.json"
    done
  done
fi
if has bench; then
  note "benchmarks (CUDA: graph replay, inputs rotated)"
  for b in floor next encode score select refine emit train; do
    TAIL=30 run "bench_$b" timeout "${BENCH_SECONDS:-200}" "$build/bin/bench_$b" --benchmark_filter="${BENCH_FILTER:-cuda}" \
      --benchmark_min_time="${MIN_TIME:-0.1}" --benchmark_out="$out/bench_$b.json" \
      --benchmark_out_format=json
  done
  # The grid has a hundred points and a replay rotates up to 24 layers, whose time counts once:
  # a shorter least time keeps it to minutes. GRID_FILTER=grid/n/.*cuda takes one axis.
  if [ -x "$build/bin/bench_grid" ]; then
    TAIL=30 run bench_grid timeout "${GRID_SECONDS:-400}" "$build/bin/bench_grid" \
      --benchmark_filter="${GRID_FILTER:-${BENCH_FILTER:-cuda}}" \
      --benchmark_min_time="${GRID_MIN_TIME:-0.005}" --benchmark_out="$out/bench_grid.json" \
      --benchmark_out_format=json
    # A filter may have left an axis out: then there is no figure of it, and nothing failed.
    [ -n "${GRID_FILTER:-}${BENCH_FILTER:-}" ] ||
      run plot_grid "$build/bin/plot_grid" "$out/bench_grid.json" --out "$out/grid"
  fi
  [ -x "$build/bin/bench_select_peers" ] && TAIL=30 run bench_select_peers timeout "${BENCH_SECONDS:-200}" "$build/bin/bench_select_peers"
fi
note "done: $([ $failed -eq 0 ] && echo 'all passed' || echo 'SOMETHING FAILED')"
exit $failed
