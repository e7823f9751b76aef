# Sourced by the set-ups, which say first: `me` (their name in what they tell), `venv` (the environment's folder), `pins` (a constraints file).
# Makes the environment where there is none that works, and gives `stop`, `install` and `pin`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
stop() {
    echo "$me: $1" >&2
    exit 1
}

command -v "$python" >/dev/null || stop "there is no '$python'; install Python 3.11 or newer, or name one: make $me PYTHON=/path/to/python"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    stop "Python 3.11 or newer is needed, but '$python' is $("$python" --version 2>&1); name another: make $me PYTHON=python3.12"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    stop "'$python' cannot make virtual environments; install its venv module (Debian, Ubuntu: apt-get install python3-venv)"

# An environment that was copied or moved, or whose Python is gone, still points at the old place.
if [ "$("$venv/bin/python" -c 'import sys; print(sys.prefix)' 2>/dev/null)" != "$PWD/$venv" ] ||
    ! head -n 3 "$venv/bin/pip" 2>/dev/null | grep -qF "$PWD/$venv/"; then
    echo "$me: making $venv with $("$python" --version) from $(command -v "$python")"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    echo '*' >"$venv/.gitignore" # no tool is to look into it
fi

quiet=-qq
[ -t 1 ] && quiet= # somebody is watching: show the downloads
install() {
    echo "$me: installing $*"
    # shellcheck disable=SC2086 # PIP_ARGS is a list
    "$venv/bin/python" -m pip --disable-pip-version-check install $quiet ${PIP_ARGS:-} -c "$pins" "$@"
}
pin() { grep "^$1==" "$pins"; }

# torch goes in by its exact version first: where pip knows a CPU or local build of it (PIP_ARGS, PIP_FIND_LINKS, pip.conf),
# that is the one it takes, and nothing later looks for another.
install "$(pin torch)"

finish() {
    echo "$PWD" >"$venv/.set-up-in"
    echo "$me: done; the command is $venv/bin/residual-rl"
}
