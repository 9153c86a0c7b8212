#!/usr/bin/env bash
# Sets up .venv with this project, its tests' tools and the engine for this machine; does nothing where that is done.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
uv_version=0.13.8

if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
    hardware=gpu
    echo "This machine has an NVIDIA GPU: installing for GPU."
else
    hardware=cpu
    echo "This machine has no NVIDIA GPU: installing for CPU."
fi

if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'; then
    echo "Python 3.11 or 3.12 is needed, but $python is $("$python" --version 2>&1); name another one: make PYTHON=python3.11" >&2
    exit 1
fi

stamp=.venv/installed
wanted="$PWD $hardware $(cat pyproject.toml requirements/* | sha256sum | cut -d' ' -f1)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    echo "Everything is installed already."
    exit 0
fi
if [ -f "$stamp" ] && [ "$(cut -d' ' -f1 "$stamp")" != "$PWD" ] || ! .venv/bin/python -c '' 2>/dev/null; then
    rm -rf .venv
    "$python" -m venv .venv
fi
rm -f "$stamp"
.venv/bin/python -m pip install --quiet --disable-pip-version-check "uv==$uv_version"

# uv does not read pip's settings: hand on where pip looks for packages.
setting() { .venv/bin/python -m pip config get "global.$1" 2>/dev/null || true; }
options=(--constraint "requirements/constraints-$hardware.txt")
links=${PIP_FIND_LINKS:-$(setting find-links)}
for link in $links; do options+=(--find-links "$link"); done
index=${PIP_INDEX_URL:-$(setting index-url)}
if [ -n "$index" ]; then options+=(--default-index "$index"); fi
if [ "$hardware" = cpu ]; then
    options+=(--override requirements/cpu-overrides.txt)
    wheel_at_hand=no
    for link in $links; do
        if compgen -G "${link#file://}/torch-*+cpu-*.whl" >/dev/null; then wheel_at_hand=yes; fi
    done
    if [ "$wheel_at_hand" = no ]; then options+=(--torch-backend cpu); fi
fi
cache=$(.venv/bin/uv cache dir)
mkdir -p "$cache"
# Packages are hard links into uv's cache, which only works within one file system.
if [ "$(stat -c %d "$cache")" != "$(stat -c %d .venv)" ]; then export UV_LINK_MODE=${UV_LINK_MODE:-copy}; fi

.venv/bin/uv pip install --python .venv/bin/python --compile-bytecode "${options[@]}" --editable ".[$hardware,dev]"
if [ "$hardware" = cpu ]; then .venv/bin/python requirements/name_vllm.py; fi
echo "$wanted" >"$stamp"
