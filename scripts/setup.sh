#!/usr/bin/env bash
# Creates .venv with the versions of constraints.txt. Called by `make setup` if something has changed.
me=setup venv=.venv pins=constraints.txt
source "$(dirname "$0")/venv.sh"

install -e '.[dev]'
.venv/bin/python scripts/opengl.py
finish
