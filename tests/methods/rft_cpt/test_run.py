"""A sequence of tasks that was stopped inside a stage, and which weights the divergence is measured from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from posttrain.run import run
from tests.config.recipes import write
from tests.methods.rft_cpt.test_plan import recipe, task
from tests.training.test_lineage import RIGHT

STEPS = 2


def prepared(folder: Path, **changes: Any) -> Path:
    """Two tasks by GRPO, with a checkpoint after every step."""
    (folder / "rewards.py").write_text(RIGHT)
    tasks = [{**task(name, seed), "verifier": "rewards.py:right"} for seed, name in enumerate(("parity", "prime"), 1)]
    values = recipe(tasks=tasks, **changes)
    values["trainer"] |= {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1, "logging_steps": 1}
    values["trainer"]["learning_rate"] = 0.01
    return write(folder, json.loads(json.dumps(values)))


def events(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "log"]


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def test_a_sequence_stopped_inside_a_stage_with_a_filter_ends_with_the_same_weights(tmp_path: Path):
    variant = {"name": "rif", "paradigm": "grpo", "rif": {"num_rollouts": 2, "max_new_tokens": 4}}
    path = prepared(tmp_path, paradigms=[variant])
    run(path)
    first, second = (tmp_path / "run" / f"rif-{place}" for place in ("1-parity", "2-prime"))
    ended, matrix = weights(second), json.loads((second / "eval.json").read_text())["after"]["continual"]
    begun, counted = (first / "metrics.jsonl").read_bytes(), (second / "rif" / "counts.json").stat().st_mtime_ns

    # What a kill after the first checkpoint of the second stage leaves.
    for name in ("model", f"checkpoint-{STEPS}"):
        shutil.rmtree(second / name)
    for name in ("finished.json", "eval.json"):
        (second / name).unlink()
    run(path)
    assert weights(second) == ended
    assert json.loads((second / "eval.json").read_text())["after"]["continual"] == matrix
    assert (first / "metrics.jsonl").read_bytes() == begun, "the finished stage is not trained again"
    assert (second / "rif" / "counts.json").stat().st_mtime_ns == counted, "nor are the rows rolled out again"


@pytest.mark.parametrize("reference", ["initial", "previous_task"])
def test_the_divergence_is_measured_from_the_reference_that_was_asked_for(reference: str, tmp_path: Path):
    run(prepared(tmp_path, paradigms=["grpo"], reference_model=reference, kl_coefficient=0.1))
    first, second = (events(tmp_path / "run" / f"grpo-{place}")[0] for place in ("1-parity", "2-prime"))
    assert first["kl"] == 0.0, "before the first update the model is its reference, whichever"
    if reference == "initial":
        assert second["kl"] > 1e-4
    else:
        assert second["kl"] == 0.0
