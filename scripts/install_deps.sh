#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# scripts/install_deps.sh [demo|test|bench|ci]...
# Installs what a group needs and is missing, on Debian or Ubuntu, as root or through sudo.
# test includes demo's needs, ci all. Where nothing is missing, nothing is run.
set -euo pipefail

wanted=(ca-certificates g++ cmake ninja-build pkg-config libhwy-dev libfmt-dev nlohmann-json3-dev
        libcli11-dev libeigen3-dev)
# clang's runtimes for TSan and libFuzzer: where they are a package of its own, clang only
# recommends it; older distributions have them in clang's.
clang_runtime=
[[ $# -gt 0 ]] || set -- test
for group in "$@"; do
  case "$group" in
    demo) ;;
    test) wanted+=(libgtest-dev libgmock-dev librapidcheck-dev) ;;
    # OpenBLAS: Faiss on the reference BLAS would be no fair peer.
    bench) wanted+=(libbenchmark-dev libfaiss-dev libopenblas-dev) ;;
    ci) wanted+=(libgtest-dev libgmock-dev librapidcheck-dev libbenchmark-dev libfaiss-dev
                 clang clang-tidy clang-format libomp-dev)
        clang_runtime=libclang-rt-dev ;;
    *) echo "install_deps.sh: unknown group '$group' (demo, test, bench, ci)" >&2; exit 2 ;;
  esac
done

if ! command -v dpkg-query > /dev/null || ! command -v apt-get > /dev/null; then
  echo "install_deps.sh: this is not Debian or Ubuntu; needed are: ${wanted[*]}" >&2
  exit 0  # the build says what it misses
fi

missing=()
for package in "${wanted[@]}"; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null || true)
  [[ "$state" == installed ]] || missing+=("$package")
done
if [[ -n "$clang_runtime" ]] && compgen -G "$(clang -print-resource-dir 2> /dev/null)/lib/*/*fuzzer*" > /dev/null; then
  clang_runtime=
fi
if [[ ${#missing[@]} -eq 0 && -z "$clang_runtime" ]]; then
  echo "install_deps.sh: nothing to install"
  exit 0
fi

run=()
if [[ $(id -u) -ne 0 ]]; then
  if ! command -v sudo > /dev/null; then
    echo "install_deps.sh: missing: ${missing[*]}; neither root nor sudo to install them" >&2
    exit 1
  fi
  run=(sudo)
fi
# `env`: sudo drops the environment.
"${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
if [[ -n "$clang_runtime" ]] && apt-cache show "$clang_runtime" > /dev/null 2>&1; then
  missing+=("$clang_runtime")
fi
echo "install_deps.sh: installing ${missing[*]}"
[[ ${#missing[@]} -gt 0 ]] || exit 0
"${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
  "${missing[@]}" < /dev/null
