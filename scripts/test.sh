#!/usr/bin/env bash
# Runs every part of the tests, also after one has failed, and ends with a summary. `make test` calls it.
# Exits with 1 if any part failed.
set -uo pipefail
cd "$(dirname "$0")/.."

PARTS=(lint typecheck test-main test-lerobot test-maniskill test-envs)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
failed=0
summary=()

# LeRobot 0.6 is tested where its environment exists: setting it up takes many minutes.
new=test-lerobot-0.6
if [ -e .venv-lerobot-0.6/.set-up-in ]; then
    PARTS+=("$new")
elif reason=$(scripts/python312.sh 2>&1 >/dev/null); then
    summary+=("$(printf '%-16s not run   make setup-lerobot-0.6 creates its environment (10 minutes, 6 GB)' "$new")")
else
    summary+=("$(printf '%-16s not run   %s' "$new" "$reason")")
fi

for part in "${PARTS[@]}"; do
    echo "=== make $part"
    start=$SECONDS
    if "${MAKE:-make}" --no-print-directory "$part" 2>&1 | tee "$log"; then
        result=passed
    else
        result=FAILED
        failed=1
    fi
    # The last line that counts: pytest's "… passed in …", mypy's "Success: …", "All checks passed!".
    closing=$(sed 's/\x1b\[[0-9;]*m//g' "$log" | grep -vE '^(make|Makefile)' | grep -E '(passed|failed|error|Success|Found)' | tail -n 1)
    summary+=("$(printf '%-16s %-7s %5d s   %s' "$part" "$result" $((SECONDS - start)) "$(sed "s/^[= ]*//; s/[= ]*$//" <<<"$closing")")")
done

echo
echo "=== summary"
printf '%s\n' "${summary[@]}"
exit "$failed"
