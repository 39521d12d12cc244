#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The CPU's decode step beside Faiss with SIMD, in turns, so that a machine that is busy or slow
# for a while is so for both:
#   bench/run_cpu.sh OUTDIR        ROUNDS (7) of bench_next and of faiss_peer.py
# OUTDIR gets each round's output and peers.txt, the table. Needs
#   cmake --preset release && cmake --build --preset release --target bench_next
#   python3 -m venv build/faiss && build/faiss/bin/pip install faiss-cpu==1.15.1 numpy==2.4.6
# BUILD_DIR and FAISS_DIR name other folders. PRIORITY=1 (root) measures under SCHED_RR, 10 s a round.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: bench/run_cpu.sh OUTDIR}
rounds=${ROUNDS:-7}
bench=${BUILD_DIR:-build/release}/bin/bench_next
python=${FAISS_DIR:-build/faiss}/bin/python
mkdir -p "$out"
urgent=()
[[ -z "${PRIORITY:-}" ]] || urgent=(chrt -r "$PRIORITY")
export OMP_NUM_THREADS=2

for ((i = 1; i <= rounds; i++)); do
  "${urgent[@]}" "$bench" --benchmark_filter='^next/(original|m8_b4|m16_b4)/(scan|staged)/cpu' \
    --benchmark_min_time=0.1 --benchmark_format=csv > "$out/quarry.$i.csv" 2> "$out/quarry.$i.log" ||
    { cat "$out/quarry.$i.log"; exit 1; }
  "$python" bench/faiss_peer.py ${PRIORITY:+--priority "$PRIORITY"} > "$out/faiss.$i.txt"
  echo "round $i of $rounds: load $(cut -d' ' -f1-3 /proc/loadavg)"
done

# Medians of a round, in microseconds; Faiss's is that of whichever of its ways was fastest in it.
table() {
  awk -v rounds="$rounds" '
    function median(list, n,   i, j, t) {
      for (i = 2; i <= n; i++)
        for (j = i; j > 1 && list[j - 1] > list[j]; j--) {
          t = list[j]; list[j] = list[j - 1]; list[j - 1] = t
        }
      return n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
    }
    FNR == 1 { round = FILENAME; sub(/\.[a-z]+$/, "", round); sub(/.*\./, "", round) }
    FILENAME ~ /csv$/ {
      count = split($0, field, ",")
      if (field[1] == "name")
        for (i = 1; i <= count; i++) place[field[i]] = i
      if (field[1] ~ /^"next\//) {
        split(field[1], part, "/")
        time["median", part[2], part[3], round] = field[place["\"median_us\""]] + 0
        time["least", part[2], part[3], round] = field[place["\"least_us\""]] + 0
      }
    }
    FILENAME ~ /txt$/ && /^faiss\/m/ {
      split($1, part, "/")
      index_of = part[3] ~ /FastScan/ ? "FastScan" : "IndexPQ"
      shape = part[2] == "m2_b6" ? "original" : part[2]
      for (i = 2; i <= 3; i++) {
        split($i, value, "_us=")
        key = value[1] SUBSEP shape SUBSEP index_of SUBSEP round
        if (!(key in time) || value[2] + 0 < time[key]) time[key] = value[2] + 0
      }
    }
    function line(name, shape, of, over, what,   r, list, digits) {
      printf "%-22s", name
      digits = over == "" ? ".0f" : ".2f"
      for (r = 1; r <= rounds; r++) {
        list[r] = time[what, shape, of, r]
        if (over != "") list[r] /= time[what, shape, over, r]
        printf("%8" digits, list[r])
      }
      printf("%9" digits "\n", median(list, rounds))
    }
    function rows(shape, peer,   r) {
      printf "\n%-22s", shape ", round"
      for (r = 1; r <= rounds; r++) printf "%8d", r
      printf "%9s\n", "median"
      line("staged", shape, "staged", "", "median")
      line("scan", shape, "scan", "", "median")
      line(peer, shape, peer, "", "median")
      line("scan / " peer, shape, "scan", peer, "median")
      line("scan, least", shape, "scan", "", "least")
      line(peer ", least", shape, peer, "", "least")
      line("ratio of the least", shape, "scan", peer, "least")
    }
    END { rows("original", "IndexPQ"); rows("m8_b4", "FastScan"); rows("m16_b4", "FastScan") }
  ' "$out"/quarry.*.csv "$out"/faiss.*.txt
}
{
  echo "# $(lscpu | sed -n 's/^Model name: *//p'), $(nproc) cores; $("${CXX:-c++}" --version | head -1)"
  echo "# commit $(git rev-parse --short HEAD 2> /dev/null || echo unknown), $(date -u +%F)"
  echo "# command: ${PRIORITY:+PRIORITY=$PRIORITY }ROUNDS=$rounds bench/run_cpu.sh OUTDIR"
  grep -h '^#' "$out/faiss.1.txt"
  echo "# us for a step of 32 heads x 32000 keys: medians of a round; Faiss by its fastest way in it"
  table
  printf '\nFaiss, round 1:\n'
  grep -h '^faiss' "$out/faiss.1.txt"
} | tee "$out/peers.txt"
