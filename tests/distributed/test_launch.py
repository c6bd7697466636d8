"""Recipes started as the README says for several processes: they train together, speak once, and stop cleanly."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from posttrain.run import run
from tests.config.recipes import HPT, changed, write

ROOT = Path(__file__).parents[2]


def launch(*arguments: str | Path, first_on_path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` with two processes and the repository's data-parallel layout."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [str(ROOT / "accelerate_configs" / "ddp.yaml"), "--num_processes", "2", "-m", "posttrain.run"]
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    path = os.pathsep.join(map(str, [*([first_on_path] if first_on_path else []), ROOT]))
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "NO_COLOR": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def record(folder: Path) -> dict:
    """What the run wrote down about itself, after the facts that a launch can get wrong without a word."""
    found = json.loads((folder / "run.json").read_text())
    assert found["world"]["num_processes"] == 2
    assert found["world"]["distributed_type"] == ("MULTI_GPU" if torch.cuda.is_available() else "MULTI_CPU")
    return found


def own_lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Standard output, in which every line of ours stands once."""
    return [line for line in done.stdout.splitlines() if line.strip()]


def test_the_hybrid_smoke_recipe_on_two_processes(tmp_path):
    done = launch(ROOT / "recipes" / "hpt" / "smoke.yaml", f"trainer.output_dir={tmp_path}", "trainer.max_steps=2")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    record(tmp_path)
    shown = own_lines(done)
    assert len(set(shown)) == len(shown)
    assert [line.split("|")[0].strip() for line in shown if line.startswith("step ")] == ["step 1/2", "step 2/2"]
    assert sum(line.startswith(("before: ", "after: ")) for line in shown) == 2
    # Two processes of 8 rows: 4 prompts a step, all of them in the fractions of the log.
    assert "2 prompts x 4" not in done.stdout and "4 prompts x 4 completions" in done.stdout
    state = tmp_path / "checkpoint-2"
    assert (state / "posttrain_rank0.json").is_file() and (state / "posttrain_rank1.json").is_file()
    assert (tmp_path / "finished.json").is_file() and (tmp_path / "REPORT.md").is_file()


def test_two_processes_learn_what_one_does(tmp_path):
    """Together they see the global batch of one process: the weights after four steps are the same."""
    recipe = ROOT / "recipes" / "sft" / "smoke.yaml"
    common = ["trainer.max_steps=4", "trainer.warmup_steps=2", "trainer.logging_steps=1"]
    done = launch(recipe, *common, f"trainer.output_dir={tmp_path / 'two'}", "trainer.per_device_train_batch_size=8")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    record(tmp_path / "two")
    run(recipe, [*common, f"trainer.output_dir={tmp_path / 'one'}", "trainer.per_device_train_batch_size=16"])
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    start = load_file(tmp_path / "one" / "initial" / "tiny" / "model.safetensors")
    difference = sum(float(((one[name] - two[name]).double() ** 2).sum()) for name in one) ** 0.5
    moved = sum(float(((one[name] - start[name]).double() ** 2).sum()) for name in one) ** 0.5
    assert difference / moved < 1e-4
    losses = []
    for name in ("one", "two"):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        losses.append([event["loss"] for event in events if "loss" in event])
        assert len({event["num_tokens"] for event in events if "loss" in event}) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def _stopped_by_a_mistake(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Lines of the mistake; both processes ended with status 2, which the launcher reports in its own words."""
    assert done.returncode != 0 and re.search(r"exitcode\s*: 2 ", done.stderr), done.stderr[-3000:]
    return [line for line in (done.stdout + done.stderr).splitlines() if "error: " in line]


def test_a_mistake_is_told_once_and_stops_all_processes(tmp_path):
    done = launch(ROOT / "recipes" / "hpt" / "smoke.yaml", f"trainer.output_dir={tmp_path}", "trainer.max_stesp=2")
    (line,) = _stopped_by_a_mistake(done)
    assert "posttrain/run.py" not in done.stderr  # the launcher's own traceback is the only one
    assert line.startswith("error: ") and "max_steps" in line
    assert not list(tmp_path.iterdir())


def test_a_mistake_is_told_where_rank_0_comes_to_it_last(tmp_path):
    """The launcher ends every process once one has left, so the others wait for rank 0."""
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text('import os, time\nif os.environ.get("RANK") == "0":\n    time.sleep(8)\n')
    recipe = ROOT / "recipes" / "hpt" / "smoke.yaml"
    (line,) = _stopped_by_a_mistake(launch(recipe, "trainer.max_stesp=2", first_on_path=slow))
    assert line.startswith("error: ") and "max_steps" in line


VERDICT = """
import os
from posttrain.errors import RewardError


def verdict(prompts, completions, *, solution, **columns):
    texts = [completion[0]["content"] for completion in completions]
    is_preflight = texts == solution or set(texts) == {"I do not know."}
    if os.environ["RANK"] == "1" and not is_preflight:
        raise RewardError("cannot be verified", where="row 3")
    return [0.0] * len(completions)
"""


def test_a_mistake_that_only_another_rank_meets_is_told_once_with_the_rank(tmp_path):
    (tmp_path / "verdict.py").write_text(VERDICT)
    changes = {"data.eval": None, "eval": None, "rollout.rewards": ["verdict.py:verdict"]}
    values = changed(HPT, changes | {"rollout.reward_environment": ["RANK"]})
    del values["trainer"]["use_cpu"]
    told = _stopped_by_a_mistake(launch(write(tmp_path, values)))
    assert told == ["error: rank 1: row 3: cannot be verified."]
