#!/usr/bin/env bash
# Sets the test environment up on first use, then checks style and runs the tests, after them every recipe, the
# fuzzers and the short form of scripts/soak.sh.
# With arguments, which go to pytest, only what they name:
#   scripts/test.sh tests/losses             one folder
#   scripts/test.sh -m slow                  the tests that are left out by default, smoke recipes among them
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh dev
.venv/bin/ruff check .
.venv/bin/ruff format --check --quiet . || { echo "Not formatted as above; run: .venv/bin/ruff format ." >&2; exit 1; }
.venv/bin/mypy posttrain

# One thread a process: two OpenMP teams on the same cores make a step tens of times slower.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
.venv/bin/python -m pytest -n 2 --dist loadfile "$@"
if [ $# -eq 0 ]; then
    # Two processes each, so one after another.
    .venv/bin/python -m pytest -m engines tests/engines
    .venv/bin/python -m pytest -n 2 --dist load --durations=20 -m slow
    scripts/soak.sh --kills 4
    .venv/bin/python -m pytest --durations=5 -m faults tests/faults
    # vLLM has an environment of its own, since trl imports it wherever it is installed, which takes seconds each time.
    POSTTRAIN_VENV=.venv-vllm scripts/setup.sh dev vllm
    .venv-vllm/bin/python -m pytest --durations=5 -m vllm tests/rollouts
fi
