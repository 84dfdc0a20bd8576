#!/usr/bin/env bash
# Runs the notebooks and draws every figure:
#
#   ./reproduce.sh [smoke|default|overnight|pretrained|pretrained-overnight|hub|hub-large|hub-qwen3]
#                  [--only 01 ...] [--backbone DIR_OR_NAME ...] [--text FILE] [--dry-run] [--force] [--list]     no word: default
#   ./reproduce.sh test       ruff, the unit tests, the notebooks under nbval, and the smoke profile off line
#   ./reproduce.sh book       the executed notebooks of every run here as pages to read, build/<profile>/book/index.html
#   ./reproduce.sh check      are the published figures and pages the ones of their manifest, and of the default run here?
#   ./reproduce.sh publish    copy the default run's figures to figures/, its pages to docs/ and the findings to README.md
#   ./reproduce.sh setup      the environment alone
#   ./reproduce.sh lab        JupyterLab of that environment on notebooks/, in the smoke profile
#
# Cost on 2 cores: set-up, once, the download of about 1 GB (several with the CUDA build of torch); smoke at most 4
# minutes, default about 45 with AVX-512, test 10 to 22; 4 GB of memory. Interrupt and start again at will.
# Exit codes: 0 done, 1 failed, 2 unknown word, 3 another run is at it, 130 interrupted.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"                         # as sh reproduce.sh
set -euo pipefail
unset CDPATH PYTHONPATH PYTHONHOME PYTHONSAFEPATH PYTHONSTARTUP         # only what constraints.txt lists is imported
unset PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT PIP_REQUIRE_VIRTUALENV    # into this environment, whatever is installed otherwise
export PYTHONNOUSERSITE=1
case ${MTP_BUILD:-/} in /*) ;; *) export MTP_BUILD="$PWD/$MTP_BUILD" ;; esac
export MTP_FROM="$PWD"                                                  # what --text and --backbone name is seen from here
script=${BASH_SOURCE[0]}
while [ -L "$script" ]; do                                              # it may be called through a link, or links to links
  to=$(readlink -- "$script")
  case $to in /*) script=$to ;; *) script=$(dirname -- "$script")/$to ;; esac
done
cd -P -- "$(dirname -- "$script")"

# glibc gives large blocks back to the system at once, and gets them back zeroed, page by page: keeping them saves a tenth.
export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_-33554432} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_-536870912}

stop() { printf 'reproduce.sh: %s\n' "$1" >&2; exit "${2:-1}"; }

# The environment: conda's if the active one is environment.yml's, else .venv in this folder.
venv=$PWD/.venv
base=python3
if [ "${CONDA_DEFAULT_ENV:-}" = "$(sed -n 's/^name: *//p' environment.yml)" ]; then
  venv=$CONDA_PREFIX
  base=$CONDA_PREFIX/bin/python
fi
python=$venv/bin/python
"$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
  stop "Python 3.11 or newer is needed, and '$base' is $("$base" --version 2>&1 || true)"
"$base" -c 'import sys; sys.exit(sys.version_info >= (3, 15))' 2>/dev/null ||
  stop "the pinned packages have wheels for Python 3.11 to 3.14, and '$base' is $("$base" --version 2>&1 || true)"

# The stamp says what was installed, from which files and where; it is written last, so half an installation has none.
wanted() {
  "$base" -c 'import hashlib, os, sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))
parts = project["build-system"], project["project"], open("constraints.txt").read(), sys.version_info[:2], os.getcwd()
print(hashlib.sha256(repr(parts).encode()).hexdigest())'
}
installed() { [ "$(cat "$venv/.mtp-stamp" 2>/dev/null)" = "$(wanted)" ] && "$python" -c '' 2>/dev/null; }

setup() {
  installed && return
  [ -w . ] || stop "$PWD cannot be written to, and the environment is installed from it: clone it to a folder of yours"
  # A lock on descriptor 9, which is also pip's: it ends with the last of them, however they end.
  exec 9>.venv.lock
  "$base" -c 'import fcntl, sys
try: fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError: sys.exit(3)
except OSError as error: sys.exit(error.strerror)' || case $? in
    3) stop "another reproduce.sh is setting up $venv; wait for it" 3 ;;
    *) stop "the file system of $PWD has no file locks (above), which setting up needs: clone onto a local disk" ;;
  esac
  if ! installed; then
    echo "setting up $venv: once, a few minutes" >&2
    if [ "$venv" = "$PWD/.venv" ]; then
      rm -rf .venv
      "$base" -m venv .venv || stop "'$base -m venv .venv' failed (on Debian and Ubuntu: apt install python3-venv)"
    fi
    rm -f "$venv/.mtp-stamp"
    "$python" -m pip install --disable-pip-version-check -c constraints.txt -e '.[test]' >&2 ||
      stop "the installation failed (above); start it again and it is redone"
    wanted >"$venv/.mtp-stamp"
  fi
  exec 9>&-
}

run_tests() {
  unset MTP_PROFILE MTP_NOTEBOOKS
  build=$(mktemp -d)
  trap 'kill -- $(jobs -p | sed s/^/-/) 2>/dev/null || true; rm -rf "$build"' EXIT
  "$python" -m ruff check --no-cache .
  # Side by side, a thread each: on two cores that takes half the time of one after the other. Both sides take about as long.
  set -m                                                                # a process group of its own: the trap ends all of it
  (
    export OMP_NUM_THREADS=1
    MTP_BUILD=$build/nbval MTP_PROFILE=smoke HF_HUB_OFFLINE=1 TQDM_DISABLE=1 "$python" -m pytest -p no:cacheprovider \
      --nbval-lax --nbval-current-env --nbval-cell-timeout=300 notebooks
    MTP_BUILD=$build/beside "$python" -m pytest -p no:cacheprovider tests/base tests/marginal
  ) >"$build/beside.log" 2>&1 &
  set +m
  MTP_BUILD=$build/unit OMP_NUM_THREADS=1 "$python" -m pytest -p no:cacheprovider tests --ignore=tests/base --ignore=tests/marginal
  wait $! || failed=$?
  cat "$build/beside.log"
  [ "${failed-0}" = 0 ] || exit "$failed"
  MTP_BUILD=$build/nbval HF_HUB_OFFLINE=1 "$python" -m mtp_utils.reproduce smoke    # on the tables that the notebooks left
}

# Words are looked at before anything is installed; the standard library is enough for that.
case " $* " in *" --list "* | *" --help "* | *" -h "*) exec "$base" -m mtp_utils.reproduce "$@" ;; esac
word=$("$base" -c 'import sys; from mtp_utils.reproduce import parse; print(parse(sys.argv[1:]).word)' "$@")
setup
case $word in
  setup) echo "$venv is ready" ;;
  test) run_tests ;;
  lab) exec "$python" -m jupyter lab notebooks ;;
  *) exec "$python" -m mtp_utils.reproduce "$@" ;;
esac
