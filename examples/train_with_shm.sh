#!/usr/bin/env bash
# Two trainings with different losses, side by side on one copy of the data in shared memory; it goes when both are done.
#
#   examples/train_with_shm.sh train.h5 --epochs 3 --num-workers 2
set -euo pipefail

h5=${1:?usage: train_with_shm.sh FILE.h5 [ARGUMENT of train.py]...}
shift
train=("${PYTHON:-python}" "$(dirname "${BASH_SOURCE[0]}")/train.py" --h5 "$h5")

# Whichever comes first puts the file into shared memory, the other one waits for it and attaches.
"${train[@]}" --shared-memory --loss mse "$@" &
first=$!
"${train[@]}" --shared-memory --loss l1 "$@" &
second=$!
trap 'kill "$first" "$second" 2>/dev/null || true' INT TERM

status=0
wait "$first" || status=$?
wait "$second" || status=$?

"${train[@]}" --cleanup-shm
exit "$status"
