#!/usr/bin/env bash
# Makes .venv with everything that constraints.txt pins. `make setup` calls it, and only when something changed.
me=setup venv=.venv pins=constraints.txt
source "$(dirname "$0")/venv.sh"

install -e '.[dev]'
.venv/bin/python scripts/opengl.py
finish
