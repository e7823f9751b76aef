#!/usr/bin/env bash
# Prints the path of Python 3.12: python3.12, or one of pyenv's. Exits with 1 and a message if there is none.
for python in python3.12 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python; do
    if "$python" -c '' 2>/dev/null; then # a shim of pyenv may exist without a Python behind it
        command -v "$python"
        exit
    fi
done
echo "Python 3.12 is missing, which LeRobot 0.6 needs: pyenv install 3.12" >&2
exit 1
