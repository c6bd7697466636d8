#!/usr/bin/env bash
# The main job: sets posttrain up on first use, then runs recipes/quickstart.yaml. Arguments go to `posttrain train`:
#   scripts/quickstart.sh trainer.output_dir=runs/mine
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

SECONDS=0
scripts/setup.sh
setup_seconds=$SECONDS

SECONDS=0
status=0
"${POSTTRAIN_VENV:-.venv}/bin/posttrain" train recipes/quickstart.yaml "$@" || status=$?
echo "set-up: ${setup_seconds} s; run: ${SECONDS} s"
exit "$status"
