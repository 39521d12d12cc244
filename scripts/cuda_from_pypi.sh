#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# scripts/cuda_from_pypi.sh DIR: a CUDA 13.0 compiler from PyPI, in a virtual environment in DIR
# (about 300 MB, nothing outside it is touched). Prints the path of nvcc as its last line.
set -euo pipefail

[[ $# -eq 1 ]] || { echo "usage: $0 DIR" >&2; exit 2; }
directory=$1

# 13.0 is the oldest CUDA 13, so the one that asks least of the driver (580).
packages=(nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88
          nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85)

if [[ ! -x "$directory/bin/pip" ]]; then
  if ! python3 -c 'import ensurepip, venv' 2> /dev/null; then
    prefix=()
    [[ $(id -u) -eq 0 ]] || prefix=(sudo)
    "${prefix[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq >&2
    "${prefix[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
      --no-install-recommends python3-venv < /dev/null >&2
  fi
  python3 -m venv "$directory" >&2
fi
"$directory/bin/pip" install --quiet --disable-pip-version-check "${packages[@]}" >&2

root=$(echo "$directory"/lib/python3*/site-packages/nvidia/cu13)
# What CMake's FindCUDAToolkit looks for and the wheels name otherwise.
ln -sfn lib "$root/lib64"
ln -sfn libcudart.so.13 "$root/lib/libcudart.so"
"$root/bin/nvcc" --version > /dev/null
realpath -s "$root/bin/nvcc"
