# Sourced by the setup scripts, which set `me` (their name in messages), `venv` (the folder of the environment) and `pins`
# (a constraints file). Creates the environment if there is no working one, and defines `stop`, `install`, `pin` and `finish`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
stop() {
    echo "$me: $1" >&2
    exit 1
}

command -v "$python" >/dev/null || stop "there is no '$python'; install Python 3.11 or newer, or choose one: make $me PYTHON=/path/to/python"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    stop "Python 3.11 or newer is needed, but '$python' is $("$python" --version 2>&1); choose another: make $me PYTHON=python3.12"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    stop "'$python' cannot create virtual environments; install its venv module (Debian, Ubuntu: apt-get install python3-venv)"

# An environment that was copied or moved, or whose Python was removed, has wrong paths.
if [ "$("$venv/bin/python" -c 'import sys; print(sys.prefix)' 2>/dev/null)" != "$PWD/$venv" ] ||
    ! head -n 3 "$venv/bin/pip" 2>/dev/null | grep -qF "$PWD/$venv/"; then
    echo "$me: creating $venv with $("$python" --version) from $(command -v "$python")"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    echo '*' >"$venv/.gitignore" # keeps git and other tools out of it
fi

quiet=-qq
[ -t 1 ] && quiet= # interactive: show the downloads
install() {
    echo "$me: installing $*"
    # shellcheck disable=SC2086 # PIP_ARGS is a list
    "$venv/bin/python" -m pip --disable-pip-version-check install $quiet ${PIP_ARGS:-} -c "$pins" "$@"
}
pin() { grep "^$1==" "$pins"; }

# Install torch first and in its exact version: pip then uses a CPU or local build if one is configured (PIP_ARGS,
# PIP_FIND_LINKS, pip.conf), and later installations do not replace it.
if pin torch >/dev/null; then
    install "$(pin torch)"
fi

finish() {
    echo "$PWD" >"$venv/.set-up-in"
    echo "$me: done; the command is $venv/bin/residual-rl"
}
