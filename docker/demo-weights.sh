#!/usr/bin/env bash
# Train small demo weights on a synthetic competition: docker/demo-weights.sh PREFIX OUT
# PREFIX is what scripts/install.sh made; OUT must not exist. SYNTHETIC holds further options of `siimcovid synthetic`.
set -euo pipefail
prefix=$(realpath "${1:?usage: docker/demo-weights.sh PREFIX OUT}")
out=$(realpath -m "${2:?usage: docker/demo-weights.sh PREFIX OUT}")
cd "$(dirname "$0")/.."
export PATH="$prefix/bin:$PATH" YOLO_OFFLINE=true NO_ALBUMENTATIONS_UPDATE=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# shellcheck disable=SC2086  # several words
siimcovid synthetic "$work/competition" --seed 0 ${SYNTHETIC:-}
siimcovid weights import efficientnet_lite0 --out "$work/imagenet"
mkdir "$work/run"
papermill notebooks/siim_covid19.ipynb "$work/run/notebook.ipynb" -k python3 --no-log-output --no-progress-bar \
  -p COMPETITION_DIR "$work/competition" -p WEIGHTS_DIR "$work/imagenet" -p OUTPUT_DIR "$work/run" \
  -p PRESET small -p MODE finetune
mkdir -p "$(dirname "$out")"
cp -r "$work/run/weights" "$out"
siimcovid weights verify "$out"
