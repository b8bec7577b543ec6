#!/usr/bin/env bash
# The test command: every notebook as its own test, then tests/. BIN is the virtual environment's bin folder.
# EXPORTED=yes says that the modules are those of the notebooks already, and that others may be reading them now.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${BIN:=.venv/bin}"
cores=$(env -u OMP_NUM_THREADS nproc 2>/dev/null || sysctl -n hw.ncpu)   # nproc would answer with that variable
export OMP_NUM_THREADS=1
[ "${EXPORTED:-}" = yes ] || "$BIN/nbdev_export"
TMPDIR=$(mktemp -d); export TMPDIR; trap 'rm -rf "$TMPDIR"' EXIT   # what notebooks and tests write goes with it
log=$TMPDIR/notebooks.log
"$BIN/nbdev_test" --n_workers "$(( cores < 4 ? cores : 4 ))" --do_print --timing 2>&1 | tee "$log"
grep -q '^Success' "$log" || { echo "notebook tests failed"; exit 1; }   # a path that matches nothing exits 0
# worksteal: a file's tests run in one process as long as both have work, so that a module's fixtures are made once
"$BIN/python" -m pytest -m 'not slow' -n "$(( cores < 4 ? cores : 4 ))" --dist worksteal --durations=15 --durations-min=2 tests
