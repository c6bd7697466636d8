"""Evaluation of several named tasks: what stands in eval.json, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.run import run
from tests.config.recipes import REMOVE, SFT, changed, checked, told, write

DIGITS = {"task": "arithmetic", "size": 8, "seed": 2, "options": {"split": "eval"}}
CLASSES = {"task": "digit_class", "size": 6, "seed": 4, "options": {"split": "eval"}, "verifier": "one_of"}
TASKS = {"digits": {**DIGITS, "verifier": "exact"}, "classes": CLASSES}


def test_every_task_is_evaluated_before_and_after_by_its_own_verifier(tmp_path: Path):
    tasks = json.loads(json.dumps(TASKS))  # no object twice: a recipe has no aliases
    changes = {"data.eval": DIGITS, "data.eval_tasks": tasks, "trainer.max_steps": 1, "eval.num_prompts": 5}
    run(write(tmp_path, changed(SFT, {**changes, "trainer.save_strategy": "no"})))
    evals = json.loads((tmp_path / "run" / "eval.json").read_text())
    for name, entry in evals.items():
        assert set(entry["tasks"]) == {"digits", "classes"}
        # The rows and verifier of "digits" are those of data.eval: one evaluation, told twice.
        assert entry["tasks"]["digits"]["accuracy"] == entry["accuracy"]
        assert entry["tasks"]["digits"]["seconds"] == entry["seconds"]
        for task, found in entry["tasks"].items():
            assert found["num_prompts"] == 5 and 0 <= found["accuracy"] <= 1 and found["accuracy_stderr"] is not None
            lines = (tmp_path / "run" / "completions" / f"{name}.{task}.jsonl").read_text().splitlines()
            assert len(lines) == 5
        groups = set(entry["tasks"]["classes"]["per_group"])
        assert groups <= {"parity", "half", "remainder", "prime"} and groups
    data = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert set(data) == {"train", "eval", "task digits", "task classes"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.eval": REMOVE, "eval": None, "data.eval_tasks": TASKS}, "further tasks stand beside data.eval"),
        ({"data.eval_tasks": {"one": {**DIGITS, "verifier": "exat"}}}, "unknown reward"),
        ({"data.eval_tasks": {"one": {"task": "arithmetic"}}}, "generated rows need a number"),
        ({"data.eval_tasks": {"one": {**CLASSES, "options": {"rules": "odd"}}}}, "unknown value"),
    ],
)
def test_tasks_that_cannot_be_evaluated_are_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    from posttrain.config.loader import load
    from posttrain.errors import ConfigError

    if message == "unknown value":  # known when the rows are made
        assert message in told(checked(tmp_path, "sft", changes))
        return
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, changed(SFT, changes)))


def test_a_task_with_prompts_of_training_is_warned_about(tmp_path: Path):
    rows = {"task": "arithmetic", "size": 8, "seed": 1, "verifier": "exact"}
    report = checked(tmp_path, "sft", {"data.eval_tasks": {"seen": rows}})
    assert any("data.eval_tasks.seen" in str(w) and "training prompts too" in str(w) for w in report.warnings)
