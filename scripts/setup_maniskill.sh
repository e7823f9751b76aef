#!/usr/bin/env bash
# Makes .venv-maniskill: this package beside ManiSkill, with everything that constraints-maniskill.txt pins. `make setup-maniskill` calls it,
# and only when something changed.
#
# ManiSkill has an environment of its own because its motion planner, mplib 0.1.1, crashes with numpy 2.
me=setup-maniskill venv=.venv-maniskill pins=constraints-maniskill.txt
source "$(dirname "$0")/venv.sh"

install -e '.[maniskill,diffusion]' pytest hypothesis
$venv/bin/python -W ignore -c 'import mani_skill.envs' || stop "ManiSkill cannot be imported in $venv; see above"
$venv/bin/python -W ignore scripts/vulkan.py
finish
