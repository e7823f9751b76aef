#!/usr/bin/env bash
# Creates .venv-NAME for a package of envs: setup_envs.sh NAME PACKAGE..., called by `make setup-NAME`.
#
# The worker processes that step the envs run in it. It contains neither this package nor torch.
me=setup-$1 venv=.venv-$1 pins=constraints-$1.txt
source "$(dirname "$0")/venv.sh"

install "${@:2}"
echo "$PWD" >"$venv/.set-up-in"
echo "$me: done; the tasks for these envs find $venv by themselves"
