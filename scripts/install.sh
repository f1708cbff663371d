#!/usr/bin/env bash
# Install siimcovid and the versions of requirements.lock into a virtual environment, which is made where it is missing:
#   scripts/install.sh PREFIX EXTRAS [--editable]        for example: scripts/install.sh .venv demo,test,web --editable
# uv does it in a minute; where it is not on the PATH pip fetches it, and where that fails pip does the whole work.
# PYTHON names the interpreter, INSTALLER=pip or uv insists on one of them, and TORCH_INDEX an index with torch's wheels
# for the processor alone, which are some gigabytes smaller than the default ones.
set -euo pipefail
usage="usage: scripts/install.sh PREFIX EXTRAS [--editable]"
prefix=${1:?$usage}
extras=${2:?$usage}
project=(".[$extras]")
[ "${3-}" != --editable ] || project=(--editable ".[$extras]")
python=$(mkdir -p "$prefix" && cd "$prefix" && pwd)/bin/python
cd "$(dirname "$0")/.."
[ -x "$python" ] || "${PYTHON:-python3}" -m venv "$(dirname "$(dirname "$python")")"

# The two builds of OpenCV share their files: removing one breaks the other, so both go and one comes back.
if "$python" -c 'import importlib.metadata as m; m.version("opencv-python")' 2> /dev/null; then
  "$python" -m pip uninstall --quiet --yes opencv-python opencv-python-headless
fi

find_uv() { # prints the path of a uv that works
  command -v uv && return
  local fetched
  fetched=$(dirname "$python")/uv
  [ -x "$fetched" ] || "$python" -m pip install --quiet --constraint requirements.lock uv >&2 || return
  "$fetched" --version > /dev/null && echo "$fetched"
}

with_uv() { # the override in pyproject.toml leaves opencv-python out
  local uv setting
  uv=$(find_uv) || return
  setting() { "$python" -m pip config get "global.$1" 2> /dev/null || true; }
  # uv reads none of pip's settings: pass on a mirror, and folders with wheels
  [ -n "${UV_DEFAULT_INDEX-}" ] || { setting=$(setting index-url); [ -z "$setting" ] || export UV_DEFAULT_INDEX=$setting; }
  [ -n "${UV_INDEX-}" ] || { setting=$(setting extra-index-url | tr '\n' ' '); [ -z "$setting" ] || export UV_INDEX=$setting; }
  [ -z "${TORCH_INDEX-}" ] || export UV_INDEX="$TORCH_INDEX ${UV_INDEX-}"
  local quiet=--quiet # bars on a terminal, and not 300 lines elsewhere
  [ ! -t 2 ] || quiet=
  # bytecode as pip writes it: without, each first import of torch and yolov5 takes twelve seconds instead of five
  "$uv" pip install $quiet --compile-bytecode --python "$python" --index-strategy unsafe-best-match \
    --constraint requirements.lock "${project[@]}"
}

with_pip() { # pip knows no override: it installs the list as it stands, without asking what each package needs
  local lines=requirements.lock
  if [ -n "${TORCH_INDEX-}" ]; then # what CUDA's build of torch needs
    lines=$(mktemp)
    grep -v -E '^(nvidia|cuda|triton)-?' requirements.lock > "$lines"
  fi
  "$python" -m pip install --quiet --no-deps ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --requirement "$lines"
  "$python" -m pip install --quiet --no-deps --no-build-isolation "${project[@]}"
}

case ${INSTALLER-} in
  uv) with_uv ;;
  pip) with_pip ;;
  *) with_uv || { echo "uv could not install; pip does, which takes some minutes" >&2; with_pip; } ;;
esac
"$(dirname "$python")/siimcovid" --version
echo "installed in $SECONDS s"
