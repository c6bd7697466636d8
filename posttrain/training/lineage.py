"""Where the model of a stage comes from: the stages it went through, in `run.json` and on the model card.

Also the metrics of a finished sequence of tasks, beside its last evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.algorithms.score_matrix import all_metrics
from posttrain.errors import DataError, ResumeError
from posttrain.methods.unlearning_paths.findings import curve, level_steps, stage_numbers, steps_to_return
from posttrain.reports.markdown import escape, table
from posttrain.reports.provenance import weights_sha256
from posttrain.reports.records import read_metrics, write_atomic, write_json
from posttrain.reports.run_report import AFTER, RunFolder
from posttrain.reports.sequences import matrix_of
from posttrain.training.resuming import set_aside

CARD = "README.md"


def lineage(
    config: Any, *, name: str, parent: Path | None, data: Mapping[str, Any], filtered: Mapping[str, Any] | None
) -> list[dict[str, Any]] | None:
    """The stages that a model went through, this one last; None for a recipe without stages.

    Args:
        config: of the stage.
        name: of the stage.
        parent: folder of the model it starts from.
        data: fingerprints of its rows.
        filtered: what a filter of the training rows kept.

    Returns:
        For each: stage, method, seed, training rows with their hash, hash of the parent's weights, and what the preset
        says (arm, task, place, order).
    """
    if config.stage is None:
        return None
    before = RunFolder(parent.parent).read_run().get("lineage", []) if parent is not None else []
    train = data["train"]
    own = {
        "stage": name,
        "method": config.method.name,
        "seed": config.trainer.seed,
        "data": {"rows": train["rows"], "sha256": train["sha256"]},
        "parent": None if parent is None else {"stage": parent.parent.name, "sha256": weights_sha256(parent)},
        **(config.stage.lineage or {}),
        **({"rif": dict(filtered)} if filtered is not None else {}),
    }
    return [*before, own]


def write_model_card(folder: Path, run: Mapping[str, Any]) -> None:
    """Write the lineage of a stage's model beside its weights; a card that is there already is kept in front."""
    rows = []
    for item in run.get("lineage", []):
        parent = item["parent"]
        start = "the model of the recipe" if parent is None else f"{parent['stage']}, SHA-256 {parent['sha256'][:16]}"
        trained = f"{item['data']['rows']} rows, SHA-256 {item['data']['sha256'][:16]}"
        rows.append([item["stage"], item["method"], item.get("task") or "", str(item["seed"]), trained, start])
    heads = ["stage", "method", "task", "seed", "trained on", "starts from"]
    text = table(heads, [[escape(cell) for cell in row] for row in rows]).replace("---:", ":---")
    orders = [item["order"] for item in run.get("lineage", []) if item.get("order")]
    order = f"\nOrder of the tasks: {', '.join(map(escape, orders[-1]))}.\n" if orders else ""
    path = folder / CARD
    written = path.read_text(encoding="utf-8") if path.exists() else ""
    before = written.partition("## Lineage")[0].rstrip()  # a stage that was continued after its end writes again
    before += "\n\n" if before else ""
    write_atomic(path, f"{before}## Lineage\n\n{text}\n{order}")


def refuse_changed_order(config: Any, folder: Path, *, is_main: bool = True) -> None:
    """Raise ResumeError where the same arm was begun with its tasks in another order.

    With `trainer.resume: never` the main process sets those runs aside instead.
    """
    own = config.stage.lineage if config.stage is not None else None
    anew = config.trainer.resume == "never"
    if not own or "order" not in own or (anew and not is_main):
        return
    for path in sorted(folder.parent.glob("*/run.json")):
        recorded = (json.loads(path.read_text(encoding="utf-8")).get("lineage") or [{}])[-1]
        if recorded.get("arm") == own["arm"] and recorded.get("order") not in (None, own["order"]):
            if anew:
                set_aside(path.parent)
                continue
            raise ResumeError(
                "the sequence was begun with its tasks in another order",
                where=str(path.parent),
                got=own["order"],
                allowed=str(recorded["order"]),
                fix="Restore the order, set another trainer.output_dir, or trainer.resume: never to start anew",
            )


def write_metrics(config: Any, folder: Path) -> str | None:
    """Put the metrics of a sequence under `continual` in the evaluation after its last stage.

    Those of a stage that unlearns, or learns again, stand under `unlearning` in the evaluation after it. A metric
    that is not defined is left out. Returns why there are none, where a score of an earlier stage is missing.
    """
    own = config.stage.lineage if config.stage is not None else None
    if own and own.get("role") in ("unlearn", "relearn"):
        _write_unlearning(config, own, folder)
        return None
    if not own or own.get("apart") or not own.get("order") or own.get("position") != len(own["order"]):
        return None
    run = RunFolder(folder)
    evals = run.read_evals()
    if AFTER not in evals:
        return None
    try:
        found = all_metrics(matrix_of(folder.parent, own))
    except DataError as error:
        return f"no metrics of the sequence {own['arm']}: {error}"
    values = {name: metric.value for name, metric in found.items() if metric.value is not None}
    write_json(run.eval_path, {**evals, AFTER: {**evals[AFTER], "continual": values}})
    return None


def _write_unlearning(config: Any, own: Mapping[str, Any], folder: Path) -> None:
    """Numbers of a stage that unlearns, or how soon one that learns again has brought it back."""
    run, sets = RunFolder(folder), list(config.data.probes or {})
    evals, events = run.read_evals(), read_metrics(run.metrics_path)
    if AFTER not in evals:
        return
    values: dict[str, Any] = stage_numbers(events, forget=own["forget"], sets=sets)
    name = f"answers/{own['forget']}_logp"
    if own["role"] == "unlearn":
        retrained = curve(read_metrics(RunFolder(folder.parent / own["retrained"]).metrics_path), name)
        points = curve(events, name)
        if retrained and points:
            values |= level_steps(points, retrained[-1][1])
    if own["role"] == "relearn":
        origin = read_metrics(RunFolder(folder.parent / own["of"]).metrics_path)
        before = stage_numbers(origin, forget=own["forget"], sets=sets)
        values = {"final_logp": values["final_logp"]} if values else {}
        points = curve(events, name)
        if own["unlearned"] and before:
            lost = {"initial": before["initial_logp"], "unlearned": before["final_logp"]}
            steps = steps_to_return(points, **lost, fraction=own["fraction"])
            values |= {} if steps is None else {"steps_to_relearn": steps}
    write_json(run.eval_path, {**evals, AFTER: {**evals[AFTER], "unlearning": values}})
