"""The command line as a user meets it: in a process of its own, by its output and exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain import __version__
from tests.config.recipes import GRPO, changed, write

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str | Path, module: str = "posttrain") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1"}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["check", "--help"], ["methods"], ["--version"]]
)
def test_help_and_lists_load_neither_torch_nor_trl(arguments: list[str]):
    code = (
        "import sys\n"
        "from posttrain.cli import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'trl', 'transformers', 'datasets', 'accelerate', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_help_names_the_verbs_and_version_the_version():
    shown = run("--help").stdout
    assert all(verb in shown for verb in ("train", "check", "methods", "doctor"))
    assert run("--version").stdout.strip() == f"posttrain {__version__}"


def test_methods_lists_the_registry():
    from posttrain.registry import METHODS

    shown = run("methods").stdout
    for entry in METHODS.values():
        assert entry.key in shown and entry.paper.arxiv in shown


def test_doctor_compares_versions_and_private_names():
    done = run("doctor")
    assert "trl" in done.stdout and "GRPOTrainer._generate_and_score_completions" in done.stdout
    assert done.returncode == (1 if "differs" in done.stdout else 0)


def test_check_of_a_right_recipe_ends_with_ok(tmp_path: Path):
    done = run("check", write(tmp_path, GRPO), "--show-rows", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().splitlines()[-1].startswith("ok")
    assert "-- train row 0 (grpo)" in done.stdout


def test_check_of_a_wrong_recipe_prints_every_mistake_and_no_traceback(tmp_path: Path):
    path = write(tmp_path, changed(GRPO, {"trainer.seed": -1, "model.dtype": "fp32"}))
    done = run("check", path)
    assert done.returncode == 2
    assert "trainer.seed: out of range" in done.stderr and "model.dtype: unknown name" in done.stderr
    assert "2 errors" in done.stderr and "Traceback" not in done.stderr


def test_check_finds_what_only_shows_with_data_and_ranks(tmp_path: Path):
    path = write(tmp_path, changed(GRPO, {"trainer.per_device_train_batch_size": 2}))
    assert run("check", path, "--world-size", "2").returncode == 0
    done = run("check", path)
    assert done.returncode == 2 and "does not hold whole groups of 4 completions" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_overrides_reach_the_recipe(tmp_path: Path):
    done = run("check", write(tmp_path, GRPO), "trainer.learning_rate=-1")
    assert done.returncode == 2 and "override trainer.learning_rate=-1: out of range" in done.stderr


@pytest.mark.parametrize("arguments", [["check", "nowhere.yaml"], ["train", "nowhere.yaml"]])
def test_a_missing_recipe_is_told_in_one_line(arguments: list[str]):
    done = run(*arguments)
    assert (
        done.returncode == 2
        and done.stderr.strip() == "error: nowhere.yaml: no such recipe. Give the path of a YAML file."
    )
