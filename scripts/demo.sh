#!/usr/bin/env bash
# Trains a residual on the SO-101 task, compares it with its base policy, and prints the paths of the results.
# DEMO_TRAIN and DEMO_EVAL are additional flags.
set -euo pipefail
cd "$(dirname "$0")/.."

n=1
while [ -e "runs/demo-$n" ]; do n=$((n + 1)); done
run=runs/demo-$n

# shellcheck disable=SC2086 # the variables are lists of flags
.venv/bin/residual-rl train so101-paper --base-policy jacobian --total-timesteps 100000 --eval-freq 20000 --seed 1 --output-dir "$run" ${DEMO_TRAIN:-}
# shellcheck disable=SC2086
.venv/bin/residual-rl eval "$run" --n-episodes 200 --compare-base --compare-zero --plot --save-video ${DEMO_EVAL:-}

echo
echo "Run folder: $PWD/$run"
for file in report.html video.mp4; do
    [ -e "$run/$file" ] && echo "  $PWD/$run/$file"
done
exit 0
