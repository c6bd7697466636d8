#!/usr/bin/env bash
# Do the contract tests pass with the newest versions that pyproject.toml allows? In an environment of its own,
# .venv-newest, beside the tested set of scripts/constraints.txt. torch stays at the tested build.
#
#   scripts/newest.sh                         the newest allowed versions
#   scripts/newest.sh transformers==5.25.0    the same with a version that is not allowed yet
#
# Where it passes, an upper bound in pyproject.toml may be raised; where it fails, the bound says why it stands.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly venv=.venv-newest python=.venv-newest/bin/python
POSTTRAIN_VENV="$venv" scripts/setup.sh dev
source scripts/index.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

printf '%s\n' "$@" >"$work/overrides.txt"
"$python" -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >"$work/torch.txt"
"$python" -m uv pip install --quiet --python "$python" ${links[@]+"${links[@]}"} --upgrade \
    --constraint "$work/torch.txt" --override "$work/overrides.txt" --editable '.[dev]'
rm -f "$venv/posttrain-setup.txt"  # the next call installs anew: what is newest may have changed

echo "Other versions than in scripts/constraints.txt:"
"$python" - <<'PY'
from importlib.metadata import PackageNotFoundError, version

for line in open("scripts/constraints.txt", encoding="utf-8"):
    name, _, pin = line.partition(";")[0].strip().partition("==")
    try:
        found = version(name) if pin else pin
    except PackageNotFoundError:
        continue
    if pin and ";" not in line and found.split("+")[0] != pin:
        print(f"  {name} {pin} -> {found}")
PY
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
"$python" -m pytest -q -n 2 --dist loadfile tests/seam tests/batteries tests/data tests/models
