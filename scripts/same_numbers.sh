#!/usr/bin/env bash
# Do the smoke recipes still make the same numbers? Three minutes on two cores.
#
#   scripts/same_numbers.sh before.json     before code is moved: runs them and keeps what they made
#   scripts/same_numbers.sh before.json     after it: the file is there, so both are compared, exit status 1 if they differ
#
# Kept are metrics and evaluations but for times, every completion, and the hash of the final weights.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh dev
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
exec .venv/bin/python scripts/same_numbers.py "$@"
