#!/usr/bin/env bash
# Resolves pyproject.toml anew for both kinds of machines and writes down the versions, for fresh machines to get the same.
set -euo pipefail
cd "$(dirname "$0")/.."

resolve() {
    .venv/bin/uv pip compile pyproject.toml --extra "$1" --extra dev --python-version 3.11 --upgrade \
        --no-header --no-annotate --quiet --output-file "requirements/constraints-$1.txt" "${@:2}"
}
links=()
for link in ${PIP_FIND_LINKS:-$(.venv/bin/python -m pip config get global.find-links 2>/dev/null || true)}; do
    links+=(--find-links "$link")
done
resolve cpu --override requirements/cpu-overrides.txt "${links[@]}"
resolve gpu
