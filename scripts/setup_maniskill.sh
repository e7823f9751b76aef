#!/usr/bin/env bash
# Creates .venv-maniskill with this package and ManiSkill, in the versions of constraints-maniskill.txt. Called by
# `make setup-maniskill` if something has changed.
#
# ManiSkill needs a separate environment because its motion planner, mplib 0.1.1, crashes with numpy 2.
me=setup-maniskill venv=.venv-maniskill pins=constraints-maniskill.txt
source "$(dirname "$0")/venv.sh"

install -e '.[maniskill,diffusion]' pytest hypothesis
$venv/bin/python -W ignore -c 'import mani_skill.envs' || stop "ManiSkill cannot be imported in $venv; see above"
$venv/bin/python -W ignore scripts/vulkan.py
finish
