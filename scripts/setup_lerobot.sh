#!/usr/bin/env bash
# Creates .venv-lerobot with this package and LeRobot, in the versions of constraints-lerobot.txt. Called by
# `make setup-lerobot` if something has changed.
#
# LeRobot 0.4.4, the newest for Python 3.11, requires an older torch than this package, and libraries for robots and
# displays. It works with the newer torch and without most of those libraries, so it is installed without its dependencies,
# and the ones that it needs are listed here: `lerobot-record` imports opencv and rerun. torchvision is one that LeRobot
# 0.4.4 allows, older than torch, since it reads videos with a class that newer ones lack.
me=setup-lerobot venv=.venv-lerobot pins=constraints-lerobot.txt
source "$(dirname "$0")/venv.sh"

install -e '.[mujoco]' pytest hypothesis datasets accelerate av deepdiff diffusers draccus einops huggingface-hub imageio jsonlines pyserial termcolor
install --no-deps "$(pin lerobot)" "$(pin torchvision)" "$(pin opencv-python-headless)" "$(pin rerun-sdk)"
# The plugin, which LeRobot's commands find: the robot so101_sim, the env so101_paper and the policy residual_rl.
install --no-deps -e plugins/lerobot_policy_residual_rl

# The torchvision on PyPI is a CUDA build. With a CPU build of torch, two of its operators are missing, and it cannot be
# imported unless they are declared before.
site=$($venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -f "$site"/torchvision_operators.*
if ! $venv/bin/python -c 'import torchvision' 2>/dev/null; then
    cp scripts/torchvision_operators.py "$site"/
    echo 'import torchvision_operators' >"$site"/torchvision_operators.pth
fi
HF_HUB_OFFLINE=1 $venv/bin/python -c 'import lerobot.policies.factory' || stop "LeRobot cannot be imported in $venv; see above"

finish
