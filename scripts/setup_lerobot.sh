#!/usr/bin/env bash
# Makes .venv-lerobot: this package beside LeRobot, with everything that constraints-lerobot.txt pins. `make setup-lerobot` calls it, and
# only when something changed.
#
# LeRobot 0.4.4, the newest for Python 3.11, asks for an older torch than this package does, and for libraries that drive robots and
# displays. It works with this torch and without those: so it is installed without what it asks for, and what it needs is named here.
me=setup-lerobot venv=.venv-lerobot pins=constraints-lerobot.txt
source "$(dirname "$0")/venv.sh"

install -e . pytest hypothesis datasets accelerate av deepdiff diffusers draccus einops huggingface-hub imageio jsonlines pyserial termcolor
install --no-deps "$(pin lerobot)" "$(pin torchvision)"

# The registry's torchvision is a CUDA build. Beside a CPU build of torch two of its operators are missing, and it cannot be imported:
# then they are declared before it is.
site=$($venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -f "$site"/torchvision_operators.*
if ! $venv/bin/python -c 'import torchvision' 2>/dev/null; then
    cp scripts/torchvision_operators.py "$site"/
    echo 'import torchvision_operators' >"$site"/torchvision_operators.pth
fi
HF_HUB_OFFLINE=1 $venv/bin/python -c 'import lerobot.policies.factory' || stop "LeRobot cannot be imported in $venv; see above"

finish
