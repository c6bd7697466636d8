"""The command line as a user meets it, by its output and exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain import __version__, cli
from tests.config.recipes import GRPO, changed, write

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the entry point in this process: (exit code, standard output, standard error)."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["posttrain", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        shown = capsys.readouterr()
        return int(stopped.value.code or 0), shown.out, shown.err

    return call


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["check", "--help"],
        ["eval", "--help"],
        ["reproduce", "--help"],
        ["score-tokens", "--help"],
        ["methods"],
        ["--version"],
    ],
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


def test_the_module_is_the_command(tmp_path: Path):
    """`python -m posttrain` in a process of its own: a preview without colour codes, "ok" at the end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "posttrain", "check", str(write(tmp_path, GRPO)), "--show-rows", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().splitlines()[-1].startswith("ok")
    assert "-- train row 0 (" in done.stdout and "\x1b[" not in done.stdout


def test_help_names_the_verbs_and_version_the_version(run):
    code, shown, _ = run("--help")
    assert code == 0 and all(verb in shown for verb in ("train", "check", "eval", "methods", "doctor"))
    assert run("--version")[1].strip() == f"posttrain {__version__}"


def test_methods_lists_the_registry(run):
    from posttrain.registry import METHODS

    _, shown, _ = run("methods")
    for entry in METHODS.values():
        assert entry.key in shown and entry.paper.arxiv in shown


def test_doctor_compares_versions_and_private_names(run):
    code, shown, _ = run("doctor")
    assert "trl" in shown and "GRPOTrainer._generate_and_score_completions" in shown
    assert code == (1 if "differs" in shown else 0)


def test_what_only_the_comparison_of_gradients_reads_is_refused_without_it(run, tmp_path: Path):
    code, _, errors = run("doctor", "recipe.yaml")
    assert code == 2 and "go with --gradients" in errors
    code, _, errors = run("doctor", "--gradients", "--config-file", tmp_path / "missing.yaml")
    assert code == 2 and errors.startswith("error: ") and "the accelerate config cannot be read" in errors


def test_a_wrong_recipe_gives_every_mistake_in_a_line_of_its_own(run, tmp_path: Path):
    code, _, errors = run("check", write(tmp_path, changed(GRPO, {"trainer.seed": -1, "model.dtype": "fp32"})))
    assert code == 2
    assert "trainer.seed: out of range" in errors and "model.dtype: unknown name" in errors
    assert errors.strip().splitlines()[-1] == "2 errors" and len(errors.strip().splitlines()) == 3


def test_what_only_shows_with_ranks_is_found_for_the_ranks_asked_for(run, tmp_path: Path):
    path = write(tmp_path, changed(GRPO, {"trainer.per_device_train_batch_size": 2}))
    assert run("check", path, "--world-size", "2")[0] == 0
    code, shown, _ = run("check", path)
    assert code == 2 and "error: " in shown and "does not hold whole groups of 4 completions" in shown


def test_overrides_reach_the_recipe(run, tmp_path: Path):
    code, _, errors = run("check", write(tmp_path, GRPO), "trainer.learning_rate=-1")
    assert code == 2 and "override trainer.learning_rate=-1: out of range" in errors


def test_train_refuses_what_check_refuses(run, tmp_path: Path):
    path = write(tmp_path, changed(GRPO, {"trainer.per_device_train_batch_size": 2}))
    code, shown, errors = run("train", path)
    assert code == 2 and "does not hold whole groups" in errors and not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["check", "train"])
def test_a_missing_recipe_is_told_in_one_line(run, verb: str, tmp_path: Path):
    path = tmp_path / "none.yaml"
    code, _, errors = run(verb, path)
    assert code == 2 and errors.strip() == f"error: {path}: no such recipe. Give the path of a YAML file."


@pytest.mark.parametrize("arguments", [["chek", "r.yaml"], ["check"], ["check", "r.yaml", "--world-size", "0"]])
def test_a_wrong_call_is_told_without_a_traceback(run, arguments: list[str]):
    code, _, errors = run(*arguments)
    assert code == 2 and "Error" in errors and "Traceback" not in errors
