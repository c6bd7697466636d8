"""The score matrix of a sequence of stages, read from the evaluations in their folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.algorithms.score_matrix import ScoreMatrix
from posttrain.errors import DataError
from posttrain.reports.comparability import HARMLESS_SETTINGS


def matrix_of(
    root: Path,
    lineage: Mapping[str, Any],
    *,
    joint: Path | None = None,
    alone: Mapping[str, Path] | None = None,
    measure: str = "accuracy",
) -> ScoreMatrix:
    """Scores of one variant of `stages: {preset: continual}`.

    Args:
        root: folder of the run, which holds one folder a stage.
        lineage: `variant`, `order` and `general` of one of its stages.
        joint: folder of a stage that trained all tasks together; None = there is none.
        alone: task -> folder of the stage that trained this task from where the variants start; None = there are none.
        measure: number of an evaluation.

    Raises:
        DataError: a stage, or a score in it, is missing: (stage, task) is named. An evaluation is only a part of what
            was asked for, or was made with other settings than the others.
    """
    order = [str(task) for task in lineage["order"]]
    folders = [root / f"{lineage['variant']}-{number}-{task}" for number, task in enumerate(order, start=1)]
    others = [*([joint] if joint else []), *(alone or {}).values()]
    _refuse_uneven([(folders[0], "before"), *((folder, "after") for folder in [*folders, *others])])
    before, last = _scores(folders[0], "before", measure), _scores(folders[-1], "after", measure)
    rows = [_scores(folder, "after", measure) for folder in folders]
    together = None if joint is None else _scores(joint, "after", measure)
    return ScoreMatrix(
        tuple(order),
        tuple(_row(order, row, folder.name) for folder, row in zip(folders, rows, strict=True)),
        base=_row(order, before, f"before {folders[0].name}"),
        single=tuple(_cell(_scores(alone[task], "after", measure), task, alone[task].name) for task in order)
        if alone
        else None,
        joint=None if together is None or joint is None else _row(order, together, joint.name),
        general={
            name: (_cell(before, name, f"before {folders[0].name}"), _cell(last, name, folders[-1].name))
            for name in lineage.get("general") or []
        },
    )


def _scores(folder: Path, name: str, measure: str) -> dict[str, Any]:
    return {task: found.get(measure) for task, found in _evaluation(folder, name).get("tasks", {}).items()}


def _evaluation(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "eval.json"
    evals = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found: dict[str, Any] = evals.get(name, {})
    return found


def _refuse_uneven(cells: Sequence[tuple[Path, str]]) -> None:
    """DataError where evaluations do not go into one table; those that are missing are told by whoever reads them."""
    first: tuple[str, dict[str, Any]] | None = None
    for folder, name in cells:
        found = _evaluation(folder, name)
        for task, result in found.get("tasks", {}).items():
            if result.get("partial"):
                raise DataError(
                    "the evaluation was ended by its time budget",
                    where=f"score matrix, (stage, task) = ({folder.name!r}, {task!r})",
                    fix="Raise eval.time_budget_seconds and train the stage anew",
                )
        if not found:
            continue
        settings = {key: value for key, value in found.get("settings", {}).items() if key not in HARMLESS_SETTINGS}
        first = first or (folder.name, settings)
        changed = sorted(key for key in settings | first[1] if settings.get(key) != first[1].get(key))
        if changed:
            raise DataError(
                f"{first[0]} and {folder.name} were evaluated with different settings: {', '.join(changed)}",
                where="score matrix",
                got=f"{folder.name}: " + ", ".join(f"{key} {settings.get(key)}" for key in changed),
                fix="Restore the eval block, or train the stages anew with trainer.resume: never",
            )


def _row(order: Sequence[str], scores: Mapping[str, Any], stage: str) -> tuple[float, ...]:
    return tuple(_cell(scores, task, stage) for task in order)


def _cell(scores: Mapping[str, Any], task: str, stage: str) -> float:
    value = scores.get(task)
    if value is None:
        where = f"score matrix, (stage, task) = ({stage!r}, {task!r})"
        raise DataError("the score is missing", where=where, fix="Run the recipe to its end: posttrain train")
    return float(value)
