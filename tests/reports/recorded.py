"""Run folders as a training leaves them, with results chosen by the test, through the code that writes real ones."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from posttrain.evaluation.results import EvalResult, EvalSettings, summarise, summarise_groups
from posttrain.reports.run_report import RunFolder

CONFIG: dict[str, Any] = {
    "method": {"name": "grpo"},
    "model": {"tiny": {"hidden_size": 32, "seed": 0}},
    "data": {"train": {"task": "arithmetic", "seed": 3}, "eval": {"task": "arithmetic", "seed": 4}},
    "rollout": {"num_generations": 4, "rewards": ["exact"]},
    "trainer": {"max_steps": 4, "seed": 0, "learning_rate": 0.001, "output_dir": "x"},
    "eval": {"num_prompts": 4},
    "stage": "run",
    "start_from": None,
}


def sample(index: int, correct: bool | None, *, prompt: str = "", completion: str = "c", length: int = 2) -> dict:
    return {
        "index": index,
        "sample": 0,
        "prompt": prompt or f"question {index}",
        "answer": str(index),
        "group": None,
        "completion": completion,
        "correct": correct,
        "length": length,
        "truncated": False,
        "failed": None,
    }


def result(verdicts: list[bool | None], *, requested: int | None = None, **more: Any) -> EvalResult:
    """An evaluation of prompts 0, 1, 2 … with these verdicts."""
    samples = [sample(index, correct, **more) for index, correct in enumerate(verdicts)]
    return EvalResult(
        **vars(summarise(samples)),
        num_requested=requested or len(samples),
        num_tokens=2 * len(samples),
        seconds=1.5,
        partial=requested is not None,
        per_group=summarise_groups(samples),
        samples=samples,
    )


def verdicts(right: int, of: int = 4) -> list[bool | None]:
    return [index < right for index in range(of)]


def record(
    folder: Path,
    *,
    seed: int = 0,
    before: int | None = 1,
    after: int | list[bool | None] | EvalResult | None = 3,
    steps: int = 4,
    config: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    eval_sha: str = "e" * 64,
    settings: EvalSettings | None = None,
    **more: Any,
) -> Path:
    """Write the files of a run.

    Args:
        folder: of the run.
        seed: of trainer and model.
        before: prompts of 4 solved before training; None = not evaluated.
        after: the same after training, or the verdicts, or the evaluation; None = unfinished.
        steps: that were logged.
        config: dotted values that replace those of `CONFIG`.
        metrics: value of each logged metric; a counter `cost/...` is multiplied by the step.
        eval_sha: fingerprint of the evaluation data.
        settings: of the evaluation.
        more: of the samples after training.
    """
    values = copy.deepcopy(CONFIG)
    wanted = {"trainer.seed": seed, "model.tiny.seed": seed, "trainer.output_dir": str(folder), **(config or {})}
    for path, value in wanted.items():
        *blocks, key = path.split(".")
        place = values
        for block in blocks:
            place = place.setdefault(block, {})
        place[key] = value
    run = RunFolder(folder)
    data = {"train": {"rows": 9, "sha256": "a" * 64}, "eval": {"rows": 4, "sha256": eval_sha}}
    run.write_run(
        values,
        data=data,
        seeds={"trainer": seed, "data": seed},
        world={"num_processes": 1},
        argv=["posttrain", "train"],
    )
    settings = settings or EvalSettings(num_prompts=4, max_new_tokens=8)
    if before is not None:
        run.write_eval("before", result(verdicts(before)), step=0, settings=settings)
    lines = [{"event": "start", "step": 0, "elapsed_seconds": 0.0, "max_steps": values["trainer"]["max_steps"]}]
    for step in range(1, steps + 1):
        logged = {
            name: value * step if name.startswith("cost/") else value
            for name, value in (metrics or {"loss": 1.0}).items()
        }
        lines.append({"event": "log", "step": step, "elapsed_seconds": 2.0 * step, **logged})
    run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if after is not None:
        found = verdicts(after) if isinstance(after, int) else after
        evaluated = found if isinstance(found, EvalResult) else result(found, **more)
        run.write_eval("after", evaluated, step=steps, settings=settings)
    return folder
