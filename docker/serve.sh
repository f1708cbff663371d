#!/usr/bin/env bash
# Serve the web page: docker/serve.sh PREFIX [OPTIONS OF siimcovid serve]
# With the weights of $WEIGHTS where a manifest lies there, else with the demo weights of $DEMO.
set -euo pipefail
prefix=${1:?usage: docker/serve.sh PREFIX [OPTIONS]}
shift
folder=${WEIGHTS:-/weights}
if [ ! -f "$folder/manifest.json" ]; then
  echo "no manifest.json in $folder: serving the demo weights in ${DEMO:-/demo}" >&2
  folder=${DEMO:-/demo}
fi
exec "$prefix/bin/siimcovid" serve --weights "$folder" "$@"
