#!/usr/bin/env bash
# Makes .venv-lerobot: this package beside LeRobot, with everything that constraints-lerobot.txt pins. `make setup-lerobot` calls it, and
# only when something changed.
#
# LeRobot 0.4.4, the newest for Python 3.11, asks for an older torch than this package does, and for libraries that drive robots and
# displays. It works with this torch and without those: so it is installed without what it asks for, and what it needs is named here.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
venv=.venv-lerobot
pins=constraints-lerobot.txt
stop() {
    echo "setup-lerobot: $1" >&2
    exit 1
}

command -v "$python" >/dev/null || stop "there is no '$python'; install Python 3.11 or newer, or name one: make setup-lerobot PYTHON=/path/to/python"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    stop "Python 3.11 or newer is needed, but '$python' is $("$python" --version 2>&1); name another: make setup-lerobot PYTHON=python3.12"

# A folder that was copied or moved, or whose Python is gone, still points at the old place.
if [ "$($venv/bin/python -c 'import sys; print(sys.prefix)' 2>/dev/null)" != "$PWD/$venv" ]; then
    echo "setup-lerobot: making $venv with $("$python" --version) from $(command -v "$python")"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    echo '*' >"$venv/.gitignore" # no tool is to look into it
fi

quiet=-qq
[ -t 1 ] && quiet= # somebody is watching: show the downloads
install() {
    echo "setup-lerobot: installing $*"
    # shellcheck disable=SC2086 # PIP_ARGS is a list
    $venv/bin/python -m pip --disable-pip-version-check install $quiet ${PIP_ARGS:-} -c "$pins" "$@"
}
pin() { grep "^$1==" "$pins"; }

# torch goes in by its exact version first, as in setup.sh: a CPU build where pip knows one.
install "$(pin torch)"
install -e . pytest hypothesis datasets accelerate av deepdiff diffusers draccus einops huggingface-hub imageio jsonlines pyserial termcolor
install --no-deps "$(pin lerobot)" "$(pin torchvision)"

# The registry's torchvision is a CUDA build. Beside a CPU build of torch two of its operators are missing, and it cannot be imported:
# then they are declared before it is.
site=$($venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -f "$site"/torchvision_operators.*
if ! $venv/bin/python -c 'import torchvision' 2>/dev/null; then
    cp scripts/torchvision_operators.py "$site"/
    echo 'import torchvision_operators' >"$site"/torchvision_operators.pth
fi
HF_HUB_OFFLINE=1 $venv/bin/python -c 'import lerobot.policies.factory' || stop "LeRobot cannot be imported in $venv; see above"

echo "$PWD" >"$venv/.set-up-in"
echo "setup-lerobot: done; the command is $venv/bin/residual-rl"
