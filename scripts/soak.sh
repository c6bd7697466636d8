#!/usr/bin/env bash
# Kills training runs at random moments and shows that nothing is lost: scripts/soak.sh [--kills N] [--seed S]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh dev
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
exec .venv/bin/python scripts/soak.py "$@"
