#!/usr/bin/env bash
# Install siimcovid with its web page for the CPU into a virtual environment: docker/install.sh PREFIX
# TORCH_INDEX may name an index of torch's CPU wheels; the default ones bring CUDA and are some gigabytes larger.
set -euo pipefail
prefix=${1:?usage: docker/install.sh PREFIX}
cd "$(dirname "$0")/.."
python3 -m venv "$prefix"
index=${TORCH_INDEX-}
"$prefix/bin/pip" install --no-cache-dir --constraint requirements.lock ${index:+--extra-index-url "$index"} '.[demo,web]'
"$prefix/bin/siimcovid" --version
