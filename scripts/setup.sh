#!/usr/bin/env bash
# Makes .venv with everything that constraints.txt pins. `make setup` calls it, and only when something changed.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
stop() {
    echo "setup: $1" >&2
    exit 1
}

command -v "$python" >/dev/null || stop "there is no '$python'; install Python 3.11 or newer, or name one: make setup PYTHON=/path/to/python"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    stop "Python 3.11 or newer is needed, but '$python' is $("$python" --version 2>&1); name another: make setup PYTHON=python3.12"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    stop "'$python' cannot make virtual environments; install its venv module (Debian, Ubuntu: apt-get install python3-venv)"

# A .venv that was copied or moved, or whose Python is gone, still points at the old place.
if [ "$(.venv/bin/python -c 'import sys; print(sys.prefix)' 2>/dev/null)" != "$PWD/.venv" ] ||
    ! head -n 3 .venv/bin/pip 2>/dev/null | grep -qF "$PWD/.venv/"; then
    echo "setup: making .venv with $("$python" --version) from $(command -v "$python")"
    rm -rf .venv
    "$python" -m venv .venv
fi

# torch goes in by its exact version first: where pip knows a CPU or local build of it (PIP_ARGS, PIP_FIND_LINKS, pip.conf),
# that is the one it takes, and nothing later looks for another.
quiet=-qq
[ -t 1 ] && quiet= # somebody is watching: show the downloads
install() {
    echo "setup: installing $*"
    # shellcheck disable=SC2086 # PIP_ARGS is a list
    .venv/bin/python -m pip --disable-pip-version-check install $quiet ${PIP_ARGS:-} -c constraints.txt "$@"
}
install "$(grep '^torch==' constraints.txt)"
install -e '.[dev]'

.venv/bin/python scripts/opengl.py

echo "$PWD" >.venv/.set-up-in
echo "setup: done; the command is .venv/bin/residual-rl"
