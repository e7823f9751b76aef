#!/usr/bin/env bash
# Makes .venv-maniskill: this package beside ManiSkill, with everything that constraints-maniskill.txt pins. `make setup-maniskill` calls it,
# and only when something changed.
#
# ManiSkill has an environment of its own because its motion planner, mplib 0.1.1, crashes with numpy 2.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
venv=.venv-maniskill
pins=constraints-maniskill.txt
stop() {
    echo "setup-maniskill: $1" >&2
    exit 1
}

command -v "$python" >/dev/null || stop "there is no '$python'; install Python 3.11 or newer, or name one: make setup-maniskill PYTHON=/path/to/python"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    stop "Python 3.11 or newer is needed, but '$python' is $("$python" --version 2>&1); name another: make setup-maniskill PYTHON=python3.12"

# A folder that was copied or moved, or whose Python is gone, still points at the old place.
if [ "$($venv/bin/python -c 'import sys; print(sys.prefix)' 2>/dev/null)" != "$PWD/$venv" ]; then
    echo "setup-maniskill: making $venv with $("$python" --version) from $(command -v "$python")"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    echo '*' >"$venv/.gitignore" # no tool is to look into it
fi

quiet=-qq
[ -t 1 ] && quiet= # somebody is watching: show the downloads
install() {
    echo "setup-maniskill: installing $*"
    # shellcheck disable=SC2086 # PIP_ARGS is a list
    $venv/bin/python -m pip --disable-pip-version-check install $quiet ${PIP_ARGS:-} -c "$pins" "$@"
}

# torch goes in by its exact version first, as in setup.sh: a CPU build where pip knows one.
install "$(grep '^torch==' "$pins")"
install -e '.[maniskill,diffusion]' pytest hypothesis

$venv/bin/python -W ignore -c 'import mani_skill.envs' || stop "ManiSkill cannot be imported in $venv; see above"
$venv/bin/python -W ignore scripts/vulkan.py

echo "$PWD" >"$venv/.set-up-in"
echo "setup-maniskill: done; the command is $venv/bin/residual-rl"
