"""Where the model of a stage comes from: the stages it went through, in `run.json` and on the model card.

Also what a preset makes of the results of its stages, beside the last evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain import registry
from posttrain.errors import DataError, ResumeError
from posttrain.reports.markdown import escape, table
from posttrain.reports.provenance import weights_sha256
from posttrain.reports.records import write_atomic, write_json
from posttrain.reports.run_report import AFTER, RunFolder
from posttrain.training.resuming import set_aside

CARD = "README.md"


def lineage(
    config: Any, *, name: str, parent: Path | None, data: Mapping[str, Any], added: Mapping[str, Any]
) -> list[dict[str, Any]] | None:
    """The stages that a model went through, this one last; None for a recipe without stages.

    Args:
        config: of the stage.
        name: of the stage.
        parent: folder of the model it starts from.
        data: fingerprints of its rows.
        added: key of the stage -> what its step has made of the training rows.

    Returns:
        For each: stage, method, seed, training rows with their hash, hash of the parent's weights, and what the preset
        says (variant, task, place, order).
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
        **added,
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
    """Raise ResumeError where the same variant was begun with its tasks in another order.

    With `trainer.resume: never` the main process sets those runs aside instead.
    """
    own = config.stage.lineage if config.stage is not None else None
    anew = config.trainer.resume == "never"
    if not own or "order" not in own or (anew and not is_main):
        return
    for path in sorted(folder.parent.glob("*/run.json")):
        recorded = (json.loads(path.read_text(encoding="utf-8")).get("lineage") or [{}])[-1]
        if recorded.get("variant") == own["variant"] and recorded.get("order") not in (None, own["order"]):
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


def write_outcome(config: Any, folder: Path) -> str | None:
    """Put what the preset of a stage makes of its results beside the last evaluation.

    Numbers that are not defined are left out. Returns why there are none, where something of an earlier stage is
    missing.
    """
    own = config.stage.lineage if config.stage is not None else None
    method, _ = registry.declared("plans").get((own or {}).get("preset", ""), (None, ""))
    run = RunFolder(folder)
    evals = run.read_evals()
    if method is None or method.outcome is None or AFTER not in evals:
        return None
    try:
        values = method.load(method.outcome)(config, folder, own)
    except DataError as error:
        return str(error)
    if values:
        write_json(run.eval_path, {**evals, AFTER: {**evals[AFTER], **values}})
    return None
