#!/usr/bin/env bash
# Proves that the project works on a machine with nothing but Python, venv and make:
#   scripts/fresh.sh [FOLDER]        (make fresh)
# builds a minimal Debian in FOLDER (runs/fresh), copies the repository into it, and runs there: make, an import,
# what doctor says, a prediction with tiny weights, the web page, and the quick tests. It takes root, debootstrap and a
# network; where one of them is missing it says so in a line and ends with 0.
# SUITE names the Debian release (trixie: Python 3.13). TESTS names folders and files to test instead of `make quick`;
# WHOLE=1 runs what a user would, `make run` and `make test`.
# KEEP=1 keeps the folder and starts from it the next time.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$(realpath -m "${1:-runs/fresh}")
suite=${SUITE:-trixie}

skip() { echo "fresh: skipped, $1"; exit 0; }
[ "$(id -u)" = 0 ] || skip "it takes root to build a root file system"
command -v debootstrap > /dev/null || skip "no debootstrap: apt-get install debootstrap"
unshare --mount true 2> /dev/null || skip "this machine allows no mount namespaces"

if [ ! -e "$root/usr/bin/make" ]; then
  rm -rf "$root"
  # the mirror that this machine's apt uses, where it is a Debian; else debootstrap's own
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Component: main' 2> /dev/null | head -n 1 || true)
  mkdir -p "$(dirname "$root")"
  debootstrap --variant=minbase --include=python3,python3-venv,make "$suite" "$root" $mirror > "$root.log" 2>&1 \
    || { rm -rf "$root"; skip "no packages of Debian: $(tail -n 1 "$root.log")"; }
fi
echo "fresh: $suite in $root, $(du -sh "$root" | cut -f 1), after $SECONDS s"

rm -rf "$root/src" "$root/tmp"
mkdir -p -m 1777 "$root/tmp"  # on the disk: in memory the tests' files take that of the tests
mkdir -p "$root/src"
{ git ls-files -z --cached --others --exclude-standard 2> /dev/null || find . \( -name .venv -o -name runs \) -prune -o -type f -print0; } \
  | tar --create --null --files-from=- | tar --extract --no-same-owner --directory="$root/src"

# What reaches the network from inside: the resolver, the certificates and the proxies of this machine, and uv's cache,
# which only saves downloads.
cp -L /etc/resolv.conf "$root/etc/resolv.conf" 2> /dev/null || true
bundle=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
mkdir -p "$root/etc/ssl/certs" "$root/var/cache/uv"
[ ! -f "$bundle" ] || cp -L "$bundle" "$root/etc/ssl/certs/ca-certificates.crt"
cache=${UV_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/uv}
mkdir -p "$cache"

# The mounts live in a namespace of their own and go with it, whatever ends the script.
export root cache
status=0
unshare --mount --propagation private bash -euo pipefail -s << 'INSIDE' || status=$?
mount --bind "$cache" "$root/var/cache/uv"
mount -t proc none "$root/proc"
mount --rbind /dev "$root/dev"
exec env --ignore-environment \
  ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} ${no_proxy:+no_proxy="$no_proxy"} \
  HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin CI="${CI-}" TESTS="${TESTS-}" WHOLE="${WHOLE-}" UV_CACHE_DIR=/var/cache/uv UV_LINK_MODE=copy \
  PIP_CERT=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
  chroot "$root" /bin/bash -euo pipefail -c '
    cd /src
    python3 --version
    [ -x .venv/bin/python ] || python3 -m venv .venv
    .venv/bin/python -m pip download --quiet --no-deps --dest /tmp --constraint requirements.lock packaging || exit 69
    time make .venv/installed
    .venv/bin/python -c "import cv2, torch, yolov5, siimcovid.apps.command_line"
    .venv/bin/siimcovid synthetic /tmp/competition --train-studies 2 --test-studies 1 --scale 0.05
    .venv/bin/siimcovid doctor --train --data /tmp/competition
    .venv/bin/python -m pytest tests/repository/test_first_prediction.py "tests/apps/test_web.py::test_command[127.0.0.1]"
    if [ "$WHOLE" = 1 ]; then
      time make run
      time make test
    elif [ -n "$TESTS" ]; then
      .venv/bin/python -m pytest -n "$(nproc)" --dist loadfile -m "not slow and not browser and not gpu" $TESTS
    else
      make quick
    fi
  '
INSIDE
[ "$status" != 69 ] || skip "no package index can be reached from inside"
[ "$status" = 0 ] || exit "$status"
[ "${KEEP-}" = 1 ] || rm -rf "$root"
echo "fresh: done in $SECONDS s"
