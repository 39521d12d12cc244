# SPDX-License-Identifier: Apache-2.0
# Sourced by demo.sh and test.sh. Sets
#   gpu        name of the first GPU, empty where there is none
#   gpu_cap    its compute capability without the dot, such as 90
#   nvcc       path of an nvcc of release 12.8 or later, empty where there is none
#   nvcc_why   why it is empty

gpu="" gpu_cap=""
if command -v nvidia-smi > /dev/null; then
  gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2> /dev/null | head -n 1) || gpu=""
  gpu_cap=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2> /dev/null |
            head -n 1 | tr -d '.') || gpu_cap=""
  # Without a driver nvidia-smi prints its complaint where the answer should be.
  [[ "$gpu_cap" =~ ^[0-9]+$ ]] || gpu="" gpu_cap=""
fi

nvcc="" nvcc_why="no nvcc found"
for candidate in "${CUDACXX:-}" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
  [[ -n "$candidate" && -x "$candidate" ]] || continue
  release=$("$candidate" --version | sed -n 's/.*release \([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
  read -r major minor <<< "${release:-0 0}"
  if ((major > 12 || (major == 12 && minor >= 8))); then
    nvcc=$candidate nvcc_why=""
    break
  fi
  nvcc_why="$candidate is release $major.$minor, older than 12.8"
done
