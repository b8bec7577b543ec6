#!/usr/bin/env bash
# What is committed agrees with itself: export, clean and README change nothing; house rules of the notebooks hold.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${BIN:=.venv/bin}"
state() { git ls-files -co --exclude-standard -- nbs vaetag_nb README.md | sort | xargs sha256sum; }
before=$(state)
"$BIN/nbdev_export"; "$BIN/nbdev_clean"; "$BIN/python" tools/nbreadme.py
if ! diff <(echo "$before") <(state); then echo "notebooks, modules and README disagree: run 'make export' and commit"; exit 1; fi
"$BIN/python" tools/houserules.py
"$BIN/ruff" check -q --select F63,F7,F82,E9 vaetag_nb   # a module may re-export what it imports
"$BIN/ruff" check -q --select F401,F63,F7,F82,E9 tests benchmarks tools
echo "in sync"
