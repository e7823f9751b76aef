#!/usr/bin/env bash
# Updates constraints.txt to the newest versions that pyproject.toml allows, with the version of torch that is pinned now
# (to update torch, edit its line first).
set -euo pipefail
cd "$(dirname "$0")/.."

torch=$(grep '^torch==' constraints.txt)
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
"${PYTHON:-python3}" -m venv "$temporary/venv"
echo "$torch" >"$temporary/pin.txt"
# shellcheck disable=SC2086 # PIP_ARGS is a list
"$temporary/venv/bin/pip" install -qq ${PIP_ARGS:-} -c "$temporary/pin.txt" -e '.[dev]'
{
    echo "# What development and the tests use, exactly. Written by \`make constraints\`; not needed by users of the wheel."
    "$temporary/venv/bin/pip" freeze --all --exclude-editable --exclude pip |
        grep -v '^nvidia-\|^triton==\|^cuda-' | # pinned by the CUDA build of torch itself
        sed -E 's/^(torch==[0-9.]+)\+.*/\1/'    # any build of that version
} >"$temporary/constraints.txt"
mv "$temporary/constraints.txt" constraints.txt
