#!/usr/bin/env bash
# Creates .venv-lerobot-0.6 with this package and LeRobot 0.6, which needs Python 3.12, in the versions of
# constraints-lerobot-0.6.txt. Called by `make setup-lerobot-0.6` if something has changed.
#
# All of LeRobot's own requirements are met. On PyPI, torch for this Python is a CUDA build: about 6 GB on the disk.
me=setup-lerobot-0.6 venv=.venv-lerobot-0.6 pins=constraints-lerobot-0.6.txt
PYTHON=$("$(dirname "$0")/python312.sh") || exit 1
source "$(dirname "$0")/venv.sh"

install -e '.[mujoco]' pytest hypothesis "lerobot[core-scripts,training,evaluation,diffusion]"
install --no-deps -e plugins/lerobot_policy_residual_rl
HF_HUB_OFFLINE=1 $venv/bin/python -c 'import lerobot.policies.factory' || stop "LeRobot cannot be imported in $venv; see above"

finish
