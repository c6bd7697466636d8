#!/usr/bin/env bash
# What a new user gets: an environment with nothing but the core dependencies, made anew, in which every module is
# imported, what needs an extra says which in one line, and the quickstart runs to its end. Four minutes on two cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export POSTTRAIN_VENV=.venv-bare
rm -rf "$POSTTRAIN_VENV"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

scripts/setup.sh
"$POSTTRAIN_VENV/bin/python" scripts/bare.py "$work"
scripts/quickstart.sh "trainer.output_dir=$work/quickstart"
test -s "$work/quickstart/REPORT.md"
