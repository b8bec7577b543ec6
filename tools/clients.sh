#!/usr/bin/env bash
# Programs of others, unmodified, in environments of their own; then the tests that run them on what we export.
# CLIENTS: folder of the environment, made once (remove it to have newer versions); CLIENTS-old holds ONNX Runtime 1.15.
# BIN: of our own environment. VAETAG_KOHYA: the tagging script of kohya-ss/sd-scripts, where it is at hand.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${BIN:=.venv/bin}" "${CLIENTS:=.venv-clients}" "${PYTHON:=python3}"

environment() {   # folder, packages
    local at=$1; shift
    if [ "$(cat "$at/.packages" 2>/dev/null)" = "$*" ]; then return 0; fi
    rm -rf "$at"
    "$PYTHON" -m venv "$at" && "$at/bin/python" -m pip install -q ${PIPFLAGS:-} "$@" && echo "$*" > "$at/.packages"
}

environment "$CLIENTS" dghs-imgutils onnxruntime pandas timm diffusers onnx setuptools
export VAETAG_CLIENTS=$CLIENTS/bin/python
if environment "$CLIENTS-old" 'onnxruntime==1.15.*' 'numpy<2'; then export VAETAG_CLIENTS_OLD=$CLIENTS-old/bin/python
else echo "ONNX Runtime 1.15 has no wheel for this Python: its tests skip"; fi
"$BIN/python" -m pytest -m clients -rs "$@" tests
